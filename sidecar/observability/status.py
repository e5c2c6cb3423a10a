"""What is told of the sidecar's state, as plain values: for `/status`, `/readyz` and the page."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar import __version__
from sidecar.core.stats.counters import SETTLED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.core.stats.counters import Counters
    from sidecar.core.stats.failures import FailureGroup
    from sidecar.core.stats.histogram import Histogram
    from sidecar.core.stats.snapshot import Snapshot

HISTORY_SECONDS = 120
SHARES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


class StaticInfo(NamedTuple):
    """What doesn't change while the sidecar runs.

    Attributes:
        queues: as configured.
        settings: those that matter to whoever looks on, none of them secret.
    """

    queues: tuple[str, ...]
    settings: Mapping[str, object]


class Status:
    """Tells what is going on.

    Args:
        state: returns the present moment.
        about: what doesn't change.
        clock: seconds that only go forward.
        wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        state: Callable[[], Snapshot],
        about: StaticInfo,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._about = about
        self._clock = clock
        self._wall_clock = wall_clock
        self._began_at = clock()
        self._history: deque[tuple[float, int, int]] = deque(maxlen=HISTORY_SECONDS + 1)

    def sample(self) -> None:
        """Remember the counts of this moment; call it once a second."""
        counters = self._state().counters
        self._history.append((self._clock(), counters.received.total(), counters.total("ack")))

    def started(self) -> bool:
        """Whether both sides were reached once."""
        state = self._state()
        return state.reached_broker and state.reached_elasticsearch

    def readiness(self) -> dict[str, object]:
        """Return whether messages are consumed and stored; and if not, why."""
        not_ready = self._state().not_ready
        if not_ready is None:
            return {"ready": True}
        return {"ready": False, "reason": not_ready.reason, "detail": not_ready.detail}

    def everything(self) -> dict[str, Any]:
        """Return all that there is to tell, as JSON takes it."""
        state = self._state()
        counters, now = state.counters, self._clock()
        return {
            "version": __version__,
            "now": self._wall_clock(),
            "uptime_seconds": round(now - self._began_at, 3),
            "queues": list(self._about.queues),
            **self.readiness(),
            "connected": state.connected,
            "amqp_reconnects": max(0, counters.sessions - 1),
            "account": counters.summary(),
            "by_queue": _by_queue(counters),
            "documents": _nested(counters.documents),
            "in_failure_stores": counters.outcomes().get("failure_store", 0),
            "batches": {
                trigger: {"batches": count, "messages": counters.batched[trigger]}
                for trigger, count in counters.batches.items()
            },
            "requests": dict(counters.requests),
            "retries": dict(counters.retries),
            "splits": dict(counters.splits),
            "coalesced": counters.coalesced,
            "in_flight": {
                "messages": state.in_flight,
                "bytes": state.in_flight_bytes,
                "requests": state.bulk_in_flight,
            },
            "limit": {"requests": round(state.bulk_limit, 2), "prefetch": state.prefetch},
            "breaker": {
                "state": state.breaker,
                "reason": state.held,
                "held_seconds": round(state.held_seconds, 1),
                "next_try_seconds": round(state.next_try_seconds, 1),
            },
            "dead_letters_held": state.copies_held,
            "delays_held": state.delays_held,
            "failures": [_failure(group) for group in state.failures],
            "latency_seconds": {
                "queue_wait": _figures(counters.queue_wait_seconds),
                "bulk": _figures(counters.bulk_seconds),
                "end_to_end": _figures(counters.end_to_end_seconds),
            },
            "history": self._rates(),
            "settings": dict(self._about.settings),
        }

    def _rates(self) -> dict[str, list[float]]:
        """Return messages a second, received and stored, of the last two minutes, the oldest first."""
        received, stored = [], []
        points = list(self._history)
        for (then, received_then, stored_then), (at, received_at, stored_at) in pairwise(points):
            seconds = max(at - then, 0.001)
            received.append(round((received_at - received_then) / seconds, 1))
            stored.append(round((stored_at - stored_then) / seconds, 1))
        return {"received_per_second": received, "stored_per_second": stored}


def _by_queue(counters: Counters) -> dict[str, dict[str, int]]:
    return {
        queue: {"received": count} | {verdict: counters.settled[queue, verdict] for verdict in SETTLED}
        for queue, count in counters.received.items()
    }


def _nested(documents: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (action, outcome), count in documents.items():
        nested.setdefault(action, {})[outcome] = count
    return nested


def _failure(group: FailureGroup) -> dict[str, object]:
    return {
        "verdict": group.kind.verdict,
        "reason": group.kind.reason,
        "error_type": group.kind.error_type,
        "count": group.count,
        "last_at": group.last_at,
        "example_id": group.example_id,
        "detail": group.detail,
    }


def _figures(histogram: Histogram) -> dict[str, float] | None:
    """Return figures of the last 256 batches; None before the first."""
    values = histogram.recent(*SHARES.values())
    if values is None:
        return None
    return {"count": histogram.count, **dict(zip(SHARES, (round(value, 4) for value in values), strict=True))}
