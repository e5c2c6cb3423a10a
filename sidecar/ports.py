"""The ports of the pipeline: a session with the broker, a sink of requests or an outlet of messages, and who traces.

The real ones are `amqp` and `sidecar.elasticsearch`; simulated ones stand in for them in tests, in virtual time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sidecar.core.results.responder import Answer as Answer  # noqa: PLC0414, TC001 - part of the ports

if TYPE_CHECKING:
    import asyncio
    from contextlib import AbstractContextManager

    from sidecar.core.ledger import Ledger, Settlement
    from sidecar.core.message import Message
    from sidecar.core.scheduling.batcher import Batch


class BulkClient(Protocol):
    """Where bulk requests go."""

    async def bulk(self, path: str, body: bytes) -> Answer:
        """Send one request and return its answer, whatever it says; it is never retried here.

        Raises:
            SinkError: no answer came, so the outcome is unknown.
        """
        ...

    async def check(self) -> str | None:
        """Return why requests are in vain now, or None. It costs next to nothing, and no message."""
        ...


class Tracing(Protocol):
    """Who is told of each request, where anything is traced."""

    def request(self, batch: Batch, size_bytes: int) -> AbstractContextManager[Callable[[Answer], None]]:
        """Return what is entered when a batch leaves as a request, and left when that is over.

        Entering gives a function to call with the answer. An exception in between is an answer that didn't come.
        """
        ...


class OutboundMessage(NamedTuple):
    """A message to publish, its properties and body as raw bytes.

    Attributes:
        delay: for the delay queue: the queue that it comes back to, and after how many milliseconds.
        token: also in the header `core.wire.republish.TOKEN_HEADER`; unlike that of any other copy on its way, so that
            a return can be told from that of a copy with the same ``message_id``.
    """

    exchange: bytes
    routing_key: bytes
    properties: bytes
    body: bytes
    token: bytes
    delay: tuple[str, int] | None = None


class Unroutable(str):
    """A refusal because no queue takes the message: others may well be taken."""

    __slots__ = ()


class Undeclared(str):
    """A refusal: the copy's delay queue doesn't exist and can't be created."""

    __slots__ = ()


class MessagePublisher(Protocol):
    """Where messages are published to, on a connection of its own.

    Attributes:
        frame_max: the largest frame that the broker takes, in bytes; 0 means no limit, or that none was reached yet.
        blocked: why the broker takes nothing for now (a resource alarm), or None. What is published meanwhile waits.
        on_blocked: called when that changed.
        connection: the number of the connection, another one after each loss; None while there is none.
    """

    frame_max: int
    blocked: str | None
    on_blocked: Callable[[], None]

    @property
    def connection(self) -> int | None:
        """See above."""
        ...

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Publish mandatory messages, in order, and wait for the broker to confirm each.

        Returns:
            For each None when it is confirmed, otherwise why the broker didn't take it; `Unroutable` where it has no
            queue to go to.

        Raises:
            BrokerError: the broker can't be reached, or was lost; what became of the messages is unknown.
        """
        ...

    async def check(self) -> str | None:
        """Return why publishing is in vain now, or None. It costs no message."""
        ...


QUEUE_DURABLE_AFTER_SECONDS = 2.0
"""So old must a quorum queue be before a confirm of its messages is believed.

RabbitMQ writes its directory of quorum queues to disk up to a second after it said that one is declared. A broker that
is killed before starts with that queue empty, whatever it had confirmed (seen on 3.10.8, when killed within 0.9 s).
"""

ACK_FLUSH_SECONDS = 0.25
"""So long a channel lives on after more single acks than `NACK_BATCH`.

RabbitMQ passes no more than 32 settlements on to a quorum queue before that has answered, keeps the others in the
channel, and forgets them when the channel ends (3.10.8: of 50 acks right before the close some were lost in 11 of 30
tries, of 200 in 15 of 30; of those after a pause of 0.1 s in none of 90).
"""

NACK_BATCH = 16
NACK_PAUSE_SECONDS = 0.02
"""So many nacks, and a pause: a quorum queue joins those that pile up, and from 32 on it loses their order."""


class BrokerSession(Protocol):
    """One life of the connection to the broker: when it is lost, everything unsettled is stale.

    Deliveries arrive as chunks, in the callable that the session was made with, already admitted to their ledgers.

    Attributes:
        ledgers: one for each consuming channel of this life.
        frame_max: the largest frame that the broker takes, in bytes; 0 means no limit.
        lost: resolves to the reason once the session can't be used any more.
        warnings: what somebody should know about the queues.
        recreated: a sentence for each queue or exchange of an earlier session that was created again.
        on_blocked: told why the broker takes no copies for now (a resource alarm), or None when it takes them again.
    """

    ledgers: list[Ledger]
    frame_max: int
    lost: asyncio.Future[str]
    warnings: list[str]
    recreated: list[str]
    on_blocked: Callable[[str | None], None]

    async def consume(self, prefetch: int) -> None:
        """Begin to consume from all queues.

        Args:
            prefetch: how many deliveries of this consumer the broker leaves unsettled, in each channel.

        Raises:
            BrokerError: the session was lost, or the broker refused.
        """
        ...

    async def cancel(self) -> None:
        """Stop the deliveries: when this returns, no more come. What was delivered stays to be settled.

        Raises:
            BrokerError: the session was lost.
        """
        ...

    def pause(self) -> None:
        """Read nothing more for now; at most some seconds, for the broker resets a connection that is stuck."""
        ...

    def resume(self) -> None:
        """Read on."""
        ...

    def settle(self, ledger: Ledger, settlements: list[Settlement]) -> None:
        """Write acks at once, not to be cancelled half-way; void when the epoch is over."""
        ...

    def reject(self, ledger: Ledger, tag: int) -> None:
        """Have the queue's own dead-lettering take one delivery; void when the epoch is over."""
        ...

    async def requeue(self, ledger: Ledger, tags: list[int]) -> None:
        """Have the broker take back single deliveries, in this order; void when the epoch is over.

        Of up to `NACK_BATCH` all nacks are written before anything else happens; more take their time, and no ack of
        all up to a later delivery may be written in between.
        """
        ...

    async def give_back(self, outstanding: list[tuple[Ledger, list[int]]]) -> None:
        """Have the broker take back all that is outstanding, in the order of delivery.

        Call it when nothing is delivered any more. What is delivered afterwards belongs to other ledgers, which take
        the places of these in `ledgers`.

        Args:
            outstanding: each ledger with all its tags that the broker waits for.

        Raises:
            BrokerError: the session was lost, which comes to the same.
        """
        ...

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Publish mandatory copies and wait for the broker to confirm each.

        Returns:
            For each copy None if it was confirmed, otherwise why the broker refused it: `Undeclared` if its delay queue
            can't be created, `Unroutable` if no queue is bound. A refusal of one says nothing about the others.

        Raises:
            BrokerError: the session was lost; what became of the copies is unknown.
        """
        ...

    async def find_delay_queue(self, queue: str, milliseconds: int) -> Undeclared | None:
        """Create a delay queue if it is missing; return why that is refused, or None.

        Args:
            queue: the queue that messages come back to.
            milliseconds: how long they wait.

        Raises:
            BrokerError: the session was lost.
        """
        ...

    async def close(self) -> None:
        """Close the connection; whatever is outstanding goes back to the queues."""
        ...


Receive = Callable[[list["Message"]], None]
"""Where a session puts the chunks that arrive."""
