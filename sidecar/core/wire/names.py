"""Rules for names and argument tables: what users may write, and what AMQP 0-9-1 can encode.

RabbitMQ accepts any UTF-8 of at most 255 bytes as the name of a queue or exchange and as a routing key. It also accepts
control characters, but in a name they are a mistake, because they are invisible.
"""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal

MAX_NAME_BYTES = 255
DEAD_LETTER_SUFFIX = ".dead"
MAX_DELAY_SUFFIX = ".delay.300000"
"""Of the name of the delay queue with the longest delay, five minutes."""
MAX_KEY_BYTES = 128
MAX_TABLE_BYTES = 65_536
"""A declaration must fit into one frame, which RabbitMQ limits to 128 KiB by default."""
_MAX_DEPTH = 20
_MAX_FLOAT = 3.4028234e38  # floats are sent with 32 bits
_MAX_INTEGER = 1 << 63
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_BUT_SPACE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def dead_letter_queue(queue: str) -> str:
    """Return the name of the queue for the dead letters of `queue`."""
    return queue + DEAD_LETTER_SUFFIX


def delay_queue(queue: str, milliseconds: int) -> str:
    """Return the name of the queue in which messages of `queue` wait."""
    return f"{queue}.delay.{milliseconds}"


def without_last_line_break(text: str) -> str:
    """Return a value without the line breaks that ``echo``, editors and env files with CRLF leave at its end."""
    return text.rstrip("\r\n")


def text_fault(text: str, *, spans_lines: bool = False) -> str | None:
    """Return why a text is not a valid value; None if it is. The reason never quotes the text.

    Args:
        text: the value.
        spans_lines: tabs and line breaks are allowed, as in JSON.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not valid UTF-8, at character {error.start + 1}"
    found = (_CONTROL_BUT_SPACE if spans_lines else _CONTROL).search(text)
    if found is None:
        return None
    return f"contains a control character (U+{ord(found[0]):04X}), at character {found.start() + 1}"


def name_fault(name: str) -> str | None:
    """Return why a text is not a valid name of a queue or exchange, or routing key; None if it is."""
    fault = text_fault(name)
    if fault is not None:
        return fault
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        return f"has {size} bytes in UTF-8; RabbitMQ accepts at most {MAX_NAME_BYTES}"
    return None


def table_fault(table: dict[str, object]) -> str | None:
    """Return why a table is not valid as arguments of a queue, consumer or binding; None if it is."""
    try:
        size = _table_bytes(table, 0)
    except ValueError as error:
        return str(error)
    return f"is too large: {size:,} bytes, at most {MAX_TABLE_BYTES:,}" if size > MAX_TABLE_BYTES else None


def _table_bytes(table: dict[str, object], depth: int) -> int:
    size = 4
    for key, value in table.items():
        key_bytes = _encoded(key)
        if key_bytes > MAX_KEY_BYTES:
            raise ValueError(f"has a key of {key_bytes} bytes; AMQP allows at most {MAX_KEY_BYTES}")
        size += 1 + key_bytes + _value_bytes(value, depth + 1)
    return size


def _value_bytes(value: object, depth: int) -> int:
    if depth > _MAX_DEPTH:
        raise ValueError(f"is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        return 1 + _table_bytes(value, depth)
    if isinstance(value, list):
        return 5 + sum(_value_bytes(item, depth + 1) for item in value)
    if isinstance(value, str):
        return 5 + _encoded(value)
    if isinstance(value, bytearray):
        return 5 + len(value)
    if value is not None and not isinstance(value, bool | int | float | datetime | Decimal):
        raise ValueError(f"has a value of the type {type(value).__name__}, which AMQP can't encode")
    if isinstance(value, int) and not -_MAX_INTEGER <= value < _MAX_INTEGER:
        raise ValueError("has a number that doesn't fit into 64 bits")
    if isinstance(value, float) and abs(value) > _MAX_FLOAT:
        raise ValueError("has a number that is too large for AMQP")
    return 9


def _encoded(text: object) -> int:
    try:
        return len(str(text).encode())
    except UnicodeEncodeError:
        raise ValueError("has a text that is not valid UTF-8") from None
