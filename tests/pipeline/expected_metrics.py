"""What every metric should say, counted at the ports from what passed there, without the product's code.

The model sees what RabbitMQ and Elasticsearch see: deliveries, acks, nacks, copies and their confirms, requests and
answers, and the time of each. `ExpectedMetrics.check` compares that with the text of a scrape: to the number if the
ports tell it, within bounds if they don't.

What the ports can't tell is left to tables of exact numbers (`tests/pipeline/test_metrics.py`):

- `batches{trigger}`: why a batch was complete. The model checks the sum, the messages and the bytes.
- `retries{failed}` and `retries{delayed}`: a failed item may be retried, delayed, dead-lettered or held.
- `splits{unanswered}`: which request was halved depends on probes in between.
- `bulk_limit`: how many requests there may be is a decision. The model checks its range.
- verdicts of messages with several documents, of coalesced ones, and those that somebody's own code gives: the model
  checks the sum.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.errors import BrokerError, SinkError
from sidecar.observability.metrics import Metrics
from sidecar.ports import QUEUE_DURABLE_AFTER_SECONDS
from tests.fakes.elasticsearch import RequestFault, read

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.core.ledger import Ledger, Settlement
    from sidecar.core.message import Message
    from sidecar.core.stats.snapshot import Snapshot
    from sidecar.pipeline.config import PipelineConfig
    from sidecar.ports import Answer, BrokerSession, OutboundMessage, Receive
    from tests.fakes.broker import SimulatedSession
    from tests.fakes.elasticsearch import Client, Elasticsearch, Item
    from tests.fakes.outlet import SimulatedOutlet

    Connect = Callable[[Receive], Awaitable[SimulatedSession]]

_FLAGS_BEFORE_TIMESTAMP = ("content_type", "content_encoding", "headers", "delivery_mode", "priority",
                           "correlation_id", "reply_to", "expiration", "message_id")  # fmt: skip
_TIMESTAMP_FLAG = 1 << 6
_YEAR_SECONDS = 366 * 86_400
_MILLISECONDS_FROM = 10**11


def scrape(state: Snapshot) -> dict[str, float]:
    """Return what ``/metrics`` tells of the sidecar in this state, without prefix, buckets and the process's own."""
    body, _ = Metrics(lambda: state).render("")
    found = {}
    for line in body.decode().splitlines():
        sample, _, value = line.rpartition(" ")
        if sample.startswith("sidecar_") and "_bucket{" not in sample:
            found[sample.removeprefix("sidecar_").replace('"', "")] = float(value)
    return found


def published_at(properties: bytes) -> float | None:
    """Return the property ``timestamp`` in seconds since 1970, read from the bytes of a property set."""
    flags = int.from_bytes(properties[:2], "big")
    if not flags & _TIMESTAMP_FLAG:
        return None
    at = 2
    for bit, name in zip(range(15, 6, -1), _FLAGS_BEFORE_TIMESTAMP, strict=True):
        if not flags & 1 << bit:
            continue
        if name == "headers":
            at += 4 + int.from_bytes(properties[at : at + 4], "big")
        elif name in {"delivery_mode", "priority"}:
            at += 1
        else:
            at += 1 + properties[at]
    value = int.from_bytes(properties[at : at + 8], "big")
    return value / 1000 if value >= _MILLISECONDS_FROM else float(value)


@dataclass(eq=False)
class Delivery:
    """A message in the sidecar's hands.

    Attributes:
        at: when it arrived, in virtual seconds.
        published_at: as its property says, in seconds since 1970, if that is to be believed.
        copied: a copy of it was confirmed.
        sent: an item of it was in a request.
        waits: that request isn't answered yet.
        stored: Elasticsearch answered that its item needs nothing more.
        settled: the broker was told.
    """

    queue: str
    body: bytes
    at: float
    published_at: float | None
    copied: bool = False
    sent: bool = False
    waits: bool = False
    stored: bool = False
    settled: bool = False

    @property
    def undecided(self) -> bool:
        """Whether nothing tells yet what becomes of it."""
        return not (self.settled or self.copied or self.stored)


@dataclass(slots=True)
class Range:
    """A sum that is known exactly, or within two ends."""

    least: float = 0.0
    most: float = 0.0

    def add(self, least: float, most: float) -> None:
        """Add a value between two ends; never a negative one."""
        self.least += max(0.0, least)
        self.most += max(0.0, most)


