"""From a message to what is published in its place (``SIDECAR_SINK=amqp``): where to, which properties, which body.

Body, properties and headers go on as the bytes that they are, but for what would make a copy vanish, be refused or go
elsewhere (`core.wire.republish`). Headers remember the first delivery, so that ``{exchange}``, ``{routing_key}`` and
``{now}`` mean at the next stage what they mean here.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import orjson

from sidecar.core.encoding import exact_json
from sidecar.core.encoding.correlation_encoder import CorrelationEncoder
from sidecar.core.encoding.document import RefusedError, json_string
from sidecar.core.encoding.encoder import REFUSALS, Rejection, rejection
from sidecar.core.encoding.template import (
    FIRST_EXCHANGE,
    FIRST_ROUTING_KEY,
    RECEIVED_AT,
    RETRY_COUNT,
    Template,
    TemplateContext,
)
from sidecar.core.timestamps import iso
from sidecar.core.wire import properties
from sidecar.core.wire.properties import FIELDS, PropertiesError, short_reader, text_value
from sidecar.core.wire.republish import DELIVERY_COUNT, TOKEN_HEADER, republish_properties

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.encoding.encoder import EncoderConfig
    from sidecar.core.message import Message

ACTION = "publish"
"""How it is called where documents are counted, and in dead letters."""

MAX_ROUTING_KEY_BYTES = 255
_NO_LIMIT = 1 << 30
_OWN = frozenset({TOKEN_HEADER, RETRY_COUNT, FIRST_EXCHANGE, FIRST_ROUTING_KEY, RECEIVED_AT})
_ROUNDS = frozenset({RETRY_COUNT})
"""Rounds by the delay queue are a stage's own; the next one counts its own."""

_ENVELOPE_FIELDS = tuple(
    (b'"%s":' % name.encode(), name, Template(f"{{{name}|}}" if name != "received_at" else "{now}"))
    for name in ("message_id", "exchange", "routing_key", "queue", "timestamp", "received_at")
)
_JSON_TYPE = b"\x10application/json"

_OURS = b"sidecar-"
_TABLE = b"".join(
    bytes([len(name)]) + name + b"%b" for name in (TOKEN_HEADER, FIRST_EXCHANGE, FIRST_ROUTING_KEY, RECEIVED_AT)
)
_HEADERS, _MODE = FIELDS["headers"][0], FIELDS["delivery_mode"][0]
_TYPE, _ENCODING = FIELDS["content_type"][0], FIELDS["content_encoding"][0]
_IN_THE_WAY = FIELDS["expiration"][0] | FIELDS["user_id"][0] | 0x0001
_PERSISTENT = 2
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardConfig:
    """What becomes of messages that are passed on; the meaning of each is that of ``SIDECAR_SINK_*``.

    Attributes:
        exchange: empty for the default exchange.
        routing_key: with which they are published.
        envelope: the body goes into a JSON object that tells where it came from.
    """

    routing_key: Template
    exchange: bytes = b""
    envelope: bool = False


class ForwardEncoder:
    """Finds out where messages go, and puts bodies into envelopes.

    Args:
        encoder_config: which group they belong to.
        forward: what becomes of them.

    Attributes:
        room_bytes: what envelopes may take beside the bodies that came, in the next call; it may be exceeded by one.
        left: the messages of the last call that weren't looked at, since that was used up.
    """

    def __init__(self, encoder_config: EncoderConfig, forward: ForwardConfig) -> None:
        self.room_bytes = encoder_config.max_bytes
        self.left: list[Message] = []
        self._config = encoder_config
        self._forward = forward
        self._correlations = CorrelationEncoder(encoder_config)
        self._read_id = short_reader("message_id")

    def encode(self, messages: Iterable[Message], now: float) -> tuple[list[Message], list[Rejection]]:
        """Fill in `made` (the routing key), `source` (the body), `key` and `received_at`.

        The key is the ``message_id``, so that of two messages with the same one the second is published when the first
        is confirmed: whatever goes again in between, the next stage sees them in their order.

        Args:
            messages: a chunk.
            now: seconds since 1970.
        """
        grouped, rejections = self._correlations.encode(messages, now)
        encoded: list[Message] = []
        room, self.left = self.room_bytes, []
        correlates, envelope = self._config.correlates, self._forward.envelope
        waiting = iter(grouped)
        for message in waiting:
            if correlates and message.correlation.is_signal:
                message.source = None
                encoded.append(message)
                continue
            try:
                context = TemplateContext(message, now, self._config.max_bytes)
                self._address(message, context)
                if envelope:
                    message.set_source(enveloped(message, context))
            except REFUSALS as why:
                rejections.append(rejection(message, why))
                continue
            encoded.append(message)
            if envelope:
                room -= len(message.source or b"")
                if room < 0:
                    self.left = list(waiting)
        return encoded, rejections

    def _address(self, message: Message, context: TemplateContext) -> None:
        routing_key = self._forward.routing_key.render(context)
        if len(routing_key) > MAX_ROUTING_KEY_BYTES:
            detail = f"the routing key has {len(routing_key)} bytes; AMQP takes {MAX_ROUTING_KEY_BYTES}"
            raise RefusedError("malformed", detail)
        document_id = self._read_id(message.properties)
        message.document_key = document_id + b"\0" + routing_key if document_id else None
        message.made = routing_key
        message.received_at = context.received_at


