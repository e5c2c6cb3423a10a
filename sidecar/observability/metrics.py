"""Prometheus metrics: made of one moment's state when they are asked for, so that a scrape never tears.

Nothing is kept here and nothing is called for a message: the account is what the pipeline counts anyway. Labels have
few values: no ids, no index names.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.core.stats.counters import SETTLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from sidecar.core.stats.histogram import Histogram
    from sidecar.core.stats.snapshot import Snapshot

    _Counts = Mapping[Any, int]  # by the values of the labels, a tuple of texts

PREFIX = "sidecar_"
TRIGGERS = ("count", "bytes", "age", "message", "complete", "pressure", "drain")
REQUEST_OUTCOMES = ("stored", "partial", "throttled", "split_size", "split_fault", "hold", "unanswered")


class Metrics:
    """Renders all metrics.

    Args:
        state: returns the present moment.
    """

    def __init__(self, state: Callable[[], Snapshot]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_OfState(state))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type, in the format that the header ``Accept`` asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _OfState(Collector):
    def __init__(self, state: Callable[[], Snapshot]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        yield from _messages(state)
        yield from _work(state)
        yield from _condition(state)


def _messages(state: Snapshot) -> Iterator[Metric]:
    counters = state.counters
    queues = sorted({*state.queues, *counters.received})
    yield _counter(
        "messages_received", "Messages that RabbitMQ delivered", ["queue"],
        {(queue,): counters.received[queue] for queue in queues},
    )  # fmt: skip
    yield _counter(
        "messages_settled", "Messages by what became of them", ["queue", "verdict"],
        {(queue, verdict): counters.settled[queue, verdict] for queue in queues for verdict in SETTLED},
    )  # fmt: skip
    yield _gauge("messages_in_flight", "Messages that were delivered and are not settled", state.in_flight)
    yield _gauge("in_flight_bytes", "What they take of the memory limit", state.in_flight_bytes)


def _work(state: Snapshot) -> Iterator[Metric]:
    counters = state.counters
    yield _counter("documents", "Items that Elasticsearch answered", ["action", "outcome"], dict(counters.documents))
    yield _counter(
        "batches", "Completed batches by what completed them", ["trigger"],
        {(trigger,): counters.batches[trigger] for trigger in TRIGGERS},
    )  # fmt: skip
    yield _histogram("batch_items", "Messages of a completed batch", counters.batch_items)
    yield _histogram("batch_bytes", "Bytes of request body of a completed batch", counters.batch_bytes)
    yield _counter(
        "bulk_requests", "Requests by how they were answered", ["outcome"],
        {(outcome,): counters.requests[outcome] for outcome in REQUEST_OUTCOMES},
    )  # fmt: skip
    yield _histogram("bulk_seconds", "Time of a request, answered or not", counters.bulk_seconds)
    yield _counter("retries", "Messages that were sent again", ["reason"], _by_one(counters.retries))
    yield _counter("splits", "Requests that were halved", ["reason"], _by_one(counters.splits))
    yield _counter("coalesced", "Operations that a later one replaced before they were sent", [], counters.coalesced)
    yield _histogram(
        "queue_wait_seconds",
        "From publishing to the batch, of the first message of a batch",
        counters.queue_wait_seconds,
    )
    yield _histogram(
        "end_to_end_seconds", "From publishing to the answer, of a request's first message", counters.end_to_end_seconds
    )


def _condition(state: Snapshot) -> Iterator[Metric]:
    held = state.held is not None or state.copies_held is not None
    yield _gauge("bulk_in_flight", "Requests on their way", state.bulk_in_flight)
    yield _gauge("bulk_limit", "Requests that may be on their way now", state.bulk_limit)
    yield _gauge("held", "1 while only probes are sent, or the dead-letter route takes nothing", held)
    yield _gauge("dead_letters_held", "1 while the dead-letter route takes nothing", state.copies_held is not None)
    yield _gauge("delays_held", "1 while a delay queue refuses messages", state.delays_held is not None)
    yield _gauge("ready", "1 while messages are consumed and stored, as /readyz tells", state.not_ready is None)
    yield _gauge("amqp_connected", "1 while there is a session with RabbitMQ", state.connected)
    yield _counter("amqp_reconnects", "Sessions with RabbitMQ after the first", [], max(0, state.counters.sessions - 1))
    info = GaugeMetricFamily(f"{PREFIX}build_info", "Always 1", labels=["version"])
    info.add_metric([__version__], 1.0)
    yield info


def _by_one(counts: Mapping[str, int]) -> _Counts:
    return {(reason,): count for reason, count in counts.items()}


def _counter(name: str, text: str, labels: list[str], counts: _Counts | int) -> Metric:
    family = CounterMetricFamily(PREFIX + name, f"{text}.", labels=labels)
    for label_values, count in {(): counts}.items() if isinstance(counts, int) else counts.items():
        family.add_metric(list(label_values), float(count))
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, f"{text}.", value=float(value))


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    ends = [*(str(bound) for bound in histogram.bounds), "+Inf"]
    buckets = [(end, float(count)) for end, count in zip(ends, accumulate(histogram.counts), strict=True)]
    return HistogramMetricFamily(PREFIX + name, f"{text}.", buckets=buckets, sum_value=histogram.total)