@dataclass
class Counts:
    """What passed since a sidecar started.

    Attributes:
        plain: each item could be told to be the body of one delivery; what follows from that is exact.
        open: deliveries that nothing was settled of, by ledger and tag.
        by_body: all deliveries.
        first_bytes: of the request's body, of items that were sent for the first time.
    """

    received: Counter[str] = field(default_factory=Counter)
    settled: Counter[tuple[str, str]] = field(default_factory=Counter)
    documents: Counter[tuple[str, str]] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    open: dict[Ledger, dict[int, Delivery]] = field(default_factory=dict)
    by_body: dict[bytes, list[Delivery]] = field(default_factory=dict)
    plain: bool = True
    sessions: int = 0
    live: BrokerSession | None = None
    sent: int = 0
    in_flight: int = 0
    answers: int = 0
    answered_seconds: float = 0.0
    throttled_items: int = 0
    unanswered_items: int = 0
    unanswered_singles: int = 0
    failed_items: int = 0
    first_items: int = 0
    first_bytes: int = 0
    began_at: float = 0.0
    first_confirmed_at: float = 0.0
    unpublished: int = 0
    delays_confirmed: int = 0
    delays_refused: int = 0
    last_was_well: bool = True
    end_to_end_count: Range = field(default_factory=Range)
    end_to_end: Range = field(default_factory=Range)

    def remove(self, ledger: Ledger, tag: int) -> Delivery:
        """Note that a delivery is settled; return it."""
        delivery = self.open[ledger].pop(tag)
        delivery.settled = True
        return delivery

    def take(self, ledger: Ledger, tags: list[int], verdict: str) -> None:
        """Count deliveries as settled."""
        for tag in tags:
            self.settled[self.remove(ledger, tag).queue, verdict] += 1


