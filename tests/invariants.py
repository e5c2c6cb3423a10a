"""What holds of a sidecar that came to rest: it is as it was when it was new.

A component tree is compared with that of a pipeline that was just made, attribute by attribute, so that an attribute
that is added later is watched as well. What may differ stands in `MAY_DIFFER`, each with its reason.
"""

from __future__ import annotations

import asyncio
import enum
import gc
from collections import Counter, deque
from contextlib import suppress
from dataclasses import is_dataclass
from fnmatch import fnmatchcase
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from sidecar.core.ledger import Ledger
from sidecar.core.message import Message
from sidecar.core.scheduling.batcher import Batch
from sidecar.core.stats.counters import Counters
from sidecar.core.stats.failures import FailureThrottle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.pipeline.pipeline import Pipeline
    from tests.fakes.broker import SimulatedSession

MAY_DIFFER = {
    "*_session": "it is connected",
    "_probes": "a total",
    "_admission.probes": "a total",
    "_settler.republisher._copies": "a total, for tokens that nobody had before",
    "_work._published": "the same",
    "limiter.limit": "learned: how many requests the cluster takes",
    "limiter._usual_seconds": "learned: how long requests take",
    "limiter._slowed_at": "a moment in the past",
    "limiter._pause_until": "a moment in the past",
    "limiter._refused_since": "a moment in the past; it says nothing unless a row of 429s is open",
    "limiter.held_since": "of the last hold, as documented",
    "limiter._held_kind": "the same",
    "_admission.held_since": "the same",
    "_admission.probe_at": "a moment in the past",
    "_guard._unencoded*": "an open row of rejects, which the next message that can be encoded ends",
    "_guard._refused*": "an open row of rejects, which the next document that is stored ends",
    "_guard.releases": "belongs to the open row",
    "_guard._one_more": "the same",
    "_encoder._room": "of the last call",
    "_encoder.room_bytes": "the same",
    "_admission._encoder._room": "the same",
    "_admission._encoder.room_bytes": "the same",
    "*._names._known*": "a cache of index names; it has a bound",
    "*._lines._names._known*": "the same",
    "_send_queue.max_bytes": "learned: how large a request the cluster takes",
    "_flow_control.prefetch": "of the present consumers: learned, as the window is",
    "_flow_control._window.*": "learned: how large messages are, and a window that grows again after a hold",
    "_flow_control._check_at": "a moment in the past",
    "_flow_control._checks": "of the last wait",
    "_flow_control._requeue_at": "of the last hold",
    "_flow_control._probes_before": "the same",
    "_flow_control._probe_waits": "the same",
    "_flow_control._waited_for_probe": "the same",
    "_flow_control._settled_items": "since the consumers began",
    "_flow_control._limit_silent_until": "a moment",
    "_settler.republisher._destinations*": "those that count as accepting copies, kept for a while; see `destinations`",
    "_settler.failure_log._timer": "tells what came within ten seconds; the timers are looked at by themselves",
    "_work._concluding._suspects._since*": "remembered until the message comes again; it has a bound",
    "_work._concluding._succeeded_sent_at": "a moment in the past",
    "_work._concluding._throttled_silent_until": "a moment",
    "_work._concluding._waiting_in_a_row": "an open row of messages without a target, which one that is stored ends",
    "_work._stamp._received*": "the last time that was written, and its text",
    "_work._routes.*": "routes that had no queue; they have a bound",
}
"""By the place of an attribute in the tree: why it may be otherwise than in a new pipeline."""

_WHILE_CONSUMING = {
    "_flow_control.sink_reached": True,
    "_flow_control._waiting": False,
    "_flow_control.started": True,
    "_flow_control.consuming": True,
}
"""What is otherwise in a pipeline that consumes: it is new only for a moment."""
_HELD_BACK = (Message, Ledger, Batch)
_SCALARS = (bool, int, float, str, bytes, enum.Enum)
_LOOPS = frozenset({
    "App._serve", "Pipeline.run", "Pipeline._aggregate", "Pipeline._dispatch", "Republisher.run", "FlowControl.run"
})  # fmt: skip
"""The coroutines that run for as long as a sidecar does."""
_WAITS = "_BaseConsumer.wait"
"""Somebody waits for a consumer for as long as it runs."""
MOST_TIMERS = 10
"""Of the product at a time: each of its loops waits for one."""


