"""Outstanding delivery tags of one epoch, and the fewest frames that settle them.

A broker numbers the deliveries of a channel 1, 2, 3, …; so the state of each is a byte in an array, and "everything up
to here is done" is one ``find``. One ack with ``multiple`` costs RabbitMQ a fraction of what an ack a message costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.message import Message

UNSETTLED, ACKABLE, SETTLED = 0, 1, 2
"""Not decided; decided, the ack is not written yet; settled with the broker."""


class Settlement(NamedTuple):
    """An ack frame to write: of one tag, or of all up to it."""

    tag: int
    multiple: bool


class Ledger:
    """The unsettled deliveries of one consuming channel, for as long as that channel lives.

    Args:
        queue: the queue that the channel consumes from.
        channel: the channel's number on its connection.

    Attributes:
        closed: the epoch is over; the broker has everything that was not settled again, and settling is void.
        channel_closed: the broker has closed the channel.
        next_tag: the tag that the next delivery must have.
        memory_bytes: what the open deliveries take of the memory limit; whoever keeps deliveries adds to it.
    """

    def __init__(self, queue: str, channel: int, first_tag: int = 1) -> None:
        self.queue = queue
        self.channel = channel
        self.closed = False
        self.channel_closed = False
        self.next_tag = first_tag
        self.memory_bytes = 0
        self._base = first_tag
        self._states = bytearray()
        self._open = 0
        self._stored = 0

    def __repr__(self) -> str:
        """Show the states, for tests and traces."""
        state = "closed" if self.closed else "live"
        return f"<Ledger {self.queue}/{self.channel} {state} {self._base}+{bytes(self._states).hex()}>"

    @property
    def is_writable(self) -> bool:
        """Whether settlements may be written: on a channel that it has closed, the broker takes none."""
        return not self.closed and not self.channel_closed

    @property
    def open(self) -> int:
        """Deliveries that nothing was decided about."""
        return self._open

    @property
    def ackable(self) -> int:
        """Deliveries that are stored, but whose ack waits behind one that is not."""
        return self._stored

    @property
    def outstanding(self) -> int:
        """Deliveries that count towards the prefetch: everything the broker waits for."""
        return self._open + self._stored

    def open_new(self) -> int:
        """Open all tags below `next_tag` that are not known yet; return how many there were."""
        new = self.next_tag - self._base - len(self._states)
        if new:
            self._states.extend(bytes(new))
            self._open += new
        return new

    def charge_memory(self, message: Message, size_bytes: int) -> None:
        """Note that `message` takes so much more of the memory limit."""
        message.memory_bytes += size_bytes
        self.memory_bytes += size_bytes

    def mark_stored(self, messages: Iterable[Message]) -> int:
        """Note that `messages`, all of this ledger and all open, may be acked; return how many they are."""
        states, base, count, held_bytes = self._states, self._base, 0, 0
        for message in messages:
            states[message.tag - base] = ACKABLE
            held_bytes += message.memory_bytes
            count += 1
        self.memory_bytes -= held_bytes
        self._open -= count
        self._stored += count
        return count

    def mark_settled(self, message: Message) -> None:
        """Note that `message` is settled by a frame of its own (a reject, a nack) that the caller writes now."""
        self._states[message.tag - self._base] = SETTLED
        self.memory_bytes -= message.memory_bytes
        self._open -= 1

    def take_acks(self, *, individually: bool = False) -> list[Settlement]:
        """Return the acks to write now, and consider them written.

        Everything up to the first open delivery is acked by one frame. With `individually` also what is stored behind
        it, by a frame each: dear, so only when much is withheld, or when the channel is about to end.
        """
        states = self._states
        hole = states.find(UNSETTLED)
        end = len(states) if hole < 0 else hole
        settlements = []
        # The tag of a multiple must be outstanding itself: RabbitMQ closes the channel over an unknown one.
        last = states.rfind(ACKABLE, 0, end)
        if last >= 0:
            settlements.append(Settlement(self._base + last, multiple=True))
            self._stored -= states.count(ACKABLE, 0, end)
        del states[:end]
        self._base += end
        if individually and self._stored:
            at = states.find(ACKABLE)
            while at >= 0:
                settlements.append(Settlement(self._base + at, multiple=False))
                states[at] = SETTLED
                at = states.find(ACKABLE, at + 1)
            self._stored = 0
        return settlements

    def open_tags(self) -> list[int]:
        """Return the tags of deliveries that nothing was decided about, in order."""
        return [self._base + at for at, state in enumerate(self._states) if state == UNSETTLED]

    def mark_requeued_from(self, first_tag: int) -> list[int]:
        """Note that the broker takes back all deliveries from `first_tag` on; return their tags, to nack each.

        All of them are open, and were never counted among `held_bytes`.
        """
        tags = list(range(first_tag, self.next_tag))
        if tags:
            self._states[first_tag - self._base :] = bytes([SETTLED]) * len(tags)
            self._open -= len(tags)
        return tags

    def close(self) -> int:
        """End the epoch: settlements are stale from now on. Return how many deliveries were open.

        The broker has them again, or gets them. Where it gets them by a frame (``nack`` of all), have all that is
        stored collected before, or it would be stored twice.
        """
        self.closed = True
        count = self._open
        self._base += len(self._states)
        self._states.clear()
        self._open = self._stored = self.memory_bytes = 0
        return count

    def next_epoch(self) -> Ledger:
        """Return the ledger of the channel's next epoch: for what comes after all that was outstanding was given back.

        A result that comes late must not be taken for one of the same channel's new deliveries.
        """
        return Ledger(self.queue, self.channel, self.next_tag)

    def is_open(self, message: Message) -> bool:
        """Whether `message` is still to be settled here."""
        at = message.tag - self._base
        return not self.closed and 0 <= at < len(self._states) and self._states[at] == UNSETTLED
