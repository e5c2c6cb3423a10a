"""A day told so that a person can follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.world import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.scenario import Day
    from tests.simulation.world import Played

_MOST_LINES = 400


def told(played: Played) -> str:
    """Return the whole story of a day that was played with its trace."""
    return "\n".join((*plan_lines(played.day), "", *_trace_lines(played), "", ending(played)))


def plan_lines(day: Day) -> Iterator[str]:
    """Yield the plan, line by line."""
    unusual = ", ".join(f"{name} {value}" for name, value in day.unusual().items())
    yield f"seed {day.seed}: {len(day.messages)} messages, {len(day.faults)} faults; {unusual or 'usual settings'}"
    for fault in day.faults:
        parts = [f"  from {fault.at:g} s for {fault.seconds:g} s: {fault.kind}"]
        parts += [f"on {fault.target}"] if fault.target else []
        parts += [f"for {fault.share:.0%}"] if fault.share < 1.0 else []
        yield " ".join(parts)


def _trace_lines(played: Played) -> Iterator[str]:
    lines = list(_merged(played.trace))
    if len(lines) > _MOST_LINES:
        half = _MOST_LINES // 2
        left_out = len(lines) - _MOST_LINES
        lines = [*lines[:half], f"          … {left_out} lines left out …", *lines[-half:]]
    yield from lines


def _merged(trace: list[tuple[float, str, str]]) -> Iterator[str]:
    """Yield lines; what happened to one message after the other in one moment is one line."""
    at = 0
    while at < len(trace):
        seconds, who, what = trace[at]
        head, number, tail = _split(what)
        end = at + 1
        numbers = [number]
        while number >= 0 and end < len(trace):
            next_seconds, next_who, next_what = trace[end]
            next_head, next_number, next_tail = _split(next_what)
            if (next_seconds, next_who, next_head, next_tail) != (seconds, who, head, tail) or next_number < 0:
                break
            numbers.append(next_number)
            end += 1
        if len(numbers) > 1:
            what = f"{head}{names(numbers)}{tail}"
        yield f"{seconds:9.3f} {who:<22} {what}"
        at = end


def _split(what: str) -> tuple[str, int, str]:
    """Return what stands before a single message's number, the number, and what stands behind; -1: there is none."""
    head, sign, rest = what.partition("#")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    if not sign or not digits or "#" in rest:
        return what, -1, ""
    return head, int(rest[:digits]), rest[digits:]


def ending(played: Played) -> str:
    """Return how the day ended, in a line."""
    if played.discrepancy is None:
        return f"nothing to object to after {played.seconds:.0f} s and {played.requests} requests"
    return f"DISCREPANCY after {played.seconds:.3f} s: {played.discrepancy}"
