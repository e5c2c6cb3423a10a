"""`sidecar.core.stats.counters`."""

from __future__ import annotations

from sidecar.core.stats.counters import SETTLED, Counters


def test_the_account_adds_up_at_any_moment() -> None:
    """Received = ack + delay + requeue + dead_letter + discard + stale + in flight."""
    account = Counters()
    account.received["a"] += 20
    account.received["b"] += 5
    for count, verdict in enumerate(SETTLED, 1):
        account.settle("a" if count % 2 else "b", verdict, count)
        summary = account.summary()
        assert summary["received"] == sum(summary[name] for name in SETTLED) + summary["in_flight"]
    assert account.in_flight == 25 - 21


def test_verdicts_are_counted_by_queue_and_totalled() -> None:
    """The metric has a label for the queue, the last log line has none."""
    account = Counters()
    account.settle("a", "ack", 2)
    account.settle("b", "ack")
    account.settle("b", "stale", 3)
    assert dict(account.settled) == {("a", "ack"): 2, ("b", "ack"): 1, ("b", "stale"): 3}
    assert (account.total("ack"), account.total("stale"), account.total("requeue")) == (3, 3, 0)


def test_settling_nothing_leaves_no_trace() -> None:
    """A metric doesn't appear for what never happened."""
    account = Counters()
    account.settle("a", "stale", 0)
    assert not account.settled


def test_the_summary_names_every_verdict() -> None:
    """Also those that didn't occur: the account of a run is complete."""
    assert Counters().summary() == dict.fromkeys(["received", *SETTLED, "in_flight"], 0)
