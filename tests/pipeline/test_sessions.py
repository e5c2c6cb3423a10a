"""Sessions with the broker end at any moment: what they delivered is stale, and nothing is settled twice."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.elasticsearch import Trouble, must_be_number
from tests.pipeline.simulated_pipeline import QUEUE, SimulatedPipeline, play

SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_session_lost_while_requests_are_in_flight(seed: int) -> None:
    """Redeliveries wait behind their own ghosts; acks of the old epoch are void; the account calls them stale."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.latency_seconds = (0.5, 1.0)
        for number in range(300):
            world.publish(b'{"n":%d}' % number, f"id-{number % 60}")
        await world.start()
        for _ in range(4):
            await world.until(lambda: world.elastic.in_flight >= 2)
            await asyncio.sleep(world.rng.uniform(0, 0.5))
            world.lose_session()
        await world.until_settled(600.0)
        world.judge(redelivered=True)
        assert world.pipeline.counters.total("stale") > 0
        assert len(world.elastic.documents) == 60
        assert "406" not in str(world.log.named("amqp.lost"))

    play(lambda: SimulatedPipeline(seed, prefetch=150), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_ghost_that_hangs_keeps_its_redelivery_waiting(seed: int) -> None:
    """A request of the old epoch that is still unanswered may be applied: the same document isn't written meanwhile."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda request: Trouble.HANGS_AFTER if request.number == 0 else None
        world.publish(b'{"n":1}', "one")
        world.publish(b'{"n":2}', "one")
        await world.start()
        await world.until(lambda: world.elastic.in_flight == 1)
        world.lose_session()
        world.publish_many(20, start=10)
        await world.until(lambda: len(world.elastic.documents) == 21, 30.0)
        await world.until_settled(120.0)
        world.judge(redelivered=True)
        assert [applied.source for applied in world.elastic.history["documents", "one"]] == [
            b'{"n":1}', b'{"n":1}', b'{"n":2}',
        ]  # fmt: skip

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_session_lost_while_dead_letters_are_published(seed: int) -> None:
    """Whether the copies arrived is unknown: the originals come again; at worst a dead letter is there twice."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        for number in range(100):
            world.publish(b'{"n":"no %d"}' % number, f"id-{number}", guilty=True)
        await world.start()
        for _ in range(6):
            published = sum(world.dead.values())
            await world.until(lambda before=published: sum(world.dead.values()) > before or not world.left)  # type: ignore[misc]
            if world.rng.random() < 0.7:
                world.lose_session()
            await asyncio.sleep(world.rng.uniform(0, 2))
        await world.until_settled(600.0)
        world.judge(redelivered=True)

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_broker_that_is_away_is_tried_again_at_intervals(seed: int) -> None:
    """Start in any order: it waits for the broker, says so once, and goes on when it comes; after a loss likewise."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.broker.down = True
        await world.start()
        await asyncio.sleep(120)
        assert len(world.log.named("amqp.unreachable")) < 120
        world.publish_many(50)
        world.broker.down = False
        await world.until_settled(30.0)
        world.broker.down = True
        world.lose_session()
        await asyncio.sleep(60)
        world.publish_many(50, start=50)
        world.broker.down = False
        await world.until_settled(30.0)
        world.judge(redelivered=True)

    play(lambda: SimulatedPipeline(seed), scenario)


def gone(world: SimulatedPipeline) -> bool:
    """Whether the sidecar isn't ready because its queue is gone."""
    not_ready = world.app.snapshot().not_ready if world.app is not None else None
    return not_ready is not None and not_ready.reason == "queue-gone"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_queue_that_is_deleted_and_comes_back(seed: int) -> None:
    """It isn't created again as if nothing had happened: that is an error until somebody declares it."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.publish_many(20)
        await world.start()
        await world.until_settled()
        world.broker.delete(QUEUE)
        assert world.app is not None
        await world.until(lambda: gone(world))
        await asyncio.sleep(60.0)
        assert gone(world)
        assert QUEUE not in world.broker.queues
        (told,) = world.log.named("amqp.queue_gone")
        assert f"the queue '{QUEUE}' was there and is gone" in str(told["reason"])
        world.broker.declare(QUEUE)
        world.publish_many(20, start=20)
        await world.until_settled()
        assert len(world.elastic.documents) == 40
        assert world.app.snapshot().not_ready is None

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_both_sides_away_at_once(seed: int) -> None:
    """An outage of Elasticsearch and lost sessions in the middle of it: nothing is lost, and it resumes."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda _: world.rng.choice((Trouble.REFUSED, Trouble.HANGS_BEFORE))
        world.publish_many(200)
        await world.start()
        for _ in range(5):
            await asyncio.sleep(world.rng.uniform(5, 60))
            world.lose_session()
        world.elastic.trouble = lambda _: None
        await world.until_settled(200.0)
        world.judge(redelivered=True)
        assert not world.dead_letters

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_waits_to_be_sent_is_dropped_with_its_session(seed: int) -> None:
    """Only what is in flight when a session is lost can be stored twice; the rest is sent for its redelivery alone."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.latency_seconds = (0.2, 0.4)
        world.publish_many(200, with_ids=False)
        await world.start()
        await world.until(lambda: world.elastic.in_flight == 1 and len(world.left) == 200)
        world.lose_session()
        await world.until_settled(120.0)
        world.judge(redelivered=True)
        assert sum(world.elastic.applied.values()) <= 200 + 10

    play(lambda: SimulatedPipeline(seed, prefetch=200, bulk_concurrency=1), scenario)
