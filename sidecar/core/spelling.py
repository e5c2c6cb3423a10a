"""JSON by its spelling: where a value ends, without changing how it is written."""

from __future__ import annotations

import json
import re
from typing import NoReturn

_SPACE = re.compile(r"[ \t\r\n]*")


def no_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python takes for JSON (`parse_constant`).

    Raises:
        ValueError: always.
    """
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=no_constant)


def value(text: str, at: int) -> tuple[object, int]:
    """Return the value that begins at a place, its numbers as text, and where it ends.

    Raises:
        ValueError, RecursionError: there is none.
    """
    return _DECODER.raw_decode(text, at)


def skip_space(text: str, at: int) -> int:
    """Return where the next thing that isn't white space stands."""
    match = _SPACE.match(text, at)
    return match.end() if match is not None else at
