"""`core.encoding.exact_json`: what Elasticsearch stores is read, by every function alike, and written as it was."""

from __future__ import annotations

import copy
import json
import re
import sys
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import dumps
from sidecar.core.encoding import exact_json
from sidecar.core.encoding.exact_json import JsonError, Number, find, has, read, read_exactly, write
from tests.drawing import drew

if TYPE_CHECKING:
    from collections.abc import Iterator

DEEP = 990
"""Levels that json's scanner doesn't read by itself."""

STORED = {
    "half of a pair": (b'{"a":"x \\ud83d"}', {"a": "x \ud83d"}),
    "the other half": (b'{"a":"\\udc00"}', {"a": "\udc00"}),
    "halves in the wrong order": (b'{"a":"\\udc00\\ud83d"}', {"a": "\udc00\ud83d"}),
    "half as a name": (b'{"\\ud83d":1}', {"\ud83d": 1}),
    "no double": (b'{"a":1e400}', {"a": float("inf")}),
    "a thousand digits": (b'{"a":%s}' % (b"9" * 999), {"a": int("9" * 999)}),
    "mark": (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
    "comment": (b'{/*x"*/"a"/**/:/*}*/1}', {"a": 1}),
    "comment at the end": (b'{"a":"//"}//}', {"a": "//"}),
    "comment that is text": (b'{"a":"/*\\ud83d*/"}', {"a": "/*\ud83d*/"}),
    "deep and half": (b'{"a":"\\ud83d","b":' + b"[" * DEEP + b"]" * DEEP + b"}", None),
}
REFUSED = [
    b"", b" ", b"{", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":01}', b"{'a':1}", b"{a:1}",
    b'{"a":1,}',
    b'{"a":"\x01"}', b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"a":1}x', b'{"a":1}#', b'{"a":1}{}', b'{"a":"\\x"}',
    b'{"a":1//}', b'{"a":1}/*}', b'{"a":1}/*/', b"\xef\xbb\xbf\xef\xbb\xbf{}", '{"a":1}'.encode("utf-16"),
    '{"a":1}'.encode("utf-16-le"),
    b"[" * 100_000, b"[" * 5_000 + b"]" * 5_000, b'{"a":%s}' % (b"9" * 5_000),
]  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_what_elasticsearch_stores_is_read(name: str) -> None:
    """Each was stored by Elasticsearch 9.5.0 (tests/integration/test_bodies.py); orjson reads none of them."""
    body, value = STORED[name]
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(body)
    assert write(read(body)) == write(read_exactly(body))
    if value is not None:
        assert read(body) == value


@pytest.mark.parametrize("body", REFUSED)
def test_what_it_refuses_is_not_read(body: bytes) -> None:
    """And says where or why, without a word of it."""
    for reading in (read, read_exactly):
        with pytest.raises(JsonError) as caught:
            reading(body)
        assert caught.value.why.startswith("the body is n")
    assert exact_json.error_at(body) is not None


def test_it_goes_as_deep_wherever_it_is_called_from() -> None:
    """Python's limit is that of all frames together, and is as before afterwards."""
    body = STORED["deep and half"][0]
    limit = sys.getrecursionlimit()

    def down(levels: int) -> object:
        return down(levels - 1) if levels else read(body)

    assert write(down(300)) == body
    assert sys.getrecursionlimit() == limit


@pytest.mark.parametrize(
    "body",
    [
        b'{"//":"' + b'\\"' * 300_000 + b"}",
        b"{" + b"/*" * 300_000 + b"}",
        b'{"a":' + b"/*/" * 200_000,
        b"{" + b"//" * 300_000 + b"}",
        b'{"//":' + b'"\\' * 300_000 + b"}",
        b"{" + b"/**/" * 150_000 + b'"a":x}',
        b"[" * 600_000 + b"//",
    ],
    ids=range(7),
)
def test_no_body_takes_for_ever(body: bytes) -> None:
    """Time grows with the size of a body, not with its square: nobody can stop everything by one message."""
    began = time.process_time()
    with pytest.raises(JsonError):
        read(body)
    assert time.process_time() - began < 5.0  # with the square it was minutes


def test_what_is_strict_has_no_comments() -> None:
    """A comment could hide what follows a body that becomes a part of something else."""
    assert exact_json.error_at(b'{"a":1}//}') == 7
    assert exact_json.error_at(b'{"a":"\\ud83d"}') is None


@pytest.mark.parametrize(
    "text",
    ["1.50", "1e2", "1E+2", "1e400", "-0", "-0.0", "0.1000", "18446744073709551616", "-9223372036854775809",
     "12345678901234567890123", "3.14159265358979323846264338327950288", "9" * 999, "1.5e-7", "100.0", "1e16"],
)  # fmt: skip
def test_numbers_keep_their_digits(text: str) -> None:
    """Wherever they stand; whole ones are int of any size."""
    body = f'{{"a":[{text},{{"b":{text}}}],"c":"x"}}'.encode()
    value: Any = read_exactly(body)
    assert write(value) == body
    assert dumps(value) == body
    assert value["a"][0] == json.loads(text)
    assert isinstance(value["a"][0], float) or type(value["a"][0]) is int
    assert write(copy.deepcopy(value)) == body


def test_a_number_is_a_float() -> None:
    """In arithmetic, for a type checker, and for who asks."""
    number: Any = read_exactly(b"1.50")
    assert (number * 2, number == 1.5, isinstance(number, float), str(number), f"{number:.1f}") == (
        3.0, True, True, "1.50", "1.5",
    )  # fmt: skip
    assert type(read_exactly(b"1.5")) is float