class ExpectedMetrics:
    """Counts what a sidecar's metrics should say.

    Args:
        plan: of the sidecar.
        wall_clock: seconds since 1970.
    """

    def __init__(self, plan: PipelineConfig, wall_clock: Callable[[], float]) -> None:
        self.counts = Counts()
        self._plan = plan
        self._wall_clock = wall_clock

    def begin(self) -> None:
        """Count from zero: another sidecar starts."""
        self.counts = Counts(began_at=_now())

    # RabbitMQ --------------------------------------------------------------------------------------------------------

    def watch_sessions(self, connect: Connect) -> Connect:
        """Return the same way to open a session, with everything counted that passes its port."""

        async def connect_watched(receive: Receive) -> SimulatedSession:
            counts = self.counts

            def receive_counted(chunk: list[Message]) -> None:
                self._delivered(counts, chunk)
                receive(chunk)

            session = await connect(receive_counted)
            counts.sessions += 1
            counts.live = session
            self._watch(session, counts)
            return session

        return connect_watched

    def _delivered(self, counts: Counts, chunk: list[Message]) -> None:
        now, wall = _now(), self._wall_clock()
        for message in chunk:
            published = published_at(message.properties)
            if published is not None and abs(wall - published) > _YEAR_SECONDS:
                published = None
            queue = message.ledger.queue
            counts.received[queue] += 1
            delivery = Delivery(queue, message.body, now, published)
            counts.open.setdefault(message.ledger, {})[message.tag] = delivery
            counts.by_body.setdefault(message.body, []).append(delivery)

    def _watch(self, session: SimulatedSession, counts: Counts) -> None:
        settle, reject, requeue, give_back = session.settle, session.reject, session.requeue, session.give_back
        publish, close = session.publish, session.close

        def settle_counted(ledger: Ledger, settlements: list[Settlement]) -> None:
            if not ledger.closed:
                self._settled(counts, ledger, settlements)
            settle(ledger, settlements)

        def reject_counted(ledger: Ledger, tag: int) -> None:
            counts.take(ledger, [tag], "dead_letter")
            reject(ledger, tag)

        async def requeue_counted(ledger: Ledger, tags: list[int]) -> None:
            if not ledger.closed:
                counts.take(ledger, tags, "requeue")
            await requeue(ledger, tags)

        async def give_back_counted(outstanding: list[tuple[Ledger, list[int]]]) -> None:
            for ledger, tags in outstanding:
                counts.take(ledger, tags, "requeue")
            await give_back(outstanding)

        async def publish_counted(copies: list[OutboundMessage]) -> list[str | None]:
            refusals = await publish(copies)
            self._published(counts, copies, refusals)
            return refusals

        async def close_counted() -> None:
            self._closed(counts, session)
            await close()

        session.settle, session.reject = settle_counted, reject_counted  # type: ignore[method-assign]
        session.requeue, session.give_back = requeue_counted, give_back_counted  # type: ignore[method-assign]
        session.publish, session.close = publish_counted, close_counted  # type: ignore[method-assign]

    def _settled(self, counts: Counts, ledger: Ledger, settlements: list[Settlement]) -> None:
        for tag, multiple in settlements:
            tags = list(takewhile(tag.__ge__, counts.open.get(ledger, {}))) if multiple else [tag]
            for one in tags:
                self._acked(counts, counts.remove(ledger, one))

    @staticmethod
    def _closed(counts: Counts, session: SimulatedSession) -> None:
        counts.live = None
        for channel in session.channels:
            for delivery in counts.open.pop(channel.ledger, {}).values():
                delivery.settled = True
                if not delivery.copied:  # otherwise only its ack was lost
                    counts.settled[delivery.queue, "ack" if delivery.stored else "stale"] += 1

    def _acked(self, counts: Counts, delivery: Delivery) -> None:
        if not delivery.copied:
            discarded = self._plan.on_reject == "discard" and not delivery.stored
            counts.settled[delivery.queue, "discard" if discarded else "ack"] += 1

    def _published(self, counts: Counts, copies: list[OutboundMessage], refusals: list[str | None]) -> None:
        for copy, refusal in zip(copies, refusals, strict=True):
            self._copied(counts, copy, refusal)

    @staticmethod
    def _copied(counts: Counts, copy: OutboundMessage, refusal: str | None) -> None:
        if copy.delay is not None:
            counts.delays_confirmed += refusal is None
            counts.delays_refused += refusal is not None
        if refusal is not None:
            return
        counts.unpublished += copy.delay is None and b"too-large" in copy.properties
        candidates = [
            delivery
            for delivery in counts.by_body.get(copy.body, ())
            if delivery.undecided and (copy.delay is None or delivery.queue == copy.delay[0])
        ]
        if candidates:
            candidates[0].copied = True
            counts.settled[candidates[0].queue, "dead_letter" if copy.delay is None else "delay"] += 1
        counts.plain &= len(candidates) == 1  # which of several like messages it is a copy of, nobody can tell

    # Elasticsearch ---------------------------------------------------------------------------------------------------

    def watch_elasticsearch(self, elastic: Elasticsearch) -> None:
        """Count the requests to a simulated Elasticsearch."""
        bulk = elastic.bulk

        async def bulk_counted(path: str, body: bytes, *, client: Client | None = None) -> Answer:
            counts, sent_at = self.counts, _now()
            items, deliveries = self._sent(counts, path, body)
            counts.sent += 1
            counts.in_flight += 1
            try:
                answer = await bulk(path, body, client=client)
            except SinkError:
                self._unanswered(counts, len(items), sent_at)
                raise
            finally:
                counts.in_flight -= 1
                for delivery in deliveries:
                    if delivery is not None:
                        delivery.waits = False
            self._answered(counts, answer, items, deliveries, sent_at)
            return answer

        elastic.bulk = bulk_counted  # type: ignore[method-assign]

    def _sent(self, counts: Counts, path: str, body: bytes) -> tuple[list[Item], list[Delivery | None]]:
        """Note a request; return its items, and the delivery of each."""
        items: list[Item] = []
        try:
            for item in read(path, body):
                items.append(item)  # noqa: PERF402 - what came before a fault counts
        except RequestFault:
            counts.plain = False
        lines = iter(body.split(b"\n"))
        deliveries: list[Delivery | None] = []
        for item in items:
            size = len(next(lines, b"")) + 1 + (len(next(lines, b"")) + 1 if item.action != "delete" else 0)
            candidates = counts.by_body.get(item.source, ())
            one = next((each for each in candidates if each.undecided and not each.waits), None)
            deliveries.append(one)
            if one is None:
                counts.plain = False
                continue
            one.waits = True
            if not one.sent:
                one.sent = True
                counts.first_items += 1
                counts.first_bytes += size
        return items, deliveries

    def _unanswered(self, counts: Counts, items: int, sent_at: float) -> None:
        counts.requests["unanswered"] += 1
        counts.unanswered_items += items
        counts.unanswered_singles += items == 1
        counts.answers += 1
        counts.answered_seconds += _now() - sent_at
        counts.last_was_well = False

    def _answered(
        self, counts: Counts, answer: Answer, items: list[Item], deliveries: list[Delivery | None], sent_at: float
    ) -> None:
        results = _results(answer, len(items))
        outcome = _request_outcome(answer, items, results)
        if outcome == "unanswered":
            self._unanswered(counts, len(items), sent_at)
            return
        counts.requests[outcome] += 1
        counts.answers += 1
        counts.answered_seconds += _now() - sent_at
        counts.last_was_well = outcome in {"stored", "partial"}
        if outcome == "throttled":
            counts.throttled_items += len(items)
        if outcome in {"split_size", "split_fault"} and len(items) > 1:
            counts.splits["too_large" if outcome == "split_size" else "refused"] += 1
        if results is not None:
            self._item_results(counts, items, results, deliveries, sent_at)

    def _item_results(
        self,
        counts: Counts,
        items: list[Item],
        results: list[dict[str, Any]],
        deliveries: list[Delivery | None],
        sent_at: float,
    ) -> None:
        choices = self._plan.error_policy
        kept: list[Delivery | None] = []
        unsure = 0  # whether a conflict is the sidecar's own doing, the ports can't tell
        for item, result, delivery in zip(items, results, deliveries, strict=True):
            action = "upsert" if b'"doc_as_upsert":true' in item.source and item.action == "update" else item.action
            outcome = _outcome(action, result)
            counts.documents[action, outcome] += 1
            counts.throttled_items += outcome == "too_many"
            counts.failed_items += outcome.startswith("failed")
            if outcome == "conflict" and choices.on_conflict == "dead-letter":
                counts.plain = False
                unsure += 1
            elif outcome in {"success", "noop", "conflict"} or (
                outcome == "failure_store" and choices.on_failure_store == "ack"
            ):
                kept.append(delivery)
                if delivery is not None:
                    delivery.stored = True
        counts.end_to_end_count.add(bool(kept), bool(kept or unsure))
        if not (kept or unsure):
            return
        first = kept[0] if kept else None
        if first is not None and first.published_at is not None and not unsure:
            counts.end_to_end.add(*[self._wall_clock() - first.published_at] * 2)
        else:
            counts.end_to_end.add(_now() - sent_at if kept else 0.0, _now() - counts.began_at)

    # An exchange, or somebody's own code -----------------------------------------------------------------------------

    def watch_outlet(self, outlet: SimulatedOutlet) -> None:
        """Count what is published to another exchange as requests."""
        publish = outlet.publish

        async def publish_counted(copies: list[OutboundMessage]) -> list[str | None]:
            counts, sent_at = self.counts, _now()
            counts.in_flight += 1
            try:
                refusals = await publish(copies)
            except BrokerError:
                self._unanswered(counts, len(copies), sent_at)
                raise
            finally:
                counts.in_flight -= 1
            first_at = counts.first_confirmed_at = counts.first_confirmed_at or _now()
            if (
                _now() < first_at + QUEUE_DURABLE_AFTER_SECONDS
            ):  # a killed broker forgets what is in a queue that may be so young
                connection, took, loop = outlet.connection, _now() - sent_at, asyncio.get_running_loop()

                def decide() -> None:
                    if outlet.connection is None or outlet.connection != connection:
                        self._unanswered(counts, len(copies), _now() - took)
                    else:
                        confirmed(counts, refusals, took)

                loop.call_at(first_at + QUEUE_DURABLE_AFTER_SECONDS, decide)
            else:
                confirmed(counts, refusals, _now() - sent_at)
            return refusals

        def confirmed(counts: Counts, refusals: list[str | None], took: float) -> None:
            counts.answers += 1
            counts.answered_seconds += took
            counts.requests["partial" if any(refusals) else "stored"] += 1
            for refusal in refusals:
                if refusal is None:
                    outcome = "success"
                else:
                    outcome = "failed_client" if "NO_ROUTE" in refusal else "too_many"
                    counts.throttled_items += outcome == "too_many"
                counts.documents["publish", outcome] += 1
            counts.end_to_end_count.add(None in refusals, None in refusals)

        outlet.publish = publish_counted  # type: ignore[method-assign]

    # Comparing -------------------------------------------------------------------------------------------------------

    def check(self, state: Snapshot, *, quiet: bool, sink: str = "elasticsearch") -> None:
        """Compare a scrape with what was counted.

        Args:
            state: of this moment, in which nothing is on its way at a port.
            quiet: the sidecar runs, and everything was settled; otherwise it ended.
            sink: what the requests go to: ``elasticsearch``, ``amqp``, or ``handler``.
        """
        told = _Told(scrape(state))
        told.is_exactly("amqp_reconnects_total", max(0, self.counts.sessions - 1))
        self._check_messages(told, sink)
        if sink != "handler":
            self._check_requests(told, sink)
        if sink == "elasticsearch":
            self._check_batches(told)
        if quiet:
            self._check_gauges(told)
        assert not told.wrong, "; ".join(told.wrong)

    def _check_messages(self, told: _Told, sink: str) -> None:
        counts, encoder_config = self.counts, self._plan.encoder_config
        exact = (
            sink == "elasticsearch"
            and counts.plain
            and not (encoder_config.splits or encoder_config.coalesce != "none")
        )
        for queue, received in counts.received.items():
            told.is_exactly(f"messages_received_total{{queue={queue}}}", received)
            expected = {verdict: counts.settled[queue, verdict] for verdict in _VERDICTS}
            name = f"messages_settled_total{{queue={queue},verdict="
            found = {verdict: told[f"{name}{verdict}}}"] for verdict in _VERDICTS}
            told.compare(f"settled of {queue} in all", sum(found.values()), sum(expected.values()))
            told.compare(f"requeue of {queue}", found["requeue"], expected["requeue"])
            if exact:
                told.compare(f"settled of {queue}", found, expected)
        told.compare("received", told.total("messages_received_total"), counts.received.total())
        told.compare("settled", told.total("messages_settled_total"), counts.settled.total())

    def _check_requests(self, told: _Told, sink: str) -> None:
        counts = self.counts
        unseen = {"hold"} if sink == "amqp" else set()  # an exchange is held without a request
        documents = Counter(counts.documents)
        if sink == "amqp" and counts.unpublished:  # what fits into no frame isn't published; the rest of its batch is
            unseen |= {"stored", "partial"}
            documents["publish", "failed_client"] += counts.unpublished
        for outcome in _REQUEST_OUTCOMES:
            if outcome not in unseen:
                told.is_exactly(f"bulk_requests_total{{outcome={outcome}}}", counts.requests[outcome])
        told.is_exactly("bulk_seconds_count", counts.answers)
        told.is_about("bulk_seconds_sum", counts.answered_seconds)
        found = told.by_labels("documents_total")
        told.compare("documents", found, {
            f"{{action={action},outcome={outcome}}}": count for (action, outcome), count in documents.items()
        })  # fmt: skip
        told.compare("retries{throttled}", told["retries_total{reason=throttled}"], counts.throttled_items)
        unanswered = told["retries_total{reason=unanswered}"]
        told.within("retries{unanswered}", unanswered, counts.unanswered_items - counts.unanswered_singles,
                    counts.unanswered_items)  # fmt: skip
        if not any(told.settled(verdict) for verdict in ("dead_letter", "discard", "requeue")):
            told.compare("retries{unanswered}", unanswered, counts.unanswered_items)
        for reason in ("too_large", "refused"):
            told.compare(f"splits{{{reason}}}", told[f"splits_total{{reason={reason}}}"], counts.splits[reason])
        told.within("splits{unanswered}", told["splits_total{reason=unanswered}"], 0, counts.requests["unanswered"])
        told.within("end_to_end_seconds_count", told["end_to_end_seconds_count"], counts.end_to_end_count.least,
                    counts.end_to_end_count.most)  # fmt: skip
        told.within("end_to_end_seconds_sum", told["end_to_end_seconds_sum"], counts.end_to_end.least,
                    counts.end_to_end.most if sink == "elasticsearch" else float("inf"))  # fmt: skip

    def _check_batches(self, told: _Told) -> None:
        counts, encoder_config = self.counts, self._plan.encoder_config
        batches, items = told["batch_items_count"], told["batch_items_sum"]
        told.compare("batches", told.total("batches_total"), batches)
        told.compare("batch_bytes_count", told["batch_bytes_count"], batches)
        told.within("batches", batches, 0, items)
        if encoder_config.coalesce == "none":
            told.is_exactly("coalesced_total", 0)
        if not counts.plain or encoder_config.splits or encoder_config.coalesce != "none":
            return
        sent_back = told.settled("requeue") or told.settled("stale")
        told.within("batch_items_sum", items, counts.first_items, float("inf") if sent_back else counts.first_items)
        told.within("batch_bytes_sum", told["batch_bytes_sum"], counts.first_bytes,
                    float("inf") if sent_back else counts.first_bytes)  # fmt: skip
        told.within("retries{failed}", told["retries_total{reason=failed}"], 0, counts.failed_items)
        told.within("queue_wait_seconds_count", told["queue_wait_seconds_count"], 0, batches)
        if not (counts.delays_refused or counts.sessions > 1):
            told.compare("retries{delayed}", told["retries_total{reason=delayed}"], counts.delays_confirmed)

    def _check_gauges(self, told: _Told) -> None:
        counts = self.counts
        for name in ("messages_in_flight", "in_flight_bytes", "bulk_in_flight"):
            told.is_exactly(name, 0)
        told.within("bulk_limit", told["bulk_limit"], 1, self._plan.bulk_concurrency)
        told.is_exactly("amqp_connected", counts.live is not None)
        if counts.live is not None and counts.last_was_well:
            told.is_exactly("held", told["dead_letters_held"])


