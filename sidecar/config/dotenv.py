r"""``.env`` files: read as ``docker compose`` reads them, and nothing in them is expanded.

The rules, which are those of compose for all that `quote` writes:

- ``NAME=value``: up to the end of the line, or to a ``#`` after a space, without the spaces around it.
- ``NAME='value'``: literal. ``\'`` is a quote; any other backslash stands for itself. Lines may break within.
- ``NAME="value"``: ``\n``, ``\t``, ``\\``, ``\"``, ``\$`` and others are escapes, as in C.
- Outside of single quotes compose expands ``$NAME`` and ``${NAME}``. The sidecar expands nothing: a ``$`` there is an
  error, unless it is written as ``\$`` in double quotes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_ORDINARY = re.compile(r"[A-Za-z0-9_.,:/@%+=*-]*")
_START = re.compile(r"(?:\s+|#[^\n]*)*")
_NAME = re.compile(r"(?:export[^\S\n]+)?(?P<name>[\w.\-\[\]]+)[^\S\n]*(?P<end>[=:]|\n|$)[^\S\n]*")
_UNQUOTED = re.compile(r"(?P<value>[^\n]*)")
_SINGLE = re.compile(r"'(?P<value>(?:\\.|[^'\\])*)'", re.DOTALL)
_DOUBLE = re.compile(r'"(?P<value>(?:\\.|[^"\\])*)"', re.DOTALL)
_REST = re.compile(r"[^\S\n]*(?:#[^\n]*)?(?=\n|$)")
_ESCAPE = re.compile(r'\\(?:(?P<letter>[abfnrtv$"\\])|0(?P<octal>[0-3][0-7]{2}))')
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_BARE_DOLLAR = re.compile(r"(?<!\\)(?:\\\\)*\$")
_UNSAFE_IN_SINGLE = re.compile(r"\\(?='|$)")


class Entry(NamedTuple):
    """An entry of the file.

    Attributes:
        name: before the ``=``; empty if the line can't be parsed.
        value: after the ``=``.
        problem: why there is no value, without quoting it.
        line: its number, from 1.
    """

    name: str
    value: str
    problem: str | None
    line: int


def read(text: str) -> list[Entry]:
    """Return the entries of a file in order; a later line with the same name wins.

    Args:
        text: of the file, with its line breaks as they are.
    """
    text = text.removeprefix("\ufeff")
    entries: list[Entry] = []
    at = 0
    while True:
        start = _START.match(text, at)
        at = start.end() if start is not None else at
        if at >= len(text):
            return entries
        line = text.count("\n", 0, at) + 1
        head = _NAME.match(text, at)
        if head is None:
            entries.append(Entry("", "", "is not NAME=value", line))
            at = _line_end(text, at)
        elif head["end"] in {"=", ":"}:
            value, problem, at = _value(text, head.end())
            entries.append(Entry(head["name"], value, problem, line))
        else:  # a bare name stands for the variable of the environment, as with compose
            at = head.end()


def _value(text: str, at: int) -> tuple[str, str | None, int]:
    """Return a value, what is wrong with it, and where the next line begins."""
    mark = text[at : at + 1]
    if mark not in {"'", '"'}:
        found = _UNQUOTED.match(text, at)
        assert found is not None
        value = found["value"].partition(" #")[0].rstrip()
        return value, _EXPANDED if "$" in value else None, found.end()
    found = (_SINGLE if mark == "'" else _DOUBLE).match(text, at)
    if found is None:
        return "", f"begins with a quote ({mark}) that is never closed", len(text)
    rest = _REST.match(text, found.end())
    if rest is None:
        return "", f"continues after its closing quote ({mark})", _line_end(text, found.end())
    value = found["value"]
    if mark == "'":
        return _in_single(value), None, rest.end()
    if _BARE_DOLLAR.search(value):
        return "", _EXPANDED, rest.end()
    return _ESCAPE.sub(_escaped, value), None, rest.end()


def _escaped(match: re.Match[str]) -> str:
    if match["octal"] is not None:
        return chr(int(match["octal"], 8))
    return _LETTERS.get(match["letter"], match["letter"])


_EXPANDED = (
    "contains a $ outside of single quotes, which docker compose expands and the sidecar doesn't: put the value in "
    "single quotes"
)


def _in_single(value: str) -> str:
    r"""Undo ``\'``. Two backslashes are two: compose keeps every other backslash."""
    return re.sub(r"\\(.)", lambda match: "'" if match[1] == "'" else match[0], value, flags=re.DOTALL)


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def quote(text: str) -> str:
    """Return a value as it is written after ``NAME=``: `read` and compose return `text` again."""
    if _ORDINARY.fullmatch(text):
        return text
    if not _UNSAFE_IN_SINGLE.search(text):
        return "'" + text.replace("'", "\\'") + "'"
    return '"' + re.sub(r'([\\"$])', r"\\\1", text) + '"'
