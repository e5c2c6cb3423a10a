"""SIGTERM: what was admitted is sent or given back, and nothing is left half done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from sidecar.pipeline.app import App
from tests.fakes.elasticsearch import Trouble, must_be_number
from tests.pipeline.simulated_pipeline import DEAD, QUEUE, SimulatedPipeline, play

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from sidecar.ports import BrokerSession, Receive

SEEDS = range(6)


def assert_all_accounted(world: SimulatedPipeline) -> None:
    """Stored + dead-lettered + left in the queue = published, each message in one place only."""
    stored = len(world.elastic.documents)
    assert stored + len(world.dead_letters) + len(world.left) == len(world.published), world.summary()
    assert world.pipeline.counters.in_flight == 0
    world.judge()


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_stored_and_left_are_what_was_published(seed: int, with_ids: bool) -> None:
    """SIGTERM under load, at any moment: it ends in time, nothing is lost and nothing twice, also without ids."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.publish_many(2_000, with_ids=with_ids)
        await world.start()
        await asyncio.sleep(world.rng.uniform(0, 0.6))
        took = await world.stop()
        assert took < 25.0
        assert_all_accounted(world)

    play(lambda: SimulatedPipeline(seed, prefetch=300, bulk_concurrency=2), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_left_is_in_its_order(seed: int) -> None:
    """Given back in the order of delivery, at the head of the queue."""

    async def scenario(world: SimulatedPipeline) -> None:
        bodies = world.publish_many(500, with_ids=False)
        world.elastic.trouble = lambda _: Trouble.REFUSED
        await world.start()
        await asyncio.sleep(5)
        await world.stop()
        assert world.left == bodies

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trouble", [Trouble.REFUSED, Trouble.LOST_BEFORE])
def test_a_drain_while_held_gives_back_at_once(trouble: Trouble, seed: int) -> None:
    """Nobody waits for an outage to end before going."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda _: trouble
        world.publish_many(100)
        await world.start()
        await world.until(lambda: world.pipeline.limiter.held and not world.elastic.in_flight)
        assert await world.stop() < 3.0
        assert len(world.left) == 100
        assert_all_accounted(world)

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_drain_while_requests_hang_ends_in_time(seed: int) -> None:
    """What hangs is cut off; it goes back to the queue."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda _: Trouble.HANGS_BEFORE
        world.publish_many(100)
        await world.start()
        await world.until(lambda: world.elastic.in_flight)
        assert await world.stop() <= 25.0
        assert_all_accounted(world)

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_requests_in_flight_at_the_end_of_the_sending_time_are_awaited(seed: int) -> None:
    """A slow Elasticsearch: what is on its way is not cut off while there is time, or it would be stored twice."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.latency_seconds = (0.6, 0.9)
        world.publish_many(1_000, with_ids=False)
        await world.start()
        await asyncio.sleep(5)
        assert await world.stop() <= 25.0
        assert world.left, "too fast for this test"
        assert_all_accounted(world)

    play(lambda: SimulatedPipeline(seed, prefetch=500, bulk_concurrency=2), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_followers_are_drained_as_well(seed: int) -> None:
    """Operations that wait behind others on their document are sent, in their order, before it ends."""

    async def scenario(world: SimulatedPipeline) -> None:
        for number in range(40):
            world.publish(b'{"n":%d}' % number, f"id-{number % 4}")
        await world.start()
        await world.until(lambda: world.elastic.requests)
        assert await world.stop() < 10.0
        assert not world.left
        assert sum(world.elastic.applied.values()) == 40
        world.judge()

    play(lambda: SimulatedPipeline(seed, batch_max_items=4, batch_max_age_seconds=1_000.0), scenario)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trouble", ["full", "silent"])
def test_a_drain_while_dead_letters_are_not_taken(trouble: str, seed: int) -> None:
    """Originals whose copies aren't confirmed go back to the queue; the good ones were stored and acked."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        setattr(world.broker.queues[DEAD], trouble, True)
        for number in range(60):
            bad = number % 6 == 5
            body = b'{"n":"no %d"}' % number if bad else b'{"n":%d}' % number
            world.publish(body, f"id-{number}", guilty=bad)
        await world.start()
        await world.until(lambda: len(world.elastic.documents) == 50)
        await asyncio.sleep(world.rng.uniform(0, 5))
        assert await world.stop() <= 25.0
        assert sorted(world.left) == sorted(world.guilty)
        assert_all_accounted(world)

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", range(20))
def test_a_confirm_that_comes_while_originals_are_given_back(seed: int) -> None:
    """The race of the last moment: at worst the dead letter is there and the original as well; nothing breaks."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        world.broker.queues[DEAD].full = True
        for number in range(30):
            world.publish(b'{"n":"no %d"}' % number, f"id-{number}", guilty=True)
        await world.start()
        await world.until(lambda: world.pipeline.copying_held)
        world.broker.queues[DEAD].full = False
        await asyncio.sleep(world.rng.uniform(0, 1.2))
        await world.stop()
        world.judge(redelivered=True)
        assert world.pipeline.counters.in_flight == 0

    play(lambda: SimulatedPipeline(seed, prefetch=100), scenario)


def test_a_confirm_in_the_very_turn_in_which_originals_are_given_back() -> None:
    """Its dead letter is confirmed, but the broker was asked to take the original back: nothing is settled twice."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        dead = world.broker.queues[DEAD]
        dead.full = True
        body = world.publish(b'{"n":"no"}', "id-1", guilty=True)
        await world.start()
        await world.until(lambda: world.pipeline.copying_held)
        dead.full = False
        dead.silent = True
        session = world.broker.sessions[0]
        await world.until(lambda: session.publishing)
        give_back = world.pipeline.give_back

        async def confirm_and_give_back() -> None:
            session.confirm_all()
            await give_back()

        world.pipeline.give_back = confirm_and_give_back  # type: ignore[method-assign]
        await world.stop()
        assert world.left == [body]
        assert world.pipeline.counters.in_flight == 0

    play(SimulatedPipeline, scenario)


@pytest.mark.parametrize("seed", range(12))
def test_sigterm_at_the_very_start(seed: int) -> None:
    """Before the broker was reached, while consuming begins, when the first deliveries come: it ends, and quickly."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.broker.down = seed % 3 == 0
        world.publish_many(50)
        await world.start()
        await asyncio.sleep(seed * 0.0005)
        assert await world.stop() < 5.0
        assert_all_accounted(world)

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_session_lost_during_the_drain(seed: int) -> None:
    """The broker has everything again; it ends all the same."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.latency_seconds = (0.5, 1.0)
        world.publish_many(200)
        await world.start()
        await world.until(lambda: world.elastic.in_flight)
        asyncio.get_running_loop().call_later(world.rng.uniform(0, 1.0), world.lose_session)
        assert await world.stop() <= 25.0
        world.judge(redelivered=True)
        assert world.pipeline.counters.in_flight == 0

    play(lambda: SimulatedPipeline(seed), scenario)


def test_an_end_while_a_session_is_opened_is_an_end_though_the_cancellation_gets_lost() -> None:
    """A library under us may swallow one: then there is a session that nobody wants, and it is not stayed with."""

    async def scenario(world: SimulatedPipeline) -> None:
        opening = world.broker.connector([QUEUE])
        swallowed: list[bool] = []

        async def connect(receive: Receive) -> BrokerSession:
            try:
                await asyncio.sleep(5.0)
            except asyncio.CancelledError:
                swallowed.append(True)
            return await opening(receive)

        stop = asyncio.Event()
        log = cast("FilteringBoundLogger", world.log)
        app = App(world.pipeline, connect, rng=world.rng, log=log, shutdown_seconds=3.0)
        running = asyncio.create_task(app.run(stop))
        await asyncio.sleep(1.0)
        stop.set()
        async with asyncio.timeout(3.0):
            await running
        assert swallowed

    play(SimulatedPipeline, scenario)
