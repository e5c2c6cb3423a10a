"""RabbitMQ at the wire: the only home of aiormq and pamqp."""
