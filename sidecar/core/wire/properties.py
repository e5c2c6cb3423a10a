"""AMQP properties and header tables as raw bytes: read when asked for, spliced, never decoded and encoded again.

A codec that decodes everything gives other bytes back (millisecond timestamps, int64, repeated keys, invalid UTF-8).
Here a property set is what came off the wire: a word of flags, then the values that it announces.
Source: AMQP 0-9-1 specification §4.2.5 and §4.2.6.1, with RabbitMQ's table types (rabbitmq.com/amqp-0-9-1-errata).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING

from sidecar.core.timestamps import since_epoch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_SHORT, _TABLE = 0, -1
FIELDS: dict[str, tuple[int, int]] = {
    # name: (flag, width in bytes; or a short string, or a table)
    "content_type": (0x8000, _SHORT),
    "content_encoding": (0x4000, _SHORT),
    "headers": (0x2000, _TABLE),
    "delivery_mode": (0x1000, 1),
    "priority": (0x0800, 1),
    "correlation_id": (0x0400, _SHORT),
    "reply_to": (0x0200, _SHORT),
    "expiration": (0x0100, _SHORT),
    "message_id": (0x0080, _SHORT),
    "timestamp": (0x0040, 8),
    "type": (0x0020, _SHORT),
    "user_id": (0x0010, _SHORT),
    "app_id": (0x0008, _SHORT),
    "cluster_id": (0x0004, _SHORT),
}
"""The properties of class basic, in the order in which their values follow the flags."""

_MORE_FLAGS = 0x0001
_NOTHING_ALIKE = b"none begins like this"
_TOO_SHORT = "the properties end too early"
_BELIEVED_SECONDS = 366 * 86_400.0

_FIXED_WIDTHS = dict(zip(b"tbBsuIilLfdDTV\x00", (1, 1, 1, 2, 2, 4, 4, 8, 8, 4, 8, 5, 8, 0, 0), strict=True))
_SIZED = b"SAFx"
LONG_STRING = ord("S")
"""The type of a header's value that is a text, which is nearly every one."""
STRING_OVERHEAD = 5
"""What precedes that text in a raw value: the octet of the type, and the length."""
_table_size = struct.Struct(">I").unpack_from
_NUMBERS = {
    ord("b"): ">b",
    ord("B"): ">B",
    ord("s"): ">h",
    ord("u"): ">H",
    ord("I"): ">i",
    ord("i"): ">I",
    ord("l"): ">q",
    ord("L"): ">q",
    ord("f"): ">f",
    ord("d"): ">d",
    ord("T"): ">Q",
}

Field = tuple[bytes, bytes]
"""A table's field: its name, and its value with the type octet before it, both raw."""


class PropertiesError(ValueError):
    """A property set or a table that ends too early or has an unknown type."""


Column = list["bytes | PropertiesError | None"]
"""A value of each of several messages, in their order: None where one has none, an error where it can't be read."""


@lru_cache(maxsize=4096)
def _skips(flags: int, wanted: int) -> tuple[int, ...] | None:
    """Return the widths of what lies before the value that `wanted` announces, or None where it isn't there."""
    if not flags & wanted:
        return None
    return tuple(width for flag, width in FIELDS.values() if flags & flag and flag > wanted)


def _locate(properties: bytes, wanted: int) -> int:
    """Return where the value announced by the flag `wanted` begins, or -1."""
    flags = properties[0] << 8 | properties[1]
    skips = _skips(flags, wanted)
    if skips is None:
        return -1
    at = 2
    if flags & _MORE_FLAGS:
        at = _values_at(properties)
    for width in skips:
        if width > 0:
            at += width
        elif width == _SHORT:
            at += 1 + properties[at]
        else:
            at += 4 + int.from_bytes(properties[at : at + 4], "big")
    return at


def _values_at(properties: bytes) -> int:
    at = 0
    while properties[at + 1] & _MORE_FLAGS:
        at += 2
    return at + 2


