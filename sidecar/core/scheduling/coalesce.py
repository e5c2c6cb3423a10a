"""Writes that are never sent: an operation that a later one on the same document makes superfluous.

`latest`: what wasn't sent yet is superseded by a later ``index`` or ``delete``; of two versions the higher one stays.
`merge`: consecutive partial updates become one as well, where the result is the same whatever is stored.

The earlier message stays in its place, in the order and in its group, and takes over what is to be sent; the later ones
are covered by it, and settled by its result. Should it fail, it gets back what it was, and all go one by one.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from sidecar.core.scheduling.json_merge import merged

if TYPE_CHECKING:
    from sidecar.core.message import Message
    from sidecar.core.scheduling.batcher import Batch, Batcher
    from sidecar.core.scheduling.order import DocumentOrder

Mode = Literal["none", "latest", "merge"]

_WHOLE = frozenset({"index", "delete"})
_PARTIAL = frozenset({"update", "upsert"})
_LARGEST_MERGE_BYTES = 1024 * 1024
"""What is merged is read and written anew with each update: beyond that sending them costs less."""


class Operation(NamedTuple):
    """What is to be done with a document.

    Attributes:
        action: ``index``, ``create``, ``update``, ``upsert`` or ``delete``.
        options: routing and pipeline, as they stand in the action line.
        has_pipeline: whether an ingest pipeline changes the document first.
        version: an external one, or None.
        document: the document, or the part of it that changes; None for ``delete``.
        upsert: (``update``) what is stored where there is no document yet; None: that is an error.
    """

    action: str
    options: bytes = b""
    has_pipeline: bool = False
    version: int | None = None
    document: bytes | None = None
    upsert: bytes | None = None


def source_line(action: str, document: bytes | None, upsert: bytes | None = None) -> bytes | None:
    """Return what follows an action line; None for ``delete``.

    Args:
        action: ``index``, ``create``, ``update``, ``upsert`` or ``delete``.
        document: as in `Operation`.
        upsert: as in `Operation`.
    """
    if upsert is not None and document is not None:
        return b'{"doc":%s,"upsert":%s}' % (document, upsert)
    if action == "update" and document is not None:
        return b'{"doc":%s}' % document
    if action == "upsert" and document is not None:
        return b'{"doc":%s,"doc_as_upsert":true}' % document
    return document


@dataclass(slots=True)
class Coalesced:
    """What a message covers, and what it was by itself.

    Attributes:
        action_line: its own action line.
        source: its own document line.
        action: its own action.
        messages: those that its result settles as well, in order.
        made_bytes: what a document takes that was made by folding, beside those that came.
    """

    action_line: bytes
    source: bytes | None
    action: str
    messages: list[Message] = field(default_factory=list)
    made_bytes: int = 0


class Coalescer:
    """Folds later operations into earlier ones that weren't sent yet.

    Args:
        mode: how far to go.
        conflicts_matter: whether somebody wants to know of conflicts, which superseding hides.
        equal_wins: whether a version that is there already may be written again (``external_gte``).
        order: where earlier operations are found, and later ones wait that can't be folded.
        batcher: has the open groups.
    """

    def __init__(
        self, mode: Mode, order: DocumentOrder, batcher: Batcher, *, conflicts_matter: bool, equal_wins: bool
    ) -> None:
        self._merges = mode == "merge"
        self._conflicts_matter = conflicts_matter
        self._newer = operator.ge if equal_wins else operator.gt
        self._order = order
        self._batcher = batcher

    def admit(self, messages: list[Message], now: float) -> tuple[int, list[Batch]]:
        """Fold messages, or have them wait for their turn, or add them to their groups.

        Returns:
            How many were folded, and the batches that were completed, in order.
        """
        folded = 0
        complete: list[Batch] = []
        for message in messages:
            earlier = self._order.last(message)
            size_bytes = earlier.bulk_bytes if earlier is not None else 0
            if earlier is None or not self._coalesce_into(earlier, message):
                complete += self._batcher.add_correlated(self._order.admit([message]), now)
                continue
            folded += 1
            if earlier.in_open_batch:
                complete += self._batcher.add_coalesced(message.correlation, earlier.bulk_bytes - size_bytes)
        return folded, complete

    def _coalesce_into(self, earlier: Message, later: Message) -> bool:
        """Have `earlier` cover `later`, if one operation can do what both do, and return whether it can."""
        first, second = earlier.operation, later.operation
        if first is None or second is None or earlier.ledger.closed:
            return False
        if earlier.correlation.key != later.correlation.key:
            return False
        folded = self.fold(first, second)
        if folded is None:
            return False
        if earlier.coalesced is None:
            earlier.coalesced = Coalesced(earlier.action_line, earlier.source, earlier.action)
        earlier.coalesced.messages.append(later)
        if folded is not first:
            _adopt(earlier, earlier.coalesced, later, folded)
        ours, theirs = earlier.correlation, later.correlation
        earlier.correlation = ours._replace(
            expected_items=theirs.expected_items or ours.expected_items, completes=ours.completes or theirs.completes
        )
        return True

    def fold(self, first: Operation, later: Operation) -> Operation | None:
        """Return the operation that leaves what `first` and then `later` leave, whatever is stored; None without one.

        The same object is returned where `later` changes nothing.
        """
        if first.options != later.options or (first.action == "create" and self._conflicts_matter):
            return None
        if later.action in _WHOLE:
            return self._latest(first, later)
        if later.action not in _PARTIAL or not self._merges or later.has_pipeline:
            return None
        return _merge(first, later)

    def _latest(self, first: Operation, later: Operation) -> Operation | None:
        if later.version is None or first.version is None:
            return later if later.version == first.version else None
        if self._newer(later.version, first.version):
            return later
        # It comes too late, by its own version: a conflict, if it were sent.
        return None if self._conflicts_matter else first


def _adopt(earlier: Message, coalesced: Coalesced, later: Message, operation: Operation) -> None:
    """Have `earlier` send what the two were folded into."""
    made_bytes = 0
    if operation is later.operation:
        earlier.action_line, earlier.source, earlier.action = later.action_line, later.source, later.action
    else:
        if operation.action != earlier.action:
            earlier.action_line, earlier.action = later.action_line, operation.action
        earlier.source = source_line(operation.action, operation.document, operation.upsert)
        made_bytes = len(earlier.source or b"")
    earlier.operation = operation
    earlier.ledger.charge_memory(earlier, made_bytes - coalesced.made_bytes)
    coalesced.made_bytes = made_bytes


def _merge(first: Operation, later: Operation) -> Operation | None:
    """Fold a partial update into what comes before it."""
    assert later.document is not None
    if first.document is None:  # after a deletion there is nothing to update
        return None
    if len(first.document) + len(later.document) > _LARGEST_MERGE_BYTES:
        return None
    document = merged(first.document, later.document)
    if document is None:
        return None
    if first.action == "index":
        return first._replace(document=document)
    if first.action == "create":
        # Where there is a document already, creating it would have failed, and the update is what remains.
        return first._replace(action="update", document=later.document, upsert=document)
    if first.upsert is not None:
        upsert = merged(first.upsert, later.document)
        return first._replace(document=document, upsert=upsert) if upsert is not None else None
    if first.action == "update" and later.action == "upsert":
        return None  # without a document the first fails, and the second doesn't
    return first._replace(document=document)


def undo_coalesce(message: Message) -> list[Message]:
    """Give back to a message what it was by itself; return those that it covered, in order.

    None of them is folded again.
    """
    cover = message.coalesced
    assert cover is not None
    message.ledger.charge_memory(message, -cover.made_bytes)
    message.action_line, message.source, message.action = cover.action_line, cover.source, cover.action
    message.coalesced = message.operation = None
    message.attempts = 0
    for one in cover.messages:
        one.operation = None
        one.times_unanswered = one.times_unanswered or message.times_unanswered
    return cover.messages