_VERDICTS = ("ack", "delay", "requeue", "dead_letter", "discard", "stale")
_REQUEST_OUTCOMES = ("stored", "partial", "throttled", "split_size", "split_fault", "hold", "unanswered")


class _Told:
    """A scrape, and where it differs from what was counted."""

    def __init__(self, values: dict[str, float]) -> None:
        self.wrong: list[str] = []
        self._values = values

    def __getitem__(self, key: str) -> float:
        return self._values.get(key, 0.0)

    def by_labels(self, name: str) -> dict[str, float]:
        """Return the samples of a metric that are not zero, by their labels."""
        return {key.removeprefix(name): value for key, value in self._values.items() if value and _is_of(key, name)}

    def total(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        return sum(self.by_labels(name).values())

    def settled(self, verdict: str) -> float:
        """Return how many messages of all queues had a verdict."""
        found = self.by_labels("messages_settled_total")
        return sum(count for labels, count in found.items() if f"verdict={verdict}" in labels)

    def compare(self, what: str, told: object, expected: object) -> None:
        """Note a difference."""
        if told != expected:
            self.wrong.append(f"{what}: told {told}, expected {expected}")

    def is_exactly(self, key: str, expected: float) -> None:
        """Note it if a sample isn't what was counted."""
        self.compare(key, self[key], float(expected))

    def is_about(self, key: str, expected: float) -> None:
        """Note it if a sum of times isn't what was counted, but for rounding."""
        if self[key] != pytest.approx(expected, rel=1e-9, abs=1e-9):
            self.compare(key, self[key], expected)

    def within(self, what: str, told: float, least: float, most: float) -> None:
        """Note it if a value is outside of what it can be, but for rounding."""
        if not least - 1e-6 <= told <= most + 1e-6:
            self.wrong.append(f"{what}: told {told}, expected from {least} to {most}")


def _is_of(key: str, name: str) -> bool:
    return key.partition("{")[0] == name


def _now() -> float:
    return asyncio.get_running_loop().time()


def _results(answer: Answer, count: int) -> list[dict[str, Any]] | None:
    """Return an answer's results by position; None if it has none, or not as many as there were items."""
    if answer.status != 200:
        return None
    try:
        items = json.loads(answer.body)["items"]
    except (ValueError, KeyError, TypeError):
        return None
    return [next(iter(item.values())) for item in items] if len(items) == count else None


def _request_outcome(answer: Answer, items: list[Item], results: list[dict[str, Any]] | None) -> str:
    """Return how a request was answered, in the words of the README."""
    if results is not None:
        stored = all(_outcome(item.action, result) == "success" for item, result in zip(items, results, strict=True))
        return "stored" if stored else "partial"
    if answer.status < 300 or answer.status >= 500:
        return "unanswered"
    if answer.status in {413, 429}:
        return {413: "split_size", 429: "throttled"}[answer.status]
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        return "hold"
    if not isinstance(error, dict):  # bare text, which blames no item
        return "hold"
    ours = error["type"] in {"media_type_header_exception", "content_type_header_exception"}
    unknown = "unrecognized parameter" in error["reason"]
    return "split_fault" if answer.status == 400 and not (ours or unknown) else "hold"


def _outcome(action: str, result: dict[str, Any]) -> str:
    """Return what became of a document, in the words of the README."""
    status = result["status"]
    if status in {200, 201}:
        return "failure_store" if result.get("failure_store") == "used" else "success"
    if status == 404 and "error" not in result and action == "delete":
        return "noop"
    if status == 409 and action not in {"update", "upsert"}:
        return "conflict"
    if status in {429, 503}:
        return "too_many"
    return "failed_server" if status == 409 or status >= 500 else "failed_client"
