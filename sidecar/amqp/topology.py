"""What the sidecar needs on the broker: its queues, their dead-letter queues, an exchange to bind to.

Under ``missing`` what exists is left as it is, whatever its arguments: it is looked for (passively) first, and declared
only when it isn't there. Each look has a channel of its own, for a no closes the channel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiormq.exceptions import AMQPError, ChannelClosed, ChannelNotFoundEntity

from sidecar.errors import BrokerError, BrokerRefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiormq.abc import AbstractChannel, AbstractConnection

_OTHER_LIMIT = re.compile(r"inequivalent arg 'x-delivery-limit'.*current is (?:the value '(-?\d+)'|none)", re.DOTALL)
_LOW_DELIVERY_LIMIT = 100
_DEFAULT_DELIVERY_LIMIT = 20
_FIRST_WITH_LIMIT = 4  # of RabbitMQ's versions
_UNLIMITED_DELIVERIES = 1_000_000_000
"""Quorum queues drop a message at its 21st delivery by default (since 4.0); -1 isn't understood by all versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What to declare; the meaning of each is that of the setting of its name.

    Attributes:
        declare: something may be created; without it everything must be there.
        declares_work: work queues, the exchange and bindings may be created too. Otherwise they are the producer's, and
            only dead-letter and delay queues are the sidecar's own.
        publishes: messages are published to the exchange: where it isn't declared, it must be there.
    """

    queues: tuple[str, ...] = ()
    declare: bool = True
    declares_work: bool = True
    queue_type: str = "quorum"
    queue_arguments: dict[str, object] = field(default_factory=dict)
    exchange: str | None = None
    exchange_type: str = "direct"
    routing_keys: tuple[str, ...] = ()
    binding_arguments: dict[str, object] = field(default_factory=dict)
    dead_letter_exchange: str = ""
    dead_letter_routing_key: str | None = None
    publishes: bool = False

    @property
    def creates_work(self) -> bool:
        """Whether work queues, the exchange and bindings are created where they are absent."""
        return self.declare and self.declares_work

    @property
    def setting(self) -> str:
        """What says that they aren't."""
        return f"SIDECAR_AMQP_DECLARE={'own' if self.declare else 'never'}"


async def declare(connection: AbstractConnection, topology: Topology) -> bool:
    """Create what is absent, or, without `Topology.declare`, see that the queues are there.

    Returns:
        Whether a queue was created: messages in it are safe after `sidecar.ports.DURABLE_SECONDS`.

    Raises:
        BrokerError: something is missing and not to be declared, or the broker refused.
    """
    created = False
    for queue in topology.queues:
        if topology.declare and not topology.declares_work:
            await _require_queue(connection, queue)
        else:
            created |= await _ensure_queue(connection, topology, queue, work_arguments(topology))
        if not topology.dead_letter_exchange:  # the default exchange: the routing key is a queue's name
            dead = topology.dead_letter_routing_key or f"{queue}.dead"
            created |= await _ensure_queue(connection, topology, dead, quorum_arguments())
    if topology.dead_letter_exchange:
        name = topology.dead_letter_exchange
        why = f"the dead-letter exchange {name!r} doesn't exist; declare it, or unset SIDECAR_DEAD_LETTER_EXCHANGE"
        await _require_exchange(connection, name, why)
    if topology.exchange and topology.publishes and not topology.creates_work:
        await _require_exchange(
            connection,
            topology.exchange,
            f"the exchange {topology.exchange!r} doesn't exist, and {topology.setting} forbids to create it",
        )
    if topology.exchange and topology.creates_work:
        await _ensure_exchange(connection, topology, topology.exchange)
        for queue in topology.queues:
            await _bind(connection, topology, topology.exchange, queue)
    return created


async def declare_delay_queue(
    connection: AbstractConnection, topology: Topology, queue: str, milliseconds: int
) -> None:
    """See that there is a queue that gives messages back to `queue` after a time, losing none on the way.

    Quorum queues dead-letter at least once only with this strategy, and only while they refuse what they can't take.

    Raises:
        BrokerRefusedError: it is missing and not to be declared, or the broker refused.
        BrokerError: the connection was lost.
    """
    await _ensure_queue(connection, topology, delay_queue(queue, milliseconds), delay_arguments(queue, milliseconds))


def delay_queue(queue: str, milliseconds: int) -> str:
    """Return the name of the queue in which messages of `queue` wait."""
    return f"{queue}.delay.{milliseconds}"


