"""Many days, on several cores: each process plays some seeds, and tells what failed."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.simulation.forwarding import play_forwarding
from tests.simulation.forwarding_mutants import PLANTED as PLANTED_IN_FORWARDING
from tests.simulation.forwarding_scenario import ForwardingDay, draw_forwarding
from tests.simulation.mutants import PLANTED
from tests.simulation.scenario import Day, draw
from tests.simulation.trace import ending
from tests.simulation.world import play

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.simulation.mutants import Planted

_CHUNK = 50


class Kind(NamedTuple):
    """A kind of days.

    Attributes:
        draw: returns the day of a seed.
        play: plays a day; ``telling=True`` keeps a trace.
        read: returns a day from JSON.
        planted: the bugs that these days are to find.
    """

    draw: Callable[[int], Any]
    play: Callable[..., Any]
    read: Callable[[str], Any]
    planted: dict[str, Planted]


KINDS = {
    "elasticsearch": Kind(draw, play, Day.from_json, PLANTED),
    "forwarding": Kind(draw_forwarding, play_forwarding, ForwardingDay.from_json, PLANTED_IN_FORWARDING),
}


class _Failure(NamedTuple):
    seed: int
    rule: str
    told: str


def failures(play: Callable[[int], Any], seeds: Iterable[int]) -> list[str]:
    """Play the days of some seeds in this process; return what failed, with its seed."""
    played = ((seed, play(seed)) for seed in seeds)
    return [f"seed {seed}: {one.discrepancy}" for seed, one in played if one.discrepancy is not None]


def _play_some(task: tuple[int, int, str, str]) -> tuple[int, float, list[_Failure]]:
    """Play the days of some seeds; return how many, how long they took virtually, and what failed."""
    first, last, planted, name = task
    kind = KINDS[name]
    seconds, failures = 0.0, []
    with kind.planted[planted].plant() if planted else nullcontext():
        for seed in range(first, last):
            played = kind.play(kind.draw(seed))
            seconds += played.seconds
            if played.discrepancy is not None:
                failures.append(_Failure(seed, played.discrepancy.rule, ending(played)))
    return last - first, seconds, failures


def _tasks(first: int, last: int, planted: str, kind: str) -> Iterator[tuple[int, int, str, str]]:
    for start in range(first, last, _CHUNK):
        yield start, min(last, start + _CHUNK), planted, kind


def play_many(
    first: int, last: int, *, jobs: int, planted: str = "", kind: str = "elasticsearch", most_failures: int = 10
) -> list[int]:
    """Play the seeds from `first` to before `last`; tell every failure, and return their seeds."""
    began = time.monotonic()
    done, seconds, failures = 0, 0.0, list[_Failure]()
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for count, more_seconds, more in pool.imap(_play_some, _tasks(first, last, planted, kind)):
            done, seconds = done + count, seconds + more_seconds
            for failure in more:
                print(f"seed {failure.seed}: {failure.told}", flush=True)
            failures += more
            if done % 1000 == 0:
                pace = (time.monotonic() - began) / done
                print(f"{done} days, {len(failures)} with a discrepancy, {1000 * pace:.0f} ms each", flush=True)
            if len(failures) >= most_failures:
                print(f"no more after {most_failures} failures")
                pool.terminate()
                break
    took = time.monotonic() - began
    print(f"{done} days from seed {first}, {seconds / 86400:.1f} virtual days of 24 h, in {took:.0f} s: "
          f"{len(failures)} with a discrepancy")  # fmt: skip
    return [failure.seed for failure in failures]