def enveloped(message: Message, context: TemplateContext) -> bytes:
    """Return the body in its envelope, byte by byte; its ``content_encoding`` is undone.

    Raises:
        PropertiesError: the message is cut short.
        RefusedError: the body is no JSON, or there is too much of it.
    """
    body = context.content()
    body = _checked(body)
    told = [(name, what, template.render(context)) for name, what, template in _ENVELOPE_FIELDS]
    parts = [name + json_string(value, what) for name, what, value in told if value]
    headers = _headers(message.properties)
    if headers:
        parts.append(b'"headers":' + headers)
    parts.append(b'"body":' + body)
    return b"{" + b",".join(parts) + b"}"


def _checked(body: bytes) -> bytes:
    """Return what is one JSON value, or refuse it: anything else would make the envelope none."""
    body = body.removeprefix(BOM_UTF8)
    if exact_json.error_at(body) is not None:
        raise RefusedError("malformed", "the body is not valid JSON, which an envelope takes")
    return body


def _headers(raw: bytes) -> bytes:
    """Return the headers as a JSON object, but for those of the sidecar's own; empty where there are none."""
    table = properties.headers(raw)
    told = {}
    try:
        for name, value in properties.fields(table):
            if name not in _OWN and name != DELIVERY_COUNT:
                told[name.decode(errors="replace")] = _plain(properties.decode(value))
        return orjson.dumps(told) if told else b""
    except (RecursionError, orjson.JSONEncodeError):
        raise RefusedError("malformed", "the headers can't be written as JSON") from None


def _plain(value: object) -> object:
    """Return a header's value as JSON has it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


class ForwardProperties:
    """Gives messages the properties with which they are published.

    Args:
        forward: what becomes of them.
    """

    def __init__(self, forward: ForwardConfig) -> None:
        self._envelope = forward.envelope
        self._received_at = -1.0
        self._received = b""

    def properties(self, message: Message, token: bytes) -> bytes:
        """Return the properties of a composed message, with `token` (`sidecar.ports.Copy`) among its headers."""
        raw = _of_json(message.properties) if self._envelope else message.properties
        if message.received_at != self._received_at:  # the same for all that came at once
            self._received_at = message.received_at
            self._received = text_value(iso(message.received_at))
        if _OURS not in raw:
            exchange, key = message.exchange, message.routing_key
            quick = append_headers(raw, _TABLE % (text_value(token), _text(exchange), _text(key), self._received))
            if quick is not None:
                return quick
        context = TemplateContext(message, message.received_at)
        added = [
            (TOKEN_HEADER, text_value(token)),
            (FIRST_EXCHANGE, text_value(context.exchange)),
            (FIRST_ROUTING_KEY, text_value(context.routing_key)),
            (RECEIVED_AT, self._received),
        ]
        return republish_properties(raw, added, _NO_LIMIT, without=_ROUNDS)


_text = lru_cache(maxsize=1024)(text_value)
"""Exchanges and most routing keys are the same again and again."""


def append_headers(raw: bytes, added: bytes) -> bytes | None:
    """Return properties with fields added at the end of the table, where nothing else needs to be done.

    That is so for most messages, and costs a tenth of taking them apart (`republish_properties`, which gives the same).
    None where something must move, or the message isn't persistent.

    Args:
        raw: of a message that has no header of the sidecar's.
        added: the fields of a table.
    """
    try:
        flags = raw[0] << 8 | raw[1]
        if flags & _IN_THE_WAY or not flags & _MODE:
            return None
        at = 2
        for flag in (_TYPE, _ENCODING):
            if flags & flag:
                at += 1 + raw[at]
        table, after = b"", at
        if flags & _HEADERS:
            after = at + _LENGTH_BYTES + int.from_bytes(raw[at : at + _LENGTH_BYTES], "big")
            table = raw[at + _LENGTH_BYTES : after]
            if b"CC" in table or b"-death" in table or DELIVERY_COUNT in table:
                return None
        if raw[after] != _PERSISTENT:
            return None
    except IndexError:
        return None
    table += added
    length = len(table).to_bytes(_LENGTH_BYTES, "big")
    return (flags | _HEADERS).to_bytes(2, "big") + raw[2:at] + length + table + raw[after:]


def _of_json(raw: bytes) -> bytes:
    """Return properties for a body that is JSON, and not compressed any more."""
    if not (raw[0] << 8 | raw[1]) & (_TYPE | _ENCODING):
        return raw
    try:
        values = properties.split(raw)
    except PropertiesError:
        return raw
    values.pop("content_encoding", None)
    if "content_type" in values:
        values["content_type"] = _JSON_TYPE
    return properties.join(values)
