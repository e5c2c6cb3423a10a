"""Keeps queues that expire (``x-expires``) while the sidecar doesn't consume them on purpose.

RabbitMQ deletes such a queue, with its messages, after that time without a consumer. Measured with RabbitMQ 3.10.8 and
4.3.6: a declare, passive or not, renews the lease of classic queues only; publishing and binding never renew it. A
consumer keeps every queue. So does ``basic.get``, but it takes a message.

So the queue gets another consumer without credit (``x-credit`` is zero), on a channel of its own. RabbitMQ 4 ignores
that argument and sends one message, which stays unacknowledged on that channel until consumption begins. It isn't
returned earlier, because each return counts towards the delivery limit of a quorum queue.

A queue whose properties can't be read may be auto-delete as well: RabbitMQ deletes it, with its messages, when its last
consumer is cancelled. So with RabbitMQ 3 the two consumers overlap: each is cancelled only after the other one exists.
With RabbitMQ 4 such a queue has no lease.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from aiormq.exceptions import AMQPError
from pamqp import commands

from sidecar.amqp.connection import FAILURES, reraise_own_cancellation

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, AbstractConnection

MAX_DELAY_SECONDS = 1.0
"""A shorter pause needs no lease, for instance when the prefetch is changed."""
_TAG = "sidecar-lease"
_CLOSE_SECONDS = 5.0
_BEGIN_SECONDS = 2.0


def _long_string(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def _short_string(value: bytes) -> bytes:
    return bytes([len(value)]) + value


_NO_CREDIT = _long_string(
    _short_string(b"x-credit")
    + b"F"
    + _long_string(_short_string(b"credit") + b"l" + bytes(8) + _short_string(b"drain") + b"t\0")
)
"""The table ``{"x-credit": {"credit": 0, "drain": false}}``; RabbitMQ wants the zero in eight bytes."""


def _pause(expires_seconds: float | None) -> float:
    return MAX_DELAY_SECONDS if expires_seconds is None else min(MAX_DELAY_SECONDS, expires_seconds / 4)


class _Consume(commands.Basic.Consume):
    """``basic.consume`` with arguments that pamqp doesn't write: it takes the smallest type for a number."""

    def marshal(self) -> bytes:
        return bytes(super().marshal()).removesuffix(bytes(4)) + _NO_CREDIT


class Lease:
    """Keeps the queues of a session between two consumers.

    Args:
        connection: a channel for each queue is opened on it.
        expires_seconds: of each queue to keep; None: not known.
        never_alone: those of them that must not be without a consumer for a moment.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        expires_seconds: dict[str, float | None],
        never_alone: frozenset[str] = frozenset(),
    ) -> None:
        self._connection = connection
        self._expires_seconds = expires_seconds
        self._never_alone = never_alone
        self._tasks: list[asyncio.Task[None]] = []
        self._tried: dict[str, asyncio.Event] = {}

    def begin(self, *, at_once: bool) -> None:
        """Keep the queues until `end`.

        Args:
            at_once: nobody knows for how long there was no consumer. Otherwise there just was one, and the next may
                follow soon: the lease begins a little later.
        """
        if not self._tasks:
            self._tried = {queue: asyncio.Event() for queue in self._expires_seconds}
            self._tasks = [
                asyncio.create_task(
                    self._keep(queue, 0.0 if at_once or queue in self._never_alone else _pause(seconds))
                )
                for queue, seconds in self._expires_seconds.items()
            ]

    @property
    def overlaps(self) -> bool:
        """Whether another consumer is cancelled after this one is there, and this one after another is there."""
        return bool(self._never_alone)

    async def overlap(self) -> None:
        """Begin, and wait until the queues that must not be without a consumer have this one."""
        self.begin(at_once=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(_BEGIN_SECONDS):
                for queue in self._never_alone:
                    await self._tried[queue].wait()

    async def end(self) -> None:
        """Stop, after returning the messages that were delivered."""
        tasks = self.abort()
        if tasks:
            await asyncio.wait(tasks)

    def abort(self) -> list[asyncio.Task[None]]:
        """Stop without waiting; return the tasks that end."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        return tasks

    async def _keep(self, queue: str, pause_seconds: float) -> None:
        """Keep one queue; start again if RabbitMQ ends the consumer, for instance by its consumer timeout."""
        while not self._connection.is_closed:
            await asyncio.sleep(pause_seconds)
            pause_seconds = _pause(self._expires_seconds[queue])
            try:
                channel = await self._connection.channel(publisher_confirms=False)
                await self._consume(channel, queue)
            except FAILURES as error:
                reraise_own_cancellation(error)
            finally:
                self._tried[queue].set()

    async def _consume(self, channel: AbstractChannel, queue: str) -> None:
        cancelled: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        channel.on_consumer_cancel_callbacks.add(lambda _: cancelled.cancel())
        try:
            await channel.basic_qos(prefetch_count=1)
            await channel.rpc(_Consume(queue=queue, consumer_tag=_TAG))  # type: ignore[attr-defined]
            self._tried[queue].set()
            await asyncio.wait([cancelled, channel.closing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not channel.is_closed:
                await self._leave(channel)

    async def _leave(self, channel: AbstractChannel) -> None:
        """Return the message that was delivered to its place in the queue, and close the channel."""
        with suppress(AMQPError, OSError, RuntimeError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await channel.basic_cancel(_TAG)
                await channel.basic_nack(0, multiple=True, requeue=True)
                await channel.close()
