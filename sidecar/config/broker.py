"""From settings to what the side of RabbitMQ wants: for commands, and for the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.amqp.connection import ConnectOptions
from sidecar.amqp.session import SessionOptions
from sidecar.amqp.topology import Topology
from sidecar.tls import client_context

if TYPE_CHECKING:
    from sidecar.config.settings import AmqpSettings, Settings


def topology(settings: AmqpSettings) -> Topology:
    """Return what to declare on the broker."""
    return Topology(
        queues=settings.amqp_queue,
        declare=settings.amqp_declare != "never",
        declares_work=settings.amqp_declare == "missing",
        queue_type=settings.amqp_queue_type,
        queue_arguments=settings.amqp_queue_arguments,
        exchange=settings.amqp_exchange,
        exchange_type=settings.amqp_exchange_type,
        routing_keys=settings.amqp_routing_keys,
        binding_arguments=settings.amqp_binding_arguments,
        dead_letter_exchange=settings.dead_letter_exchange,
        dead_letter_routing_key=settings.dead_letter_routing_key,
    )


def sink_urls(settings: Settings) -> tuple[str, ...]:
    """Return where messages are published to (``SIDECAR_SINK=amqp``)."""
    return tuple(url.get_secret_value() for url in settings.sink_amqp_url or settings.amqp_url)


def sink_topology(settings: Settings) -> Topology:
    """Return what to declare there."""
    return Topology(
        declare=settings.amqp_declare != "never",
        declares_work=settings.amqp_declare == "missing",
        exchange=settings.sink_exchange or None,
        exchange_type=settings.sink_exchange_type,
        publishes=True,
    )


def connect_options(settings: AmqpSettings) -> ConnectOptions:
    """Return how to reach RabbitMQ, but for its URLs.

    Raises:
        ConfigError: a file for TLS can't be used.
    """
    files = (settings.amqp_ca_file, settings.amqp_cert_file, settings.amqp_key_file)
    if not any(files):
        return ConnectOptions()
    ca_file, cert_file, key_file = files
    context = client_context(prefix="SIDECAR_AMQP", ca_file=ca_file, cert_file=cert_file, key_file=key_file)
    return ConnectOptions(tls=context, client_certificate=cert_file is not None)


def connecting(settings: AmqpSettings) -> SessionOptions:
    """Return how to reach RabbitMQ and what to consume."""
    return SessionOptions(
        topology=topology(settings),
        consumer_arguments=settings.amqp_consumer_arguments,
        connect=connect_options(settings),
    )
