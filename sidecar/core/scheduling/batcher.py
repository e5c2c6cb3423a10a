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

    from sidecar.core.encoding.correlation import Correlation
    from sidecar.core.message import Message

MAX_OPEN_GROUPS = 1000
"""Beyond that the oldest goes: of a key that never repeats each message would be a group that waits for its age."""

Trigger = Literal["count", "bytes", "age", "message", "complete", "pressure", "drain"]


class Batch:
    """Messages that are sent together, and what is known of the attempts to send them.

    Attributes:
        messages: in the order of their arrival; each is an item of the request.
        coalesced_count: messages that have no item of their own, as others do what they would have done.
        body_bytes: what they take in a request's body.
        opened_at: when the first item came, in seconds of the loop's clock.
        trigger: what completed it; None while it is open.
        expected_items: how many messages its complete set has, where one of them has told; else 0.
        items_sent_before: messages of its set that left before it, since all don't fit into one request by bytes.
        mergeable: whether it may share a request with others. A set that is complete by count, bytes or message stays
            as it is; what was cut short by age or pressure, or was refused and goes again, may be joined.
        tries: how often it was sent and throttled or not answered, which sets the backoff.
        ready_at: not to be sent before, in seconds of the loop's clock.
        times_unanswered: how often it went without an answer while others had one; it is halved then.
        suspect_since: when this one (or the one that it was halved from) was first refused as a whole, in seconds of
            the loop's clock; -1 while it never was.
        waits_for_target: its messages wait in place for targets that accept nothing.
    """

    __slots__ = (
        "body_bytes",
        "coalesced_count",
        "expected_items",
        "items_sent_before",
        "mergeable",
        "messages",
        "opened_at",
        "ready_at",
        "suspect_since",
        "times_unanswered",
        "tries",
        "trigger",
        "waits_for_target",
    )

    def __init__(self, messages: list[Message], body_bytes: int, opened_at: float) -> None:
        self.messages = messages
        self.coalesced_count = 0
        self.body_bytes = body_bytes
        self.opened_at = opened_at
        self.trigger: Trigger | None = None
        self.mergeable = False
        self.expected_items = 0
        self.items_sent_before = 0
        self.tries = 0
        self.ready_at = 0.0
        self.times_unanswered = 0
        self.suspect_since = -1.0
        self.waits_for_target = False

    def __repr__(self) -> str:
        """Show its size and history, for tests and traces."""
        return f"<Batch of {len(self.messages)}, {self.trigger or 'open'}, tries {self.tries}>"

    @property
    def message_count(self) -> int:
        """How many messages were gathered, covered ones among them."""
        return len(self.messages) + self.coalesced_count

    def subset(self, messages: list[Message]) -> Batch:
        """Return a batch of those of its messages that go again; it remembers what this one has seen."""
        batch = Batch(messages, sum(message.bulk_bytes for message in messages), self.opened_at)
        batch.trigger, batch.mergeable = self.trigger, True
        batch.tries, batch.ready_at = self.tries, self.ready_at
        batch.times_unanswered, batch.suspect_since = self.times_unanswered, self.suspect_since
        return batch

    def halves(self) -> tuple[Batch, Batch]:
        """Return two batches with the first and the second half of its messages."""
        middle = len(self.messages) // 2
        return self.subset(self.messages[:middle]), self.subset(self.messages[middle:])

    @property
    def is_suspect(self) -> bool:
        """Whether it may hold an item that spoils whole requests, so that it must not take others down with it."""
        return bool(self.times_unanswered) or self.suspect_since >= 0


