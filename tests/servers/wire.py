"""AMQP 0-9-1 field tables and properties as bytes, written and read without loss.

Text that isn't UTF-8 comes out as `bytes`, and whatever Python has no type for goes in as `Raw`, so a test can send any
header that some client somewhere might send, and see every byte of what came back.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Raw:
    """A field value by its type letter and its exact bytes, as they follow the letter."""

    kind: bytes
    payload: bytes


FieldValue = None | bool | int | float | str | bytes | Raw | Sequence["FieldValue"] | Mapping[str | bytes, "FieldValue"]
Table = Mapping[str | bytes, FieldValue]

# Name, bit of the property flags, and how the value is written.
_PROPERTIES: Final = (
    ("content_type", 15, "short"),
    ("content_encoding", 14, "short"),
    ("headers", 13, "table"),
    ("delivery_mode", 12, "octet"),
    ("priority", 11, "octet"),
    ("correlation_id", 10, "short"),
    ("reply_to", 9, "short"),
    ("expiration", 8, "short"),
    ("message_id", 7, "short"),
    ("timestamp", 6, "long"),
    ("type", 5, "short"),
    ("user_id", 4, "short"),
    ("app_id", 3, "short"),
    ("cluster_id", 2, "short"),
)
_NAMES: Final = frozenset(name for name, _, _ in _PROPERTIES)

# Letters as RabbitMQ reads them; the specification's own differ for some.
_NUMBERS: Final = {
    b"b": ">b",
    b"B": ">B",
    b"s": ">h",
    b"u": ">H",
    b"I": ">i",
    b"i": ">I",
    b"l": ">q",
    b"L": ">q",
    b"T": ">Q",
    b"f": ">f",
    b"d": ">d",
}
_INT_32 = 2**31
_INT_64 = 2**63


def as_bytes(text: str | bytes) -> bytes:
    """Return text as UTF-8; bytes stay as they are."""
    return text.encode() if isinstance(text, str) else text


def as_text(raw: bytes) -> str | bytes:
    """Return UTF-8 as text; what isn't UTF-8 stays bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def short_string(text: str | bytes) -> bytes:
    """Return a string of at most 255 bytes with its length before it."""
    raw = as_bytes(text)
    return struct.pack(">B", len(raw)) + raw


def long_string(raw: bytes) -> bytes:
    """Return bytes with their 32-bit length before them."""
    return struct.pack(">I", len(raw)) + raw


def encode_table(table: Table | bytes) -> bytes:
    """Return a field table with its length. Bytes are the entries, already encoded, and get only the length."""
    if isinstance(table, bytes):
        return long_string(table)
    return long_string(b"".join(short_string(name) + encode_value(value) for name, value in table.items()))


def encode_value(value: FieldValue) -> bytes:
    """Return a field value with its type letter.

    Raises:
        TypeError: there is no field type for it.
        OverflowError: an integer of more than 64 bits.
    """
    match value:
        case Raw(kind, payload):
            return kind + payload
        case None:
            return b"V"
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int():
            return _encode_integer(value)
        case float():
            return b"d" + struct.pack(">d", value)
        case str() | bytes():
            return b"S" + long_string(as_bytes(value))
        case Mapping():
            return b"F" + encode_table(value)
        case Sequence():
            return b"A" + long_string(b"".join(encode_value(item) for item in value))
    message = f"no AMQP field type for {value!r}: wrap it in Raw"
    raise TypeError(message)


def _encode_integer(value: int) -> bytes:
    if -_INT_32 <= value < _INT_32:
        return b"I" + struct.pack(">i", value)
    if -_INT_64 <= value < _INT_64:
        return b"l" + struct.pack(">q", value)
    message = f"{value} has more than 64 bits"
    raise OverflowError(message)


def decode_table(raw: bytes) -> dict[str | bytes, FieldValue]:
    """Return the entries of a field table (without its length) by name; of equal names the last one."""
    return dict(table_entries(raw))


