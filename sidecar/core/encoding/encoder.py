"""From a message to the bytes that it takes in a bulk request, or to the reason why it never gets into one.

Encoding on admission: sizes are exact, what can't be sent never gets in, and a retry is a selection and a join.
The body goes in as the bytes that it is; ids, names and versions from the message are data, whatever bytes they hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from sidecar.core.encoding.action_lines import CLOSING, MAX_ID_BYTES, ActionLineEncoder, IndexParameterCache
from sidecar.core.encoding.columns import column
from sidecar.core.encoding.content_encoding import text_document
from sidecar.core.encoding.correlation import Correlation, expected_items, whole_number
from sidecar.core.encoding.document import (
    LINE_BREAK,
    MAX_DOCUMENT_BYTES,
    SPACE,
    RefusedError,
    document,
    fragment,
    has_metadata,
    json_string,
    metadata_name,
)
from sidecar.core.encoding.split import SplitMessage, split
from sidecar.core.encoding.template import MissingFieldError, Template, TemplateContext, came_back
from sidecar.core.encoding.transform import NoDocumentError, TransformError
from sidecar.core.scheduling.coalesce import Operation, source_line
from sidecar.core.wire.properties import STRING_OVERHEAD, PropertiesError, header, short_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sidecar.core.encoding.columns import Chunk
    from sidecar.core.encoding.fields import Fields, Rows
    from sidecar.core.encoding.split import Mode as SplitMode
    from sidecar.core.encoding.transform import Prepare, Transform
    from sidecar.core.message import Message
    from sidecar.core.scheduling.coalesce import Mode as CoalesceMode

    _Way = Callable[[Iterator[Message], float], tuple[list[Message], list["Rejection"]]]

ACTIONS = ("index", "create", "update", "upsert", "delete")
ACTIONS_WITH_VERSION = ("index", "delete")
ACTIONS_ON_WHAT_IS_THERE = ("update", "upsert", "delete")
MAX_VERSION = 2**63 - 1
RETRIES_ON_CONFLICT = 3
DOCUMENT_ID = b"sidecar-id"

_ORDINARY_NAME = re.compile(r"[A-Za-z0-9]")
_BRACE, _END_BRACE = b"{}"
_OPENINGS = {action: b'{"%s":{' % (b"update" if action == "upsert" else action.encode()) for action in ACTIONS}
_RETRIES = b'"retry_on_conflict":%d' % RETRIES_ON_CONFLICT

IdMode = Literal["auto", "generated", "none", "template"]
Content = Literal["json", "text"]


class Rejection(NamedTuple):
    """Why a message never becomes part of a request.

    Attributes:
        reason: as in the dead letter's header ``sidecar-reason``; empty where there is nothing to be stored of it.
        detail: a sentence for people, without document text.
        error_type: of an exception in somebody's own code; else empty.
    """

    message: Message
    reason: str
    detail: str
    error_type: str = ""


REFUSALS = (RefusedError, MissingFieldError, PropertiesError, TransformError, NoDocumentError)
"""What ends the composing of a message."""


def rejection(message: Message, why: Exception) -> Rejection:
    """Return the reject that one of `REFUSALS` means."""
    if isinstance(why, RefusedError):
        return Rejection(message, why.reason, why.detail)
    if isinstance(why, TransformError):
        return Rejection(message, "transform-failed", why.detail, why.error_type)
    if isinstance(why, NoDocumentError):
        return Rejection(message, "", "")
    if isinstance(why, MissingFieldError):
        return Rejection(message, "missing-field", f"the message has no {why.field}")
    return Rejection(message, "malformed", str(why))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """What becomes of messages; the meaning of each is that of the setting of its name.

    Attributes:
        max_bytes: what a compressed body may hold.
        transform: makes documents of a message, where that is somebody's own code.
        prepare: to be awaited for a chunk before it is composed, or None.
    """

    index: Template
    action: Template = field(default_factory=lambda: Template("index"))
    id_mode: IdMode = "auto"
    id: Template | None = None
    routing: Template | None = None
    pipeline: Template | None = None
    version: Template | None = None
    version_type: str = "external"
    index_allow: tuple[str, ...] = ()
    content: Content = "json"
    fields: Fields | None = None
    max_bytes: int = MAX_DOCUMENT_BYTES
    batch_key: Template | None = None
    batch_flush_when: Template | None = None
    batch_complete_count: Template | None = None
    coalesce: CoalesceMode = "none"
    split: SplitMode = "none"
    transform: Transform | None = None
    prepare: Prepare | None = None

    @property
    def splits(self) -> bool:
        """Whether there may be several documents in a message."""
        return self.split != "none" or self.transform is not None

    @property
    def adds_individually(self) -> bool:
        """Whether each message is looked at by itself for its group: for what it says, or for what it may replace."""
        return self.correlates or self.coalesce != "none"

    @property
    def correlates(self) -> bool:
        """Whether a message says by itself which group it belongs to, or when that is complete."""
        return bool(self.batch_key or self.batch_flush_when or self.batch_complete_count)

    @property
    def templates(self) -> list[Template]:
        """All templates that messages are looked at with."""
        single = (
            self.index,
            self.action,
            self.id,
            self.routing,
            self.pipeline,
            self.version,
            self.batch_key,
            self.batch_flush_when,
            self.batch_complete_count,
        )
        return [template for template in single if template is not None] + (
            self.fields.templates if self.fields else []
        )

    @property
    def path_index(self) -> str | None:
        """The index where it is the same for all messages, so that requests can name it once."""
        return self.index.constant.decode() if self.index.constant is not None else None

    @property
    def constant_action(self) -> str | None:
        """The action where it is the same for all messages."""
        return self.action.constant.decode() if self.action.constant is not None else None

    def allows(self, index: str) -> bool:
        """Whether documents may go to `index`."""
        if not self.index_allow:
            return _ORDINARY_NAME.match(index) is not None
        return any(fnmatchcase(index, pattern) for pattern in self.index_allow)


def correlation(encoder_config: EncoderConfig, context: TemplateContext) -> Correlation:
    """Return what a message says of its group; one that completes it and has no body is a mere signal.

    Raises:
        RefusedError, MissingFieldError: it doesn't say what it should.
    """
    key = encoder_config.batch_key.render(context) if encoder_config.batch_key is not None else b""
    told = (
        encoder_config.batch_complete_count.render(context) if encoder_config.batch_complete_count is not None else b""
    )
    completes = encoder_config.batch_flush_when is not None and encoder_config.batch_flush_when.render(context) != b""
    return Correlation(key, expected_items(told), completes, completes and not context.content().strip(SPACE))


class BulkEncoder:
    """Makes action line, source and key of messages.

    Args:
        encoder_config: what becomes of them.
        make_id: gives ids that nobody else has (for ``SIDECAR_ID=generated``).

    Attributes:
        room_bytes: what documents may take beside the bodies that came, in the next call: compressed ones are much
            larger. It may be exceeded by one.
        left: the messages of the last call that weren't looked at, since that was used up. One always is.
    """

    room_bytes: int
    left: list[Message]

    def __init__(self, encoder_config: EncoderConfig, make_id: Callable[[], str]) -> None:
        self._config = encoder_config
        self._make_id = make_id
        self._action = encoder_config.constant_action
        self.room_bytes = encoder_config.max_bytes
        self.left = []
        self._adds_individually = encoder_config.adds_individually
        self._coalesces = encoder_config.coalesce != "none"
        self._has_one_index = encoder_config.path_index is not None
        self._names = IndexParameterCache(encoder_config)
        options = (("routing", encoder_config.routing), ("pipeline", encoder_config.pipeline))
        self._optional = [
            (name, b'"%s":' % name.encode(), template.render) for name, template in options if template is not None
        ]
        self._conditional = encoder_config.version is not None or self._action not in {"index", "create", "delete"}
        self._read_id = short_reader("message_id")
        self._document_id = self._document_id_reader()
        self._fields = encoder_config.fields or None
        self._lines = (
            ActionLineEncoder(encoder_config, make_id, self._names)
            if ActionLineEncoder.supports(encoder_config)
            else None
        )
        self._groups = column(encoder_config.batch_key) if encoder_config.batch_key is not None else None
        if encoder_config.splits:
            self._encode: _Way = self._encode_split
        elif self._lines is not None:
            self._encode = self._encode_columns
        else:
            self._encode = self._encode_each

    def encode(self, messages: Iterable[Message], now: float) -> tuple[list[Message], list[Rejection]]:
        """Fill in `line`, `source` and `key`; return the messages that can be sent, and the others with reasons.

        Args:
            messages: a chunk.
            now: seconds since 1970.
        """
        self._room, self.left = self.room_bytes, []
        return self._encode(iter(messages), now)

    def _encode_columns(self, messages: Iterator[Message], now: float) -> tuple[list[Message], list[Rejection]]:
        """Compose by columns: the way of most users. What is out of the ordinary is composed by itself afterwards."""
        everything = list(messages)
        if not everything:
            return [], []
        assert self._lines is not None
        chunk = self._lines.chunk(everything, now)
        if self._groups is not None:
            self._note_groups(self._groups(chunk), everything)
        rows = self._fields.rows(chunk) if self._fields is not None else None
        lines, keys = self._lines.encode(chunk)
        unusual: list[int] = []
        note = unusual.append
        for place, (message, line, key) in enumerate(zip(everything, lines, keys)):  # noqa: B905 - keys may be endless
            message.action_line, message.document_key, message.received_at = line, key, now
            body = message.body
            # The cheap look, all of it in C: a plain document passes without a single call of ours.
            if (
                not body
                or body[0] != _BRACE
                or body[-1] != _END_BRACE
                or LINE_BREAK in body
                or not body.isascii()
                or len(body) > MAX_DOCUMENT_BYTES
            ):
                note(place)
        if chunk.fallback or unusual or rows is not None:
            return self._encode_fallbacks(chunk, frozenset(unusual), rows)
        return everything, []

    def _encode_fallbacks(
        self, chunk: Chunk, fallbacks: frozenset[int], rows: Rows | None
    ) -> tuple[list[Message], list[Rejection]]:
        """Compose odd messages, look into bodies that are unusual, and add fields to all."""
        encoded: list[Message] = []
        rejections: list[Rejection] = []
        odd, fields, room = chunk.fallback, self._fields, self._room
        for place, message in enumerate(chunk.messages):
            body = message.body
            try:
                if place in odd:
                    message.action_line, message.document_key = b"", None  # what columns say of it means nothing
                    self._encode_one(message, self._context(message, chunk.now))
                else:
                    source = document(body) if place in fallbacks else body
                    message.set_source(fields.splice(source, rows[place]) if fields is not None and rows else source)
            except REFUSALS as why:
                rejections.append(rejection(message, why))
            else:
                encoded.append(message)
            if message.source is not body:
                room -= len(message.source or b"")
                if room < 0:
                    self.left = chunk.messages[place + 1 :]
                    break
        return encoded, rejections

    @staticmethod
    def _note_groups(keys: list[bytes], messages: list[Message]) -> None:
        known = {key: Correlation(key) for key in set(keys)}
        for message, key in zip(messages, keys, strict=True):
            message.correlation, message.operation = known[key], None

    def _encode_each(self, messages: Iterator[Message], now: float) -> tuple[list[Message], list[Rejection]]:
        encoded: list[Message] = []
        rejections: list[Rejection] = []
        context: TemplateContext | None = None
        for message in messages:
            if context is None:
                context = self._context(message, now)
            else:
                context.reset(message)
            try:
                self._encode_one(message, context)
            except REFUSALS as why:
                rejections.append(rejection(message, why))
            else:
                encoded.append(message)
            if message.source is not message.body and self._charge(message):
                self.left = list(messages)
        return encoded, rejections

    def _encode_split(self, messages: Iterator[Message], now: float) -> tuple[list[Message], list[Rejection]]:
        """Compose the documents of messages that hold several: each is a message of its own from here on."""
        encoded: list[Message] = []
        rejections: list[Rejection] = []
        for message in messages:
            message.split = None
            context = self._context(message, now)
            message.received_at = context.received_at  # it goes round as a whole
            try:
                parts = self._parts(message, context)
            except REFUSALS as why:
                rejections.append(rejection(message, why))
                continue
            for part in parts:
                try:
                    self._encode_part(part, now)
                except REFUSALS as why:
                    rejections.append(rejection(part, why))
                else:
                    encoded.append(part)
                self._room -= part.memory_bytes
            if self._room < 0:
                self.left = list(messages)
        return encoded, rejections

    def _context(self, message: Message, now: float) -> TemplateContext:
        return TemplateContext(message, now, self._config.max_bytes, text=self._config.content == "text")

    def _charge(self, message: Message) -> bool:
        """Note what a document takes beside its message; return whether no more may."""
        self._room -= len(message.source or b"")
        return self._room < 0

    def _parts(self, message: Message, context: TemplateContext) -> list[Message]:
        """Return the documents of a message; itself, where it is a mere signal."""
        encoder_config = self._config
        body = message.body if encoder_config.transform is not None else context.content()
        if encoder_config.batch_flush_when is not None and not body.strip(SPACE):
            message.correlation = self._correlation(context)
            message.operation = message.source = None
            if message.correlation.is_signal:
                return [message]
        if encoder_config.transform is not None:
            return self._transformed(message, encoder_config.transform(message))
        return split(message, body, cast("Literal['array', 'lines']", encoder_config.split), encoder_config.max_bytes)

    @staticmethod
    def _transformed(message: Message, documents: list[bytes]) -> list[Message]:
        if not documents:
            raise NoDocumentError
        parts = SplitMessage(message, len(documents))
        return [parts.part(item, document) for item, document in enumerate(documents)]

    def _encode_part(self, part: Message, now: float) -> None:
        if part.split is None:
            return  # a signal
        context = TemplateContext(part, now, part=True, text=self._config.content == "text")
        if self._config.transform is not None and part.split.count == 1:
            context.split_index = None  # what becomes one document has the message's id
        self._encode_one(part, context)
        if self._config.adds_individually and part.split_index < part.split.count - 1:
            # What completes a group does so with its last document.
            part.correlation = part.correlation._replace(completes=False)

    def _encode_one(self, message: Message, context: TemplateContext) -> None:
        message.received_at = context.received_at
        if self._adds_individually and self._is_signal(message, context):
            return
        action = message.action = self._action or self._render_action(context)
        document_id = self._document_id(message, context)
        parameters = []
        space = b""
        if not self._has_one_index:
            index = self._config.index.render(context)
            parameters.append(self._names.parameter(index))
            space = index + b"\0"
        if document_id is not None:
            if len(document_id) > MAX_ID_BYTES:
                raise _too_long(document_id)
            parameters.append(b'"_id":' + json_string(document_id, "the id"))
        elif action in ACTIONS_ON_WHAT_IS_THERE:
            raise RefusedError("missing-field", f"the message has no id, which {action} needs")
        first_option = len(parameters)
        for name, opening, render in self._optional:
            value = render(context)
            if value:
                parameters.append(opening + json_string(value, name))
        options = parameters[first_option:] if self._coalesces else []
        version = None
        if self._conditional:
            version = self._version(action, document_id, context)
            parameters += self._conditions(action, version)
        message.action_line = _OPENINGS[action] + b",".join(parameters) + CLOSING
        message.document_key = space + document_id if document_id is not None else None
        line = self._document(action, context)
        message.set_source(source_line(action, line))
        if self._coalesces and document_id is not None:
            has_pipeline = self._config.pipeline is not None
            message.operation = Operation(action, b",".join(options), has_pipeline, version, line)
            message.in_open_batch = False

    def _is_signal(self, message: Message, context: TemplateContext) -> bool:
        """Note what a message says of its group; return whether that is all that it says."""
        message.correlation = self._correlation(context)
        message.operation = None
        if message.correlation.is_signal:
            message.source = None
        return message.correlation.is_signal

    def _correlation(self, context: TemplateContext) -> Correlation:
        found = correlation(self._config, context)
        return found._replace(is_signal=False) if found.is_signal and self._deletes(context) else found

    def _deletes(self, context: TemplateContext) -> bool:
        """Whether a message is a deletion, which has no need of a body."""
        try:
            return (self._action or self._render_action(context)) == "delete"
        except (RefusedError, MissingFieldError):
            return False  # a signal need not name an action

    def _document(self, action: str, context: TemplateContext) -> bytes | None:
        if action == "delete":
            return None
        body = context.content()
        if self._config.content == "text":
            line = text_document(body)
        elif name := metadata_name(context.parsed):
            raise has_metadata(name)
        elif action in {"update", "upsert"}:
            line = fragment(body)
        else:
            line = document(body)
        return self._fields.add(line, context) if self._fields is not None else line

    def _render_action(self, context: TemplateContext) -> str:
        action = self._config.action.render(context).decode()
        if action not in ACTIONS:
            raise RefusedError("malformed", f"the action is none of {', '.join(ACTIONS)}")
        return action

    def _document_id_reader(self) -> Callable[[Message, TemplateContext], bytes | None]:
        """Return what finds or makes the id of a message."""
        encoder_config = self._config
        if encoder_config.id_mode == "auto":
            return self._message_id
        if encoder_config.id_mode == "generated":
            return self._generated
        return self._id_by_template if encoder_config.id is not None else lambda _, __: None

    def _message_id(self, message: Message, context: TemplateContext) -> bytes | None:
        document_id = self._read_id(message.properties) or None
        return (
            document_id
            if document_id is None or context.split_index is None
            else b"%b-%d" % (document_id, context.split_index)
        )

    def _id_by_template(self, message: Message, context: TemplateContext) -> bytes:  # noqa: ARG002 - as the others
        assert self._config.id is not None
        document_id = self._config.id.render(context)
        if not document_id:
            raise RefusedError("missing-field", "the id is empty")
        return document_id

    def _generated(self, message: Message, context: TemplateContext) -> bytes:
        """Return an id made here; a copy that comes back from the delay queue keeps the one that it was given."""
        if context.split_index is None and came_back(message.properties):
            kept = header(message.properties, DOCUMENT_ID)
            if kept is not None and len(kept) > STRING_OVERHEAD:
                return kept[STRING_OVERHEAD:]
        return self._make_id().encode()

    def _version(self, action: str, document_id: bytes | None, context: TemplateContext) -> int | None:
        template = self._config.version
        return _version(template.render(context), action, document_id) if template is not None else None

    def _conditions(self, action: str, version: int | None) -> list[bytes]:
        if version is not None:
            return [b'"version":%d,"version_type":"%s"' % (version, self._config.version_type.encode())]
        if action in {"update", "upsert"}:
            return [_RETRIES]
        return []


def _too_long(document_id: bytes) -> RefusedError:
    return RefusedError("malformed", f"the id has {len(document_id)} bytes; Elasticsearch takes {MAX_ID_BYTES}")


def _version(text: bytes, action: str, document_id: bytes | None) -> int:
    if action not in ACTIONS_WITH_VERSION:
        raise RefusedError("malformed", f"{action} takes no version")
    if document_id is None:
        raise RefusedError("missing-field", "the message has no id, which a version needs")
    version = whole_number(text, MAX_VERSION)
    if version is None:
        raise RefusedError("malformed", "the version is not a whole number from 0 to 2^63-1")
    return version
