"""From RabbitMQ queues to Elasticsearch by `_bulk`, with a verdict for each message."""

__version__ = "0.1.0"
