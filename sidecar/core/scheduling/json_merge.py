"""Two partial documents as one, without decoding a value: numbers and text keep their exact spelling.

Elasticsearch merges a partial document into what is stored: objects member by member, everything else, arrays included,
by replacement. Two such merges are one merge of the merged only where that is so whatever is stored.
"""

from __future__ import annotations

from sidecar.core.encoding.exact_json import skip_space, value


def merged(first: bytes, later: bytes) -> bytes | None:
    """Return the partial document that does what `first` and then `later` do; None where there is none.

    There is none where `later` has an object in a place in which `first` has something else: by itself `first` replaces
    whatever is stored there, and the object of `later` comes into an empty place; together, the object would be merged
    into what is stored. And there is none of what is no JSON object, or has a name twice: Elasticsearch refuses that.
    """
    try:
        return _merged(first.decode(), later.decode()).encode()
    except (_DifferentError, ValueError, RecursionError):
        return None


class _DifferentError(Exception):
    """One after the other they do what no single document does."""


def _merged(first: str, later: str) -> str:
    members = _members(first)
    for name, (spelled, change) in _members(later).items():
        there = members.get(name)
        if there is not None and change.startswith("{"):
            if not there[1].startswith("{"):
                raise _DifferentError
            change = _merged(there[1], change)  # noqa: PLW2901 - what takes its place
        members[name] = spelled, change
    return "{" + ",".join([f"{spelled}:{content}" for spelled, content in members.values()]) + "}"


def _members(text: str) -> dict[str, tuple[str, str]]:
    """Return the members of a JSON object by name: the name and the value, as they are spelled.

    Raises:
        ValueError: it is no JSON object, or has a name twice.
    """
    members: dict[str, tuple[str, str]] = {}
    at = _after(text, skip_space(text, 0), "{")
    if text[at : at + 1] == "}":
        at += 1
    else:
        while True:
            name, end = value(text, at)
            if text[at] != '"' or name in members:
                raise ValueError(name)
            spelled = text[at:end]
            begin = _after(text, skip_space(text, end), ":")
            _, end = value(text, begin)
            members[str(name)] = spelled, text[begin:end]
            at = skip_space(text, end)
            if text[at : at + 1] != ",":
                break
            at = skip_space(text, at + 1)
        at = _after(text, at, "}")
    if at != len(text):
        raise ValueError(at)
    return members


def _after(text: str, at: int, mark: str) -> int:
    if text[at : at + 1] != mark:
        raise ValueError(at)
    return skip_space(text, at + 1)