def attributes(thing: object) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an object: those in slots, and the others."""
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(thing, name):
                yield name, getattr(thing, name)
    yield from getattr(thing, "__dict__", {}).items()


def fingerprint(root: object) -> dict[str, object]:
    """Return every attribute of a component tree by its place: values, and how much is in containers.

    Left out are configuration (frozen dataclasses), totals (the account, the kinds of failures) and what is not the
    product's own. A message, batch or ledger is noted, and not looked into: none has a place in a tree at rest.
    """
    found: dict[str, object] = {}
    _walk(root, "", found, {id(root)})
    return found


def _walk(thing: Any, at: str, found: dict[str, object], seen: set[int]) -> None:
    for name, value in attributes(thing):
        _note(value, f"{at}.{name}" if at else name, found, seen)


def _note(value: Any, at: str, found: dict[str, object], seen: set[int]) -> None:
    if value is None or isinstance(value, _SCALARS):
        found[at] = value
    elif isinstance(value, _HELD_BACK):
        found[at] = type(value).__name__
    elif isinstance(value, dict | list | deque | set | bytearray):
        found[at] = len(value)
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, _HELD_BACK) or not isinstance(one, int | float | bytes):
                _note(one, f"{at}[{key!r}]", found, seen)
    elif isinstance(value, asyncio.Queue | asyncio.Lock | asyncio.Handle | asyncio.Future):
        found[at] = _shown(value)
    elif type(value).__module__.startswith("sidecar.") and id(value) not in seen and not _is_constant(value):
        seen.add(id(value))
        _walk(value, at, found, seen)


def _shown(value: Any) -> object:
    if isinstance(value, asyncio.Queue):
        return value.qsize()
    return value.locked() if isinstance(value, asyncio.Lock) else type(value).__name__


def _is_constant(value: object) -> bool:
    return isinstance(value, tuple | Counters | FailureThrottle) or (
        is_dataclass(value) and type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
    )


def residue(pipeline: Pipeline, fresh: Pipeline) -> list[str]:
    """Return what a pipeline that consumes and has nothing to do keeps, though a new one doesn't.

    Args:
        pipeline: that came to rest.
        fresh: one of the same plan that did nothing yet.
    """
    expected = fingerprint(fresh) | _WHILE_CONSUMING
    present = fingerprint(pipeline)
    found = []
    for at in sorted(present.keys() | expected.keys()):
        now, new = present.get(at, "nothing"), expected.get(at, "nothing")
        if now != new and not _may_differ(at):
            found.append(f"{at} is {now!r}, at the start {new!r}")
    return found


def _may_differ(at: str) -> bool:
    return at in MAY_DIFFER or any(fnmatchcase(at, pattern) for pattern in _PATTERNS)


_PATTERNS = [pattern for pattern in MAY_DIFFER if "*" in pattern]


def destinations(pipeline: Pipeline) -> list[str]:
    """Return the destinations of copies that are remembered without a reason: those that refused some have one."""
    return [
        f"{one.name} has {len(one.queued)} copies, {one.refused_tries} tries, {one.refusal!r}"
        for one in pipeline._settler.republisher._destinations.values()
        if one.queued or one.refusal is not None or not one.refused_tries
    ]


def gauges(pipeline: Pipeline) -> list[str]:
    """Return what a pipeline that has nothing to do still shows as being under way."""
    state = pipeline.snapshot()
    idle = {
        "not_ready": None,
        "held": None,
        "held_seconds": 0.0,
        "next_try_seconds": 0.0,
        "breaker": "closed",
        "copies_held": None,
        "delays_held": None,
        "in_flight": 0,
        "in_flight_bytes": 0,
        "bulk_in_flight": 0,
    }
    shown = state._asdict()
    found = [f"{name} shows {shown[name]!r}" for name, value in idle.items() if shown[name] != value]
    return found + ([f"the account has {state.counters.in_flight} in flight"] if state.counters.in_flight else [])


def at_rest(pipeline: Pipeline, fresh: Pipeline) -> list[str]:
    """Return all that a pipeline that consumes and has nothing to do keeps, shows or has open.

    Args:
        pipeline: that came to rest.
        fresh: one of the same plan that did nothing yet.
    """
    session: SimulatedSession = pipeline._session  # type: ignore[assignment] # nothing else is in a simulation
    return [*residue(pipeline, fresh), *destinations(pipeline), *gauges(pipeline), *session_residue(session)]


def session_residue(session: SimulatedSession) -> list[str]:
    """Return what a session has open though nothing is under way."""
    found = [
        f"{ledger} holds {ledger.memory_bytes} bytes, withholds {ledger.ackable} acks"
        for ledger in session.ledgers
        if ledger.memory_bytes or ledger.ackable or ledger.open
    ]
    if session.paused:
        found.append("the session is paused")
    if session.publishing:
        found.append("copies wait for their confirms")
    if len(session.lost._callbacks or ()) > 1:  # type: ignore[attr-defined] # one waits for the end of the session
        found.append(f"{len(session.lost._callbacks)} callbacks wait for the end of the session")  # type: ignore[attr-defined]
    return found


def pause(pipeline: Pipeline) -> str:
    """Say whether a pipeline's idea of a pause is not its session's; empty: it is."""
    session: SimulatedSession | None = pipeline._session  # type: ignore[assignment] # as above
    since = pipeline._flow_control._paused_at
    if session is None or session.lost.done() or session.paused is (since is not None):
        return ""
    return f"paused since {since}, and the session is {'' if session.paused else 'not '}paused"


def memory(ledger: Ledger) -> str:
    """Say what a ledger counts for nothing."""
    return f"{ledger} holds {ledger.memory_bytes} bytes for {ledger.open} open deliveries"


def timers(loop: Any) -> list[str]:
    """Return the timers of the product that are still to go off: those that set an event, and those of its classes."""
    found = []
    for handle in loop._scheduled:
        owner = getattr(handle._callback, "__self__", None) if not handle._cancelled else None
        if isinstance(owner, asyncio.Event) or type(owner).__module__.startswith("sidecar."):
            found.append(f"{handle._callback.__qualname__} at {handle._when:.3f} s")
    return found


def tasks(sidecars: int, life: str = "App.run") -> list[str]:
    """Return what is otherwise than it should be in the tasks of the product where nothing is done.

    Args:
        sidecars: how many run; each has its loops, and nothing else.
        life: the coroutine that each is.
    """
    running = Counter(getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks() if _is_ours(task))
    wanted = dict.fromkeys((life, *_LOOPS), sidecars)
    if sidecars:
        running.pop(_WAITS, None)
    names = sorted(running.keys() | wanted.keys())
    return [f"{running[name]} of {name} run" for name in names if running[name] != wanted.get(name, 0)]


def _is_ours(task: asyncio.Task[Any]) -> bool:
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame is not None and frame.f_globals["__name__"].startswith("sidecar.")


def containers(root: object) -> dict[str, int]:
    """Return how much is in each container that can be reached from `root`, closures included, by whose it is.

    Not looked into are classes, modules, globals, and what belongs to tests, the loop or other packages.
    """
    found: dict[str, int] = {}
    seen = {id(root)}
    waiting: list[tuple[Any, str]] = [(root, type(root).__name__)]
    while waiting:
        thing, owner = waiting.pop()
        if isinstance(thing, dict | list | deque | set):
            found[owner] = max(found.get(owner, 0), len(thing))
        for one in _referents(thing):
            if id(one) not in seen:
                seen.add(id(one))
                kind = type(one)
                waiting.append((one, kind.__name__ if kind.__module__.startswith("sidecar.") else owner))
    return found


def _referents(thing: Any) -> Iterator[Any]:
    if isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            with suppress(ValueError):  # nothing is in it yet
                yield cell.cell_contents
        return
    for one in gc.get_referents(thing):
        module = type(one).__module__
        ours = module.startswith(("sidecar.", "collections", "asyncio.queues"))
        if ours or isinstance(one, dict | list | deque | set | tuple | frozenset | FunctionType | MethodType | partial):
            yield one
