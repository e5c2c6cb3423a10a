"""`sidecar.core.scheduling.json_merge` and `coalesce`: one write leaves what several leave, whatever is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sidecar.core.scheduling.batcher import Batcher
from sidecar.core.scheduling.coalesce import Coalescer, Operation
from sidecar.core.scheduling.json_merge import merged
from sidecar.core.scheduling.order import DocumentOrder
from tests.builders import examples
from tests.drawing import drew

Document = dict[str, Any]
State = Document | None

names = st.sampled_from(["a", "b", "é"])
leaves = st.sampled_from([None, 1, 2, "x", [1], [{"a": 1}], {}])
objects = st.recursive(
    st.dictionaries(names, leaves, max_size=3),
    lambda inner: st.dictionaries(names, leaves | inner | inner, min_size=1, max_size=3),
    max_leaves=4,
)
states = st.none() | objects


def applied(stored: Document, change: Document) -> Document:
    """Return what a partial update leaves: objects are merged, all else is replaced."""
    result = dict(stored)
    for name, value in change.items():
        there = result.get(name)
        result[name] = applied(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return result


def pairs(value: object) -> object:
    """Return JSON as text with sorted names, to compare two documents exactly."""
    return json.dumps(value, sort_keys=True)


@pytest.mark.draws(
    "merged", "apart", "nested on both sides", "an object in the place of a value",
    "a value in the place of an object", "nothing in common", "an empty change", "escaped names",
)  # fmt: skip
@settings(max_examples=examples(150))
@given(objects, objects, st.lists(objects, min_size=2, max_size=4), st.booleans())
def test_a_merged_update_does_what_both_do(
    first: Document, later: Document, stored: list[Document], ascii_only: bool
) -> None:
    """For every stored document; and without a merged update there is a document for which none would do."""
    both = merged(json.dumps(first, ensure_ascii=ascii_only).encode(), json.dumps(later).encode())
    drew("merged" if both is not None else "apart")
    common = [(first[name], later[name]) for name in first.keys() & later.keys()]
    drew("nested on both sides", any(isinstance(one, dict) and isinstance(two, dict) for one, two in common))
    drew(
        "an object in the place of a value",
        any(not isinstance(one, dict) and isinstance(two, dict) for one, two in common),
    )
    drew(
        "a value in the place of an object",
        any(isinstance(one, dict) and not isinstance(two, dict) for one, two in common),
    )
    drew("nothing in common", not common and first and later)
    drew("an empty change", not later)
    drew("escaped names", ascii_only and "é" in first and "é" in later)
    if both is None:
        assert _replaces_what_is_merged(first, later)
        return
    for document in [{}, first, later, *stored]:
        assert pairs(applied(document, json.loads(both))) == pairs(applied(applied(document, first), later))
    assert list(json.loads(both))[: len(first)] == list(first), "members keep their places"


def _replaces_what_is_merged(first: Document, later: Document) -> bool:
    """Tell whether `later` has an object where `first` has something else, at any depth."""
    return any(
        not isinstance(first[name], dict) or _replaces_what_is_merged(first[name], value)
        for name, value in later.items()
        if name in first and isinstance(value, dict)
    )


def after(stored: State, operation: Operation) -> State:
    """Return what Elasticsearch stores after an operation; one that fails changes nothing."""
    document = json.loads(operation.document) if operation.document is not None else {}
    if operation.action == "delete":
        return None
    if operation.action == "index":
        return dict(document)
    if operation.action == "create":
        return dict(document) if stored is None else stored
    if stored is not None:
        return applied(stored, document)
    if operation.action == "upsert":
        return dict(document)
    return json.loads(operation.upsert) if operation.upsert is not None else None


ACTIONS = ("index", "create", "update", "upsert", "delete")
FOLDED: list[tuple[str, ...]] = [
    (first, later)
    for first in ACTIONS
    for later in ("index", "delete", "update", "upsert")
    if later in {"index", "delete"} or (first, later) not in {("delete", later), ("update", "upsert")}
] + [("create", "update", "update"), ("create", "update", "upsert"), ("index", "update", "update")]


def operation(action: str, document: Document, options: bytes = b"") -> Operation:
    """Return an operation as the composer makes it."""
    source = None if action == "delete" else json.dumps(document).encode()
    return Operation(action, options=options, document=source)


operations = st.builds(operation, st.sampled_from(ACTIONS), objects, st.sampled_from([b"", b"", b',"routing":"x"']))


def coalescer(mode: Any, *, conflicts_matter: bool = False, equal_wins: bool = False) -> Coalescer:
    """Return a coalescer of which nothing but its rules is used."""
    batcher = Batcher(10, 1000, 1.0)
    return Coalescer(mode, DocumentOrder(), batcher, conflicts_matter=conflicts_matter, equal_wins=equal_wins)


@pytest.mark.parametrize("actions", FOLDED, ids=", ".join)
@pytest.mark.draws("folded")
@settings(max_examples=examples(10))
@given(st.lists(objects, min_size=3, max_size=3), objects)
def test_folded_operations_leave_what_all_leave(
    actions: tuple[str, ...], documents: list[Document], stored: Document
) -> None:
    """For every stored document, and for none."""
    chain = [operation(action, document) for action, document in zip(actions, documents, strict=False)]
    folded: Operation | None = chain[0]
    for later in chain[1:]:
        folded = coalescer("merge").fold(folded, later) if folded is not None else None
    if folded is not None:
        drew("folded")
        _leaves_the_same(folded, chain, stored)


@pytest.mark.draws("one fold", "two folds", "apart", "other options")
@settings(max_examples=examples(80))
@given(st.lists(operations, min_size=3, max_size=3), objects)
def test_a_chain_of_operations_leaves_what_all_leave(chain: list[Operation], stored: Document) -> None:
    """As long as each can be folded into what came before."""
    folded, count = chain[0], 0
    for later in chain[1:]:
        drew("other options", later.options != folded.options)
        found = coalescer("merge").fold(folded, later)
        if found is None:
            break
        folded, count = found, count + 1
        _leaves_the_same(folded, chain[: count + 1], stored)
    drew(("apart", "one fold", "two folds")[count])


def _leaves_the_same(folded: Operation, all_of: list[Operation], stored: Document) -> None:
    assert len({one.options for one in all_of}) == 1, "documents with other options are other documents"
    for before in (None, {}, stored, *(json.loads(one.document) for one in all_of if one.document)):
        expected: State = before
        for one in all_of:
            expected = after(expected, one)
        assert pairs(after(before, folded)) == pairs(expected), (before, folded)


@pytest.mark.draws(
    "higher", "equal", "lower", "no version before", "no version later", "conflicts matter", "equal wins",
)  # fmt: skip
@settings(max_examples=examples(100))
@given(
    st.none() | st.integers(0, 3),
    st.none() | st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["index", "delete"]),
)
def test_of_two_versions_the_one_stays_that_would_be_stored(
    first: int | None, later: int | None, conflicts_matter: bool, equal_wins: bool, action: str
) -> None:
    """As if both were sent: a higher version is stored, an equal one by `external_gte`, a lower one is a conflict."""
    assume(first is not None or later is not None)
    one = Operation("index", version=first, document=b"{}")
    two = Operation(action, version=later, document=b"{}" if action == "index" else None)
    folded = coalescer("latest", conflicts_matter=conflicts_matter, equal_wins=equal_wins).fold(one, two)
    drew("conflicts matter", conflicts_matter)
    drew("equal wins", equal_wins)
    if first is None or later is None:
        drew("no version before" if first is None else "no version later")
        assert folded is None
        return
    drew("higher" if later > first else "lower" if later < first else "equal")
    if later > first or (later == first and equal_wins):
        assert folded is two
    else:
        assert folded is (None if conflicts_matter else one)
