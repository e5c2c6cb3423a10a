"""One message, from the wire to its verdict.

One object serves all stages (an object for each stage costs 0.2 µs a message and stage). Every stage fills in its
own attributes and says so below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.core.encoding.correlation import Correlation
    from sidecar.core.encoding.split import SplitMessage
    from sidecar.core.ledger import Ledger
    from sidecar.core.scheduling.coalesce import Coalesced, Operation


class Message:
    """A delivery and what became of it.

    Attributes:
        ledger: where it is settled: the channel, and the epoch of it, that delivered it.
        tag: the delivery tag, valid in the ledger's epoch only.
        redelivered: whether the broker says that it delivered this message before.
        route: the exchange and the routing key as two AMQP short strings, raw.
        properties: the property flags and values as they came, raw.
        body: the payload as it came.
        memory_bytes: what it takes of the memory limit: header and body, and the document where that is another.
        action_line: (compose) the action line of the bulk request, with its line break.
        source: (compose) the document line without line break; ``None`` for an action that has none.
        document_key: (compose) names the document that the operation is about, or ``None`` when it has no id yet.
        next_for_document: (order) the next operation on the same document, which waits for this one.
        action: (compose) what is to be done with the document, where that differs from message to message; else empty.
        received_at: (compose) its first delivery here, in seconds since 1970; until then 0.
        attempts: (policy) the attempts that count towards the limit.
        correlation: (compose) the group that it belongs to; set only where messages are gathered one by one.
        operation: (compose) what it does, as long as a later one may be folded into it; set only where that is done.
        in_open_batch: (batcher) whether it is in an open group; set only where messages are folded.
        coalesced: (coalesce) the messages that its result settles as well, and what it was by itself.
        split: (split) the documents of the message that this is one of; None for a message that was delivered. Set
            only where messages are split.
        split_index: (split) its place among them, from 0; set likewise.
        made: (transform) what somebody's own code made of it; set only where that is asynchronous. (staging) the
            routing key that it is published with.
        times_unanswered: (policy) whether an earlier attempt may have been applied without our knowing.
    """

    __slots__ = (
        "action",
        "action_line",
        "attempts",
        "body",
        "coalesced",
        "correlation",
        "document_key",
        "in_open_batch",
        "ledger",
        "made",
        "memory_bytes",
        "next_for_document",
        "operation",
        "properties",
        "received_at",
        "redelivered",
        "route",
        "source",
        "split",
        "split_index",
        "tag",
        "times_unanswered",
    )

    correlation: Correlation
    operation: Operation | None
    in_open_batch: bool
    split: SplitMessage | None
    split_index: int
    made: object

    def __init__(
        self,
        ledger: Ledger,
        tag: int,
        redelivered: int,
        route: bytes,
        properties: bytes,
        body: bytes,
        memory_bytes: int,
    ) -> None:
        self.ledger = ledger
        self.tag = tag
        self.redelivered = redelivered
        self.route = route
        self.properties = properties
        self.body = body
        self.memory_bytes = memory_bytes
        self.action_line = b""
        self.source: bytes | None = body
        self.document_key: bytes | None = None
        self.next_for_document: Message | None = None
        self.action = ""
        self.coalesced: Coalesced | None = None
        self.received_at = 0.0
        self.attempts = 0
        self.times_unanswered = False

    def set_source(self, source: bytes | None) -> None:
        """Note the document line; where it isn't the body itself, both are held in memory."""
        self.source = source
        if source is not None and source is not self.body:
            self.ledger.charge_memory(self, len(source))

    @property
    def exchange(self) -> bytes:
        """The exchange that it was published to; empty for the default exchange."""
        return self.route[1 : 1 + self.route[0]]

    @property
    def routing_key(self) -> bytes:
        """The routing key that it was published with."""
        return self.route[2 + self.route[0] :]

    @property
    def bulk_bytes(self) -> int:
        """The bytes that it takes in the body of a bulk request."""
        return len(self.action_line) + (len(self.source) + 1 if self.source is not None else 0)

    def __repr__(self) -> str:
        """Name the delivery without quoting the document."""
        return f"<Message {self.ledger.queue}#{self.tag}, {len(self.body)} bytes>"