def short(properties: bytes, name: str) -> bytes | None:
    """Return a short-string property raw, or None where the message has none.

    Raises:
        PropertiesError: the set is cut short.
    """
    try:
        at = _locate(properties, FIELDS[name][0])
        if at < 0:
            return None
        end = at + 1 + properties[at]
    except IndexError as error:
        raise PropertiesError(_TOO_SHORT) from error
    if end > len(properties):
        raise PropertiesError(_TOO_SHORT)
    return properties[at + 1 : end]


def short_column(name: str) -> Callable[[Iterable[bytes]], Column]:
    """Return a function that reads one short-string property of many messages, fast where they look alike.

    What lies before the value (flags, content type, …) is usually the same in message after message. Where it is, byte
    for byte, the value begins at the same place, and nothing needs to be skipped one by one. Headers differ: where they
    are in the way, what lies before them is compared, and they are skipped by their length.
    """
    flag = FIELDS[name][0]
    before, at, behind_headers = _NOTHING_ALIKE, 0, -1

    def read(sets: Iterable[bytes]) -> Column:
        nonlocal before, at, behind_headers
        values: Column = []
        add = values.append
        for properties in sets:
            try:
                if not properties.startswith(before):
                    if not (properties[0] << 8 | properties[1]) & flag:
                        add(None)
                        continue
                    at, behind_headers = _landmark(properties, flag, _locate(properties, flag))
                    before = properties[:at]
                start = at if behind_headers < 0 else at + _table_size(properties, at)[0] + behind_headers
                end = start + 1 + properties[start]
            except (IndexError, struct.error):
                add(PropertiesError(_TOO_SHORT))
                continue
            add(properties[start + 1 : end] if end <= len(properties) else PropertiesError(_TOO_SHORT))
        return values

    return read


def short_reader(name: str) -> Callable[[bytes], bytes | None]:
    """Return a function like `short` for one property of many messages, that come one by one."""
    return _singly(short_column(name))


def _singly(column: Callable[[Iterable[bytes]], Column]) -> Callable[[bytes], bytes | None]:
    def read(properties: bytes) -> bytes | None:
        (value,) = column((properties,))
        if isinstance(value, PropertiesError):
            raise value
        return value

    return read


def _landmark(properties: bytes, wanted: int, found: int) -> tuple[int, int]:
    """Return up to where properties must be the same for a value, that of `wanted`, to be found in the same way.

    Where only things of fixed width stand between the headers and the value, that is up to the headers, and the second
    number says how far behind their fields the value begins, counted from the headers' length; otherwise up to the
    value, and the second number is -1.
    """
    flags = properties[0] << 8 | properties[1]
    headers_flag = FIELDS["headers"][0]
    headers_at = _locate(properties, headers_flag) if wanted < headers_flag else -1
    if headers_at < 0:
        return found, -1
    between = [width for flag, width in FIELDS.values() if flags & flag and wanted < flag < headers_flag]
    if _SHORT in between:
        return found, -1
    return headers_at, 4 + sum(between)


def number(properties: bytes, name: str) -> int | None:
    """Return `delivery_mode`, `priority` or `timestamp` (as sent; seconds by the standard), or None.

    Raises:
        PropertiesError: the set is cut short.
    """
    flag, width = FIELDS[name]
    try:
        at = _locate(properties, flag)
    except IndexError as error:
        raise PropertiesError(_TOO_SHORT) from error
    if at < 0:
        return None
    if at + width > len(properties):
        raise PropertiesError(_TOO_SHORT)
    return int.from_bytes(properties[at : at + width], "big")


def published_at(properties: bytes, now: float) -> float | None:
    """Return when a message says that it was published, in seconds since 1970; None where that isn't to be believed.

    The property has whole seconds by the standard; some publishers send milliseconds, microseconds or nanoseconds.

    Args:
        properties: raw.
        now: in seconds since 1970.
    """
    try:
        timestamp = number(properties, "timestamp")
    except PropertiesError:
        return None
    if timestamp is None:
        return None
    moment = since_epoch(timestamp)
    if moment is None:
        return None
    seconds = moment.timestamp()
    return seconds if abs(now - seconds) < _BELIEVED_SECONDS else None


