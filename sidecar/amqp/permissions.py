"""What a user may do on the broker, found out without doing it, for ``sidecar check``.

RabbitMQ tells nobody their permissions: it refuses. It looks at them first and at arguments after that, so each right
is asked for with something that can't come about: a queue with a negative time to live, an exchange whose alternate is
a number, a consumer whose priority is none, a binding that isn't there, a message that no queue takes. Whoever has the
right is refused for that (or nothing happens), whoever hasn't for the right.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from aiormq.exceptions import AMQPError, ChannelAccessRefused

from sidecar.amqp.topology import quorum_arguments
from sidecar.core.wire.names import delay_queue

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from sidecar.amqp.channels import Ask
    from sidecar.amqp.topology import Topology
    from sidecar.core.findings import Severity

Permission = Literal["configure", "write", "read"]

_DEFAULT_EXCHANGE = "amq.default"
_NO_ALTERNATE: dict[str, Any] = {"alternate-exchange": 1}
_NO_PRIORITY = {"x-priority": "none"}
_DELAY_MILLISECONDS = 10_000


@dataclass(frozen=True, slots=True)
class MissingPermission:
    """A right that is wanting.

    Attributes:
        permission: as ``rabbitmqctl set_permissions`` knows it.
        resource: the name that its pattern has to match.
        where: that, for people.
        consequence: what comes of it.
        severity: whether nothing works without it.
    """

    permission: Permission
    resource: str
    where: str
    consequence: str
    severity: Severity = "problem"


async def missing_permissions(ask: Ask, topology: Topology, *, publishes: bool) -> list[MissingPermission]:
    """Return the rights that are wanting; nothing is created, consumed, bound or stored.

    Args:
        ask: acts on a channel and returns the refusal, None where there is none.
        topology: what the sidecar declares.
        publishes: rejects are published, not left to the broker.
    """
    lacks: list[MissingPermission | None] = []
    work = replace(topology, declare=topology.creates_work)
    for queue in dict.fromkeys(topology.queues):
        lacks.append(await _queue(ask, work, queue, "nothing can be consumed"))
        if not topology.dead_letter_exchange:
            lacks.append(await _dead_letters(ask, topology, topology.dead_letter_key(queue)))
        if topology.declare:
            delay = delay_queue(queue, _DELAY_MILLISECONDS)
            lacks.append(await _queue(ask, topology, delay, "messages that have to wait can't go round by it"))
        if topology.creates_work:
            lacks.append(await _binding(ask, topology, queue))
    if topology.exchange and await _is_absent(ask, topology.exchange):
        lacks.append(await _creating(ask, topology, topology.exchange, "the sidecar doesn't start"))
    lacks.append(await _default_exchange(ask))
    if topology.dead_letter_exchange and publishes:
        lacks.append(await _dead_letter_exchange(ask, topology.dead_letter_exchange))
    return list(dict.fromkeys(missing_permission for missing_permission in lacks if missing_permission is not None))


async def missing_publish_permissions(ask: Ask, topology: Topology) -> MissingPermission | None:
    """Return the right that is wanting to publish to an exchange (``SIDECAR_SINK=amqp``), or to create it.

    Args:
        ask: acts on a channel and returns the refusal, None where there is none.
        topology: with the exchange; without one it is the default exchange.
    """
    exchange = topology.exchange
    consequence = "nothing can be published"
    if not exchange:
        missing_permission = await _default_exchange(ask)
        return replace(missing_permission, consequence=consequence) if missing_permission is not None else None
    where = f"exchange {exchange!r}"
    if await _is_absent(ask, exchange):
        return await _creating(ask, topology, exchange, consequence)
    return await _publishing(ask, exchange, where, consequence)


async def _is_absent(ask: Ask, exchange: str) -> bool:
    return await ask(lambda channel: channel.exchange_declare(exchange=exchange, passive=True)) is not None


async def _creating(ask: Ask, topology: Topology, exchange: str, consequence: str) -> MissingPermission | None:
    """Return the right that is missing to create an exchange."""
    if not topology.creates_work:  # which is a problem of its own
        return None
    kind = topology.exchange_type
    refusal = await ask(
        lambda channel: channel.exchange_declare(exchange=exchange, exchange_type=kind, arguments=_NO_ALTERNATE)
    )
    if not isinstance(refusal, ChannelAccessRefused):
        return None
    where = f"exchange {exchange!r}"
    return MissingPermission("configure", exchange, where, f"it is absent, and can't be created: {consequence}")


async def _queue(ask: Ask, topology: Topology, name: str, consequence: str) -> MissingPermission | None:
    """Return the right that is wanting to have a queue and to read it."""
    where = f"queue {name!r}"
    is_there = await ask(lambda channel: channel.queue_declare(name, passive=True)) is None
    if is_there:
        refusal = await ask(lambda channel: channel.basic_consume(name, _ignore, arguments=_NO_PRIORITY))  # type: ignore[arg-type]
        return (
            MissingPermission("read", name, where, consequence) if isinstance(refusal, ChannelAccessRefused) else None
        )
    if not topology.declare:  # which is a problem of its own
        return None
    impossible = quorum_arguments() | {"x-message-ttl": -1}
    refusal = await ask(lambda channel: channel.queue_declare(name, durable=True, arguments=impossible))  # type: ignore[arg-type]
    if isinstance(refusal, ChannelAccessRefused):
        return MissingPermission("configure", name, where, f"it is absent, and can't be created: {consequence}")
    # Of a queue that names a dead-letter exchange, it is looked whether it may be read, and then that written to.
    routed = impossible | {"x-dead-letter-exchange": ""}
    refusal = await ask(lambda channel: channel.queue_declare(name, durable=True, arguments=routed))  # type: ignore[arg-type]
    if isinstance(refusal, ChannelAccessRefused) and _is_about(refusal, "queue", name):
        return MissingPermission("read", name, where, consequence)
    return None


async def _dead_letters(ask: Ask, topology: Topology, name: str) -> MissingPermission | None:
    """Return the right that is wanting for dead letters: `sidecar run` doesn't read them, others do."""
    missing_permission = await _queue(ask, topology, name, "`sidecar dlq` can't look at the dead letters")
    if missing_permission is not None and missing_permission.permission == "configure":
        return replace(missing_permission, consequence="it is absent, and can't be created: the sidecar doesn't start")
    return replace(missing_permission, severity="note") if missing_permission is not None else None


