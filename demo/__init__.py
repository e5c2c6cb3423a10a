"""A demonstration that checks itself: real servers, the sidecar as a process, sample messages, and an account.

=========== ======================================================================
module      what it does
=========== ======================================================================
`servers`   RabbitMQ and Elasticsearch, by Docker Compose or as native processes
`sidecar`   the sidecar as a child process
`findings`  what is found in the end: documents, dead letters, queue lengths
`checks`    what must be found, and whether it is
`show`      what a person sees, on a terminal or in a log
=========== ======================================================================
"""