def delay_arguments(queue: str, milliseconds: int) -> dict[str, object]:
    """Return the arguments of a queue that gives messages back to `queue` after a time."""
    return quorum_arguments() | {
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def quorum_arguments() -> dict[str, object]:
    """Return the arguments of a quorum queue that never drops what comes back."""
    return {"x-queue-type": "quorum", "x-delivery-limit": _UNLIMITED_DELIVERIES}


def work_arguments(topology: Topology) -> dict[str, object]:
    """Return the arguments of a work queue."""
    base = quorum_arguments() if topology.queue_type == "quorum" else {"x-queue-type": topology.queue_type}
    return {**base, **topology.queue_arguments}


async def low_delivery_limit(connection: AbstractConnection, queue: str) -> int | None:
    """Return the delivery limit of a quorum queue, where there is one so low that long outages may reach it.

    The protocol tells nobody the arguments of a queue, but in the refusal to declare it with others.
    """
    channel = await connection.channel(publisher_confirms=False)
    try:
        await channel.queue_declare(queue, durable=True, arguments=quorum_arguments())  # type: ignore[arg-type]
    except AMQPError as error:
        refusal = _OTHER_LIMIT.search(str(error))
        if refusal is None:
            return None
        limit = int(refusal[1]) if refusal[1] else _default_delivery_limit(connection)
        return limit if limit is not None and 0 <= limit < _LOW_DELIVERY_LIMIT else None
    await channel.close()
    return None


def _default_delivery_limit(connection: AbstractConnection) -> int | None:
    version = str(connection.server_properties.get("version", "")).partition(".")[0]
    return _DEFAULT_DELIVERY_LIMIT if version.isdigit() and int(version) >= _FIRST_WITH_LIMIT else None


async def _ensure_queue(
    connection: AbstractConnection, topology: Topology, name: str, arguments: dict[str, object]
) -> bool:
    """See that a queue is there; return whether it was created."""
    if await _found(connection, lambda channel: channel.queue_declare(name, passive=True)):
        return False
    if not topology.declare:
        raise BrokerRefusedError(
            f"the queue {name!r} doesn't exist, and SIDECAR_AMQP_DECLARE=never forbids to create it"
        )
    await _do(
        connection,
        f"declare the queue {name!r}",
        lambda channel: channel.queue_declare(name, durable=True, arguments=arguments),  # type: ignore[arg-type]
    )
    return True


async def _require_queue(connection: AbstractConnection, name: str) -> None:
    """See that the queue is there that its producer declares."""
    if not await _found(connection, lambda channel: channel.queue_declare(name, passive=True)):
        raise BrokerError(
            f"the queue {name!r} doesn't exist yet: with SIDECAR_AMQP_DECLARE=own its producer declares it, and the "
            "sidecar waits for that"
        )


async def _require_exchange(connection: AbstractConnection, name: str, otherwise: str) -> None:
    """See that an exchange is there: publishing to one that isn't closes the channel, again and again."""
    if not await _found(connection, lambda channel: channel.exchange_declare(exchange=name, passive=True)):
        raise BrokerError(otherwise)


async def _ensure_exchange(connection: AbstractConnection, topology: Topology, name: str) -> None:
    if await _found(connection, lambda channel: channel.exchange_declare(exchange=name, passive=True)):
        return
    await _do(
        connection,
        f"declare the exchange {name!r}",
        lambda channel: channel.exchange_declare(exchange=name, exchange_type=topology.exchange_type, durable=True),
    )


async def _bind(connection: AbstractConnection, topology: Topology, exchange: str, queue: str) -> None:
    for routing_key in topology.routing_keys or (queue,):
        await _do(
            connection,
            f"bind the queue {queue!r} to the exchange {exchange!r}",
            lambda channel, key=routing_key: channel.queue_bind(  # type: ignore[misc]
                queue, exchange, key, arguments=topology.binding_arguments
            ),
        )


async def _found(connection: AbstractConnection, look: Callable[[AbstractChannel], Awaitable[object]]) -> bool:
    channel = await connection.channel(publisher_confirms=False)
    try:
        await look(channel)
    except ChannelNotFoundEntity:
        return False
    except AMQPError as error:
        raise _refused("a passive declare", error) from error
    await channel.close()
    return True


async def _do(connection: AbstractConnection, what: str, act: Callable[[AbstractChannel], Awaitable[object]]) -> None:
    channel = await connection.channel(publisher_confirms=False)
    try:
        await act(channel)
    except AMQPError as error:
        raise _refused(f"to {what}", error) from error
    await channel.close()


def _refused(what: str, error: AMQPError) -> BrokerError:
    """Return what to raise: RabbitMQ closes the channel over a refusal, and the connection over worse."""
    kind = BrokerRefusedError if isinstance(error, ChannelClosed) else BrokerError
    return kind(f"RabbitMQ refused {what}: {error}")
