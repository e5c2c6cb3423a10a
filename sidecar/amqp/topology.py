"""Declares queues, their dead-letter queues, and an exchange with bindings.

With ``missing``, anything that exists is left as it is, whatever its arguments: a passive declare comes first, and a
declare follows only if that finds nothing.

A work queue that was deleted took its messages along. It isn't created again in the life of the same process (`Seen`),
because an empty queue of the same name would hide the loss. Dead-letter queues and exchanges hold no messages that are
still to be stored: they are created again, with an error in the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiormq.exceptions import ChannelClosed, ChannelLockedResource, ChannelNotFoundEntity

from sidecar.amqp.channels import refusal_of
from sidecar.core.wire.names import dead_letter_queue, delay_queue
from sidecar.errors import BrokerError, BrokerRefusedError, QueueError

if TYPE_CHECKING:
    from aiormq.abc import AbstractConnection
    from aiormq.exceptions import AMQPError

    from sidecar.amqp.channels import Act

_UNLIMITED_DELIVERIES = 1_000_000_000
"""Quorum queues drop a message at its 21st delivery by default (since 4.0); -1 isn't understood by all versions."""


EXCLUSIVE = (
    "it belongs to another connection, and RabbitMQ deletes it with its messages when that connection ends; "
    "declare the queue without exclusive"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What to declare; the meaning of each is that of the setting of its name.

    Attributes:
        declare: something may be created; without it everything must be there.
        declares_work: work queues, the exchange and bindings may be created too. Otherwise they are the producer's, and
            only dead-letter and delay queues are the sidecar's own.
        publishes: messages are published to the exchange: if it isn't declared, it must exist.
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
        """Whether missing work queues, exchanges and bindings are created."""
        return self.declare and self.declares_work

    def dead_letter_key(self, queue: str) -> str:
        """Return the routing key of dead letters of a queue; on the default exchange it is a queue's name."""
        return self.dead_letter_routing_key or dead_letter_queue(queue)

    @property
    def setting(self) -> str:
        """The setting, with its value, by which they aren't."""
        return f"SIDECAR_AMQP_DECLARE={'own' if self.declare else 'never'}"


class Seen:
    """Remembers what was on the broker in the life of this process, by cluster and virtual host.

    Attributes:
        recreated: a sentence for each queue or exchange that was deleted and has been created again.
    """

    def __init__(self) -> None:
        self.recreated: list[str] = []
        self._names: set[tuple[str, str]] = set()

    def note(self, place: str, name: str) -> None:
        """Note that something exists; `name` includes what it is."""
        self._names.add((place, name))

    def knows(self, place: str, name: str) -> bool:
        """Whether it existed before."""
        return (place, name) in self._names

    def note_created(self, place: str, name: str, *, loss: str) -> None:
        """Note that something was created, and whether it existed before."""
        if self.knows(place, name):
            self.recreated.append(f"the {name} was deleted; it is created again, {loss}")
        self.note(place, name)


def _place(connection: AbstractConnection) -> str:
    """Return cluster and virtual host: two URLs may lead to the same one."""
    return f"{connection.server_properties.get('cluster_name', '')!r} {connection.url.path}"


async def declare(connection: AbstractConnection, topology: Topology, seen: Seen | None = None) -> bool:
    """Create what is missing, or, without `Topology.declare`, check that everything exists.

    Args:
        connection: to the broker.
        topology: what to declare.
        seen: what existed before.

    Returns:
        Whether a queue was created: messages in it are safe after `sidecar.ports.QUEUE_DURABLE_AFTER_SECONDS`.

    Raises:
        QueueError: a work queue was deleted, or belongs to another connection.
        BrokerError: something is missing and may not be declared, or the broker refused.
    """
    seen, place = seen if seen is not None else Seen(), _place(connection)
    created = False
    for queue in topology.queues:
        created |= await _ensure_work_queue(connection, topology, queue, seen)
        if not topology.dead_letter_exchange:
            created |= await _ensure_dead_letter_queue(connection, topology, topology.dead_letter_key(queue), seen)
    if topology.dead_letter_exchange:
        name = topology.dead_letter_exchange
        why = f"the dead-letter exchange {name!r} doesn't exist; declare it, or unset SIDECAR_DEAD_LETTER_EXCHANGE"
        await _require_exchange(connection, name, why)
    if topology.exchange and topology.publishes and not topology.creates_work:
        await _require_exchange(
            connection,
            topology.exchange,
            f"the exchange {topology.exchange!r} doesn't exist, and {topology.setting} forbids creating it",
        )
    if topology.exchange and topology.creates_work:
        if await _ensure_exchange(connection, topology, topology.exchange):
            loss = "and bound with SIDECAR_AMQP_ROUTING_KEYS; messages published to it in the meantime are lost"
            seen.note_created(place, f"exchange {topology.exchange!r}", loss=loss)
        seen.note(place, f"exchange {topology.exchange!r}")
        for queue in topology.queues:
            await _bind(connection, topology, topology.exchange, queue)
    return created


async def _ensure_work_queue(connection: AbstractConnection, topology: Topology, queue: str, seen: Seen) -> bool:
    """Make sure that a work queue exists; return whether it was created.

    Raises:
        QueueError: it was deleted.
    """
    place, name = _place(connection), f"queue {queue!r}"
    created = False
    if seen.knows(place, name) and (absence := await _queue_absence(connection, queue)) is not None:
        raise QueueError("queue-gone", _gone(topology, queue, absence))
    if topology.declare and not topology.declares_work:
        await _require_queue(connection, queue)
    else:
        created = await _ensure_queue(connection, topology, queue, work_arguments(topology))
    seen.note(place, name)
    return created


async def _ensure_dead_letter_queue(connection: AbstractConnection, topology: Topology, queue: str, seen: Seen) -> bool:
    """Make sure that a dead-letter queue exists; return whether it was created."""
    place, name = _place(connection), f"dead-letter queue {queue!r}"
    created = await _ensure_queue(connection, topology, queue, quorum_arguments())
    if created:
        seen.note_created(place, name, loss="without the dead letters in it")
    seen.note(place, name)
    return created


async def declare_delay_queue(
    connection: AbstractConnection, topology: Topology, queue: str, milliseconds: int
) -> None:
    """Make sure that a delay queue exists, which returns messages to `queue` after a time and loses none.

    Quorum queues dead-letter at least once only with this strategy, and only while they refuse what they can't take.

    Raises:
        BrokerRefusedError: it is missing and may not be declared, or the broker refused.
        BrokerError: the connection was lost.
    """
    await _ensure_queue(connection, topology, delay_queue(queue, milliseconds), delay_arguments(queue, milliseconds))


def delay_arguments(queue: str, milliseconds: int) -> dict[str, object]:
    """Return the arguments of a delay queue of `queue`."""
    return quorum_arguments() | {
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def quorum_arguments() -> dict[str, object]:
    """Return the arguments of a quorum queue that never drops redelivered messages."""
    return {"x-queue-type": "quorum", "x-delivery-limit": _UNLIMITED_DELIVERIES}


def work_arguments(topology: Topology) -> dict[str, object]:
    """Return the arguments of a work queue."""
    base = quorum_arguments() if topology.queue_type == "quorum" else {"x-queue-type": topology.queue_type}
    return {**base, **topology.queue_arguments}


def _gone(topology: Topology, queue: str, absence: str) -> str:
    again = " or restart the sidecar, which creates it" if topology.creates_work else ""
    return (
        f"the queue {queue!r} was there and is gone, with its messages ({absence}). It is not created again, because "
        "an empty queue would hide the loss. Find out what deleted it (a user, x-expires, a policy), then "
        f"declare it{again}; the sidecar continues as soon as the queue exists"
    )


async def _ensure_queue(
    connection: AbstractConnection, topology: Topology, name: str, arguments: dict[str, object]
) -> bool:
    """Make sure that a queue exists; return whether it was created."""
    if await _queue_absence(connection, name) is None:
        return False
    if not topology.declare:
        raise BrokerRefusedError(
            f"the queue {name!r} doesn't exist, and SIDECAR_AMQP_DECLARE=never forbids creating it"
        )
    await _do(
        connection,
        f"declare the queue {name!r}",
        lambda channel: channel.queue_declare(name, durable=True, arguments=arguments),  # type: ignore[arg-type]
    )
    return True


async def _require_queue(connection: AbstractConnection, name: str) -> None:
    """Check that the producer has declared the queue."""
    if await _queue_absence(connection, name) is not None:
        raise BrokerError(
            f"the queue {name!r} doesn't exist yet: with SIDECAR_AMQP_DECLARE=own the sidecar waits until its producer "
            "declares it"
        )


async def _queue_absence(connection: AbstractConnection, name: str) -> str | None:
    """Return what RabbitMQ says of a queue that doesn't exist (its node may be down); None if it exists."""
    try:
        return await _absence(connection, lambda channel: channel.queue_declare(name, passive=True))
    except ChannelLockedResource as error:
        raise QueueError("queue-refused", f"the queue {name!r} is exclusive: {EXCLUSIVE}") from error


async def _require_exchange(connection: AbstractConnection, name: str, otherwise: str) -> None:
    """Check that an exchange exists: publishing to a missing one closes the channel each time."""
    if not await _exchange_exists(connection, name):
        raise BrokerError(otherwise)


async def _ensure_exchange(connection: AbstractConnection, topology: Topology, name: str) -> bool:
    """Make sure that an exchange exists; return whether it was created."""
    if await _exchange_exists(connection, name):
        return False
    await _do(
        connection,
        f"declare the exchange {name!r}",
        lambda channel: channel.exchange_declare(exchange=name, exchange_type=topology.exchange_type, durable=True),
    )
    return True


async def _bind(connection: AbstractConnection, topology: Topology, exchange: str, queue: str) -> None:
    for routing_key in topology.routing_keys or (queue,):
        await _do(
            connection,
            f"bind the queue {queue!r} to the exchange {exchange!r}",
            lambda channel, key=routing_key: channel.queue_bind(  # type: ignore[misc]
                queue, exchange, key, arguments=topology.binding_arguments
            ),
        )


async def _exchange_exists(connection: AbstractConnection, name: str) -> bool:
    return await _absence(connection, lambda channel: channel.exchange_declare(exchange=name, passive=True)) is None


async def _absence(connection: AbstractConnection, declare_passively: Act) -> str | None:
    """Return what RabbitMQ says of something that doesn't exist; None if it exists."""
    refusal = await refusal_of(connection, declare_passively)
    if isinstance(refusal, ChannelNotFoundEntity):
        return str(refusal)
    if isinstance(refusal, ChannelLockedResource):
        raise refusal
    if refusal is not None:
        raise _refused("a passive declare", refusal) from refusal
    return None


async def _do(connection: AbstractConnection, what: str, act: Act) -> None:
    refusal = await refusal_of(connection, act)
    if refusal is not None:
        raise _refused(f"to {what}", refusal) from refusal


def _refused(what: str, error: AMQPError) -> BrokerError:
    """Return the error of a refusal: the connection survives if RabbitMQ closed only the channel."""
    kind = BrokerRefusedError if isinstance(error, ChannelClosed) else BrokerError
    return kind(f"RabbitMQ refused {what}: {error}")
