r"""Reads JSON as Elasticsearch does, and writes numbers as they were spelled; used for every access to a body.

Elasticsearch stores some bodies that Python's parsers refuse: with half of a surrogate pair (``"\ud83d"``),
numbers of up to a thousand digits, up to a thousand levels, comments, and a byte order mark. orjson reads most
bodies; the scanner of json, with extensions, reads the others. Nothing else is accepted: no NaN, no UTF-16.

All functions here accept the same texts. Only `read` may round numbers.
"""

from __future__ import annotations

import json
import re
import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from contextlib import contextmanager
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, NoReturn, Self

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_DEPTH = 1000
"""How many levels Elasticsearch reads (``StreamReadConstraints``); numbers may have as many digits."""

_INDEX = re.compile("[0-9]{1,9}")
_SPACE = re.compile(r"[ \t\r\n]*")
_STRING_OR_COMMENT = re.compile(r'"(?>[^"\\]*(?:\\.[^"\\]*)*)"?|/\*.*?(?:\*/|\Z)|//[^\r\n]*', re.DOTALL)
"""An unterminated one extends to the end of the text; otherwise each start would be searched to the end."""
_STRING_OR_ODD = re.compile(r'"(?>[^"\\]*(?:\\.[^"\\]*)*)"?|-?(?:NaN|Infinity)|[0-9]+', re.DOTALL)
_SHORTEST_COMMENT = len("/**/")
_ALL_ONE_DIGIT = bytes.maketrans(b"123456789E", b"000000000e")
_ROUNDED_FROM_DIGITS = b"0" * 19
_STARTS_OF_NEGATIVE_ZERO = (b":-0", b",-0", b"[-0", b" -0", b"\n-0", b"\t-0")
_WIDE_STARTS = (BOM_UTF16_BE, BOM_UTF16_LE, b"{\0", b"\0{", b"[\0", b"\0[", b"\0\0")


