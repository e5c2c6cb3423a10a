"""`sidecar.core.scheduling.json_merge`."""

from __future__ import annotations

import pytest

from sidecar.core.scheduling.json_merge import merged


@pytest.mark.parametrize(
    ("first", "later", "both"),
    [
        (b'{"a":1}', b'{"b":2}', b'{"a":1,"b":2}'),
        (b'{"a":1,"b":1}', b'{"b":2}', b'{"a":1,"b":2}'),
        (b'{"a":{"x":1}}', b'{"a":{"y":2}}', b'{"a":{"x":1,"y":2}}'),
        (b'{"a":{"x":{"p":1}}}', b'{"a":{"x":{"q":2},"y":3}}', b'{"a":{"x":{"p":1,"q":2},"y":3}}'),
        (b'{"a":[1,2]}', b'{"a":[3]}', b'{"a":[3]}'),
        (b'{"a":{"x":1}}', b'{"a":null}', b'{"a":null}'),
        (b'{"a":{"x":1}}', b'{"a":[{"x":2}]}', b'{"a":[{"x":2}]}'),
        (b"{}", b'{"a":{"x":1}}', b'{"a":{"x":1}}'),
        (b'{"a":{}}', b'{"a":{"x":1}}', b'{"a":{"x":1}}'),
        (b"{}", b"{}", b"{}"),
        (b' { "a" : 1 } ', b'\t{"b":\r\n[ ] }', b'{"a":1,"b":[ ]}'),
    ],
)
def test_objects_are_merged_member_by_member_and_everything_else_is_replaced(
    first: bytes, later: bytes, both: bytes
) -> None:
    """As Elasticsearch does with a partial update."""
    assert merged(first, later) == both


def test_numbers_and_text_keep_their_exact_spelling() -> None:
    """Nothing is decoded and encoded again: 1.0 stays 1.0, and digits beyond 64 bits stay."""
    first = b'{"a":1.0,"b":123456789012345678901234567890,"c":"\\u00e9\\/","caf\\u00e9":1e400}'
    later = '{"d":-0.0,"e":"é","f":[1.10, 2]}'.encode()
    assert merged(first, later) == first[:-1] + b"," + later[1:]


def test_a_name_is_the_same_however_it_is_spelled() -> None:
    """An escaped letter is that letter."""
    assert merged(b'{"\\u0061":1}', b'{"a":2}') == b'{"a":2}'


@pytest.mark.parametrize("value", [b"1", b"null", b'"text"', b"[1]", b"true"])
def test_an_object_in_the_place_of_something_else_is_not_folded(value: bytes) -> None:
    """By itself the first replaces an object that is stored there; together, that object would be merged into."""
    assert merged(b'{"a":%s}' % value, b'{"a":{"x":1}}') is None
    assert merged(b'{"o":{"a":%s}}' % value, b'{"o":{"a":{"x":1}}}') is None


@pytest.mark.parametrize(
    "broken",
    [
        b"", b"[1]", b"1", b'{"a":1', b'{"a":1}}', b'{"a":1,}', b"{a:1}", b'{"a" 1}', b'{"a":1 "b":2}', b"{1:2}",
        b'{"a":NaN}', b'{"a":1}//', b'{"a":"\xff"}', b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":1,"a":2}', b'{"a":1,"\\u0061":2}',
    ],
)  # fmt: skip
def test_what_elasticsearch_would_refuse_is_not_folded(broken: bytes) -> None:
    """It is to be refused by itself, and to cost nobody else anything."""
    assert merged(broken, b'{"b":1}') is None
    assert merged(b'{"b":1}', broken) is None
