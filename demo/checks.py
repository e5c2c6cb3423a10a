"""What must be found in the end, and whether it is: published = documents + dead letters, to the last one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from sidecar.cli.samples import KIND_HEADER

if TYPE_CHECKING:
    from demo.findings import DeadLetter
    from sidecar.cli.samples import Sample

_SETTLED = ("ack", "delay", "requeue", "dead_letter", "discard", "stale", "in_flight")


class Check(NamedTuple):
    """A line of the account."""

    what: str
    expected: int
    found: int

    @property
    def holds(self) -> bool:
        """Whether it is as it must be."""
        return self.expected == self.found


class Evidence(NamedTuple):
    """What was found.

    Attributes:
        confirmed: messages that the broker confirmed to the producer.
        documents: ids and sources.
        letters: from the dead-letter queue.
        left: messages in the work queue after the sidecar ended.
        exit_status: the sidecar's.
        account: the sidecar's own, as it told it when it stopped; empty if it didn't.
    """

    confirmed: int
    documents: list[tuple[str, dict[str, Any]]]
    letters: list[DeadLetter]
    left: int
    exit_status: int
    account: dict[str, Any]


def check(samples: list[Sample], evidence: Evidence) -> list[Check]:
    """Return the account of a run that published `samples`."""
    good = [sample for sample in samples if not sample.kind.reason]
    bad = [sample for sample in samples if sample.kind.reason]
    account = evidence.account
    return [
        Check("messages published and confirmed", len(samples), evidence.confirmed),
        Check("documents found", len(good), len(evidence.documents)),
        Check("dead letters found", len(bad), len(evidence.letters)),
        Check("documents + dead letters", len(samples), len(evidence.documents) + len(evidence.letters)),
        Check("documents that differ from what was sent", 0, _different(good, evidence.documents)),
        Check("duplicates", 0, _duplicates(evidence.documents)),
        Check("dead letters with other bytes or another reason", 0, _wrong(bad, evidence.letters)),
        Check("messages left in the queue", 0, evidence.left),
        Check("the sidecar's exit status", 0, evidence.exit_status),
        Check("the sidecar's own account: acked", len(good), account.get("ack", -1)),
        Check("the sidecar's own account: dead letters", len(bad), account.get("dead_letter", -1)),
        Check(
            "the sidecar's own account: received, all settled",
            account.get("received", -1),
            sum(account.get(name, 0) for name in _SETTLED),
        ),
    ]


def _different(good: list[Sample], documents: list[tuple[str, dict[str, Any]]]) -> int:
    """Return how many documents are missing, not expected, or have other content."""
    expected = {sample.document_id: sample.body for sample in good}
    same = {
        document_id
        for document_id, source in documents
        if document_id in expected and orjson.loads(expected[document_id]) == source
    }
    return len(expected.keys() | {document_id for document_id, _ in documents}) - len(same)


def _duplicates(documents: list[tuple[str, dict[str, Any]]]) -> int:
    """Return how many documents were made of a message that had one already."""
    return len(documents) - len({source.get("sequence") for _, source in documents})


def _wrong(bad: list[Sample], letters: list[DeadLetter]) -> int:
    """Return how many dead letters are missing, not expected, or say something else than they should."""
    name = KIND_HEADER.decode()
    expected = Counter((sample.document_id or "", sample.kind.name, sample.kind.reason, sample.body) for sample in bad)
    found = Counter(
        (letter.document_id, _text(letter.headers.get(name)), _text(letter.headers.get("sidecar-reason")), letter.body)
        for letter in letters
    )
    return max((expected - found).total(), (found - expected).total())


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
