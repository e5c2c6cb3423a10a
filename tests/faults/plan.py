"""What a run of chaos will do, all of it from a seed: settings, load, and every fault with its time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

ELASTICSEARCH = {
    "elasticsearch killed": 3,
    "elasticsearch frozen": 3,
    "elasticsearch restarted": 1,
    "elasticsearch cut off": 3,
    "elasticsearch stalled": 3,
    "elasticsearch answers lost": 3,
    "elasticsearch connections reset": 2,
    "index write-blocked": 2,
    "index read-only for lack of disk": 2,
}
RABBITMQ = {
    "rabbitmq killed": 2,
    "rabbitmq frozen": 3,
    "rabbitmq restarted": 1,
    "rabbitmq connections closed": 3,
    "rabbitmq cut off": 3,
    "rabbitmq stalled": 3,
    "rabbitmq connections reset": 2,
    "rabbitmq alarm": 3,
}
SIDECAR = {"sidecar killed": 1, "sidecar terminated": 1}
LANES = {
    "elasticsearch": (ELASTICSEARCH, (3.0, 10.0)),
    "rabbitmq": (RABBITMQ, (4.0, 12.0)),
    "sidecar": (SIDECAR, (10.0, 40.0)),
}
"""Kinds of faults with their weights, and mean pauses between two, in seconds. Lanes run side by side."""

_FIRST_SECONDS = 2.0
_SHORTEST_SECONDS = 0.5
_LONGEST_SECONDS = 8.0


class Fault(NamedTuple):
    """Something that breaks.

    Attributes:
        at: seconds after the start; later where the fault before it takes longer.
        seconds: how long it stays broken; what restarts takes its own time besides.
    """

    at: float
    kind: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run.

    Attributes:
        queue_type: ``quorum`` or ``classic``.
        versioned: messages carry a version, so that the last one wins through everything.
        tiny_pool: Elasticsearch has a write pool of one thread and a queue of one.
        hot_documents: how many documents are overwritten again and again.
        hot_share: of the messages, for these.
        bad_share: of the messages that nobody can store.
        burst: messages that are published at once.
        pause_seconds: between two bursts.
        settings: of the sidecar, without their prefix.
        faults: by lane, in order.
    """

    seed: int
    seconds: float
    queue_type: str
    versioned: bool
    tiny_pool: bool
    hot_documents: int
    hot_share: float
    bad_share: float
    burst: int
    pause_seconds: float
    settings: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)


def make_plan(seed: int, seconds: float, *, tiny_pool: bool | None = None) -> Plan:
    """Return the plan of a seed: the same for the same arguments.

    Args:
        seed: of all chance.
        seconds: how long faults happen.
        tiny_pool: None leaves it to the seed.
    """
    rng = random.Random(f"chaos {seed}")
    tiny = rng.random() < 0.3
    versioned = rng.random() < 0.6
    settings = {
        "BATCH_MAX_ITEMS": rng.choice(("50", "200", "1000")),
        "BATCH_MAX_AGE": rng.choice(("100ms", "500ms", "1s")),
        "BULK_CONCURRENCY": rng.choice(("1", "4", "8")),
        "BULK_TIMEOUT": rng.choice(("1s", "3s", "60s")),
        "HOLD_MAX": rng.choice(("2s", "5s", "5m")),
        "MEMORY_LIMIT": rng.choice(("256KiB", "4MiB", "64MiB")),
        "DELAYED_RETRY_DELAY": "1s",
        "SHUTDOWN_TIMEOUT": rng.choice(("3s", "8s")),
    }
    if versioned:
        settings |= {"VERSION": "{header.version}", "VERSION_TYPE": "external"}
    rate, burst = rng.choice((500, 1500, 4000)), rng.choice((20, 100, 500))
    plan = Plan(
        seed=seed,
        seconds=seconds,
        queue_type=rng.choice(("quorum", "quorum", "classic")),
        versioned=versioned,
        tiny_pool=tiny if tiny_pool is None else tiny_pool,
        hot_documents=rng.choice((20, 200, 2000)),
        hot_share=rng.choice((0.2, 0.5, 0.9)),
        bad_share=rng.choice((0.005, 0.02, 0.1)),
        burst=burst,
        pause_seconds=burst / rate,
        settings=settings,
    )
    for lane, (kinds, pauses) in LANES.items():
        own_dice = random.Random(f"chaos {seed} {lane}")
        plan.faults[lane] = _faults(own_dice, kinds, own_dice.choice(pauses), seconds)
    return plan


def _faults(rng: random.Random, kinds: dict[str, int], pause_seconds: float, seconds: float) -> list[Fault]:
    faults = []
    at = _FIRST_SECONDS + rng.expovariate(1.0 / pause_seconds)
    while at < seconds:
        (kind,) = rng.choices(list(kinds), list(kinds.values()))
        length = rng.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS)
        faults.append(Fault(round(at, 1), kind, round(length, 1)))
        at += length + rng.expovariate(1.0 / pause_seconds)
    return faults
