"""Operations on one document: in the order of the queue, at any concurrency, through refusals."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.elasticsearch import must_be_number
from tests.pipeline.simulated_pipeline import SimulatedPipeline, play

SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_last_of_two_operations_wins_under_429s_at_concurrency_8(seed: int) -> None:
    """The write pool refuses items here and there, earlier ones while later ones are stored: the order holds."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.capacity_items = 25
        for number in range(400):
            world.publish(b'{"n":%d}' % number, f"id-{number % 200}")
        await world.start()
        await world.until_settled(600.0)
        world.judge()
        assert world.elastic.statuses[429] > 0
        assert not world.dead_letters

    play(lambda: SimulatedPipeline(seed, prefetch=400, bulk_concurrency=8), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_document_that_everybody_writes_is_written_in_order(seed: int) -> None:
    """Many operations on few documents, mixed with others: never two of one document in flight (the world watches)."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.capacity_items = 40
        for number in range(300):
            key = f"hot-{world.rng.randrange(3)}" if world.rng.random() < 0.3 else f"id-{number}"
            world.publish(b'{"n":%d}' % number, key)
        await world.start()
        await world.until_settled(600.0)
        world.judge()

    play(lambda: SimulatedPipeline(seed, prefetch=300, bulk_concurrency=8), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rejected_operation_does_not_stop_those_that_follow_on_its_document(seed: int) -> None:
    """The reject goes to the dead letters, the next operation on the document is applied."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        for number in range(90):
            bad = number % 3 == 1
            body = b'{"n":"no %d"}' % number if bad else b'{"n":%d}' % number
            world.publish(body, f"id-{number // 3}", guilty=bad)
        await world.start()
        await world.until_settled()
        world.judge()
        assert len(world.dead_letters) == 30

    play(lambda: SimulatedPipeline(seed, bulk_concurrency=8), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_rejections_slow_the_sidecar_down_and_nothing_is_lost_or_stored_twice(seed: int) -> None:
    """Without ids: every item is stored once, nothing is dead-lettered, and the share of 429s falls."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.capacity_items = 60
        world.elastic.item_seconds = 0.001
        world.publish_many(2_000, with_ids=False)
        await world.start()
        await world.until_settled(3_600.0)
        world.judge()
        assert len(world.elastic.documents) == 2_000
        sent = sum(request.items for request in world.elastic.requests)
        assert sent < 2 * 2_000, f"{sent} items sent for 2,000 messages"
        requests = world.elastic.requests
        half = len(requests) // 2
        refused = [sum(request.outcome == "partial" for request in part) for part in (requests[:half], requests[half:])]
        assert refused[1] <= refused[0] + 3

    play(lambda: SimulatedPipeline(seed, prefetch=400, bulk_concurrency=8, batch_max_items=40), scenario)


def test_a_request_with_429s_retries_exactly_the_refused_items() -> None:
    """A retry holds the items that were refused, in order, and no other."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.capacity_items = 4
        world.publish_many(10)
        await world.start()
        await world.until_settled(600.0)
        world.judge()
        requests = world.elastic.requests
        assert requests[0].ids == [f"id-{number}" for number in range(10)]
        for request in requests[1:]:
            assert request.ids == sorted(request.ids, key=lambda name: int(name.split("-")[1]))  # type: ignore[union-attr]
        await asyncio.sleep(0)
        assert sum(world.elastic.applied.values()) == 10

    play(lambda: SimulatedPipeline(3, batch_max_items=10), scenario)