def table_entries(raw: bytes) -> list[tuple[str | bytes, FieldValue]]:
    """Return the entries of a field table (without its length) in order, equal names included."""
    entries: list[tuple[str | bytes, FieldValue]] = []
    at = 0
    while at < len(raw):
        name, at = _take(raw, at + 1, raw[at])
        value, at = decode_value(raw, at)
        entries.append((as_text(name), value))
    return entries


def decode_value(raw: bytes, at: int) -> tuple[FieldValue, int]:
    """Return the field value that begins at a position with its type letter, and the position after it.

    Raises:
        ValueError: an unknown type letter.
    """
    kind = raw[at : at + 1]
    at += 1
    if kind in _NUMBERS:
        layout = _NUMBERS[kind]
        return struct.unpack_from(layout, raw, at)[0], at + struct.calcsize(layout)
    if kind == b"t":
        return raw[at] != 0, at + 1
    if kind == b"V":
        return None, at
    if kind == b"D":
        return Raw(kind, raw[at : at + 5]), at + 5
    if kind not in b"SxAF" or not kind:
        message = f"unknown field type {kind!r} at {at - 1}"
        raise ValueError(message)
    part, at = _take(raw, at + 4, struct.unpack_from(">I", raw, at)[0])
    if kind == b"S":
        return as_text(part), at
    if kind == b"x":
        return part, at
    return (decode_table(part) if kind == b"F" else _decode_array(part)), at


def _decode_array(raw: bytes) -> list[FieldValue]:
    values: list[FieldValue] = []
    at = 0
    while at < len(raw):
        value, at = decode_value(raw, at)
        values.append(value)
    return values


def _take(raw: bytes, at: int, length: int) -> tuple[bytes, int]:
    return raw[at : at + length], at + length


PropertyValue = str | bytes | int | Table
Properties = Mapping[str, PropertyValue]


def encode_properties(properties: Properties) -> bytes:
    """Return property flags and values. ``headers`` is a table, or bytes that are its entries already encoded.

    Raises:
        KeyError: a name that no property has.
    """
    unknown = properties.keys() - _NAMES
    if unknown:
        message = f"no AMQP property is called {', '.join(sorted(unknown))}"
        raise KeyError(message)
    flags = 0
    values: list[bytes] = []
    for name, bit, kind in _PROPERTIES:
        if name in properties:
            flags |= 1 << bit
            values.append(_encode_property(kind, properties[name]))
    return struct.pack(">H", flags) + b"".join(values)


def _encode_property(kind: str, value: PropertyValue) -> bytes:
    if kind == "table" and isinstance(value, Mapping | bytes):
        return encode_table(value)
    if kind == "short" and isinstance(value, str | bytes):
        return short_string(value)
    if kind == "octet" and isinstance(value, int):
        return struct.pack(">B", value)
    if kind == "long" and isinstance(value, int):
        return struct.pack(">Q", value)
    message = f"{value!r} is no value for a property of the kind {kind}"
    raise TypeError(message)


@dataclass(frozen=True, slots=True)
class DecodedProperties:
    """The properties of a message: values by name, and the header table's exact bytes (without its length)."""

    values: dict[str, str | bytes | int]
    header_bytes: bytes

    @property
    def headers(self) -> dict[str | bytes, FieldValue]:
        """The header table by name."""
        return decode_table(self.header_bytes)


def decode_properties(raw: bytes) -> DecodedProperties:
    """Return what `encode_properties` wrote."""
    flags = struct.unpack_from(">H", raw)[0]
    at = 2
    values: dict[str, str | bytes | int] = {}
    header_bytes = b""
    for name, bit, kind in _PROPERTIES:
        if not flags & (1 << bit):
            continue
        if kind == "short":
            text, at = _take(raw, at + 1, raw[at])
            values[name] = as_text(text)
        elif kind == "octet":
            values[name] = raw[at]
            at += 1
        elif kind == "long":
            values[name] = struct.unpack_from(">Q", raw, at)[0]
            at += 8
        else:
            header_bytes, at = _take(raw, at + 4, struct.unpack_from(">I", raw, at)[0])
    return DecodedProperties(values, header_bytes)
