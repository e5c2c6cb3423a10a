"""The methods of AMQP 0-9-1 as bytes, both ways, written from the specification and without the product's libraries."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.servers.wire import decode_table, encode_table, long_string, short_string

if TYPE_CHECKING:
    from collections.abc import Sequence

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END: Final = b"\xce"
FRAME_OVERHEAD: Final = 8
PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"
HEARTBEAT_FRAME: Final = bytes((HEARTBEAT, 0, 0, 0, 0, 0, 0, 0xCE))
BASIC: Final = 60

_SPECIFICATION: Final = """
10.10 connection.start version-major:octet version-minor:octet server-properties:table mechanisms:long locales:long
10.11 connection.start-ok client-properties:table mechanism:short response:long locale:short
10.20 connection.secure challenge:long
10.21 connection.secure-ok response:long
10.30 connection.tune channel-max:u16 frame-max:u32 heartbeat:u16
10.31 connection.tune-ok channel-max:u16 frame-max:u32 heartbeat:u16
10.40 connection.open vhost:short capabilities:short insist:bit
10.41 connection.open-ok known-hosts:short
10.50 connection.close code:u16 text:short class-id:u16 method-id:u16
10.51 connection.close-ok
10.60 connection.blocked reason:short
10.61 connection.unblocked
10.70 connection.update-secret secret:long reason:short
10.71 connection.update-secret-ok
20.10 channel.open reserved:short
20.11 channel.open-ok reserved:long
20.20 channel.flow active:bit
20.21 channel.flow-ok active:bit
20.40 channel.close code:u16 text:short class-id:u16 method-id:u16
20.41 channel.close-ok
40.10 exchange.declare reserved:u16 exchange:short type:short passive:bit durable:bit auto-delete:bit internal:bit nowait:bit arguments:table
40.11 exchange.declare-ok
40.20 exchange.delete reserved:u16 exchange:short if-unused:bit nowait:bit
40.21 exchange.delete-ok
40.30 exchange.bind reserved:u16 destination:short source:short routing-key:short nowait:bit arguments:table
40.31 exchange.bind-ok
40.40 exchange.unbind reserved:u16 destination:short source:short routing-key:short nowait:bit arguments:table
40.51 exchange.unbind-ok
50.10 queue.declare reserved:u16 queue:short passive:bit durable:bit exclusive:bit auto-delete:bit nowait:bit arguments:table
50.11 queue.declare-ok queue:short messages:u32 consumers:u32
50.20 queue.bind reserved:u16 queue:short exchange:short routing-key:short nowait:bit arguments:table
50.21 queue.bind-ok
50.50 queue.unbind reserved:u16 queue:short exchange:short routing-key:short arguments:table
50.51 queue.unbind-ok
50.30 queue.purge reserved:u16 queue:short nowait:bit
50.31 queue.purge-ok messages:u32
50.40 queue.delete reserved:u16 queue:short if-unused:bit if-empty:bit nowait:bit
50.41 queue.delete-ok messages:u32
60.10 basic.qos prefetch-size:u32 prefetch-count:u16 global:bit
60.11 basic.qos-ok
60.20 basic.consume reserved:u16 queue:short consumer-tag:short no-local:bit no-ack:bit exclusive:bit nowait:bit arguments:table
60.21 basic.consume-ok consumer-tag:short
60.30 basic.cancel consumer-tag:short nowait:bit
60.31 basic.cancel-ok consumer-tag:short
60.40 basic.publish reserved:u16 exchange:short routing-key:short mandatory:bit immediate:bit
60.50 basic.return code:u16 text:short exchange:short routing-key:short
60.60 basic.deliver consumer-tag:short tag:u64 redelivered:bit exchange:short routing-key:short
60.70 basic.get reserved:u16 queue:short no-ack:bit
60.71 basic.get-ok tag:u64 redelivered:bit exchange:short routing-key:short messages:u32
60.72 basic.get-empty reserved:short
60.80 basic.ack tag:u64 multiple:bit
60.90 basic.reject tag:u64 requeue:bit
60.110 basic.recover requeue:bit
60.111 basic.recover-ok
60.120 basic.nack tag:u64 multiple:bit requeue:bit
85.10 confirm.select nowait:bit
85.11 confirm.select-ok
"""  # noqa: E501 - a line for each method

_NUMBERS: Final = {"octet": ">B", "u16": ">H", "u32": ">I", "u64": ">Q"}
_EMPTY: Final[dict[str, Any]] = {"short": "", "long": b"", "table": {}, "bit": False}


class Signature(NamedTuple):
    """A method's numbers and the names and types of its arguments."""

    class_id: int
    method_id: int
    arguments: tuple[tuple[str, str], ...]


