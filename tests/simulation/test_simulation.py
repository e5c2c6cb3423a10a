"""Days from seeds. A failure names its seed; ``python -m tests.simulation --seed N`` tells that day."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.builders import THOROUGHNESS
from tests.simulation.mutants import PLANTED
from tests.simulation.runner import failures
from tests.simulation.scenario import (
    BROKER_FAULTS,
    CLUSTER_FAULTS,
    DELAY_FAULTS,
    ITEM_FAULTS,
    REQUEST_FAULTS,
    SIDECAR_FAULTS,
    Day,
    draw,
)
from tests.simulation.shrink import shrink
from tests.simulation.trace import told
from tests.simulation.world import play

ROOT = Path(__file__).parents[2]
SEEDS_IN_A_TEST = 100
TESTS = 20 * THOROUGHNESS
_TELL = """
import sys
from tests.simulation.scenario import draw
from tests.simulation.trace import told
from tests.simulation.world import play
for seed in map(int, sys.argv[1:]):
    print(told(play(draw(seed), telling=True)))
"""


@pytest.mark.parametrize("block", range(TESTS))
def test_no_day_goes_wrong(block: int) -> None:
    """Nothing lost, acked unstored, stored twice, out of order, stuck or stormed; the account adds up: 2,000 days."""
    seeds = range(block * SEEDS_IN_A_TEST, (block + 1) * SEEDS_IN_A_TEST)
    assert not (wrong := failures(lambda seed: play(draw(seed)), seeds)), "\n".join(wrong)


def test_a_day_repeats_itself_in_another_process() -> None:
    """The same seed gives the same story to the last callback, whatever the hashes and addresses of a process are."""
    seeds = ["4", "57", "273", "1647"]
    stories = []
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes}
        ended = subprocess.run(
            [sys.executable, "-c", _TELL, *seeds], cwd=ROOT, env=environment, capture_output=True, check=True
        )
        stories.append(hashlib.sha256(ended.stdout).hexdigest())
    here = "".join(told(play(draw(int(seed)), telling=True)) + "\n" for seed in seeds)
    assert {*stories, hashlib.sha256(here.encode()).hexdigest()} == {stories[0]}


def test_a_trace_changes_nothing() -> None:
    """A day that is told is the day that was played without telling: it rolls no dice."""
    for seed in range(40):
        silent, telling = play(draw(seed)), play(draw(seed), telling=True)
        assert (silent.seconds, silent.requests) == (telling.seconds, telling.requests), f"seed {seed}"


def test_a_plan_survives_being_written_down() -> None:
    """A plan is plain data: as JSON it comes back the same."""
    for seed in range(100):
        assert Day.from_json(draw(seed).as_json()) == draw(seed)


def test_the_days_are_not_hollow() -> None:
    """Every kind of fault is drawn, and what the rules speak of does happen."""
    faults: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    looked_for = (
        "(partial)", "back in the queue (nack)", "back in the queue (lost)", "in work.delay.", "in work.dead",
        "cut off", "unanswered", "(late)", "(restarted)", "413", "429", "says elasticsearch.held",
        "says elasticsearch.resumed", "says elasticsearch.throttled", "says amqp.given_back", "says amqp.paused",
        "says dead_letters.held", "says dead_letters.resumed", "NO_ROUTE", "acknowledgement timed out",
        "says delays.held", "says delays.resumed",
        "didn't confirm", "reason=conflict", "reason=too-large", "reason=index-missing", "reason=index-blocked",
        "reason=retries-exhausted", "reason=malformed", "→ again", "SIGTERM to", "kill -9",
    )  # fmt: skip
    kinds = (*REQUEST_FAULTS, *ITEM_FAULTS, *CLUSTER_FAULTS, *BROKER_FAULTS, *DELAY_FAULTS, *SIDECAR_FAULTS)
    missing = ["everything"]
    for seed in range(1_000):
        day = draw(seed)
        faults.update(fault.kind for fault in day.faults)
        for _, _, what in play(day, telling=True).trace:
            seen.update(phrase for phrase in looked_for if phrase in what)
        missing = [kind for kind in kinds if not faults[kind]] + [phrase for phrase in looked_for if not seen[phrase]]
        if not missing:
            print(f"all seen after {seed + 1} days: {dict(faults)}, {dict(seen)}")
            break
    assert not missing


@pytest.mark.parametrize("name", ["any-200-is-well", "no-order", "acked-before-the-confirm"])
def test_a_failing_day_is_made_small_and_told(name: str) -> None:
    """What a person gets to read of a failure is a few messages, no fault that doesn't matter, and a trace."""
    with PLANTED[name].plant():
        day = next(day for day in map(draw, range(100)) if play(day).discrepancy is not None)
        found = play(day).discrepancy
        assert found is not None
        small = shrink(day, found.rule)
        played = play(small, telling=True)
        story = told(played)
    print(story)
    assert played.discrepancy is not None
    assert played.discrepancy.rule == found.rule
    assert len(small.messages) <= 5
    assert len(small.faults) <= 2  # a target that is blocked, and a delay queue that refuses, say
    assert "DISCREPANCY" in story
    assert len(story.splitlines()) < 200
