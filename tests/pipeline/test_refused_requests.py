"""Requests that are refused as a whole for one item's sake: the item is found, and blamed alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.fakes.elasticsearch import Refusal
from tests.pipeline.simulated_pipeline import SimulatedPipeline, play

if TYPE_CHECKING:
    from tests.fakes.elasticsearch import Request

SEEDS = range(5)
POISON = b"poison"


def poison(source: bytes) -> bool:
    """Say of which sources a request dies."""
    return POISON in source


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_poisonous_item_is_found_by_halving_and_blamed_alone(count: int, seed: int) -> None:
    """A 400 for the whole request: the others are stored, and what was stored in part is not stored twice by id."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.poison = poison
        spots = world.rng.sample(range(100), count)
        for number in range(100):
            bad = number in spots
            body = b'{"n":%d,"x":"%s"}' % (number, POISON if bad else b"")
            world.publish(body, f"id-{number}", guilty=bad)
        await world.start()
        await world.until_settled(600.0)
        world.judge(redelivered=True)
        assert sorted(world.dead_letters) == sorted(world.guilty)
        assert len(world.elastic.documents) == 100 - count
        assert len(world.elastic.requests) < 10 + 16 * count

    play(lambda: SimulatedPipeline(seed, batch_max_items=50), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_item_that_makes_elasticsearch_fail_is_found_as_well(seed: int) -> None:
    """A 500 for the whole request: held while everything fails, narrowed down while others pass, counted, and told."""

    async def scenario(world: SimulatedPipeline) -> None:
        broken = Refusal(500, "date_time_exception", "Zone offset hours not in valid range")
        world.elastic.trouble = lambda request: broken if "id-37" in request.ids else None
        for number in range(100):
            world.publish(b'{"n":%d}' % number, f"id-{number}", guilty=number == 37)
        await world.start()
        await world.until(lambda: len(world.elastic.documents) == 99, 600.0)
        assert not world.dead_letters
        for number in range(20):  # an item is only blamed when others pass
            await asyncio.sleep(30)
            world.publish(b'{"n":%d,"beacon":true}' % number, f"beacon-{number}")
        await world.until_settled(600.0)
        world.judge(redelivered=True)
        assert sorted(world.dead_letters) == sorted(world.guilty)
        assert len(world.elastic.documents) == 119

    play(lambda: SimulatedPipeline(seed, batch_max_items=50), scenario)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("error_type", ["x_content_parse_exception", "illegal_argument_exception"])
def test_a_fault_that_fails_every_request_dead_letters_nothing(error_type: str, seed: int) -> None:
    """A fault of ours, or of a proxy, looks like the items' fault; but no item is blamed before another one passed."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda _: Refusal(400, error_type, "something is wrong with all of you")
        world.publish_many(100)
        await world.start()
        await asyncio.sleep(600)
        assert not world.dead_letters
        assert len(world.left) == 100
        assert world.pipeline.limiter.held is not None
        assert len(world.elastic.requests) < 100
        world.elastic.trouble = lambda _: None
        await world.until_settled(120.0)
        world.judge(redelivered=True)
        assert not world.dead_letters

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fault_that_fails_every_request_is_noticed_within_few(seed: int) -> None:
    """Halving goes for depth: a single item is reached after the logarithm of a batch, not after all its parts."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda _: Refusal(400, "illegal_argument_exception", "something is wrong with you")
        world.publish_many(4_000)
        await world.start()
        await asyncio.sleep(30)
        assert not world.dead_letters
        assert len(world.elastic.requests) < 80, f"{len(world.elastic.requests)} requests in 30 s"

    play(lambda: SimulatedPipeline(seed, prefetch=6_000, batch_max_items=1_000), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_requests_that_left_before_the_fault_began_are_no_evidence(seed: int) -> None:
    """They succeed while those after them fail; that doesn't make each item of the latter guilty."""

    async def scenario(world: SimulatedPipeline) -> None:
        fault = Refusal(400, "illegal_argument_exception", "something is wrong with all of you")
        slow: list[int] = []

        def begins_with_the_second(request: Request) -> Refusal | None:
            if len(slow) < 3 and request.number != 1:
                slow.append(request.number)
                return None
            return fault

        world.elastic.latency_seconds = (0.1, 0.2)
        world.elastic.trouble = begins_with_the_second
        world.publish_many(200)
        await world.start()
        await asyncio.sleep(300)
        assert not world.dead_letters
        world.elastic.trouble = lambda _: None
        await world.until_settled(120.0)
        world.judge(redelivered=True)

    play(lambda: SimulatedPipeline(seed, bulk_concurrency=4), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_poisonous_item_that_comes_alone_is_blamed_once_others_came(seed: int) -> None:
    """At first nobody knows whose fault it is: a hold. The next messages are probed as well, and end it."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.poison = poison
        bad = world.publish(b'{"x":"poison"}', "bad", guilty=True)
        await world.start()
        await asyncio.sleep(30)
        assert not world.dead_letters
        world.publish_many(5)
        await world.until_settled(120.0)
        world.judge(redelivered=True)
        assert world.dead_letters == [bad]

    play(lambda: SimulatedPipeline(seed, batch_max_age_seconds=0.2), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_request_that_is_too_large_is_split_and_the_size_is_learned(seed: int) -> None:
    """A 413 is not repeated for ever: halves go, later requests are smaller at once; a single item is `too-large`."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.max_content_bytes = 1_000
        for number in range(200):
            huge = number == 50
            body = b'{"n":%d,"x":"%s"}' % (number, b"x" * (2_000 if huge else 60))
            world.publish(body, f"id-{number}", guilty=huge)
        await world.start()
        await world.until_settled(600.0)
        world.judge()
        assert sorted(world.dead_letters) == sorted(world.guilty)
        refused = [request for request in world.elastic.requests if request.outcome == "413"]
        assert len(refused) < 25
        assert world.elastic.requests[-1].outcome == "stored"

    play(lambda: SimulatedPipeline(seed, batch_max_items=50, bulk_concurrency=2), scenario)


def test_why_a_request_is_refused_is_told_without_the_document() -> None:
    """Also while it isn't clear yet whose fault it is, and everything waits."""

    async def scenario(world: SimulatedPipeline) -> None:
        says = "can't do anything with 'Zebra', nor with \"7\""
        world.elastic.trouble = lambda _: Refusal(400, "illegal_argument_exception", says)
        world.publish(b'{"text":"Zebra"}', "id", guilty=True)
        await world.start()
        await world.until(lambda: world.pipeline.held is not None)
        assert world.pipeline.held == "400 illegal_argument_exception: can't do anything with '…', nor with \"7\""
        assert "Zebra" not in str(world.log.events)
        world.elastic.trouble = lambda _: None
        await world.until_settled()

    play(SimulatedPipeline, scenario)
