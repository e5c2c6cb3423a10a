"""`sidecar.observability.metrics`, and what it is made of: the histogram and the state."""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from sidecar.core.stats.counters import SETTLED, Counters
from sidecar.core.stats.histogram import BYTES, ITEMS, SECONDS, Histogram
from sidecar.observability.metrics import REQUEST_OUTCOMES, TRIGGERS, Metrics
from tests.builders import state

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
CONTRACT = {
    # name: (kind, labels); the public contract: add to it freely, rename nothing
    "messages_received": ("counter", {"queue"}),
    "messages_settled": ("counter", {"queue", "verdict"}),
    "messages_in_flight": ("gauge", set()),
    "in_flight_bytes": ("gauge", set()),
    "documents": ("counter", {"action", "outcome"}),
    "batches": ("counter", {"trigger"}),
    "batch_items": ("histogram", set()),
    "batch_bytes": ("histogram", set()),
    "bulk_requests": ("counter", {"outcome"}),
    "bulk_seconds": ("histogram", set()),
    "bulk_in_flight": ("gauge", set()),
    "bulk_limit": ("gauge", set()),
    "retries": ("counter", {"reason"}),
    "splits": ("counter", {"reason"}),
    "coalesced": ("counter", set()),
    "held": ("gauge", set()),
    "amqp_connected": ("gauge", set()),
    "amqp_reconnects": ("counter", set()),
    "queue_wait_seconds": ("histogram", set()),
    "end_to_end_seconds": ("histogram", set()),
}


def busy_account() -> Counters:
    """Return an account in which everything happened."""
    account = Counters()
    account.received["work"] += 10
    account.settle("work", "ack", 6)
    account.documents["index", "success"] += 6
    account.complete("count", 7, 4_000)
    account.requests["stored"] += 1
    account.retries["throttled"] += 3
    account.splits["refused"] += 1
    account.sessions = 3
    for histogram in (account.bulk_seconds, account.queue_wait_seconds, account.end_to_end_seconds):
        histogram.observe(0.2)
    return account


def families(text: str) -> dict[str, Metric]:
    """Return the metrics of a scrape that are ours, without the prefix."""
    found = {family.name: family for family in text_string_to_metric_families(text)}
    return {name.removeprefix("sidecar_"): family for name, family in found.items() if name.startswith("sidecar_")}


def scrape(account: Counters, **values: object) -> dict[str, Metric]:
    """Return the metrics of a state."""
    body, _ = Metrics(lambda: state(account, **values)).render("")
    return families(body.decode())


def test_every_metric_of_the_contract_is_there_with_its_labels() -> None:
    """Dashboards and alerts stand on these names."""
    found = scrape(busy_account())
    assert set(CONTRACT) <= set(found)
    for name, (kind, labels) in CONTRACT.items():
        family = found[name]
        assert family.type == kind, name
        assert family.samples, name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels, sample
            assert not (kind == "counter" and not sample.name.endswith("_total")), sample


def test_labels_that_are_known_are_there_from_the_start() -> None:
    """A rate needs a zero before the first one."""
    found = scrape(Counters(), queues=("a", "b"))
    settled = {(sample.labels["queue"], sample.labels["verdict"]) for sample in found["messages_settled"].samples}
    assert settled == {(queue, verdict) for queue in "ab" for verdict in SETTLED}
    assert {sample.labels["trigger"] for sample in found["batches"].samples} == set(TRIGGERS)
    assert {sample.labels["outcome"] for sample in found["bulk_requests"].samples} == set(REQUEST_OUTCOMES)


def test_the_values_are_those_of_the_account() -> None:
    """And in flight those of the ledgers, which count for themselves."""
    found = scrape(busy_account(), in_flight=4, held="away", connected=True)

    def value(name: str, sample: str = "", **labels: str) -> float:
        (one,) = [
            s.value for s in found[name].samples if s.name.endswith(sample) and labels.items() <= s.labels.items()
        ]
        return one

    assert value("messages_received", queue="work") == 10
    assert value("messages_settled", queue="work", verdict="ack") == 6
    assert value("messages_settled", queue="work", verdict="stale") == 0
    assert value("messages_in_flight") == 4
    assert value("documents", action="index", outcome="success") == 6
    assert (value("batch_items", "_count"), value("batch_items", "_sum")) == (1, 7)
    assert value("amqp_reconnects") == 2, "the first session is none"
    assert (value("held"), value("amqp_connected")) == (1, 1)


@pytest.mark.parametrize(("values", "held"), [({}, 0), ({"held": "x"}, 1), ({"copies_held": "x"}, 1)])
def test_a_dead_letter_route_that_takes_nothing_is_a_hold_as_well(values: dict[str, str], held: int) -> None:
    """Whoever watches `held` learns of both."""
    (sample,) = scrape(Counters(), **values)["held"].samples
    assert sample.value == held


def test_prometheus_may_ask_for_openmetrics() -> None:
    """Newer ones do; it is parsed strictly."""
    body, content_type = Metrics(lambda: state(busy_account())).render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    names = {family.name for family in parse_openmetrics(body.decode())}
    assert {f"sidecar_{name}" for name in CONTRACT} <= names
    _, plain = Metrics(lambda: state(busy_account())).render("*/*")
    assert plain.startswith("text/plain")


def test_the_process_itself_is_measured() -> None:
    """Memory, processor time and open files."""
    body, _ = Metrics(lambda: state(Counters())).render("")
    for name in (b"process_resident_memory_bytes", b"process_cpu_seconds_total", b"process_open_fds"):
        assert name in body


def test_a_scrape_a_second_costs_less_than_a_hundredth_of_the_time() -> None:
    """Of one processor; the least of several, for noise only adds."""
    metrics = Metrics(lambda: state(busy_account()))
    metrics.render("")
    least = 1.0
    for _ in range(10):
        before = time.process_time()
        metrics.render("")
        least = min(least, time.process_time() - before)
    print(f"a scrape costs {least * 1000:.2f} ms")
    assert least < 0.01


@pytest.mark.parametrize("bounds", [SECONDS, ITEMS, BYTES])
def test_a_histogram_counts_each_value_in_the_first_bucket_that_takes_it(bounds: tuple[float, ...]) -> None:
    """A value at a bound belongs below it (`le`), as Prometheus has it."""
    rng = random.Random(repr(bounds))
    values = [*bounds, *(bound * rng.uniform(0.5, 2.0) for bound in bounds for _ in range(5))]
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    expected = [bisect_right(sorted(values), bound) for bound in bounds] + [len(values)]
    assert list(accumulate(histogram.counts)) == expected
    assert histogram.count == len(values)
    assert histogram.total == pytest.approx(sum(values))
    assert all(low < high for low, high in pairwise(bounds))


def test_recent_figures_are_of_the_last_values_only() -> None:
    """What was slow this morning doesn't count at night."""
    histogram = Histogram(SECONDS)
    assert histogram.recent(0.5) is None
    for value in [100.0] * 300 + [float(at) for at in range(256)]:
        histogram.observe(value)
    assert histogram.recent(0.0, 0.5, 1.0) == [0.0, 128.0, 255.0]
