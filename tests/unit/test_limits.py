"""Limits of names, tables, sizes and addresses: what lies at one is accepted, what lies one beyond is not."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.core.address import split_address
from sidecar.core.encoding import index_names
from sidecar.core.encoding.correlation import MAX_EXPECTED_ITEMS, expected_items
from sidecar.core.encoding.document import RefusedError
from sidecar.core.wire import names, properties


def nested(levels: int) -> dict[str, Any]:
    """Return a table in so many levels."""
    table: dict[str, Any] = {}
    for _ in range(levels - 1):
        table = {"t": table}
    return {"t": table}


TEXT_BYTES = names.MAX_TABLE_BYTES - len(b"size" + b"1k" + b"Ssize")
"""What a text may have if it stands alone in a table, under a name of one byte."""


@pytest.mark.parametrize(
    ("fits", "beyond"),
    [
        ({"a": 2**63 - 1}, {"a": 2**63}),
        ({"a": -(2**63)}, {"a": -(2**63) - 1}),
        ({"é" * 64: 1}, {"é" * 64 + "x": 1}),
        ({"k": "é" * (TEXT_BYTES // 2)}, {"k": "é" * (TEXT_BYTES // 2 + 1)}),
        (nested(20), nested(21)),
    ],
    ids=["integer", "negative", "key", "size", "depth"],
)
def test_arguments_at_their_limits(fits: dict[str, Any], beyond: dict[str, Any]) -> None:
    """In bytes of UTF-8, not in characters."""
    assert names.table_fault(fits) is None
    assert names.table_fault(beyond) is not None


def test_names_at_their_limits() -> None:
    """255 bytes of UTF-8, for RabbitMQ and for Elasticsearch."""
    assert names.name_fault("é" * 127 + "x") is None
    assert names.name_fault("é" * 128) is not None
    assert index_names.name_fault("é" * 127 + "x") is None
    assert index_names.name_fault("é" * 128) is not None


def test_ports_at_their_limit() -> None:
    """Sixteen bits."""
    assert split_address("[::1]:65535") == ("::1", 65_535)
    assert split_address("127.0.0.1:65536") is None


def test_hosts_at_their_limit() -> None:
    """Each part between dots has 1 to 63 characters; a dot at the end is the root."""
    assert split_address(f"{'a' * 63}.b.:80") == (f"{'a' * 63}.b.", 80)
    assert split_address(f"{'a' * 64}.b:80") is None
    assert split_address("a..b:80") is None


def test_the_size_of_a_set_at_its_limits() -> None:
    """From 1 to a billion; nothing told is no size."""
    assert expected_items(b"") == 0
    assert expected_items(b"0001") == 1
    assert expected_items(b"%d" % MAX_EXPECTED_ITEMS) == MAX_EXPECTED_ITEMS
    for told in (b"0", b"000", b"%d" % (MAX_EXPECTED_ITEMS + 1), b"-1", b"1.0", b" 1", "\u0661".encode()):
        with pytest.raises(RefusedError):
            expected_items(told)


def test_a_decimal_has_its_places() -> None:
    """Scale and number are two values."""
    assert properties.decode(b"D\2" + (-1234).to_bytes(4, "big", signed=True)) == -12.34