class JsonError(ValueError):
    """What is not JSON as Elasticsearch reads it.

    Attributes:
        why: a sentence for people, without text of the body.
        at: the byte at which it is not valid; None if that is unknown.
    """

    def __init__(self, why: str, at: int | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.at = at


class Number(float):
    """A number that isn't spelled like its nearest float: ``1.50``, ``1e400``, or one of forty digits.

    It is a float in every way, but `write` and `str` return its own text.
    """

    __slots__ = ("text",)

    text: str

    def __new__(cls, text: str) -> Self:
        """Return the number that a JSON text means."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __repr__(self) -> str:
        """Return its text."""
        return self.text

    __str__ = __repr__

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override] # for copies, which are numbers as well
        return (self.text,)


# Reading -------------------------------------------------------------------------------------------------------------


def read(data: bytes) -> object:
    """Return the value of a JSON text, fast: numbers that are not integers of 64 bits may be rounded.

    Raises:
        JsonError: it is not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _read(data)


def read_exactly(data: bytes) -> object:
    """Return the value of a JSON text, with all digits of its numbers: as `int` of any size, `float`, or `Number`.

    Raises:
        JsonError: it is not JSON.
    """
    if _may_be_rounded(data):
        return _read(data)
    return read(data)


def _may_be_rounded(data: bytes) -> bool:
    """Whether orjson might round a number: any with a fraction or an exponent, and any long one."""
    alike = data.translate(_ALL_ONE_DIGIT)
    return (
        b"0." in alike
        or b"0e" in alike
        or _ROUNDED_FROM_DIGITS in alike
        or (b"-0" in data and any(start in data for start in _STARTS_OF_NEGATIVE_ZERO))
    )


def _read(data: bytes) -> object:
    text = decoded(data)
    try:
        return _whole(text)
    except JsonError:
        blank = without_comments(text)
        if blank is text:
            raise
        return _whole(blank)


def _whole(text: str) -> object:
    found, end = value(text, skip_space(text, 0))
    end = skip_space(text, end)
    if end != len(text):
        raise error_in(text, end)
    return found


def error_at(data: bytes) -> int | None:
    """Return the byte at which a text is not valid JSON without comments; None if it is valid.

    This is for texts that become part of another text: a comment could hide what follows.
    """
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            _whole(decoded(data))
        except JsonError as error:
            return error.at or 0
    return None


def decoded(data: bytes) -> str:
    """Return a JSON text, without its byte order mark.

    Raises:
        JsonError: it is not UTF-8.
    """
    data = data.removeprefix(BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise JsonError(not_utf8(data, error), error.start) from None


def not_utf8(data: bytes, error: UnicodeDecodeError) -> str:
    """Return a sentence that says why a body is not text."""
    wide = data.startswith(_WIDE_STARTS)
    hint = "; it looks like UTF-16 or UTF-32, which must be encoded as UTF-8" if wide else ""
    return f"the body is not UTF-8: byte {error.start} of {len(data)}{hint}"


def is_wide(data: bytes) -> bool:
    """Whether a body looks like UTF-16 or UTF-32, which Elasticsearch stores but can't return."""
    return data.startswith(_WIDE_STARTS)


def without_comments(text: str) -> str:
    """Return a text with comments replaced by white space of the same length; the same text if there are none."""
    if "/*" not in text and "//" not in text:
        return text
    return _STRING_OR_COMMENT.sub(_blank, text)


def uncommented(data: bytes) -> bytes:
    """Return a JSON text without its comments and the white space around it; itself where it has none."""
    if b"/*" not in data and b"//" not in data:
        return data
    try:
        return without_comments(data.decode()).strip(" \t\r\n").encode()
    except UnicodeDecodeError:
        return data


def _blank(match: re.Match[str]) -> str:
    found = match.group()
    has_no_end = found[:2] == "/*" and (found[-2:] != "*/" or len(found) < _SHORTEST_COMMENT)
    return found if found[0] == '"' or has_no_end else " " * len(found)


def value(text: str, at: int) -> tuple[object, int]:
    """Return the value that begins at an index, and the index of its end.

    Raises:
        JsonError: there is none.
    """
    try:
        try:
            return _DECODER.raw_decode(text, at)
        except RecursionError:
            with _deeper():
                return _DECODER.raw_decode(text, at)
    except RecursionError:
        raise JsonError(f"the body is nested more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        raise error_in(text, error.pos) from None
    except ValueError:  # NaN, or thousands of digits
        raise error_in(text, _odd_at(text, at)) from None


def _odd_at(text: str, at: int) -> int:
    """Return where the first word or number stands that JSON's syntax has not, or Elasticsearch doesn't read."""
    for match in _STRING_OR_ODD.finditer(text, at):
        found = match.group()
        if found[0] != '"' and (not found[-1].isdigit() or len(found) > MAX_DEPTH):
            return match.start()
    return at


def error_in(text: str, at: int) -> JsonError:
    """Return the error for a text that is not valid at an index."""
    place = len(text[:at].encode(errors="replace"))
    return JsonError(f"the body is not valid JSON: at byte {place}", place)


def skip_space(text: str, at: int) -> int:
    """Return the index of the next character that isn't white space."""
    match = _SPACE.match(text, at)
    return match.end() if match is not None else at


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _integer(text: str) -> int | Number:
    return int(text) if text != "-0" else Number(text)


def _float(text: str) -> float:
    number = float(text)
    return number if repr(number) == text else Number(text)


_DECODER = json.JSONDecoder(parse_float=_float, parse_int=_integer, parse_constant=_no_constant)


@contextmanager
def _deeper() -> Iterator[None]:
    """Let json's scanner, which recurses in C, go as deep as Elasticsearch, at any depth of the caller."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 3 * MAX_DEPTH)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


# Paths ---------------------------------------------------------------------------------------------------------------


def find(content: object, path: Sequence[str]) -> object:
    """Return the value at a path, or None: by nesting, by dotted names (``{"a.b": 1}``), or both mixed.

    The first value that isn't null is returned, with nesting before dotted names. A number is also an index of an
    array, from 0.
    """
    if not path:
        return content
    if isinstance(content, dict):
        for end in range(1, len(path) + 1):
            name = path[0] if end == 1 else ".".join(path[:end])
            if name in content:
                found = find(content[name], path[end:])
                if found is not None:
                    return found
    elif isinstance(content, list) and _INDEX.fullmatch(path[0]) and int(path[0]) < len(content):
        return find(content[int(path[0])], path[1:])
    return None


def has(content: object, path: Sequence[str]) -> bool:
    """Whether there is a value at a path, null included, or anything but an object on the way to it."""
    if not isinstance(content, dict):
        return True
    for end in range(1, len(path) + 1):
        name = ".".join(path[:end])
        if name in content and (end == len(path) or has(content[name], path[end:])):
            return True
    return False


# Writing -------------------------------------------------------------------------------------------------------------


def write(content: object) -> bytes:
    """Return a value as JSON on one line. Values from `read_exactly` keep their digits and surrogates.

    Args:
        content: what orjson writes (dicts with texts as names, lists, tuples, texts, numbers, dates, UUIDs, enums,
            dataclasses), whole numbers of any size, `Number`, and `decimal.Decimal`.

    Raises:
        TypeError: it is something else.
    """
    try:
        return orjson.dumps(content, default=_fragment)
    except TypeError:
        try:
            with _deeper():
                return _written(content).encode()
        except RecursionError:
            raise TypeError(f"nested more than {MAX_DEPTH} levels deep") from None


def _fragment(content: object) -> orjson.Fragment:
    return orjson.Fragment(_other(content))


def _other(content: object) -> str:
    """Return the JSON of a type that orjson doesn't know."""
    if isinstance(content, Number):
        return content.text
    if isinstance(content, Decimal) and content.is_finite():
        return str(content)
    raise TypeError(f"{type(content).__name__} can't be written as JSON")


def _written(content: object) -> str:
    """Return the JSON of a value that orjson refuses: a number beyond 64 bits, half a surrogate pair, or its depth."""
    if isinstance(content, dict):
        members = []
        for name, item in content.items():
            if not isinstance(name, str):
                raise TypeError(f"a name in an object must be a text, not {type(name).__name__}")
            members.append(f"{json.dumps(name)}:{_written(item)}")
        return "{" + ",".join(members) + "}"
    if isinstance(content, list | tuple):
        return "[" + ",".join(map(_written, content)) + "]"
    if isinstance(content, str):
        return json.dumps(content)
    if isinstance(content, int) and not isinstance(content, bool | Enum):
        return int.__repr__(content)
    return orjson.dumps(content, default=_fragment).decode()
