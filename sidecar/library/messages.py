"""A message as code sees it: the body as it came, everything else read when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.encoding import exact_json
from sidecar.core.encoding.content_encoding import plain_body
from sidecar.core.encoding.document import MAX_DOCUMENT_BYTES, RefusedError
from sidecar.core.encoding.template import TemplateContext
from sidecar.core.wire import properties
from sidecar.core.wire.republish import delay_rounds

if TYPE_CHECKING:
    from sidecar.core.message import Message as Delivery


class BodyError(ValueError):
    """A body that can't be read. Its text is a sentence for people that quotes nothing of the body."""


class Message:
    """A message of a batch.

    Args:
        delivery: as it came off the wire.
        max_bytes: the limit for the decompressed body.
    """

    __slots__ = ("_delivery", "_max_bytes")

    def __init__(self, delivery: Delivery, max_bytes: int = MAX_DOCUMENT_BYTES) -> None:
        self._delivery = delivery
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        """Name the delivery without quoting the body."""
        return f"<Message {self._delivery.ledger.queue}#{self._delivery.tag}, {len(self._delivery.body)} bytes>"

    @property
    def body(self) -> bytes:
        """The body as it came, whatever its ``content_encoding``."""
        return self._delivery.body

    def content(self) -> bytes:
        """Return the body with its ``content_encoding`` (gzip, deflate) undone.

        Raises:
            ValueError: it is not in that encoding, or holds too much.
        """
        try:
            return plain_body(self._delivery, self._max_bytes)
        except RefusedError as error:
            raise BodyError(error.detail) from None

    def json(self) -> object:
        """Return the parsed body, with its ``content_encoding`` undone, as Elasticsearch reads it.

        Numbers keep all digits: whole numbers are `int` of any size, others are `float`. A `float` with another
        spelling (``1.50``, forty digits) keeps its text. `sidecar.dumps` writes that text, as does a transform that
        returns the number; `json.dumps` and arithmetic round.

        Raises:
            ValueError: it is not JSON.
        """
        try:
            return exact_json.read_exactly(self.content())
        except exact_json.JsonError as error:
            raise BodyError(error.why) from None

    @property
    def raw_properties(self) -> bytes:
        """Properties and headers as they came off the wire."""
        return self._delivery.properties

    @property
    def queue(self) -> str:
        """The queue that it came from."""
        return self._delivery.ledger.queue

    @property
    def exchange(self) -> str:
        """The exchange that it was first published to; empty for the default exchange."""
        return TemplateContext(self._delivery, 0.0).exchange.decode(errors="replace")

    @property
    def routing_key(self) -> str:
        """The routing key that it was first published with."""
        return TemplateContext(self._delivery, 0.0).routing_key.decode(errors="replace")

    @property
    def redelivered(self) -> bool:
        """Whether the broker delivered this message before: its work may be done, in part or as a whole."""
        return bool(self._delivery.redelivered)

    @property
    def rounds(self) -> int:
        """How often it went round by the delay queue."""
        return delay_rounds(self._delivery)

    @property
    def headers(self) -> dict[str, object]:
        """The header table; of a name that is there twice the last. Strings that are not UTF-8 are bytes."""
        table = properties.headers(self._delivery.properties)
        return {name.decode(errors="replace"): properties.decode(raw) for name, raw in properties.fields(table)}

    @property
    def message_id(self) -> str | None:
        """The property of that name; None where the publisher set none. So are those below."""
        return self._short("message_id")

    @property
    def correlation_id(self) -> str | None:
        """The property of that name."""
        return self._short("correlation_id")

    @property
    def content_type(self) -> str | None:
        """The property of that name."""
        return self._short("content_type")

    @property
    def content_encoding(self) -> str | None:
        """The property of that name."""
        return self._short("content_encoding")

    @property
    def reply_to(self) -> str | None:
        """The property of that name."""
        return self._short("reply_to")

    @property
    def type(self) -> str | None:
        """The property of that name."""
        return self._short("type")

    @property
    def app_id(self) -> str | None:
        """The property of that name."""
        return self._short("app_id")

    @property
    def timestamp(self) -> int | None:
        """The property of that name, as it was sent: seconds since 1970 by the standard."""
        return properties.number(self._delivery.properties, "timestamp")

    @property
    def priority(self) -> int | None:
        """The property of that name."""
        return properties.number(self._delivery.properties, "priority")

    def _short(self, name: str) -> str | None:
        raw = properties.short(self._delivery.properties, name)
        return None if raw is None else raw.decode(errors="replace")
