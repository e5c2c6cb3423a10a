"""What must be true at the end, known from what was published alone: no code of the product is used here."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.servers.amqp import Amqp, AmqpError, Outgoing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.faults.plan import Plan
    from tests.servers.amqp import Received
    from tests.servers.es import Document

_CONFIRM_SECONDS = 5.0
_RECONNECT_SECONDS = 0.5
_EXAMPLES = 5

BAD_BODIES = {
    "malformed": ('{{"n":{n}', "[{n}]", "no json {n}", '{{"n":{n}}}\n{{"delete":{{"_id":"hot-0"}}}}\n{{"n":{n}}}'),
    "rejected": ('{{"n":"no number {n}"}}', '{{"n":{n}}}{{"n":{n}}}', '{{"n":{n},}}'),
    "missing-field": ('{{"n":{n}}}',),
}
"""Bodies that nobody can store, by the reason that their dead letters must give."""


class Operation(NamedTuple):
    """A message of the producer.

    Attributes:
        number: rising; also the version.
        reason: why it can't be stored; None where it can.
    """

    number: int
    document_id: str
    body: bytes
    reason: str | None

    def outgoing(self, *, versioned: bool) -> Outgoing:
        """Return the message as it is published."""
        properties: dict[str, Any] = {
            "content_type": "application/json",
            "delivery_mode": 2,
            "message_id": self.document_id,
        }
        if versioned and self.reason != "missing-field":
            properties["headers"] = {"version": self.number}
        return Outgoing(self.body, properties=properties)


@dataclass(slots=True)
class Published:
    """What the broker has for certain, and what it may have: its confirm never came."""

    confirmed: list[Operation] = field(default_factory=list)
    uncertain: list[Operation] = field(default_factory=list)


class PublisherConnection(threading.Thread):
    """Publishes to the queue with confirms, through whatever happens to the broker, until it is stopped.

    Args:
        url: of the broker.
        queue: where it publishes.
        plan: of the run.
    """

    def __init__(self, url: str, queue: str, plan: Plan) -> None:
        super().__init__(name="producer", daemon=True)
        self.published = Published()
        self.failed: BaseException | None = None
        self._url = url
        self._queue = queue
        self._plan = plan
        self._dice = random.Random(f"chaos {plan.seed} messages")
        self._stop_asked = threading.Event()
        self._number = 0

    def run(self) -> None:
        client: Amqp | None = None
        try:
            while not self._stop_asked.wait(self._plan.pause_seconds if client is not None else _RECONNECT_SECONDS):
                try:
                    client = client or Amqp(self._url, timeout_seconds=_CONFIRM_SECONDS)
                except (AmqpError, OSError):
                    continue
                if not self._publish(client):
                    client.abort()
                    client = None
        except BaseException as error:  # noqa: BLE001 - told by whoever joins this thread
            self.failed = error
        finally:
            if client is not None:
                client.close()

    def stop(self) -> None:
        """Stop publishing, and wait until the last confirm came or didn't."""
        self._stop_asked.set()
        self.join()

    def _publish(self, client: Amqp) -> bool:
        """Publish a burst; return whether the connection is of more use."""
        operations = [self._next() for _ in range(self._plan.burst)]
        messages = [operation.outgoing(versioned=self._plan.versioned) for operation in operations]
        try:
            report = client.publish(messages, routing_key=self._queue)
        except (AmqpError, OSError):
            self.published.uncertain += operations
            return False
        refused = set(report.nacked)
        for position, operation in enumerate(operations):
            # One that came back unroutable can't be told from its neighbours without effort: none of them counts.
            sure = position not in refused and not report.returned
            (self.published.confirmed if sure else self.published.uncertain).append(operation)
        return True

    def _next(self) -> Operation:
        rng, plan = self._dice, self._plan
        self._number += 1
        number = self._number
        if rng.random() < plan.bad_share:
            reasons = list(BAD_BODIES) if plan.versioned else ["malformed", "rejected"]
            reason = rng.choice(reasons)
            body = rng.choice(BAD_BODIES[reason]).format(n=number)
            return Operation(number, f"bad-{number}", body.encode(), reason)
        hot = rng.random() < plan.hot_share
        document_id = f"hot-{rng.randrange(plan.hot_documents)}" if hot else f"one-{number}"
        return Operation(number, document_id, json.dumps({"n": number, "of": document_id}).encode(), None)


