"""Nothing that a sidecar remembers grows with the number of messages, whatever is different in each."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

import pytest

import sidecar
from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.results.policy import ErrorPolicy
from tests import invariants
from tests.builders import long_string
from tests.builders import properties as raw_properties
from tests.fakes.elasticsearch import Failure
from tests.pipeline.simulated_pipeline import QUEUE, SimulatedPipeline, play

if TYPE_CHECKING:
    from tests.fakes.elasticsearch import Item

MESSAGES = 1_200
WINDOW = 300
MOST = {"IndexParameterCache": 1_024, "FailureThrottle": 50, "Suspects": 100, "RejectGuard": 60, "Republisher": 5}
"""What caches keep at most; nothing else has more than what may be on its way at once."""


def unlike(coalesce: str, way: str) -> SimulatedPipeline:
    """Return a world whose messages have nothing in common: index, id, routing, group, and why they fail."""
    encoder_config = EncoderConfig(
        index=Template("{header.i}"),
        routing=Template("{header.i}") if coalesce == "none" else None,
        batch_key=Template("{message_id}"),
        action=Template("{header.a}"),
        coalesce=coalesce,  # type: ignore[arg-type]
        batch_complete_count=Template("1") if way == "singly" else None,
    )
    choices = ErrorPolicy(on_conflict="dead-letter")
    return SimulatedPipeline(
        encoder_config=encoder_config, error_policy=choices, prefetch=WINDOW, batch_max_items=60, reject_guard=0
    )


def fault(item: Item) -> Failure | None:
    """Refuse every third, each for a reason of its own."""
    number = int(item.index.removeprefix("i"))
    return Failure(400, f"t{number}_exception", f"reason {number}") if number % 3 == 1 else None


@pytest.mark.parametrize(("coalesce", "way"), [("none", "alike"), ("none", "singly"), ("latest", "alike")])
def test_nothing_grows_with_what_is_different_in_each_message(coalesce: str, way: str) -> None:
    """With every third rejected and two lost sessions, no container holds more than the largest cache may."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.item_fault = fault
        await world.start()
        for start in range(0, MESSAGES, 200):
            for at in range(start, start + 200):
                index = long_string(b"i%d" % at)
                raw = raw_properties([(b"i", index), (b"a", long_string(b"index"))], message_id=b"m%d" % at)
                world.published[b'{"n":%d}' % at] = world.broker.publish(QUEUE, b'{"n":%d}' % at, raw)
            await world.until_settled(600.0)
            if start in (400, 1_000):
                world.lose_session()
        found = invariants.containers(world.pipeline)
        assert found["IndexParameterCache"] > 100, "the walk comes to the caches"
        assert {owner: size for owner, size in found.items() if size > MOST.get(owner, WINDOW)} == {}

    play(lambda: unlike(coalesce, way), scenario)


def test_every_cache_of_a_function_has_a_bound() -> None:
    """A cache without one is only for what has no arguments."""
    unbounded = []
    for module in pkgutil.walk_packages(sidecar.__path__, "sidecar."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, functools._lru_cache_wrapper):
                arguments = value.__wrapped__.__code__.co_argcount
                if arguments and value.cache_parameters()["maxsize"] is None:
                    unbounded.append(f"{module.name}.{name}")
    assert not unbounded