class Batcher:
    """The open groups, one for each correlation key.

    Args:
        max_items: messages that complete a group.
        max_bytes: bytes of request body that a group doesn't exceed, unless its first item does so alone.
        max_age_seconds: the age of the first item that completes a group.
        max_groups: open groups, of messages that say by themselves which one they belong to.
        coalesces: whether later messages may be folded into those of open groups.
    """

    def __init__(
        self,
        max_items: int,
        max_bytes: int,
        max_age_seconds: float,
        max_groups: int = MAX_OPEN_GROUPS,
        *,
        coalesces: bool = False,
    ) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._max_groups = max_groups
        self._coalesces = coalesces
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

    def add_correlated(self, messages: Iterable[Message], now: float) -> list[Batch]:
        """Add messages to the groups that they say they belong to; return the batches that this completes, in order.

        Of a set whose size is told, that is what completes it, and not the number of items that a batch has otherwise.
        What the latest message says of it counts. A set too large for one request by bytes goes in several.
        """
        complete: list[Batch] = []
        groups = self._groups
        for message in messages:
            key, expected_items, completes, is_signal = message.correlation
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
            group.expected_items = expected_items or group.expected_items
            if self._coalesces:
                message.in_open_batch = True
                group.coalesced_count += len(message.coalesced.messages) if message.coalesced is not None else 0
            trigger = self._completion(group, completes=completes)
            if trigger is not None:
                complete.append(self._close(key, trigger))
        return complete

    def add_coalesced(self, correlation: Correlation, more_bytes: int) -> list[Batch]:
        """Note that a message of an open group covers one more; return the batch that this completes, if any.

        Args:
            correlation: what the one that it covers says of the group.
            more_bytes: what the message that covers it takes more of a request's body.
        """
        key, expected_items, completes, _ = correlation
        group = self._groups[key]
        group.coalesced_count += 1
        group.body_bytes += more_bytes
        group.expected_items = expected_items or group.expected_items
        trigger = self._completion(group, completes=completes)
        if trigger is None and group.body_bytes > self._max_bytes:
            trigger = "bytes"
        return [self._close(key, trigger)] if trigger is not None else []

    @staticmethod
    def _rest_of(group: Batch, now: float) -> Batch:
        """Return the group of what comes of the same set after `group` was full by bytes."""
        rest = Batch([], 0, now)
        if group.expected_items:
            rest.expected_items = group.expected_items
            rest.items_sent_before = group.items_sent_before + group.message_count
        return rest

    def _completion(self, group: Batch, *, completes: bool) -> Trigger | None:
        if completes:
            return "message"
        if group.expected_items:
            return "complete" if group.items_sent_before + group.message_count >= group.expected_items else None
        return "count" if group.message_count >= self._max_items else None

    def _close(self, correlation: bytes, trigger: Trigger) -> Batch:
        batch = self._groups.pop(correlation)
        batch.trigger = trigger
        if self._coalesces:
            for message in batch.messages:
                message.operation = None  # from now on it is as good as sent
        return batch

    def next_deadline(self) -> float | None:
        """Return when the oldest group comes of age, in seconds of the clock that `add` was told; None without one."""
        for group in self._groups.values():
            return group.opened_at + self._max_age_seconds
        return None

    def take_expired(self, now: float) -> list[Batch]:
        """Take the groups that are of age at `now`, oldest first."""
        aged = []
        while self._groups:
            correlation, group = next(iter(self._groups.items()))
            if group.opened_at + self._max_age_seconds > now:
                break
            aged.append(self._flush(correlation, "age"))
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
        return [self._flush(correlation, "pressure") for correlation in taken]

    def take_all(self) -> list[Batch]:
        """Take all groups, oldest first, because no more messages will be read (``drain``)."""
        return [self._flush(correlation, "drain") for correlation in list(self._groups)]

    def _flush(self, correlation: bytes, trigger: Trigger) -> Batch:
        group = self._close(correlation, trigger)
        group.mergeable = True
        return group

    def drop_closed(self) -> list[Message]:
        """Drop and return the messages whose epoch is over."""
        dropped: list[Message] = []
        for correlation, group in list(self._groups.items()):
            gone = drop_stale(group)
            dropped += gone
            if not group.messages:
                del self._groups[correlation]
        return dropped


def _total_bytes(messages: list[Message]) -> int:
    return sum([len(one.action_line) + (len(one.source) + 1 if one.source is not None else 0) for one in messages])


def drop_stale(batch: Batch) -> list[Message]:
    """Take the messages whose epoch is over out of `batch` and return them."""
    gone = [message for message in batch.messages if message.ledger.closed]
    if gone:
        batch.messages = [message for message in batch.messages if not message.ledger.closed]
        batch.body_bytes = sum(message.bulk_bytes for message in batch.messages)
        batch.coalesced_count = sum(
            len(message.coalesced.messages) for message in batch.messages if message.coalesced is not None
        )
    return gone