def headers(properties: bytes) -> bytes:
    """Return the header table's fields raw, without the length before them; empty where there is no table.

    Raises:
        PropertiesError: the set is cut short.
    """
    try:
        at = _locate(properties, FIELDS["headers"][0])
    except IndexError as error:
        raise PropertiesError(_TOO_SHORT) from error
    if at < 0:
        return b""
    end = at + 4 + int.from_bytes(properties[at : at + 4], "big")
    if end > len(properties):
        raise PropertiesError(_TOO_SHORT)
    return properties[at + 4 : end]


def fields(table: bytes) -> Iterator[Field]:
    """Yield the fields of a table, in order, repeated names included.

    Raises:
        PropertiesError: the table ends inside a field, or has a type that RabbitMQ doesn't know.
    """
    at, end = 0, len(table)
    while at < end:
        name_end = at + 1 + table[at]
        value_end = _value_end(table, name_end)
        yield table[at + 1 : name_end], table[name_end:value_end]
        at = value_end


def _value_end(table: bytes, at: int) -> int:
    if at >= len(table):
        raise PropertiesError("a header has no value")
    kind = table[at]
    width = _FIXED_WIDTHS.get(kind)
    if width is None:
        if kind not in _SIZED:
            raise PropertiesError(f"a header of unknown type {bytes([kind])!r}")
        if at + 5 > len(table):
            raise PropertiesError("a header ends too early")
        width = 4 + _table_size(table, at + 1)[0]
    end = at + 1 + width
    if end > len(table):
        raise PropertiesError("a header ends too early")
    return end


def header(properties: bytes, name: bytes) -> bytes | None:
    """Return the raw value (type octet first) of the first header called `name`, or None.

    Raises:
        PropertiesError: the set or its table is malformed.
    """
    return header_reader(name)(properties)


@lru_cache(maxsize=256)
def header_column(name: bytes) -> Callable[[Iterable[bytes]], Column]:  # noqa: C901 - inlined: a call costs 0.1 µs
    """Return a function that reads one header of many messages (as `header`), fast where they look alike.

    What precedes the headers is usually the same in message after message, and so are the names and types of those
    before the one that is wanted: they are compared, and only the lengths of their values are read.
    """
    flag = FIELDS["headers"][0]
    before, table_at = _NOTHING_ALIKE, 0
    steps = [(_NOTHING_ALIKE, 0, 0)]

    def read(sets: Iterable[bytes]) -> Column:  # noqa: C901 - as above
        nonlocal before, table_at, steps
        values: Column = []
        add = values.append
        for properties in sets:
            try:
                if not properties.startswith(before):
                    found = _locate(properties, flag)
                    if found < 0:
                        add(None)
                        continue
                    before, table_at = properties[:found], found + 4
                end = table_at + _table_size(properties, table_at - 4)[0]
                if end > len(properties):
                    add(PropertiesError(_TOO_SHORT))
                    continue
                at = table_at
                for opening, size, width in steps:
                    if not properties.startswith(opening, at):
                        break
                    start = at + size
                    at = start + width if width >= 0 else start + 4 + _table_size(properties, start)[0]
                else:
                    if at <= end:
                        add(properties[start - 1 : at])
                        continue
                if properties.find(name, table_at, end) < 0:  # one search in C for the many that don't have it
                    add(None)
                    continue
                start, at, learned = _find(properties, name, table_at, end)
                if start >= 0:
                    steps = learned
                add(properties[start:at] if start >= 0 else None)
            except (IndexError, struct.error):
                add(PropertiesError(_TOO_SHORT))
            except PropertiesError as error:
                add(error)
        return values

    return read


_Steps = list[tuple[bytes, int, int]]
"""How to get to a header: of each up to it its name and type, their size, and the width of its data (-1: sized)."""


