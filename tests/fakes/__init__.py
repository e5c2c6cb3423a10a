"""A simulated RabbitMQ, a simulated Elasticsearch and a clock that costs no time, behind the ports of the product.

The contract tests (`tests.contract`) hold them to the real servers.
"""