async def _binding(ask: Ask, topology: Topology, queue: str) -> MissingPermission | None:
    """Return the right that is wanting to bind a queue: that to write to it, or to read the exchange."""
    exchange = topology.exchange
    if not exchange:
        return None
    refusal = await ask(lambda channel: channel.queue_unbind(queue, exchange, _nonexistent_name()))
    if not isinstance(refusal, ChannelAccessRefused):
        return None
    consequence = f"the queue {queue!r} can't be bound to the exchange {exchange!r}"
    if _is_about(refusal, "queue", queue):
        return MissingPermission("write", queue, f"queue {queue!r}", consequence)
    return MissingPermission("read", exchange, f"exchange {exchange!r}", consequence)


async def _default_exchange(ask: Ask) -> MissingPermission | None:
    """Return whether copies for the dead-letter and delay queues can be published: those go by the queue's name."""

    async def publish(channel: AbstractChannel) -> None:
        await channel.basic_publish(b"", exchange="", routing_key=_nonexistent_name(), mandatory=True)
        await channel.basic_qos(prefetch_count=1)  # an answer that comes after that to the message

    refusal = await ask(publish)
    if not isinstance(refusal, ChannelAccessRefused):
        return None
    consequence = "no dead letter and no delayed message can be published, and the first one holds the others up"
    return MissingPermission("write", _DEFAULT_EXCHANGE, "the default exchange", consequence)


async def _dead_letter_exchange(ask: Ask, exchange: str) -> MissingPermission | None:
    consequence = "no dead letter can be published, and the first one holds the others up"
    return await _publishing(ask, exchange, f"dead-letter exchange {exchange!r}", consequence)


async def _publishing(ask: Ask, exchange: str, where: str, consequence: str) -> MissingPermission | None:
    """Return whether messages may be published to an exchange, without one: to bind it takes the same right."""
    source = next(name for name in ("amq.direct", "amq.fanout") if name != exchange)
    refusal = await ask(
        lambda channel: channel.exchange_unbind(destination=exchange, source=source, routing_key=_nonexistent_name())
    )
    if not isinstance(refusal, ChannelAccessRefused) or not _is_about(refusal, "exchange", exchange):
        return None
    return MissingPermission("write", exchange, where, consequence)


def _is_about(refusal: AMQPError, kind: str, name: str) -> bool:
    """Tell whether a queue or exchange is what is refused. Older brokers name the resource, and not the right."""
    return f"access to {kind} '{name}' " in str(refusal)


def _nonexistent_name() -> str:
    return f"sidecar-check-{secrets.token_hex(8)}"


async def _ignore(_: object) -> None:
    """Nothing is consumed."""