def _find(properties: bytes, name: bytes, at: int, end: int) -> tuple[int, int, _Steps]:
    """Return from where to where a header's value lies, in a table's fields from `at` to `end`, or -1; and the steps.

    Raises:
        PropertiesError, IndexError: the table ends inside a field.
    """
    steps: _Steps = []
    while at < end:
        value_at = at + 1 + properties[at]
        after = _value_end(properties, value_at)
        if after > end:
            raise PropertiesError("a header ends too early")
        opening = properties[at : value_at + 1]
        steps.append((opening, len(opening), _FIXED_WIDTHS.get(opening[-1], -1)))
        if opening[1:-1] == name:
            return value_at, after, steps
        at = after
    return -1, -1, steps


def header_reader(name: bytes) -> Callable[[bytes], bytes | None]:
    """Return a function like `header` for one name in many messages, that come one by one."""
    return _singly(header_column(name))


def decode(value: bytes) -> object:
    """Return a raw value (type octet first) as a Python object; strings that are not UTF-8 stay bytes."""
    kind, data = value[0], value[1:]
    if kind == LONG_STRING:
        try:
            return data[4:].decode()
        except UnicodeDecodeError:
            return data[4:]
    if kind in _NUMBERS:
        return struct.unpack(_NUMBERS[kind], data)[0]
    if kind == ord("t"):
        return data != b"\0"
    if kind == ord("F"):
        return {name.decode(errors="replace"): decode(item) for name, item in fields(data[4:])}
    if kind == ord("A"):
        return list(_items(data[4:]))
    if kind == ord("D"):
        scale, unscaled = struct.unpack(">Bi", data)
        return unscaled / 10**scale
    if kind == ord("x"):
        return data[4:]
    return None


def _items(array: bytes) -> Iterator[object]:
    at = 0
    while at < len(array):
        end = _value_end(array, at)
        yield decode(array[at:end])
        at = end


def text_value(text: str | bytes) -> bytes:
    """Return a long string as a raw value."""
    data = text.encode() if isinstance(text, str) else text
    return b"S" + len(data).to_bytes(4, "big") + data


def number_value(value: int) -> bytes:
    """Return a signed 64-bit integer as a raw value."""
    return b"l" + value.to_bytes(8, "big", signed=True)


def timestamp_value(seconds: int) -> bytes:
    """Return a time, in seconds since 1970, as a raw value."""
    return b"T" + seconds.to_bytes(8, "big")


def table(items: Iterable[Field]) -> bytes:
    """Return the fields as a table, without the length before it."""
    return b"".join(bytes([len(name)]) + name + value for name, value in items)


def split(properties: bytes) -> dict[str, bytes]:
    """Return each property that is there with its raw value, in the order of the wire.

    Raises:
        PropertiesError: the set is cut short or longer than its flags say.
    """
    values: dict[str, bytes] = {}
    try:
        flags, at = properties[0] << 8 | properties[1], _values_at(properties)
        for name, (flag, width) in FIELDS.items():
            if not flags & flag:
                continue
            if width == _SHORT:
                end = at + 1 + properties[at]
            elif width == _TABLE:
                end = at + 4 + int.from_bytes(properties[at : at + 4], "big")
            else:
                end = at + width
            values[name] = properties[at:end]
            at = end
    except IndexError as error:
        raise PropertiesError(_TOO_SHORT) from error
    if at != len(properties):
        raise PropertiesError("the properties don't end where their flags say")
    return values


def join_with_headers(values: dict[str, bytes], headers: Iterable[Field]) -> bytes:
    """Return a property set made of raw values, with these headers."""
    content = table(headers)
    return join({**values, "headers": len(content).to_bytes(4, "big") + content})


def join(values: dict[str, bytes]) -> bytes:
    """Return a property set made of raw values (as from `split`)."""
    flags, parts = 0, []
    for name, (flag, _) in FIELDS.items():
        if name in values:
            flags |= flag
            parts.append(values[name])
    return flags.to_bytes(2, "big") + b"".join(parts)
