"""`sidecar.core.template`: what templates can do to values."""

from __future__ import annotations

import pytest

from sidecar.core.template import Scene, Template, TemplateError
from tests.builders import long_string, message, properties

MESSAGE = message(
    body='{"Shop":"ZÜRICH","n":7}'.encode(),
    route=b"\0\x09Orders.EU",
    raw=properties([(b"Tenant", long_string(b"ACME"))], timestamp=1_700_000_000),
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{routing_key!lower}", "orders.eu"),
        ("Events-{header.Tenant!lower}-{routing_key}", "Events-acme-Orders.EU"),
        ("{body.Shop!lower}", "zürich"),
        ("{body.n!lower}", "7"),
        ("{timestamp!lower:%Y-%b}", "2023-nov"),
        ("{type!lower|Unknown}", "unknown"),
        ("{now!lower:%Y-%b|X!}", "1970-jan"),
        ("{type|a!lower}", "a!lower"),
        ("{body.Shop!lower}{body.Shop}", "zürichZÜRICH"),
    ],
)
def test_a_value_in_lower_case(template: str, expected: str) -> None:
    """All that comes out of the braces, a default as well; the name of a field keeps its capitals, as does the rest."""
    assert Template(template).render(Scene(MESSAGE, 0.0)).decode() == expected


@pytest.mark.parametrize(
    ("template", "position"), [("{routing_key!upper}", 13), ("a{type!}", 7), ("{type!lower!lower}", 6)]
)
def test_a_conversion_that_there_is_not_is_told_with_its_place(template: str, position: int) -> None:
    """At the start; never as a field that no message has."""
    with pytest.raises(TemplateError, match="is not a conversion; there is !lower") as caught:
        Template(template)
    assert caught.value.position == position
