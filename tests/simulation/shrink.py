"""From a bad day to the least that still goes wrong in the same way: fewer faults, fewer messages, plainer settings."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tests.simulation.scenario import Setting
from tests.simulation.world import play

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.simulation.scenario import Day

Part = TypeVar("Part")
_PLAINER = (
    "sidecars", "indices", "versions", "slow", "capacity_items", "memory_limit_bytes", "bulk_concurrency",
    "batch_max_bytes", "consumer_timeout_seconds", "delivery_limit", "max_content_bytes", "hold_max_seconds",
    "shutdown_seconds", "on_conflict", "on_index_missing", "on_index_blocked", "on_delay_refused", "on_reject",
    "looks_see_trouble", "chunk_items", "retry_max_attempts", "timeout_seconds", "batch_max_age_seconds",
)  # fmt: skip


def shrink(day: Day, rule: str, *, play: Callable[..., Any] = play, most_seconds: float = 60.0) -> Day:
    """Return the smallest day that was found which breaks the same rule.

    Args:
        day: one that breaks it.
        rule: the name of the rule.
        play: plays a day of its kind.
        most_seconds: of real time; what was reached by then is returned.
    """
    until = time.monotonic() + most_seconds

    def fails(candidate: Day) -> bool:
        if time.monotonic() > until:
            return False
        found = play(candidate).discrepancy
        return found is not None and found.rule == rule

    before = None
    while before != day:
        before = day
        day = replace(day, faults=_least(day.faults, lambda part, day=day: fails(replace(day, faults=part))))
        day = replace(day, messages=_least(day.messages, lambda part, day=day: fails(replace(day, messages=part))))
        day = _plainer(day, fails)
    return day


def _least(parts: Sequence[Part], fails: Callable[[tuple[Part, ...]], bool]) -> tuple[Part, ...]:
    """Leave out as much as possible: halves first, then quarters, … (delta debugging)."""
    kept = tuple(parts)
    step = max(1, len(kept) // 2)
    while kept:
        at, smaller = 0, False
        while at < len(kept):
            candidate = kept[:at] + kept[at + step :]
            if fails(candidate):
                kept, smaller = candidate, True
            else:
                at += step
        if step == 1 and not smaller:
            break
        step = max(1, step // 2)
    return kept


def _plainer(day: Day, fails: Callable[[Day], bool]) -> Day:
    usual = type(day.setting)()
    for name in [one.name for one in fields(usual)] if type(usual) is not Setting else _PLAINER:
        value = getattr(usual, name)
        if getattr(day.setting, name) == value:
            continue
        candidate = replace(day, setting=replace(day.setting, **{name: value}))
        if name == "indices":
            plain = tuple(one._replace(index="documents") for one in day.messages)
            faults = tuple(
                one._replace(target="documents") if one.target.startswith("index-") else one for one in day.faults
            )
            candidate = replace(candidate, messages=plain, faults=faults)
        if name == "sidecars":
            own = tuple(one._replace(target="0") if one.target.isdigit() else one for one in day.faults)
            candidate = replace(candidate, faults=own)
        if fails(candidate):
            day = candidate
    return day
