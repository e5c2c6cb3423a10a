"""Chaos itself: its plans come from seeds, and its judge finds each kind of discrepancy, made up by hand."""

from __future__ import annotations

import json

import pytest

from tests.faults.model import Operation, Published, judge
from tests.faults.plan import make_plan
from tests.servers import wire
from tests.servers.amqp import Received
from tests.servers.es import Document

GOOD = [Operation(number, document_id, b"", None) for number, document_id in ((1, "hot-1"), (2, "one-2"), (3, "hot-1"))]
BAD = Operation(4, "bad-4", b"no json 4", "malformed")
UNCERTAIN = Operation(5, "hot-1", b"", None)


def document(number: int, document_id: str, version: int | None = None) -> Document:
    source = json.dumps({"n": number, "of": document_id}).encode()
    return Document("index", document_id, source, number if version is None else version, None)


def letter(document_id: str, body: bytes, reason: str) -> Received:
    properties = wire.encode_properties({"message_id": document_id, "headers": {"sidecar-reason": reason}})
    return Received(body, properties, "", "")


PUBLISHED = Published([*GOOD, BAD], [UNCERTAIN])
STORED = [document(3, "hot-1"), document(2, "one-2")]
BURIED = [letter("bad-4", b"no json 4", "malformed")]


def found(documents: list[Document], letters: list[Received], *, versioned: bool = True) -> list[str]:
    return judge(PUBLISHED, documents, letters, versioned=versioned).discrepancies


def test_a_plan_comes_from_its_seed_alone() -> None:
    """The same seed breaks the same things at the same times; another one doesn't."""
    assert make_plan(1, 60.0) == make_plan(1, 60.0)
    assert make_plan(1, 60.0) != make_plan(2, 60.0)
    kinds = {fault.kind for seed in range(50) for lane in make_plan(seed, 60.0).faults.values() for fault in lane}
    assert len(kinds) == 19


def test_what_must_be_there_and_what_may_be() -> None:
    """A message whose confirm never came may be there or not; a dead letter may come twice."""
    assert found(STORED, BURIED) == []
    assert found([document(5, "hot-1"), STORED[1]], BURIED * 2) == []
    assert found([document(1, "hot-1", 7), STORED[1]], BURIED, versioned=False) == []


@pytest.mark.parametrize(
    ("documents", "letters", "says"),
    [
        (STORED[:1], BURIED, "document that is missing: one-2"),
        ([*STORED, STORED[0]], BURIED, "document that is there twice: hot-1"),
        ([*STORED, document(9, "one-9")], BURIED, "document that nobody published: one-9"),
        ([STORED[0], document(1, "one-2")], BURIED, "document with a content that nobody published"),
        ([document(1, "hot-1"), STORED[1]], BURIED, "document without its last version: hot-1: 1 instead of 3"),
        ([document(3, "hot-1", 4), STORED[1]], BURIED, "document with another version than its content: hot-1"),
        (STORED, [], "bad message that is not among the dead letters: bad-4"),
        (STORED, [*BURIED, letter("one-2", b"", "rejected")], "dead letter that is none: one-2"),
        (STORED, [letter("bad-4", b"no json", "malformed")], "dead letter with another body or reason: bad-4"),
        (STORED, [letter("bad-4", b"no json 4", "rejected")], "dead letter with another body or reason: bad-4"),
    ],
)
def test_the_judge_finds(documents: list[Document], letters: list[Received], says: str) -> None:
    """One sentence for what is wrong, with an example."""
    discrepancies = found(documents, letters)
    assert any(says in discrepancy for discrepancy in discrepancies), discrepancies
