"""`sidecar.core.encoding.index_names`: names that Elasticsearch refuses for a new index."""

from __future__ import annotations

import pytest

from sidecar.core.encoding.index_names import name_fault, template_fault
from sidecar.core.encoding.template import Template

GOOD = ["events", "logs-2026.11.30", ".hidden", "ä", "a_b-c+d", "x" * 255, "1"]
BAD = ["Events", "É", "-a", "_a", "+a", ".", "..", "x" * 256, "ä" * 128, *(f"a{c}b" for c in ' "*\\<|,>/?#:')]


@pytest.mark.parametrize("name", GOOD)
def test_names_that_elasticsearch_accepts(name: str) -> None:
    """Those of 9.5.0, as measured."""
    assert name_fault(name) is None
    assert template_fault(Template(name)) is None


@pytest.mark.parametrize("name", BAD)
def test_names_that_elasticsearch_refuses(name: str) -> None:
    """Capitals, some characters, some beginnings, and too many bytes."""
    assert name_fault(name) is not None


@pytest.mark.parametrize(
    "text",
    [
        "logs-{type}",
        "{routing_key}",
        "{type!lower}-{now:%Y.%m.%d}",
        "{now!lower:%Y-%b}",
        "{type!lower|Unknown}",
        "{type}-a",
    ],
)
def test_templates_that_may_give_good_names(text: str) -> None:
    """Values of messages are unknown, so nothing is said of them."""
    assert template_fault(Template(text)) is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Events-{type}", "'Events-'"),
        ("{type}-Events", "lower case"),
        ("_{type}", "begin with '_'"),
        ("logs {type}", "' '"),
        ("{type|Unknown}", "{type}: "),
        ("logs-{now}", "{now}: "),
        ("logs-{timestamp}", "{timestamp}: "),
        ("logs-{now:%Y-%b}", "{now}: "),
        ("logs-{now:%H:%M}", "':'"),
        ("logs-{timestamp:%d/%m}", "'/'"),
        ("logs-{timestamp:%p}", "lower case"),
        ("x" * 256 + "{type}", "at most 255 bytes"),
    ],
)
def test_templates_that_never_give_a_good_name(text: str, word: str) -> None:
    """By what stands around their fields, by defaults, and by formats of times."""
    assert word in (template_fault(Template(text)) or "")
