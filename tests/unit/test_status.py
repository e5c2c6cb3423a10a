"""`sidecar.observability.status`: each figure of `/status` comes from its own place."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar import __version__
from sidecar.core.stats.counters import SETTLED, Counters
from sidecar.core.stats.failures import FailureGroup, FailureKind
from sidecar.core.stats.snapshot import NotReady
from sidecar.observability.status import StaticInfo, Status
from tests.builders import state

WALL = 1_700_000_000.25


def busy() -> Counters:
    """Return an account in which no two figures are alike."""
    account = Counters()
    account.received.update({"orders": 1_000, "über <b>": 500})
    for number, verdict in enumerate(SETTLED, 1):
        account.settle("orders", verdict, number)
        account.settle("über <b>", verdict, 10 * number)
    account.documents.update({
        ("index", "success"): 71, ("index", "failure_store"): 72, ("create", "failure_store"): 73,
        ("delete", "noop"): 74,
    })  # fmt: skip
    for trigger, count, items in (("count", 2, 11), ("age", 3, 4)):
        for _ in range(count):
            account.complete(trigger, items, 100)
    account.requests.update({"stored": 81, "partial": 82})
    account.retries.update({"throttled": 91, "delayed": 92})
    account.splits.update({"too_large": 95, "refused": 96})
    account.coalesced, account.sessions = 97, 4
    for value in (0.1, 0.2, 0.3, 0.9):
        account.queue_wait_seconds.observe(value)
        account.bulk_seconds.observe(value * 10)
    account.end_to_end_seconds.observe(7.77777)
    return account


def everything(**values: object) -> dict[str, Any]:
    """Return what is told of a state, by a sidecar that runs for 62.3 s."""
    clock = iter((1_000.0, 1_062.3))
    about = StaticInfo(("orders", "über <b>", "quiet"), {"index": "documents", "memory_limit": 99})
    now = state(busy(), **values)
    return Status(lambda: now, about, clock=lambda: next(clock), wall_clock=lambda: WALL).everything()


def test_a_new_sidecar_has_done_nothing() -> None:
    """Every figure of it is zero."""
    about = StaticInfo(("orders",), {})
    now = state(Counters())
    shown = Status(lambda: now, about, clock=lambda: 0.0, wall_clock=lambda: WALL).everything()
    assert (shown["in_failure_stores"], shown["coalesced"], shown["documents"], shown["requests"]) == (0, 0, {}, {})
    assert set(shown["account"].values()) == {0}


def test_every_figure_is_told_once_and_from_its_own_place() -> None:
    """The whole of `/status`; no two figures of it are alike."""
    told = everything(
        queues=("orders",), connected=False, in_flight=31, in_flight_bytes=32, bulk_in_flight=33, bulk_limit=3.456,
        prefetch=34, held="no answer", held_seconds=35.67, next_try_seconds=36.78, breaker="half-open",
        copies_held="no dead letters", delays_held="no delays",
    )  # fmt: skip
    by_verdict = {verdict: number for number, verdict in enumerate(SETTLED, 1)}
    assert told == {
        "version": __version__,
        "now": WALL,
        "uptime_seconds": 62.3,
        "queues": ["orders", "über <b>", "quiet"],
        "ready": True,
        "connected": False,
        "amqp_reconnects": 3,
        "account": {
            "received": 1_500, **{verdict: 11 * number for verdict, number in by_verdict.items()},
            "in_flight": 1_500 - 11 * 21,
        },
        "by_queue": {
            "orders": {"received": 1_000, **by_verdict},
            "über <b>": {"received": 500, **{verdict: 10 * number for verdict, number in by_verdict.items()}},
        },
        "documents": {
            "index": {"success": 71, "failure_store": 72}, "create": {"failure_store": 73}, "delete": {"noop": 74}
        },
        "in_failure_stores": 72 + 73,
        "batches": {"count": {"batches": 2, "messages": 22}, "age": {"batches": 3, "messages": 12}},
        "requests": {"stored": 81, "partial": 82},
        "retries": {"throttled": 91, "delayed": 92},
        "splits": {"too_large": 95, "refused": 96},
        "coalesced": 97,
        "in_flight": {"messages": 31, "bytes": 32, "requests": 33},
        "limit": {"requests": 3.46, "prefetch": 34},
        "breaker": {"state": "half-open", "reason": "no answer", "held_seconds": 35.7, "next_try_seconds": 36.8},
        "dead_letters_held": "no dead letters",
        "delays_held": "no delays",
        "failures": [],
        "latency_seconds": {
            "queue_wait": {"count": 4, "p50": 0.3, "p95": 0.9, "max": 0.9},
            "bulk": {"count": 4, "p50": 3.0, "p95": 9.0, "max": 9.0},
            "end_to_end": {"count": 1, "p50": 7.7778, "p95": 7.7778, "max": 7.7778},
        },
        "history": {"received_per_second": [], "stored_per_second": []},
        "settings": {"index": "documents", "memory_limit": 99},
    }  # fmt: skip


def test_what_is_over_is_not_told_any_more() -> None:
    """Of a state in which nothing is wrong, nothing is told to be."""
    told = everything(not_ready=NotReady("held", "away"))
    assert (told["ready"], told["reason"], told["detail"]) == (False, "held", "away")
    told = everything()
    assert told["ready"] is True
    assert not {"reason", "detail"} & told.keys()
    assert told["breaker"] == {"state": "closed", "reason": None, "held_seconds": 0.0, "next_try_seconds": 0.0}
    assert (told["dead_letters_held"], told["delays_held"]) == (None, None)


def test_each_failure_is_told_with_what_is_its_own() -> None:
    """In the order in which they are given."""
    groups = [
        FailureGroup(FailureKind("delay", "index-blocked", "cluster_block_exception"), 3, 11.5, "one", "closed"),
        FailureGroup(FailureKind("discard", "malformed", ""), 4, 10.5, "", "no object"),
    ]
    names = ("verdict", "reason", "error_type", "count", "last_at", "example_id", "detail")
    assert [tuple(one[name] for name in names) for one in everything(failures=groups)["failures"]] == [
        ("delay", "index-blocked", "cluster_block_exception", 3, 11.5, "one", "closed"),
        ("discard", "malformed", "", 4, 10.5, "", "no object"),
    ]


@pytest.mark.parametrize("sessions", [0, 1])
def test_the_first_session_is_no_reconnect(sessions: int) -> None:
    """Nor is there a negative number before it."""
    account = Counters()
    account.sessions = sessions
    status = Status(lambda: state(account), StaticInfo((), {}), clock=lambda: 0.0, wall_clock=lambda: 0.0)
    told = status.everything()
    assert told["amqp_reconnects"] == 0
    assert told["latency_seconds"] == {"queue_wait": None, "bulk": None, "end_to_end": None}
