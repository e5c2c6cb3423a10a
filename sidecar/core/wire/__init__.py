"""AMQP as bytes: frames, properties, headers, names."""
