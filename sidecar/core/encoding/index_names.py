"""Elasticsearch's rules for the name of a new index, measured with 9.5."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.core.encoding.template import Template

MAX_BYTES = 255
_FORBIDDEN = ' "*\\<|,>/?#:'
_FORBIDDEN_FIRST = "_-+"
_MOMENTS = (datetime(2026, 11, 29, 21, 43, 57, tzinfo=UTC), datetime(2026, 5, 4, 8, 6, 1, tzinfo=UTC))
"""Two times that differ in month, day, and morning or afternoon."""


def name_fault(name: str) -> str | None:
    """Return why Elasticsearch refuses the name of a new index; None if it accepts it."""
    if name in {".", ".."}:
        return "an index can't be called . or .."
    if name[:1] and name[0] in _FORBIDDEN_FIRST:
        return f"the name of an index can't begin with {name[0]!r}"
    if len(name.encode()) > MAX_BYTES:
        return f"the name of an index has at most {MAX_BYTES} bytes, and it has {len(name.encode())}"
    return _text_fault(name)


def template_fault(template: Template) -> str | None:
    """Return why Elasticsearch refuses names from a template; None if no reason is known.

    The texts around fields, the defaults and the formats of times are checked; values of messages are unknown.
    """
    if template.constant is not None:
        return name_fault(template.constant.decode())
    first, *_ = template.pattern.split(b"%b", 1)
    literal = template.pattern.replace(b"%b", b"").replace(b"%%", b"%").decode()
    if first and chr(first[0]) in _FORBIDDEN_FIRST:
        return f"the name of an index can't begin with {chr(first[0])!r}"
    size = len(literal.encode())
    if size > MAX_BYTES:
        return f"the name of an index has at most {MAX_BYTES} bytes, and the text around the fields has {size}"
    fault = _text_fault(literal)
    for hole in template.placeholders:
        texts = [hole.default.decode()] if hole.default else []
        if hole.format:
            texts += [moment.strftime(hole.format) for moment in _MOMENTS]
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
        return f"the name of an index must be in lower case, and {text!r} isn't"
    return None
