"""`sidecar.core.fields`: a document with fields, parsed again, is the document and the fields it hadn't."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.fields import Fields
from sidecar.core.template import Scene, Template
from tests.builders import examples, long_string, message, properties

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
    members = [f"{spelled(name, how)}:{space}{json.dumps(own)}" for name, (own, how) in document.items()]
    line = ("{" + space + ",".join(members) + "}").encode()
    raw = properties([(b"v", long_string(value.encode()))])
    fields = Fields({name: Template("{header.v}") for name in added})
    made = fields.add(line, Scene(message(body=line, raw=raw), 0.0))
    pairs: list[tuple[str, Any]] = json.loads(made, object_pairs_hook=lambda found: found)
    own = [
        (name, json.loads(json.dumps(one), object_pairs_hook=lambda found: found))
        for name, (one, _) in document.items()
    ]
    new = [(name, value) for name in added if name not in document and value]
    assert pairs == new + own
    assert made.endswith(line[1:])
    assert b"\n" not in made