@dataclass(slots=True)
class Verdict:
    """What the judge found.

    Attributes:
        discrepancies: sentences; none is the only good number of them.
        figures: by name, for whoever reads the report.
    """

    discrepancies: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)

    def found(self, what: str, examples: Iterable[object]) -> None:
        """Note a kind of discrepancy, where there are examples of it."""
        seen = list(examples)
        if seen:
            self.discrepancies.append(f"{len(seen)} times {what}: {', '.join(map(str, seen[:_EXAMPLES]))}")


def judge(published: Published, documents: list[Document], letters: list[Received], *, versioned: bool) -> Verdict:
    """Compare what was published with what is there."""
    verdict = Verdict()
    _judge_documents(verdict, published, documents, versioned=versioned)
    _judge_letters(verdict, published, letters)
    verdict.figures |= {
        "confirmed messages": len(published.confirmed),
        "unconfirmed messages": len(published.uncertain),
        "documents": len(documents),
        "dead letters": len(letters),
    }
    return verdict


def _judge_documents(verdict: Verdict, published: Published, documents: list[Document], *, versioned: bool) -> None:
    sure: dict[str, list[int]] = defaultdict(list)
    possible: dict[str, set[int]] = defaultdict(set)
    for operation in published.confirmed:
        if operation.reason is None:
            sure[operation.document_id].append(operation.number)
    for operation in published.confirmed + published.uncertain:
        if operation.reason is None:
            possible[operation.document_id].add(operation.number)
    stored = {document.id: document for document in documents}
    verdict.found(
        "document that is there twice", (document_id for document_id, times in _times(documents) if times > 1)
    )
    verdict.found("document that is missing", sure.keys() - stored.keys())
    verdict.found("document that nobody published", stored.keys() - possible.keys())
    contents = {document_id: json.loads(document.source) for document_id, document in stored.items()}
    known = {document_id: content for document_id, content in contents.items() if document_id in possible}
    verdict.found(
        "document with a content that nobody published",
        (
            f"{document_id}: {content}"
            for document_id, content in known.items()
            if not _is_ours(document_id, content, possible[document_id])
        ),
    )
    if versioned:
        verdict.found(
            "document without its last version",
            (
                f"{document_id}: {content['n']} instead of {max(sure[document_id])}"
                for document_id, content in known.items()
                if document_id in sure and content["n"] < max(sure[document_id])
            ),
        )
        verdict.found(
            "document with another version than its content",
            (document_id for document_id, content in known.items() if stored[document_id].version != content["n"]),
        )


def _is_ours(document_id: str, content: dict[str, Any], possible: set[int]) -> bool:
    return content.get("of") == document_id and content.get("n") in possible


def _times(documents: list[Document]) -> Iterable[tuple[str, int]]:
    return Counter(document.id for document in documents).items()


def _judge_letters(verdict: Verdict, published: Published, letters: list[Received]) -> None:
    bad = {one.document_id: one for one in published.confirmed + published.uncertain if one.reason is not None}
    found = {str(letter.message_id) for letter in letters}
    verdict.found(
        "bad message that is not among the dead letters",
        (one.document_id for one in published.confirmed if one.reason is not None and one.document_id not in found),
    )
    verdict.found(
        "dead letter that is none",
        (
            f"{letter.message_id} {letter.body[:80]!r} as {letter.headers.get('sidecar-reason')}: "
            f"{letter.headers.get('sidecar-error-reason')}"
            for letter in letters
            if str(letter.message_id) not in bad
        ),
    )
    verdict.found(
        "dead letter with another body or reason",
        (
            f"{letter.message_id}: {letter.headers.get('sidecar-reason')}"
            for letter in letters
            if (one := bad.get(str(letter.message_id))) is not None
            and (letter.body, letter.headers.get("sidecar-reason")) != (one.body, one.reason)
        ),
    )
    verdict.figures["dead letters that came again"] = len(letters) - len(found)
