"""Properties of redaction: whatever an answer quotes of a document, and wherever, no part of it goes on.

`MIN_RUN` characters of a document in a row are a part. Names (`field [age]`) are kept, so documents here have no name
for a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.results import bulk
from sidecar.core.results.bulk import MIN_RUN, redact
from tests.builders import examples
from tests.drawing import drew

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 1024
PROSE = (
    "Failed to parse with all enclosed parsers",
    "could not be parsed at position 0",
    "it's not valid; caused by: ",
)
MARKS = (
    ("'", "'"),
    ('"', '"'),
    ("[", "]"),
    ("(", ")"),
    ("", ""),
    ("'", ""),
    ("[", ""),
    ("", "]"),
    ('"', ""),
    ("(", "..."),
)
HARD = "'\"[]() ...\\/\n\té√😀"

KEYS = st.sampled_from(["age", "born", "who"])

QUOTING = pytest.mark.draws(
    "in a pair of marks", "in half a pair", "in no marks", "longer than the cut", "only a part of a value",
    "across the cut", "with quotes in it", "several",
)  # fmt: skip

secrets = st.text(st.sampled_from(HARD + "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"), min_size=MIN_RUN, max_size=60)
long_secrets = st.builds(lambda text, times: text * times, secrets, st.integers(2, 60))
values = st.recursive(
    secrets | long_secrets,
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(KEYS, inner, min_size=1, max_size=3),
    max_leaves=4,
)
documents = st.dictionaries(KEYS, values, min_size=1, max_size=3)


def texts(value: object) -> Iterator[str]:
    """Yield the texts among the values of a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def runs(text: str) -> set[str]:
    """Return all parts of a text."""
    return {text[start : start + MIN_RUN] for start in range(len(text) - MIN_RUN + 1)}


def assert_hidden(told: str, document: object) -> None:
    """No part of the document is in what is told, which is short enough for a header."""
    shown = runs(told)
    for text in texts(document):
        assert not shown & runs(text), (told, text)
    assert len(told.encode()) <= MAX_BYTES


@st.composite
def quotes(draw: st.DrawFn, document: object) -> str:
    """Return a reason that quotes parts of the document, in the midst of prose of any length."""
    found = list(texts(document))
    pieces = []
    for _ in range(draw(st.integers(1, 4))):
        text = draw(st.sampled_from(found))
        start = draw(st.integers(0, len(text) - MIN_RUN))
        end = draw(st.sampled_from([len(text), min(len(text), start + 64)]) | st.integers(start + MIN_RUN, len(text)))
        before, behind = draw(st.sampled_from(MARKS))
        filler = draw(st.sampled_from(PROSE)) * draw(st.sampled_from([1, 1, 2, 23, 24, 25, 26]))
        pieces.append(f"{filler} {before}{text[start:end]}{behind}")
        drew("in a pair of marks", before and behind and behind != "...")
        drew("in half a pair", bool(before) != bool(behind))
        drew("in no marks", not before and not behind)
        drew("longer than the cut", end - start > MAX_BYTES)
        drew("only a part of a value", end - start < len(text))
        first = len(" ".join(pieces).encode())
        drew("across the cut", first > MAX_BYTES > first - (end - start))
        drew("with quotes in it", any(mark in text[start:end] for mark in "'\"[]()"))
    drew("several", len(pieces) > 1)
    return " ".join(pieces)


@QUOTING
@given(st.data())
@settings(max_examples=examples(80))
def test_no_part_of_a_document_survives_wherever_it_is_quoted(data: st.DataObject) -> None:
    """In quotes, in brackets, in half a pair of them or in none; before the cut, across it or behind it."""
    document = data.draw(documents)
    reason = data.draw(quotes(document))
    for written in (orjson.dumps(document), orjson.dumps(document, option=orjson.OPT_INDENT_2)):
        assert_hidden(redact(reason, written), document)


@QUOTING
@given(st.data())
@settings(max_examples=examples(25))
def test_no_part_survives_on_its_way_from_an_answer(data: st.DataObject) -> None:
    """Nothing is cut before it is looked through: in an item, its cause, a fault of the request, or bare text."""
    document = data.draw(documents)
    written = orjson.dumps(document)
    first, second = data.draw(quotes(document)), data.draw(quotes(document))
    error = {"type": "t", "reason": first, "caused_by": {"reason": second, "caused_by": {"reason": first + second}}}
    for stated in (error, first + second, [first, second]):
        answer = orjson.dumps({"errors": True, "items": [{"index": {"status": 400, "error": stated}}]})
        (result,) = bulk.results(answer, 1) or ()
        assert_hidden(redact(result.reason, written), document)
        fault = bulk.fault(400, orjson.dumps({"error": stated, "status": 400}))
        assert_hidden(redact(str(fault), written), document)


@pytest.mark.draws("shorter than the cut", "longer than the cut")
@given(documents, st.builds(lambda piece, times: f"{piece} " * times, st.sampled_from(PROSE), st.integers(1, 60)))
@settings(max_examples=examples(25))
def test_what_is_not_of_the_document_is_kept(document: dict[str, object], prose: str) -> None:
    """Otherwise nobody could tell what is wrong."""
    drew("longer than the cut" if len(prose) > MAX_BYTES else "shorter than the cut")
    assert redact(prose, orjson.dumps(document)) == prose[:MAX_BYTES]
