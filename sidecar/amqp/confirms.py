"""Confirmed publishing of copies, matched exactly.

A return carries no number, only the message; so each copy carries a token in a header, by which its return is known.
(aiormq matches returns by ``message_id``: of two unroutable copies with the same one, the first counts as confirmed,
and its original would be lost.)
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING

from sidecar.core.wire import frames
from sidecar.core.wire.frames import Closed, Confirm, Returned
from sidecar.core.wire.properties import STRING_OVERHEAD, PropertiesError, header
from sidecar.core.wire.republish import TOKEN_HEADER
from sidecar.errors import BrokerError
from sidecar.ports import Unroutable

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.abc import AbstractChannel, AbstractConnection

    from sidecar.amqp.connection import AmqpProtocol
    from sidecar.core.wire.frames import Answer
    from sidecar.ports import OutboundMessage

REFUSED = "RabbitMQ refused it (basic.nack): the queue is full or unavailable"

_WRITE_BYTES = 64 * 1024
"""So much is written at once: a system call for each small message would cost more than all the rest."""


class Pending:
    """Copies that were published together, and what the broker said of each."""

    def __init__(self, copies: list[OutboundMessage]) -> None:
        self.copies = copies
        self.first_tag = 0  # until they are written
        self.refusals: list[str | None] = [None] * len(copies)
        self.open = len(copies)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class ConfirmChannel:
    """Publishes on a channel in confirm mode; several calls at once make a pipeline.

    Args:
        protocol: the connection.
        channel: the channel's number.
        frame_max: the largest frame agreed on, in bytes.
        confirm_timeout_seconds: a confirm that takes longer is not waited for; the session has to end then, for only
            the end of the connection settles what became of the copy.
        on_silence: called when confirms failed to come.
        on_closed: called with the reason when RabbitMQ has closed the channel; it is to `refuse` or `fail_pending`
            what is open.
    """

    def __init__(
        self,
        protocol: AmqpProtocol,
        channel: int,
        frame_max: int,
        *,
        confirm_timeout_seconds: float,
        on_silence: Callable[[str], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self._protocol = protocol
        self._channel = channel
        self._frame_max = frame_max
        self._confirm_timeout_seconds = confirm_timeout_seconds
        self._on_silence = on_silence
        self._on_closed = on_closed
        self._next_tag = 1
        self._writing = asyncio.Lock()  # the broker numbers what it gets: tags and frames have one order
        self._open: dict[int, Pending] = {}  # by tag, ascending: a dict remembers insertion
        self._tokens: set[bytes] = set()  # of what is open; a header of that name may come from anywhere else too
        self._returns: dict[bytes, str] = {}  # by token
        self._lost: str | None = None
        self._refused: str | None = None
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self._limits: dict[Pending, asyncio.Timeout] = {}  # of each publish that waits

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Publish mandatory copies and wait for each confirm.

        Returns:
            For each copy None when it is confirmed, otherwise why the broker didn't take it.

        Raises:
            BrokerError: the connection was lost before all confirms came.
        """
        if self._lost is not None:
            raise BrokerError(self._lost)
        if not copies:
            return []
        pending = Pending(copies)
        try:
            async with asyncio.timeout_at(self._give_up_at()) as limit:
                self._limits[pending] = limit
                async with self._writing:
                    await self._unblocked.wait()
                    if self._lost is not None:  # while this waited its turn
                        raise BrokerError(self._lost)
                    await self._write(pending)
                await pending.done
        except TimeoutError:
            self._on_silence(f"RabbitMQ didn't confirm a message within {self._confirm_timeout_seconds:g} s")
            raise BrokerError("unconfirmed") from None
        except ConnectionError as error:
            raise BrokerError(f"connection lost: {error}") from error
        finally:
            self._limits.pop(pending, None)
        return pending.refusals

    def set_blocked(self, reason: str | None) -> None:
        """Note that RabbitMQ takes no publishes now (a resource alarm), or, with None, that it does again.

        While it takes none, the time for confirms stands still: a copy that waits for the end of an alarm isn't lost,
        and published once more on another connection it would be there twice.
        """
        if reason is None:
            self._unblocked.set()
        else:
            self._unblocked.clear()
        for limit in self._limits.values():
            with suppress(RuntimeError):  # it has just run out
                limit.reschedule(self._give_up_at())

    def _give_up_at(self) -> float | None:
        if not self._unblocked.is_set():
            return None
        return asyncio.get_running_loop().time() + self._confirm_timeout_seconds

    async def _write(self, pending: Pending) -> None:
        """Write the frames of all copies, never more ahead of the socket than it takes.

        Raises:
            BrokerError: the connection was lost while this waited for the socket.
        """
        pending.first_tag = self._next_tag
        frames_due: list[bytes] = []
        bytes_due = 0
        for at, copy in enumerate(pending.copies):
            if self._refused is not None:  # the channel was closed while this waited for the socket
                pending.refusals[at:] = [self._refused] * (len(pending.copies) - at)
                _resolve(pending.done)
                return
            frames_due += frames.publish(
                self._channel, copy.exchange, copy.routing_key, copy.properties, copy.body, self._frame_max
            )
            bytes_due += len(copy.properties) + len(copy.body)
            self._open[self._next_tag] = pending
            if copy.token:
                self._tokens.add(copy.token)
            self._next_tag += 1
            if bytes_due >= _WRITE_BYTES:
                self._protocol.write(frames_due)
                frames_due, bytes_due = [], 0
                await self._protocol.drain()
                if self._lost is not None and self._refused is None:
                    raise BrokerError(self._lost)
        if frames_due:
            self._protocol.write(frames_due)

    def on_frames(self, answers: list[Answer]) -> None:
        """Take the broker's answers, in order: a return comes before the confirm of its copy."""
        for answer in answers:
            if isinstance(answer, Returned):
                self._note_return(answer)
            elif isinstance(answer, Closed):
                self._on_closed(answer.text)
            else:
                self._note_confirm(answer)

    def _note_return(self, returned: Returned) -> None:
        why = Unroutable(f"unroutable: {returned.code} {returned.text}")
        try:
            value = header(returned.properties, TOKEN_HEADER)
        except PropertiesError:
            value = None
        token = value[STRING_OVERHEAD:] if value is not None else b""
        if token in self._tokens:
            self._returns[token] = why
        else:  # not to be known whose it is: then none that is open counts as taken
            for tag, pending in self._open.items():
                pending.refusals[tag - pending.first_tag] = why

    def _note_confirm(self, confirm: Confirm) -> None:
        if confirm.multiple:
            last = confirm.tag or self._next_tag
            tags = list(takewhile(lambda tag: tag <= last, self._open))  # not all that is open, for each confirm
        else:
            tags = [confirm.tag] if confirm.tag in self._open else []
        for tag in tags:
            pending = self._open.pop(tag)
            at = tag - pending.first_tag
            token = pending.copies[at].token
            self._tokens.discard(token)
            refusal = self._returns.pop(token, None)
            if refusal is None and not confirm.positive:
                refusal = REFUSED
            pending.refusals[at] = pending.refusals[at] or refusal
            pending.open -= 1
            if not pending.open:
                _resolve(pending.done)

    def refuse(self, reason: str) -> None:
        """Refuse all open copies: RabbitMQ closed the channel because of one of them.

        It may have stored some of them without confirming them; these are duplicated when published again.
        """
        self._lost = self._refused = reason
        for tag, pending in self._open.items():
            at = tag - pending.first_tag
            pending.refusals[at] = pending.refusals[at] or reason
            if at + 1 == len(pending.copies):  # all are written
                _resolve(pending.done)
        self._open.clear()
        self._tokens.clear()

    def fail_pending(self, reason: str) -> None:
        """Fail what is open: what became of it is unknown."""
        self._lost = reason
        self._unblocked.set()
        for pending in dict.fromkeys(self._open.values()):
            if not pending.done.done():
                pending.done.set_exception(BrokerError(reason))
                pending.done.exception()  # seen: whoever waits gets it, but it may be that nobody does any more
        self._open.clear()
        self._tokens.clear()


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


async def open_confirm_channel(
    connection: AbstractConnection,
    protocol: AmqpProtocol,
    confirm_timeout_seconds: float,
    *,
    on_silence: Callable[[str], None],
    on_closed: Callable[[str], None],
) -> tuple[ConfirmChannel, AbstractChannel]:
    """Open a channel in confirm mode on `connection`; its answers are to be passed to `Publisher.answered`.

    Args:
        connection: from `sidecar.amqp.connection.connect`, with `protocol`.
        protocol: the connection's.
        confirm_timeout_seconds: see `Publisher`.
        on_silence: see `Publisher`.
        on_closed: see `Publisher`.
    """
    channel = await connection.channel(publisher_confirms=True)
    protocol.parser.register_publisher(channel.number)
    publisher = ConfirmChannel(
        protocol,
        channel.number,
        protocol.parser.frame_max,
        confirm_timeout_seconds=confirm_timeout_seconds,
        on_silence=on_silence,
        on_closed=on_closed,
    )
    return publisher, channel
