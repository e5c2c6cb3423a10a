"""`sidecar.core.encoding.template`: what templates can do to values."""

from __future__ import annotations

import pytest

from sidecar.core.encoding.template import Template, TemplateContext, TemplateError
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
    assert Template(template).render(TemplateContext(MESSAGE, 0.0)).decode() == expected


@pytest.mark.parametrize(
    ("template", "position"),
    [("{routing_key!upper}", 13), ("a{type!}", 7), ("{type!lower!lower}", 6), ("{now!upper:%b}", 5)],
)
def test_a_conversion_that_there_is_not_is_told_with_its_place(template: str, position: int) -> None:
    """At the start; never as a field that no message has."""
    with pytest.raises(TemplateError, match="is not a conversion; there is !lower") as caught:
        Template(template)
    assert caught.value.position == position


@pytest.mark.parametrize(
    ("template", "field", "is_lowered"),
    [
        ("{header.a!b}", "header.a!b", False),
        ("{header.a!b!lower}", "header.a!b", True),
        ("{header.a!lower!lower}", "header.a!lower", True),
        ("{header.a!Lower|x}", "header.a!Lower", False),
        ("{header.a!b:%Y}", "header.a!b", False),
        ("{header.a!b!lower:%b}", "header.a!b", True),
        ("{body.a!lower.c}", "body.a!lower.c", False),
        ("{body.!}", "body.!", False),
    ],
)
def test_another_exclamation_mark_belongs_to_the_name(template: str, field: str, is_lowered: bool) -> None:
    """Of a header or a member: they may have any, and only ``!lower`` at the end is a conversion."""
    (hole,) = Template(template).placeholders
    assert (hole.field, hole.is_lowered) == (field, is_lowered)


def test_a_conversion_behind_a_format_is_told_with_its_place() -> None:
    """It would be written into every value otherwise."""
    with pytest.raises(TemplateError, match="!lower stands before a format") as caught:
        Template("a-{now:%Y-%b!lower|x}")
    assert caught.value.position == 12
