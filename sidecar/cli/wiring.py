"""From settings to what the parts want, where more than one command needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.amqp.topology import Topology

if TYPE_CHECKING:
    from sidecar.settings import AmqpSettings


def topology(settings: AmqpSettings) -> Topology:
    """Return what to declare on the broker."""
    return Topology(
        queues=settings.amqp_queue,
        declare=settings.amqp_declare == "missing",
        queue_type=settings.amqp_queue_type,
        queue_arguments=settings.amqp_queue_arguments,
        exchange=settings.amqp_exchange,
        exchange_type=settings.amqp_exchange_type,
        routing_keys=settings.amqp_routing_keys,
        binding_arguments=settings.amqp_binding_arguments,
        dead_letter_exchange=settings.dead_letter_exchange,
        dead_letter_routing_key=settings.dead_letter_routing_key,
    )
