"""Real RabbitMQ and Elasticsearch servers for the demo, the tests and the benchmarks, without Docker.

Standard library only: ``make`` uses it with the system's Python before the virtual environment exists.

=============== ================================================================
module          what it does
=============== ================================================================
`provision`     makes what is missing present (apt, Maven), or says what to do
`rabbitmq`      a private RabbitMQ node as a plain process
`elasticsearch` a private Elasticsearch node as a plain process
`compose`       the same two by Docker Compose, where an engine answers
`processes`     what the two nodes share: ports, folders, process groups, clean-up
=============== ================================================================
"""