def test_what_else_is_written() -> None:
    """All that orjson writes, whole numbers of any size, decimals, half a pair; a name that is no text is refused."""
    assert write({"a": Decimal("1.10"), "b": 2**70, "c": "\ud83d", "d": (1, None, True)}) == (
        b'{"a":1.10,"b":1180591620717411303424,"c":"\\ud83d","d":[1,null,true]}'
    )
    loop: list[object] = []
    loop.append(loop)
    for wrong in ({1: 2**70}, {"a": {1, 2}}, {"a": b"x"}, {"a": Decimal("NaN")}, object(), loop):
        with pytest.raises(TypeError):
            write(wrong)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**40), -(10**20))
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec=None, exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def everything(value: object) -> Iterator[object]:
    """Yield a value and all within it."""
    yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from everything(one)


@pytest.mark.draws(
    "a text", "a number", "an array", "an object", "half of a pair", "over 64 bits", "an exponent", "nested",
)  # fmt: skip
@given(json_values)
def test_a_round_trip_changes_nothing(value: object) -> None:
    """Read, written and read again it is the same text."""
    text = json.dumps(value, separators=(",", ":")).encode()
    found = read_exactly(text)
    for kind, of in (("a text", str), ("a number", int | float), ("an array", list), ("an object", dict)):
        drew(kind, any(isinstance(one, of) for one in everything(value)))
    drew("half of a pair", b"\\ud" in text)
    drew("over 64 bits", re.search(rb"\d{20}", text))
    drew("an exponent", re.search(rb"\de[+-]\d", text))
    drew("nested", text.count(b"[") + text.count(b"{") > 1)
    assert found == value
    assert read_exactly(write(found)) == value
    assert write(read_exactly(write(found))) == write(found)


numbers = st.builds(
    "{}{}{}".format,
    st.integers(-(10**40), 10**40) | st.just("-0"),
    st.sampled_from(["", ".0", ".50", ".5", ".1234567890123456789012345678901234567890"]),
    st.sampled_from(["", "e2", "E+10", "e-300", "e999"]),
)


@pytest.mark.draws(
    "one number", "several numbers", "over 64 bits", "a fraction", "a zero at the end", "an exponent", "no double",
    "minus zero", "noise",
)  # fmt: skip
@given(st.lists(numbers, min_size=1, max_size=6), st.text("-.0eE1x :,[", max_size=5))
def test_any_number_keeps_its_digits(texts: list[str], noise: str) -> None:
    """Whatever text stands beside it."""
    drew("one number" if len(texts) == 1 else "several numbers")
    for kind, pattern in (
        ("over 64 bits", r"\d{20}"), ("a fraction", r"\."), ("a zero at the end", r"\.\d*0(e|$)"),
        ("an exponent", "[eE]"), ("no double", "e999"), ("minus zero", r"^-0(\.|e|E|$)"),
    ):  # fmt: skip
        drew(kind, any(re.search(pattern, text) for text in texts))
    drew("noise", noise)
    body = f"[{','.join(texts)},{json.dumps(noise)}]".encode()
    assert write(read_exactly(body)) == body


# Paths ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ({"a": {"b": {"c": 1}}}, 1),
        ({"a.b.c": 1}, 1),
        ({"a": {"b.c": 1}}, 1),
        ({"a.b": {"c": 1}}, 1),
        ({"a.b.c": 2, "a.b": {"c": 3}, "a": {"b.c": 4, "b": {"c": 1}}}, 1),
        ({"a": {"b": {"c": None}}, "a.b": {"c": 1}}, 1),
        ({"a": "text", "a.b.c": 1}, 1),
        ({"a": {"x": 2}, "a.b": {"c": 1}}, 1),
        ({"a": {"b": {}}}, None),
        ({"a": [{"b": {"c": 1}}]}, None),
        ({}, None),
        ([1], None),
        ("text", None),
        (None, None),
    ],
)
def test_a_path_is_found_nested_dotted_and_mixed(content: object, value: object) -> None:
    """The more nested counts before the more dotted, and null is nothing."""
    assert find(content, ["a", "b", "c"]) == value


def test_a_number_is_a_place_in_an_array() -> None:
    """In ASCII digits: others are no number for Python in part, and for nobody else."""
    content = {"a": [{"b": 1}, {"b": 2}], "o": {"1": 3}}
    assert [find(content, ["a", at, "b"]) for at in ("0", "1", "2", "-1", "²", "１")] == [1, 2, None, None, None, None]  # noqa: RUF001
    assert find(content, ["o", "1"]) == 3


@pytest.mark.draws("one name", "dotted", "nested", "mixed", "the same name twice")
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.data())
def test_what_is_found_is_there(path: list[str], data: st.DataObject) -> None:
    """However its names are joined by dots, a value is found by its path, and counts as there for added fields."""
    content: object = 7
    rest = list(path)
    widths = []
    while rest:
        width = data.draw(st.integers(1, len(rest)))
        widths.append(width)
        content = {".".join(rest[-width:]): content, "z": None}
        rest = rest[:-width]
    drew("one name", len(path) == 1)
    drew("dotted" if len(widths) == 1 else "nested" if max(widths) == 1 else "mixed", len(path) > 1)
    drew("the same name twice", len(set(path)) < len(path))
    assert find(content, path) == 7
    assert has(content, path)
    assert not has(content, ["y", *path])


def test_a_number_made_of_text_is_that_number() -> None:
    """What `read_exactly` makes."""
    assert (Number("1e2"), repr(Number("1e2"))) == (100.0, "1e2")
