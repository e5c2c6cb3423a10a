"""Correlation and completion: which messages belong together, and when the set is complete.

There is no timer inside: `due` says when to come back. The clock of a group starts with its *first* item and is never
re-armed, so that a trickle can't starve it (an age limit, not an idle timer).

A message may say itself which group it belongs to, how many make up the complete set, or that the set is complete with
it (`Batcher.correlate`). Nothing is remembered of a group that is complete: what comes late opens a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.correlation import Correlation
    from sidecar.core.message import Message

MAX_OPEN_GROUPS = 1000
"""Beyond that the oldest goes: of a key that never repeats each message would be a group that waits for its age."""

Trigger = Literal["count", "bytes", "age", "message", "complete", "pressure", "drain"]


class Batch:
    """Messages that are sent together, and what is known of the attempts to send them.

    Attributes:
        messages: in the order of their arrival; each is an item of the request.
        covered: messages that have no item of their own, as others do what they would have done.
        body_bytes: what they take in a request's body.
        opened_at: when the first item came, in seconds of the loop's clock.
        trigger: what completed it; None while it is open.
        set_items: how many messages its complete set has, where one of them has told; else 0.
        earlier_items: messages of its set that left before it, since all don't fit into one request by bytes.
        mendable: whether it may share a request with others. A set that is complete by count, bytes or message stays
            as it is; what was cut short by age or pressure, or was refused and goes again, may be joined.
        tries: how often it was sent and throttled or not answered, which sets the backoff.
        ready_at: not to be sent before, in seconds of the loop's clock.
        unanswered: how often it went without an answer while others had one; it is halved then.
        suspected_at: when this one (or the one that it was halved from) was first refused as a whole, in seconds of
            the loop's clock; -1 while it never was.
        waits: its messages wait in place for targets that accept nothing.
    """

    __slots__ = (
        "body_bytes",
        "covered",
        "earlier_items",
        "mendable",
        "messages",
        "opened_at",
        "ready_at",
        "set_items",
        "suspected_at",
        "tries",
        "trigger",
        "unanswered",
        "waits",
    )

    def __init__(self, messages: list[Message], body_bytes: int, opened_at: float) -> None:
        self.messages = messages
        self.covered = 0
        self.body_bytes = body_bytes
        self.opened_at = opened_at
        self.trigger: Trigger | None = None
        self.mendable = False
        self.set_items = 0
        self.earlier_items = 0
        self.tries = 0
        self.ready_at = 0.0
        self.unanswered = 0
        self.suspected_at = -1.0
        self.waits = False

    def __repr__(self) -> str:
        """Show its size and history, for tests and traces."""
        return f"<Batch of {len(self.messages)}, {self.trigger or 'open'}, tries {self.tries}>"

    @property
    def gathered(self) -> int:
        """How many messages were gathered, covered ones among them."""
        return len(self.messages) + self.covered

    def again(self, messages: list[Message]) -> Batch:
        """Return a batch of those of its messages that go again; it remembers what this one has seen."""
        batch = Batch(messages, sum(message.bulk_bytes for message in messages), self.opened_at)
        batch.trigger, batch.mendable = self.trigger, True
        batch.tries, batch.ready_at = self.tries, self.ready_at
        batch.unanswered, batch.suspected_at = self.unanswered, self.suspected_at
        return batch

    def halves(self) -> tuple[Batch, Batch]:
        """Return two batches with the first and the second half of its messages."""
        middle = len(self.messages) // 2
        return self.again(self.messages[:middle]), self.again(self.messages[middle:])

    @property
    def suspect(self) -> bool:
        """Whether it may hold an item that spoils whole requests, so that it must not take others down with it."""
        return bool(self.unanswered) or self.suspected_at >= 0


class Batcher:
    """The open groups, one for each correlation key.

    Args:
        max_items: messages that complete a group.
        max_bytes: bytes of request body that a group doesn't exceed, unless its first item does so alone.
        max_age_seconds: the age of the first item that completes a group.
        max_groups: open groups, of messages that say by themselves which one they belong to.
        folds: whether later messages may be folded into those of open groups.
    """

    def __init__(
        self,
        max_items: int,
        max_bytes: int,
        max_age_seconds: float,
        max_groups: int = MAX_OPEN_GROUPS,
        *,
        folds: bool = False,
    ) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._max_groups = max_groups
        self._folds = folds
        self._groups: dict[bytes, Batch] = {}  # in order of their first items: a dict remembers insertion

    @property
    def open_groups(self) -> int:
        """How many groups are open."""
        return len(self._groups)

    @property
    def items(self) -> int:
        """How many messages are in open groups."""
        return sum(len(group.messages) for group in self._groups.values())

    def add(self, messages: list[Message], now: float, correlation: bytes = b"") -> list[Batch]:
        """Add messages of one correlation to its group; return the batches that this completes, oldest first."""
        complete: list[Batch] = []
        at = 0
        while at < len(messages):
            group = self._groups.get(correlation)
            if group is None:
                group = self._groups[correlation] = Batch([], 0, now)
            # What fits by count is looked at as a whole, and one by one only where it doesn't fit by bytes.
            piece = messages[at : at + self._max_items - len(group.messages)]
            piece_bytes = _total_bytes(piece)
            full = group.body_bytes + piece_bytes > self._max_bytes
            if full:
                piece = self._fitting(group, piece)
                piece_bytes = _total_bytes(piece)
                full = len(group.messages) + len(piece) < self._max_items
            group.messages += piece
            group.body_bytes += piece_bytes
            at += len(piece)
            if len(group.messages) >= self._max_items:
                complete.append(self._close(correlation, "count"))
            elif full and at < len(messages):
                complete.append(self._close(correlation, "bytes"))
        return complete

    def _fitting(self, group: Batch, piece: list[Message]) -> list[Message]:
        """Return the beginning of `piece` that `group` has room for; the first item of a group always fits."""
        size = group.body_bytes
        for count, message in enumerate(piece):
            size += message.bulk_bytes
            if size > self._max_bytes and (count or group.messages):
                return piece[:count]
        return piece

    def correlate(self, messages: Iterable[Message], now: float) -> list[Batch]:
        """Add messages to the groups that they say they belong to; return the batches that this completes, in order.

        Of a set whose size is told, that is what completes it, and not the number of items that a batch has otherwise.
        What the latest message says of it counts. A set too large for one request by bytes goes in several.
        """
        complete: list[Batch] = []
        groups = self._groups
        for message in messages:
            key, set_items, completes, is_signal = message.correlation
            group = groups.get(key)
            if is_signal:
                if group is not None:
                    complete.append(self._close(key, "message"))
                continue
            size_bytes = message.bulk_bytes
            if group is None:
                if len(groups) >= self._max_groups:
                    complete += self.take_oldest()
                group = groups[key] = Batch([], 0, now)
            elif group.body_bytes + size_bytes > self._max_bytes and group.messages:
                complete.append(self._close(key, "bytes"))
                group = groups[key] = self._rest_of(group, now)
            group.messages.append(message)
            group.body_bytes += size_bytes
            group.set_items = set_items or group.set_items
            if self._folds:
                message.gathered = True
                group.covered += len(message.cover.messages) if message.cover is not None else 0
            trigger = self._completion(group, completes=completes)
            if trigger is not None:
                complete.append(self._close(key, trigger))
        return complete

    def cover(self, correlation: Correlation, more_bytes: int) -> list[Batch]:
        """Note that a message of an open group covers one more; return the batch that this completes, if any.

        Args:
            correlation: what the one that it covers says of the group.
            more_bytes: what the message that covers it takes more of a request's body.
        """
        key, set_items, completes, _ = correlation
        group = self._groups[key]
        group.covered += 1
        group.body_bytes += more_bytes
        group.set_items = set_items or group.set_items
        trigger = self._completion(group, completes=completes)
        if trigger is None and group.body_bytes > self._max_bytes:
            trigger = "bytes"
        return [self._close(key, trigger)] if trigger is not None else []

    @staticmethod
    def _rest_of(group: Batch, now: float) -> Batch:
        """Return the group of what comes of the same set after `group` was full by bytes."""
        rest = Batch([], 0, now)
        if group.set_items:
            rest.set_items = group.set_items
            rest.earlier_items = group.earlier_items + group.gathered
        return rest

    def _completion(self, group: Batch, *, completes: bool) -> Trigger | None:
        if completes:
            return "message"
        if group.set_items:
            return "complete" if group.earlier_items + group.gathered >= group.set_items else None
        return "count" if group.gathered >= self._max_items else None

    def _close(self, correlation: bytes, trigger: Trigger) -> Batch:
        batch = self._groups.pop(correlation)
        batch.trigger = trigger
        if self._folds:
            for message in batch.messages:
                message.operation = None  # from now on it is as good as sent
        return batch

    def due(self) -> float | None:
        """Return when the oldest group comes of age, in seconds of the clock that `add` was told; None without one."""
        for group in self._groups.values():
            return group.opened_at + self._max_age_seconds
        return None

    def take_aged(self, now: float) -> list[Batch]:
        """Take the groups that are of age at `now`, oldest first."""
        aged = []
        while self._groups:
            correlation, group = next(iter(self._groups.items()))
            if group.opened_at + self._max_age_seconds > now:
                break
            aged.append(self._cut_short(correlation, "age"))
        return aged

    def take_oldest(self) -> list[Batch]:
        """Take the oldest group, because nothing can arrive any more that would complete it (``pressure``).

        Where there are many small ones, it is the older half of them, as far as they fit into one request together:
        one at a time, a key that never repeats would cost a request for each message.
        """
        taken: list[bytes] = []
        items = size_bytes = 0
        for correlation, group in self._groups.items():
            items += len(group.messages)
            size_bytes += group.body_bytes
            fits = items <= self._max_items and size_bytes <= self._max_bytes and len(taken) < len(self._groups) // 2
            if taken and not fits:
                break
            taken.append(correlation)
        return [self._cut_short(correlation, "pressure") for correlation in taken]

    def take_all(self) -> list[Batch]:
        """Take all groups, oldest first, because no more messages will be read (``drain``)."""
        return [self._cut_short(correlation, "drain") for correlation in list(self._groups)]

    def _cut_short(self, correlation: bytes, trigger: Trigger) -> Batch:
        group = self._close(correlation, trigger)
        group.mendable = True
        return group

    def drop_closed(self) -> list[Message]:
        """Drop and return the messages whose epoch is over."""
        dropped: list[Message] = []
        for correlation, group in list(self._groups.items()):
            gone = keep_live(group)
            dropped += gone
            if not group.messages:
                del self._groups[correlation]
        return dropped


def _total_bytes(messages: list[Message]) -> int:
    return sum([len(one.line) + (len(one.source) + 1 if one.source is not None else 0) for one in messages])


def keep_live(batch: Batch) -> list[Message]:
    """Take the messages whose epoch is over out of `batch` and return them."""
    gone = [message for message in batch.messages if message.ledger.closed]
    if gone:
        batch.messages = [message for message in batch.messages if not message.ledger.closed]
        batch.body_bytes = sum(message.bulk_bytes for message in batch.messages)
        batch.covered = sum(len(message.cover.messages) for message in batch.messages if message.cover is not None)
    return gone
