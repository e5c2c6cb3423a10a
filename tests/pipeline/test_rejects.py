"""Rejects: their copy is confirmed before the original is acked, and a route that refuses is a hold."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.core.wire.properties import decode, header, short
from tests.fakes.elasticsearch import must_be_number
from tests.pipeline.simulated_pipeline import DEAD, QUEUE, SimulatedPipeline, play

SEEDS = range(5)


def publish_mixed(world: SimulatedPipeline, count: int = 60) -> None:
    """Publish documents of which every fifth is refused by the mapping, or is not JSON at all."""
    world.elastic.reject = must_be_number("n")
    for number in range(count):
        if number % 10 == 4:
            world.publish(b'{"n":"no %d"}' % number, f"id-{number}", guilty=True)
        elif number % 10 == 9:
            world.publish(b"not json %d" % number, f"id-{number}", guilty=True)
        else:
            world.publish(b'{"n":%d}' % number, f"id-{number}")


def assert_untouched(world: SimulatedPipeline) -> None:
    """No original without a copy was acked: the broker has all of them."""
    left = world.left
    assert all(body in left for body in world.guilty)
    assert not any(world.published[body].acked_at for body in world.guilty)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reject_is_dead_lettered_and_costs_no_other_message_anything(seed: int) -> None:
    """One bad item never decides its batch: the good ones are stored, in the requests in which they were."""

    async def scenario(world: SimulatedPipeline) -> None:
        publish_mixed(world)
        await world.start()
        await world.until_settled()
        world.judge()
        assert len(world.dead_letters) == 12
        assert len(world.elastic.documents) == 48
        assert sum(request.items for request in world.elastic.requests) == 54  # what is not JSON never got there
        assert world.pipeline.counters.total("dead_letter") == 12

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reject_is_acked_only_after_its_copy_was_confirmed(seed: int) -> None:
    """While the confirm doesn't come, the original stays outstanding; a silent broker costs the session."""

    async def scenario(world: SimulatedPipeline) -> None:
        publish_mixed(world)
        world.broker.queues[DEAD].silent = True
        await world.start()
        await world.until(lambda: len(world.elastic.documents) == 48)
        await world.until(lambda: len(world.broker.sessions) > 1)
        assert_untouched(world)
        world.broker.queues[DEAD].silent = False
        await world.until_settled()
        world.judge(redelivered=True)

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trouble", ["unroutable", "full"])
def test_copies_that_the_broker_does_not_take_hold_their_originals(seed: int, trouble: str) -> None:
    """No original is acked, good documents flow on, and it resumes when the route works; few tries until then."""

    async def scenario(world: SimulatedPipeline) -> None:
        publish_mixed(world)
        await world.start()
        await world.until(lambda: world.broker.sessions and world.broker.sessions[0].ledgers)
        if trouble == "full":
            world.broker.queues[DEAD].full = True
        else:
            del world.broker.queues[DEAD]
        await world.until(lambda: len(world.elastic.documents) == 48)
        await asyncio.sleep(300)
        assert_untouched(world)
        assert world.pipeline.copying_held is not None
        (held,) = world.log.named("dead_letters.held")
        told = world.pipeline.copying_held
        assert told == f"{DEAD}: {held['reason']}; {held['fix']}"
        assert ("there is no such queue" if trouble == "unroutable" else "has room") in told
        world.broker.declare(DEAD).full = False
        await world.until_settled()
        world.judge()
        assert world.pipeline.copying_held is None

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_acks_do_not_wait_for_a_held_dead_letter(seed: int) -> None:
    """What is stored behind it is acked singly: it must not fill the window, nor come again should the session end."""

    async def scenario(world: SimulatedPipeline) -> None:
        publish_mixed(world)
        world.broker.queues[DEAD].full = True
        await world.start()
        await world.until(lambda: len(world.elastic.documents) == 48)
        await asyncio.sleep(5)
        assert sorted(world.left) == sorted(world.guilty)

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_unroutable_copies_among_routable_ones_keep_their_own_originals_only(seed: int) -> None:
    """Refusals belong to copies by position: of copies in flight together, each original goes by its own."""

    async def scenario(world: SimulatedPipeline) -> None:
        publish_mixed(world, 200)
        await world.start()
        dead = world.broker.declare(DEAD)
        for _ in range(40):
            dead.full = world.rng.random() < 0.5
            await asyncio.sleep(world.rng.uniform(0.0005, 0.3))
        dead.full = False
        await world.until_settled()
        world.judge()
        assert len(world.dead_letters) == 40

    play(lambda: SimulatedPipeline(seed, bulk_concurrency=2, prefetch=50), scenario)


def test_a_dead_letter_says_what_it_is_and_keeps_its_bytes() -> None:
    """The copy has the body and the properties of the original, and headers that tell why."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        body = world.publish(b'{"n":"no"}', "id-1", guilty=True)
        await world.start()
        await world.until_settled()
        (copy,) = world.broker.queues[DEAD].ready
        assert copy.body == body
        assert short(copy.properties, "message_id") == b"id-1"
        told = {
            name: decode(header(copy.properties, name) or b"V")
            for name in (b"sidecar-reason", b"sidecar-status", b"sidecar-error-type", b"sidecar-queue", b"sidecar-id")
        }
        assert told == {
            b"sidecar-reason": "rejected",
            b"sidecar-status": 400,
            b"sidecar-error-type": "document_parsing_exception",
            b"sidecar-queue": QUEUE,
            b"sidecar-id": "id-1",
        }

    play(SimulatedPipeline, scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_exchange_that_does_not_exist_loses_sessions_but_no_message(seed: int) -> None:
    """The broker closes the channel over it: the originals go back, again and again, and none is acked."""

    async def scenario(world: SimulatedPipeline) -> None:
        publish_mixed(world)
        await world.start()
        await world.until(lambda: len(world.elastic.documents) == 48)
        await asyncio.sleep(60)
        assert_untouched(world)
        assert len(world.broker.sessions) < 20, f"{len(world.broker.sessions)} sessions in a minute"
        world.broker.bind("graveyard", "work.dead", DEAD)
        await world.until_settled()
        world.judge(redelivered=True)

    play(lambda: SimulatedPipeline(seed, dead_letter_exchange="graveyard"), scenario)
