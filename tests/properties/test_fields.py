"""`sidecar.core.encoding.fields`: a document with fields, parsed again, is the document and the fields it hadn't."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.template import Template, TemplateContext
from tests.builders import examples, long_string, message, properties
from tests.drawing import drew, how_many

NAMES = ["a", "é", 'q"', "s/", "b\\", "🎉", "a b"]
names = st.sampled_from(NAMES) | st.text(max_size=3)
values = st.none() | st.integers() | st.text(max_size=5) | st.dictionaries(names, st.integers(), max_size=2)


def spelled(name: str, how: int) -> str:
    """Return a name in quotes as some producer may write it."""
    if how == 0:
        return json.dumps(name, ensure_ascii=False)
    if how == 1:
        return json.dumps(name).replace("/", "\\/")
    units = name.encode("utf-16-be", errors="surrogatepass")
    return '"' + "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)) + '"'


@pytest.mark.draws(
    "no members", "one members", "several members", "the document has it", "it has some", "it has none",
    "an escaped name", "a name in a nested object alone", "an empty value", "a value with a line",
    "a value that isn't ASCII",
)  # fmt: skip
@settings(max_examples=examples(200))
@given(
    st.dictionaries(names, st.tuples(values, st.integers(0, 2)), max_size=4),
    st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=3),
    st.text(max_size=8).filter(lambda text: text.isprintable()) | st.just('"}\n{"x":1'),
    st.sampled_from(["", " "]),
)
def test_a_document_keeps_its_own_and_gets_the_rest(
    document: dict[str, tuple[Any, int]], added: list[str], value: str, space: str
) -> None:
    """No name is doubled, however it is spelled; the bytes of the document stay; an empty value adds nothing."""
    drew(how_many(len(document), "members"))
    own = [name for name in added if name in document]
    drew("it has none" if not own else "the document has it" if len(own) == len(added) else "it has some")
    drew("an escaped name", any(document[name][1] for name in own))
    inner = {name for one, _ in document.values() if isinstance(one, dict) for name in one}
    drew("a name in a nested object alone", any(name in inner and name not in document for name in added))
    drew("an empty value" if not value else "a value with a line" if "\n" in value else "a value that isn't ASCII",
         not value or "\n" in value or not value.isascii())  # fmt: skip
    members = [f"{spelled(name, how)}:{space}{json.dumps(own)}" for name, (own, how) in document.items()]
    line = ("{" + space + ",".join(members) + "}").encode()
    raw = properties([(b"v", long_string(value.encode()))])
    fields = Fields({name: Template("{header.v}") for name in added})
    made = fields.add(line, TemplateContext(message(body=line, raw=raw), 0.0))
    pairs: list[tuple[str, Any]] = json.loads(made, object_pairs_hook=lambda found: found)
    kept = [
        (name, json.loads(json.dumps(one), object_pairs_hook=lambda found: found))
        for name, (one, _) in document.items()
    ]
    new = [(name, value) for name in added if name not in document and value]
    assert pairs == new + kept
    assert made.endswith(line[1:])
    assert b"\n" not in made
