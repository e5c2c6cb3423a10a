"""What names Elasticsearch accepts for an index that it creates: rules of 9.5, as measured."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.core.template import Template

MAX_BYTES = 255
_FORBIDDEN = ' "*\\<|,>/?#:'
_FIRST = "_-+"
_MOMENTS = (datetime(2026, 11, 29, 21, 43, 57, tzinfo=UTC), datetime(2026, 5, 4, 8, 6, 1, tzinfo=UTC))
"""Months and days whose names are of several lengths, before and after noon."""


def name_fault(name: str) -> str | None:
    """Return what Elasticsearch refuses in the name of a new index; None if it accepts it."""
    if name in {".", ".."}:
        return "an index can't be called . or .."
    if name[:1] and name[0] in _FIRST:
        return f"the name of an index can't begin with {name[0]!r}"
    if len(name.encode()) > MAX_BYTES:
        return f"the name of an index has at most {MAX_BYTES} bytes, and it has {len(name.encode())}"
    return _text_fault(name)


def template_fault(template: Template) -> str | None:
    """Return what Elasticsearch refuses in every name that a template gives; None if nothing is known.

    Texts around fields, defaults and formats of times can be judged; values of messages can't.
    """
    if template.constant is not None:
        return name_fault(template.constant.decode())
    first, *_ = template.pattern.split(b"%b", 1)
    literal = template.pattern.replace(b"%b", b"").replace(b"%%", b"%").decode()
    if first and chr(first[0]) in _FIRST:
        return f"the name of an index can't begin with {chr(first[0])!r}"
    if len(literal.encode()) > MAX_BYTES:
        return (
            f"the name of an index has at most {MAX_BYTES} bytes, and {len(literal.encode())} stand around the fields"
        )
    fault = _text_fault(literal)
    for hole in template.holes:
        texts = [hole.default.decode()] if hole.default else []
        if hole.style:
            texts += [moment.strftime(hole.style) for moment in _MOMENTS]
        elif hole.field in {"now", "timestamp"}:
            texts += [f"{moment:%Y-%m-%dT%H:%M:%S.000Z}" for moment in _MOMENTS]
        for text in texts:
            found = _text_fault(text.lower() if hole.is_lowered else text)
            fault = fault or (f"{{{hole.field}}}: {found}" if found else None)
    return fault


def _text_fault(text: str) -> str | None:
    found = next((character for character in text if character in _FORBIDDEN), None)
    if found is not None:
        return f"the name of an index can't have the character {found!r}"
    if text.lower() != text:
        return f"an index needs lower case, and {text!r} has capitals"
    return None