def _read_specification() -> dict[str, Signature]:
    signatures = {}
    for line in _SPECIFICATION.strip().splitlines():
        numbers, name, *arguments = line.split()
        class_id, method_id = map(int, numbers.split("."))
        typed = tuple((argument.split(":")[0].replace("-", "_"), argument.split(":")[1]) for argument in arguments)
        signatures[name] = Signature(class_id, method_id, typed)
    return signatures


SIGNATURES: Final = _read_specification()
NAMES: Final = {(signature.class_id, signature.method_id): name for name, signature in SIGNATURES.items()}


@dataclass(frozen=True, slots=True)
class Method:
    """A method with its arguments by name, as ``queue.declare`` with ``{"queue": "work", "passive": True, ...}``."""

    name: str
    arguments: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        """Return an argument."""
        return self.arguments[name]


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return a frame."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + FRAME_END


def encode(name: str, arguments: dict[str, Any] | None = None) -> bytes:
    """Return the payload of a method's frame; an argument that isn't given is zero or empty.

    Raises:
        KeyError: the method, or an argument, doesn't exist.
    """
    signature = SIGNATURES[name]
    given = dict(arguments or {})
    parts = [struct.pack(">HH", signature.class_id, signature.method_id)]
    bits: list[bool] = []
    for argument, kind in signature.arguments:
        value = given.pop(argument, _EMPTY.get(kind, 0))
        if kind == "bit":
            bits.append(bool(value))
            continue
        parts += _packed(bits)
        if kind == "short":
            parts.append(short_string(value))
        elif kind == "long":
            parts.append(long_string(value.encode() if isinstance(value, str) else value))
        elif kind == "table":
            parts.append(encode_table(value))
        else:
            parts.append(struct.pack(_NUMBERS[kind], value))
    if given:
        raise KeyError(f"{name} has no {', '.join(given)}")
    return b"".join([*parts, *_packed(bits)])


def _packed(bits: list[bool]) -> Sequence[bytes]:
    """Return bits that follow each other in one octet, and forget them."""
    octet = sum(1 << at for at, bit in enumerate(bits) if bit)
    packed = [bytes([octet])] if bits else []
    bits.clear()
    return packed


def decode(payload: bytes) -> Method:
    """Return the method of a method's frame.

    Raises:
        KeyError: there is none with these numbers.
        ValueError: the arguments are too long or too short.
    """
    name = NAMES[(payload[0] << 8 | payload[1], payload[2] << 8 | payload[3])]
    at, bit = 4, 0
    arguments: dict[str, Any] = {}
    for argument, kind in SIGNATURES[name].arguments:
        if kind == "bit":
            arguments[argument] = bool(payload[at] >> bit & 1)
            bit += 1
            continue
        at, bit = at + (bit > 0), 0
        if kind == "short":
            arguments[argument] = payload[at + 1 : at + 1 + payload[at]].decode(errors="surrogateescape")
            at += 1 + payload[at]
        elif kind in {"long", "table"}:
            (size,) = struct.unpack_from(">I", payload, at)
            raw = payload[at + 4 : at + 4 + size]
            arguments[argument] = raw if kind == "long" else decode_table(raw)
            at += 4 + size
        else:
            (arguments[argument],) = struct.unpack_from(_NUMBERS[kind], payload, at)
            at += struct.calcsize(_NUMBERS[kind])
    if at + (bit > 0) != len(payload):
        raise ValueError(f"{name} of {len(payload)} bytes, where its arguments take {at + (bit > 0)}")
    return Method(name, arguments)
