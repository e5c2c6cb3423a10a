"""When batches end: by count, by age, by bytes, and because nothing more can come."""

from __future__ import annotations

import asyncio

import pytest

from tests.pipeline.simulated_pipeline import SimulatedPipeline, play

SEEDS = range(5)


def sizes(world: SimulatedPipeline) -> list[int]:
    """Return the items of each request, in order."""
    return [request.items for request in world.elastic.requests]


@pytest.mark.parametrize("seed", SEEDS)
def test_batches_are_exactly_as_long_as_configured_while_the_queue_has_enough(seed: int) -> None:
    """The chunks in which deliveries arrive don't show in the sizes of requests; only the last one may be smaller."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.publish_many(1_050)
        await world.start()
        await world.until_settled()
        world.judge()
        assert sizes(world) == [100] * 10 + [50]
        assert world.pipeline.counters.batches == {"count": 10, "age": 1}

    play(lambda: SimulatedPipeline(seed, prefetch=1_000, batch_max_items=100), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_document_of_a_trickle_waits_longer_than_the_age_limit(seed: int) -> None:
    """The clock starts with the *first* item and is not re-armed: a message every 0.3 s can't starve a limit of 1 s."""

    async def scenario(world: SimulatedPipeline) -> None:
        await world.start()
        await asyncio.sleep(1)
        published_at = {}
        for number in range(40):
            body = world.publish(b'{"n":%d}' % number, f"id-{number}")
            published_at[body] = asyncio.get_running_loop().time()
            await asyncio.sleep(0.3)
        await world.until_settled()
        world.judge()
        for (_, document_id), history in world.elastic.history.items():
            (body,) = world.order[document_id]
            waited = history[0].at - published_at[body]
            assert waited <= 1.1, f"{document_id} waited {waited} s"
        assert max(sizes(world)) > 1

    play(lambda: SimulatedPipeline(seed, prefetch=1_000, batch_max_items=100, batch_max_age_seconds=1.0), scenario)


def test_a_batch_that_is_full_does_not_wait_for_its_age() -> None:
    """Count completes at once."""

    async def scenario(world: SimulatedPipeline) -> None:
        await world.start()
        await world.until(lambda: world.log.named("amqp.connected"))
        began = asyncio.get_running_loop().time()
        world.publish_many(30)
        assert await world.until_settled() - began < 0.5

    play(lambda: SimulatedPipeline(batch_max_age_seconds=1_000.0), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_request_is_larger_than_the_byte_limit_unless_a_single_item_is(seed: int) -> None:
    """Completion by size; an item above it goes alone."""

    async def scenario(world: SimulatedPipeline) -> None:
        for number in range(60):
            size = world.rng.choice((10, 500, 900, 3_000))
            world.publish(b'{"n":%d,"x":"%s"}' % (number, b"x" * size), f"id-{number}")
        await world.start()
        await world.until_settled()
        world.judge()
        for request in world.elastic.requests:
            assert request.size_bytes <= 2_000 or request.items == 1
        assert world.pipeline.counters.batches["bytes"] > 0

    play(lambda: SimulatedPipeline(seed, batch_max_items=1_000, batch_max_bytes=2_000), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_hot_documents_fewer_than_a_batch_flow_and_the_last_write_wins(seed: int) -> None:
    """999 documents, a batch of 1,000: what nothing can complete any more doesn't wait for its age (pressure)."""

    async def scenario(world: SimulatedPipeline) -> None:
        for number in range(9_990):
            world.publish(b'{"n":%d}' % number, f"hot-{number % 999}")
        await world.start()
        # When the queue has run dry, the last ones wait for their age: more might come.
        await world.until_settled(2_100.0)
        world.judge()
        assert world.pipeline.counters.batches["pressure"] >= 7

    def world() -> SimulatedPipeline:
        return SimulatedPipeline(seed, prefetch=2_000, batch_max_items=1_000, batch_max_age_seconds=1_000.0)

    play(world, scenario)


def test_a_prefetch_smaller_than_a_batch_does_not_wait_for_the_age() -> None:
    """When the broker delivers no more before something is settled, waiting is in vain."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.publish_many(100)
        await world.start()
        assert await world.until_settled(30.0) < 10.0
        world.judge()

    play(lambda: SimulatedPipeline(prefetch=20, batch_max_items=1_000, batch_max_age_seconds=1_000.0), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_most_acks_are_multiple(seed: int) -> None:
    """Settler a batch costs about one frame, not one for each message."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.publish_many(5_000)
        await world.start()
        await world.until_settled()
        world.judge()
        assert world.broker.sessions[0].acks <= 60

    play(lambda: SimulatedPipeline(seed, prefetch=1_000, batch_max_items=100), scenario)
