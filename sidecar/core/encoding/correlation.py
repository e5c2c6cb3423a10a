"""What a message says of the group that it belongs to (``SIDECAR_BATCH_KEY``, ``_FLUSH_WHEN``, ``_COMPLETE_COUNT``)."""

from __future__ import annotations

from typing import NamedTuple

from sidecar.core.encoding.document import RefusedError

MAX_EXPECTED_ITEMS = 1_000_000_000
_EXPECTED = "the size of the complete set is not a whole number from 1 to a billion"


class Correlation(NamedTuple):
    """Which group a message belongs to, and what it says of that.

    Attributes:
        key: of the group.
        expected_items: how many messages the complete group has; 0 where this message doesn't tell.
        completes: the group is complete with this message.
        is_signal: the message does nothing but that: there is no document in it.
    """

    key: bytes = b""
    expected_items: int = 0
    completes: bool = False
    is_signal: bool = False


def expected_items(text: bytes) -> int:
    """Return the size of a complete set; 0 where nothing is told.

    Raises:
        RefusedError: it is no size.
    """
    if not text:
        return 0
    size = whole_number(text, MAX_EXPECTED_ITEMS)
    if not size:
        raise RefusedError("malformed", _EXPECTED)
    return size


def whole_number(text: bytes, maximum: int) -> int | None:
    """Return a whole number from 0 to `maximum`; None where the text is none: it comes from a message."""
    digits = text.lstrip(b"0") or b"0"
    # Python refuses to read numbers of thousands of digits.
    if not text.isdigit() or len(digits) > len(str(maximum)) or int(digits) > maximum:
        return None
    return int(digits)
