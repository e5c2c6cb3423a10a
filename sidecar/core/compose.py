"""From a message to the bytes that it takes in a bulk request, or to the reason why it never gets into one.

Encoding on admission: sizes are exact, what can't be sent never gets in, and a retry is a selection and a join.
The body goes in as the bytes that it is; ids, names and versions from the message are data, whatever bytes they hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from sidecar.core.coalesce import Operation, source_line
from sidecar.core.columns import column
from sidecar.core.content import text_document
from sidecar.core.correlation import Correlation, set_size, whole_number
from sidecar.core.document import (
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
from sidecar.core.lines import CLOSING, MAX_ID_BYTES, IndexNames, Lines
from sidecar.core.properties import STRING_OVERHEAD, PropertiesError, header, short_reader
from sidecar.core.split import Parts, split
from sidecar.core.template import MissingFieldError, Scene, Template, came_back
from sidecar.core.transform import NothingError, TransformError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sidecar.core.coalesce import Mode as CoalesceMode
    from sidecar.core.columns import Chunk
    from sidecar.core.fields import Fields, Rows
    from sidecar.core.message import Message
    from sidecar.core.split import Mode as SplitMode
    from sidecar.core.transform import Prepare, Transform

    _Way = Callable[[Iterator[Message], float], tuple[list[Message], list["Reject"]]]

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


class Reject(NamedTuple):
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


REFUSALS = (RefusedError, MissingFieldError, PropertiesError, TransformError, NothingError)
"""What ends the composing of a message."""


def reject(message: Message, why: Exception) -> Reject:
    """Return the reject that one of `REFUSALS` means."""
    if isinstance(why, RefusedError):
        return Reject(message, why.reason, why.detail)
    if isinstance(why, TransformError):
        return Reject(message, "transform-failed", why.detail, why.error_type)
    if isinstance(why, NothingError):
        return Reject(message, "", "")
    if isinstance(why, MissingFieldError):
        return Reject(message, "missing-field", f"the message has no {why.field}")
    return Reject(message, "malformed", str(why))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What becomes of messages; the meaning of each is that of the setting of its name.

    Attributes:
        most_bytes: what a compressed body may hold.
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
    most_bytes: int = MAX_DOCUMENT_BYTES
    batch_key: Template | None = None
    batch_flush_when: Template | None = None
    batch_complete_count: Template | None = None
    coalesce: CoalesceMode = "none"
    split: SplitMode = "none"
    transform: Transform | None = None
    prepare: Prepare | None = None

    @property
    def has_parts(self) -> bool:
        """Whether there may be several documents in a message."""
        return self.split != "none" or self.transform is not None

    @property
    def gathers_singly(self) -> bool:
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


def correlation(recipe: Recipe, scene: Scene) -> Correlation:
    """Return what a message says of its group; one that completes it and has no body is a mere signal.

    Raises:
        RefusedError, MissingFieldError: it doesn't say what it should.
    """
    key = recipe.batch_key.render(scene) if recipe.batch_key is not None else b""
    told = recipe.batch_complete_count.render(scene) if recipe.batch_complete_count is not None else b""
    completes = recipe.batch_flush_when is not None and recipe.batch_flush_when.render(scene) != b""
    return Correlation(key, set_size(told), completes, completes and not scene.content().strip(SPACE))


class Composer:
    """Makes action line, source and key of messages.

    Args:
        recipe: what becomes of them.
        make_id: gives ids that nobody else has (for ``SIDECAR_ID=generated``).

    Attributes:
        room_bytes: what documents may take beside the bodies that came, in the next call: compressed ones are much
            larger. It may be exceeded by one.
        left: the messages of the last call that weren't looked at, since that was used up. One always is.
    """

    room_bytes: int
    left: list[Message]

    def __init__(self, recipe: Recipe, make_id: Callable[[], str]) -> None:
        self._recipe = recipe
        self._make_id = make_id
        self._action = recipe.constant_action
        self.room_bytes = recipe.most_bytes
        self.left = []
        self._gathers_singly = recipe.gathers_singly
        self._folds = recipe.coalesce != "none"
        self._has_one_index = recipe.path_index is not None
        self._names = IndexNames(recipe)
        options = (("routing", recipe.routing), ("pipeline", recipe.pipeline))
        self._optional = [
            (name, b'"%s":' % name.encode(), template.render) for name, template in options if template is not None
        ]
        self._conditional = recipe.version is not None or self._action not in {"index", "create", "delete"}
        self._read_id = short_reader("message_id")
        self._ident = self._ident_maker()
        self._fields = recipe.fields or None
        self._lines = Lines(recipe, make_id, self._names) if Lines.suit(recipe) else None
        self._groups = column(recipe.batch_key) if recipe.batch_key is not None else None
        if recipe.has_parts:
            self._compose: _Way = self._compose_parts
        elif self._lines is not None:
            self._compose = self._compose_alike
        else:
            self._compose = self._compose_singly

    def compose(self, messages: Iterable[Message], now: float) -> tuple[list[Message], list[Reject]]:
        """Fill in `line`, `source` and `key`; return the messages that can be sent, and the others with reasons.

        Args:
            messages: a chunk.
            now: seconds since 1970.
        """
        self._room, self.left = self.room_bytes, []
        return self._compose(iter(messages), now)

    def _compose_alike(self, messages: Iterator[Message], now: float) -> tuple[list[Message], list[Reject]]:
        """Compose by columns: the way of most users. What is out of the ordinary is composed by itself afterwards."""
        everything = list(messages)
        if not everything:
            return [], []
        assert self._lines is not None
        chunk = self._lines.chunk(everything, now)
        if self._groups is not None:
            self._note_groups(self._groups(chunk), everything)
        rows = self._fields.rows(chunk) if self._fields is not None else None
        lines, keys = self._lines.make(chunk)
        unusual: list[int] = []
        note = unusual.append
        for place, (message, line, key) in enumerate(zip(everything, lines, keys)):  # noqa: B905 - keys may be endless
            message.line, message.key, message.received_at = line, key, now
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
        if chunk.odd or unusual or rows is not None:
            return self._compose_rest(chunk, frozenset(unusual), rows)
        return everything, []

    def _compose_rest(
        self, chunk: Chunk, unusual: frozenset[int], rows: Rows | None
    ) -> tuple[list[Message], list[Reject]]:
        """Compose odd messages, look into bodies that are unusual, and add fields to all."""
        composed: list[Message] = []
        rejects: list[Reject] = []
        odd, fields, room = chunk.odd, self._fields, self._room
        for place, message in enumerate(chunk.messages):
            body = message.body
            try:
                if place in odd:
                    message.line, message.key = b"", None  # what columns say of it means nothing
                    self._compose_one(message, self._scene(message, chunk.now))
                else:
                    source = document(body) if place in unusual else body
                    message.becomes(fields.splice(source, rows[place]) if fields is not None and rows else source)
            except REFUSALS as why:
                rejects.append(reject(message, why))
            else:
                composed.append(message)
            if message.source is not body:
                room -= len(message.source or b"")
                if room < 0:
                    self.left = chunk.messages[place + 1 :]
                    break
        return composed, rejects

    @staticmethod
    def _note_groups(keys: list[bytes], messages: list[Message]) -> None:
        known = {key: Correlation(key) for key in set(keys)}
        for message, key in zip(messages, keys, strict=True):
            message.correlation, message.operation = known[key], None

    def _compose_singly(self, messages: Iterator[Message], now: float) -> tuple[list[Message], list[Reject]]:
        composed: list[Message] = []
        rejects: list[Reject] = []
        scene: Scene | None = None
        for message in messages:
            if scene is None:
                scene = self._scene(message, now)
            else:
                scene.turn_to(message)
            try:
                self._compose_one(message, scene)
            except REFUSALS as why:
                rejects.append(reject(message, why))
            else:
                composed.append(message)
            if message.source is not message.body and self._is_used_up(message):
                self.left = list(messages)
        return composed, rejects

    def _compose_parts(self, messages: Iterator[Message], now: float) -> tuple[list[Message], list[Reject]]:
        """Compose the documents of messages that hold several: each is a message of its own from here on."""
        composed: list[Message] = []
        rejects: list[Reject] = []
        for message in messages:
            message.parts = None
            scene = self._scene(message, now)
            message.received_at = scene.received_at  # it goes round as a whole
            try:
                parts = self._parts(message, scene)
            except REFUSALS as why:
                rejects.append(reject(message, why))
                continue
            for part in parts:
                try:
                    self._compose_part(part, now)
                except REFUSALS as why:
                    rejects.append(reject(part, why))
                else:
                    composed.append(part)
                self._room -= part.held_bytes
            if self._room < 0:
                self.left = list(messages)
        return composed, rejects

    def _scene(self, message: Message, now: float) -> Scene:
        return Scene(message, now, self._recipe.most_bytes, text=self._recipe.content == "text")

    def _is_used_up(self, message: Message) -> bool:
        """Note what a document takes beside its message; return whether no more may."""
        self._room -= len(message.source or b"")
        return self._room < 0

    def _parts(self, message: Message, scene: Scene) -> list[Message]:
        """Return the documents of a message; itself, where it is a mere signal."""
        recipe = self._recipe
        body = message.body if recipe.transform is not None else scene.content()
        if recipe.batch_flush_when is not None and not body.strip(SPACE):
            message.correlation = self._correlation(scene)
            message.operation = message.source = None
            if message.correlation.is_signal:
                return [message]
        if recipe.transform is not None:
            return self._transformed(message, recipe.transform(message))
        return split(message, body, cast("Literal['array', 'lines']", recipe.split), recipe.most_bytes)

    @staticmethod
    def _transformed(message: Message, documents: list[bytes]) -> list[Message]:
        if not documents:
            raise NothingError
        parts = Parts(message, len(documents))
        return [parts.make(item, document) for item, document in enumerate(documents)]

    def _compose_part(self, part: Message, now: float) -> None:
        if part.parts is None:
            return  # a signal
        scene = Scene(part, now, part=True, text=self._recipe.content == "text")
        if self._recipe.transform is not None and part.parts.count == 1:
            scene.item = None  # what becomes one document has the message's id
        self._compose_one(part, scene)
        if self._recipe.gathers_singly and part.item < part.parts.count - 1:
            # What completes a group does so with its last document.
            part.correlation = part.correlation._replace(completes=False)

    def _compose_one(self, message: Message, scene: Scene) -> None:
        message.received_at = scene.received_at
        if self._gathers_singly and self._is_signal(message, scene):
            return
        action = message.action = self._action or self._render_action(scene)
        ident = self._ident(message, scene)
        parameters = []
        space = b""
        if not self._has_one_index:
            index = self._recipe.index.render(scene)
            parameters.append(self._names.parameter(index))
            space = index + b"\0"
        if ident is not None:
            if len(ident) > MAX_ID_BYTES:
                raise _too_long(ident)
            parameters.append(b'"_id":' + json_string(ident, "the id"))
        elif action in ACTIONS_ON_WHAT_IS_THERE:
            raise RefusedError("missing-field", f"the message has no id, which {action} needs")
        first_option = len(parameters)
        for name, opening, render in self._optional:
            value = render(scene)
            if value:
                parameters.append(opening + json_string(value, name))
        options = parameters[first_option:] if self._folds else []
        version = None
        if self._conditional:
            version = self._version(action, ident, scene)
            parameters += self._conditions(action, version)
        message.line = _OPENINGS[action] + b",".join(parameters) + CLOSING
        message.key = space + ident if ident is not None else None
        line = self._document(action, scene)
        message.becomes(source_line(action, line))
        if self._folds and ident is not None:
            has_pipeline = self._recipe.pipeline is not None
            message.operation = Operation(action, b",".join(options), has_pipeline, version, line)
            message.gathered = False

    def _is_signal(self, message: Message, scene: Scene) -> bool:
        """Note what a message says of its group; return whether that is all that it says."""
        message.correlation = self._correlation(scene)
        message.operation = None
        if message.correlation.is_signal:
            message.source = None
        return message.correlation.is_signal

    def _correlation(self, scene: Scene) -> Correlation:
        found = correlation(self._recipe, scene)
        return found._replace(is_signal=False) if found.is_signal and self._deletes(scene) else found

    def _deletes(self, scene: Scene) -> bool:
        """Whether a message is a deletion, which has no need of a body."""
        try:
            return (self._action or self._render_action(scene)) == "delete"
        except (RefusedError, MissingFieldError):
            return False  # a signal need not name an action

    def _document(self, action: str, scene: Scene) -> bytes | None:
        if action == "delete":
            return None
        body = scene.content()
        if self._recipe.content == "text":
            line = text_document(body)
        elif name := metadata_name(scene.parsed):
            raise has_metadata(name)
        elif action in {"update", "upsert"}:
            line = fragment(body)
        else:
            line = document(body)
        return self._fields.add(line, scene) if self._fields is not None else line

    def _render_action(self, scene: Scene) -> str:
        action = self._recipe.action.render(scene).decode()
        if action not in ACTIONS:
            raise RefusedError("malformed", f"the action is none of {', '.join(ACTIONS)}")
        return action

    def _ident_maker(self) -> Callable[[Message, Scene], bytes | None]:
        """Return what finds or makes the id of a message."""
        recipe = self._recipe
        if recipe.id_mode == "auto":
            return self._message_id
        if recipe.id_mode == "generated":
            return self._generated
        return self._id_by_template if recipe.id is not None else lambda _, __: None

    def _message_id(self, message: Message, scene: Scene) -> bytes | None:
        ident = self._read_id(message.properties) or None
        return ident if ident is None or scene.item is None else b"%b-%d" % (ident, scene.item)

    def _id_by_template(self, message: Message, scene: Scene) -> bytes:  # noqa: ARG002 - as the others
        assert self._recipe.id is not None
        ident = self._recipe.id.render(scene)
        if not ident:
            raise RefusedError("missing-field", "the id is empty")
        return ident

    def _generated(self, message: Message, scene: Scene) -> bytes:
        """Return an id made here; a copy that comes back from the delay queue keeps the one that it was given."""
        if scene.item is None and came_back(message.properties):
            kept = header(message.properties, DOCUMENT_ID)
            if kept is not None and len(kept) > STRING_OVERHEAD:
                return kept[STRING_OVERHEAD:]
        return self._make_id().encode()

    def _version(self, action: str, ident: bytes | None, scene: Scene) -> int | None:
        template = self._recipe.version
        return _version(template.render(scene), action, ident) if template is not None else None

    def _conditions(self, action: str, version: int | None) -> list[bytes]:
        if version is not None:
            return [b'"version":%d,"version_type":"%s"' % (version, self._recipe.version_type.encode())]
        if action in {"update", "upsert"}:
            return [_RETRIES]
        return []


def _too_long(ident: bytes) -> RefusedError:
    return RefusedError("malformed", f"the id has {len(ident)} bytes; Elasticsearch takes {MAX_ID_BYTES}")


def _version(text: bytes, action: str, ident: bytes | None) -> int:
    if action not in ACTIONS_WITH_VERSION:
        raise RefusedError("malformed", f"{action} takes no version")
    if ident is None:
        raise RefusedError("missing-field", "the message has no id, which a version needs")
    version = whole_number(text, MAX_VERSION)
    if version is None:
        raise RefusedError("malformed", "the version is not a whole number from 0 to 2^63-1")
    return version
