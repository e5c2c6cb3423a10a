"""When messages are taken, and how many: bounds in bytes, bounds in time, and nothing before Elasticsearch answers."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.core.flow.prefetch_window import MESSAGE_BYTES
from tests.fakes.elasticsearch import Refusal, Trouble, must_be_number
from tests.pipeline.simulated_pipeline import QUEUE, SimulatedPipeline, play

SEEDS = range(4)
MINUTE = 60.0
HOUR = 3_600.0
CONFIGURATION_FAULT = Refusal(403, "security_exception", "action [indices:data/write/bulk] is unauthorized")


def in_hands(world: SimulatedPipeline) -> int:
    """Return how many messages the sidecar has."""
    return len(world.broker.unsettled(QUEUE))


def returns(world: SimulatedPipeline) -> list[int]:
    """Return how often each message came back."""
    return [message.returns for message in world.published.values()]


@pytest.mark.parametrize("trouble", [Trouble.REFUSED, Refusal(404, html=True), Refusal(302)])
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_consumed_before_elasticsearch_answers(seed: int, trouble: Trouble | Refusal) -> None:
    """What isn't here needs no holding: at the start the queue is left as it is. A proxy's answer is none."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.looks_see_trouble = True
        world.elastic.trouble = lambda _: trouble
        world.publish_many(50)
        await world.start()
        await asyncio.sleep(10 * MINUTE)
        assert (in_hands(world), world.elastic.requests) == (0, [])
        assert len(world.log.named("elasticsearch.unreachable")) == 1
        world.elastic.trouble = lambda _: None
        await world.until_settled(10.0)
        world.judge()
        assert max(returns(world)) == 0

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_held_too_long_goes_back_in_order_and_once(seed: int) -> None:
    """An outage of an hour: held for five minutes, given back in order, and taken again when it is over."""

    async def scenario(world: SimulatedPipeline) -> None:
        bodies = world.publish_many(300)
        await world.start()
        await world.until(lambda: world.elastic.documents)
        world.elastic.looks_see_trouble = True
        world.elastic.trouble = lambda _: Trouble.REFUSED
        await world.until(lambda: world.pipeline.held)
        began_at = asyncio.get_running_loop().time()
        assert in_hands(world) > 0
        gone_at = await world.until(lambda: not in_hands(world), 7 * MINUTE)
        assert 4.9 * MINUTE < gone_at - began_at < 5.5 * MINUTE
        waiting = [body for body in bodies if body in world.left]
        assert world.left == waiting
        count = len(world.elastic.requests)
        await asyncio.sleep(HOUR)
        assert (in_hands(world), len(world.elastic.requests)) == (0, count), "nothing is sent without a reason to hope"
        assert max(returns(world)) == 1
        assert world.pipeline.held
        world.elastic.trouble = lambda _: None
        await world.until_settled(45.0)
        world.judge(redelivered=True)
        assert max(returns(world)) == 1
        assert not world.dead_letters
        assert world.pipeline.counters.total("requeue") > 0

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_after_a_hold_one_batch_comes_first(seed: int) -> None:
    """The window is one batch until a request was stored, and grows to the prefetch then."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda _: Trouble.REFUSED
        world.publish_many(2_000)
        await world.start()
        await world.until(lambda: not in_hands(world) and world.log.named("amqp.given_back"), 7 * MINUTE)
        world.elastic.looks_see_trouble = True
        await asyncio.sleep(MINUTE)
        stored_at_first: list[int] = []
        most = [0]

        def first_request(_: object) -> None:
            most[0] = max(most[0], in_hands(world))
            stored_at_first.append(len(world.elastic.documents))

        world.elastic.trouble = first_request  # type: ignore[assignment]
        await world.until(lambda: len(world.elastic.documents) > 0, 5 * MINUTE)
        assert most[0] <= 10, "more than a batch, before anything was stored"
        await world.until_settled()
        assert world.app is not None
        assert max(details["prefetch"] for details in world.log.named("amqp.consuming")[1:]) == 200  # type: ignore[type-var]
        world.judge(redelivered=True)

    play(lambda: SimulatedPipeline(seed, prefetch=200), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fault_that_no_look_can_see_costs_few_deliveries(seed: int) -> None:
    """A configuration fault of six hours: one batch is tried now and then, and the rest of the queue left alone."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda _: CONFIGURATION_FAULT
        world.publish_many(300)
        await world.start()
        await asyncio.sleep(6 * HOUR)
        assert max(returns(world)) < 6 * 7, "more than one delivery in ten minutes"
        assert sum(count > 1 for count in returns(world)) <= 10, "more messages than a batch were tried"
        assert not world.dead_letters
        world.elastic.trouble = lambda _: None
        await world.until_settled(6 * MINUTE)
        world.judge(redelivered=True)

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_session_that_ends_in_a_hold_is_followed_by_one_that_waits(seed: int) -> None:
    """The broker's consumer timeout: consuming again at once would only run into the next one."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.publish_many(100)
        await world.start()
        await world.until(lambda: world.elastic.documents)
        world.elastic.looks_see_trouble = True
        world.elastic.trouble = lambda _: Trouble.REFUSED
        await world.until(lambda: world.pipeline.held)
        world.lose_session("channel closed: 406 PRECONDITION_FAILED - delivery acknowledgement timed out")
        await world.until(lambda: len(world.broker.sessions) == 2)
        await asyncio.sleep(20 * MINUTE)
        assert in_hands(world) == 0
        assert max(returns(world)) == 1
        world.elastic.trouble = lambda _: None
        await world.until_settled(45.0)
        world.judge(redelivered=True)

    play(lambda: SimulatedPipeline(seed), scenario)


def held_bytes(world: SimulatedPipeline) -> int:
    """Return what is held, as the limit counts it."""
    ledgers = [ledger for session in world.broker.sessions if not session.over for ledger in session.ledgers]
    return sum(ledger.memory_bytes + ledger.open * MESSAGE_BYTES for ledger in ledgers)


class Large(SimulatedPipeline):
    """A world of large messages, which notes how much was held at most, in bytes."""

    most_held = 0

    def watch(self) -> None:
        super().watch()
        if not self.broker.sessions or not self.pipeline._flow_control.discarding:
            self.most_held = max(self.most_held, held_bytes(self))

    def publish_large(self, count: int, size: int) -> None:
        """Publish documents of a size."""
        for number in range(count):
            self.publish(b'{"n":%d,"text":"%s"}' % (number, b"x" * size), f"id-{number}")


LIMIT = 200_000
SIZE = 10_000


@pytest.mark.parametrize("losses", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_more_is_held_than_the_limit(seed: int, losses: int) -> None:
    """Whatever the prefetch: reading stops at the limit, and goes on as soon as there is room; in any session."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Large)
        world.broker._chunk_items = (1, 3)
        world.elastic.latency_seconds = (0.3, 0.5)
        world.publish_large(300, SIZE)
        await world.start()
        for number in range(losses):
            await world.until(lambda number=number: len(world.broker.sessions) > number)  # type: ignore[misc]
            await world.until(lambda: world.broker.sessions[-1].paused)
            world.lose_session()
        await world.until_settled(600.0)
        world.judge(redelivered=losses > 0)
        assert world.most_held < LIMIT + 3 * (SIZE + 2 * MESSAGE_BYTES)
        assert world.most_held > LIMIT / 2
        assert len(world.broker.sessions) == 1 + losses

    play(lambda: Large(seed, prefetch=1_000, memory_limit_bytes=LIMIT), scenario)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("seconds", [25.0, 58.0, 600.0])
@pytest.mark.parametrize("queues", [1, 2])
def test_a_pause_is_never_so_long_that_the_broker_loses_patience(queues: int, seconds: float, seed: int) -> None:
    """Requests hang while memory is full: after ten seconds what is on the wire goes back, and the session lives.

    What went back takes no memory: once all is settled, nothing does.
    """

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Large)
        world.queues = [QUEUE, "other"][:queues]
        world.broker.declare("other")
        world.broker._chunk_items = (1, 3)
        world.elastic.looks_see_trouble = True
        world.publish_large(300, SIZE)
        loop = asyncio.get_running_loop()
        await world.start()
        await world.until(lambda: len(world.elastic.documents) > 20)
        until = loop.time() + seconds
        world.elastic.trouble = lambda _: Trouble.HANGS_BEFORE if loop.time() < until else None
        await world.until_settled(seconds + 600.0)
        world.judge(redelivered=True)
        assert not world.dead_letters
        assert world.most_held < LIMIT + 3 * (SIZE + 2 * MESSAGE_BYTES)
        assert len(world.broker.sessions) == 1, world.log.named("amqp.lost")
        assert max(returns(world)) <= 4
        assert world.log.named("amqp.paused")
        assert held_bytes(world) == 0

    play(lambda: Large(seed, prefetch=1_000, memory_limit_bytes=LIMIT), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_fills_the_memory_in_an_outage_goes_back_as_well(seed: int) -> None:
    """Nobody consumes any more since there is no room; what is held goes back all the same when it takes too long."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Large)
        world.broker._chunk_items = (1, 3)
        world.publish_large(300, SIZE)
        await world.start()
        await world.until(lambda: len(world.elastic.documents) > 20)
        world.elastic.looks_see_trouble = True
        world.elastic.trouble = lambda _: Trouble.REFUSED
        await world.until(lambda: world.log.named("amqp.paused"))
        assert in_hands(world) > 0
        await world.until(lambda: not in_hands(world), 6 * MINUTE)
        await asyncio.sleep(HOUR)
        assert in_hands(world) == 0
        assert max(returns(world)) <= 2
        world.elastic.trouble = lambda _: None
        await world.until_settled(2 * MINUTE)
        world.judge(redelivered=True)

    play(lambda: Large(seed, prefetch=1_000, memory_limit_bytes=LIMIT), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_message_above_the_limit_is_admitted_alone(seed: int) -> None:
    """It can't be refused, and it can't wait for room that will never be."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Large)
        world.broker._chunk_items = (1, 1)
        world.publish_large(5, 3 * LIMIT)
        await world.start()
        await world.until_settled(60.0)
        world.judge()
        assert world.most_held < 3 * LIMIT + 2 * MESSAGE_BYTES

    play(lambda: Large(seed, prefetch=100, memory_limit_bytes=LIMIT, batch_max_age_seconds=1_000.0), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_batch_that_memory_has_no_room_for_is_completed(seed: int) -> None:
    """With a batch of a thousand and room for eighteen nobody waits for the age."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Large)
        world.broker._chunk_items = (1, 3)
        world.publish_large(100, SIZE)
        await world.start()
        await world.until(lambda: world.ready == 0, 60.0)
        assert world.pipeline.counters.batches["pressure"] > 0
        await world.stop()
        world.judge()

    def world_of() -> SimulatedPipeline:
        return Large(seed, prefetch=1_000, batch_max_items=1_000, memory_limit_bytes=LIMIT, batch_max_age_seconds=1e4)

    play(world_of, scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_drain_while_reading_is_paused_ends_in_time(seed: int) -> None:
    """The answer to the cancel lies behind everything that isn't read: that goes back with the rest."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Large)
        world.broker._chunk_items = (1, 3)
        world.elastic.trouble = lambda _: Trouble.HANGS_BEFORE
        world.publish_large(100, SIZE)
        await world.start()
        await world.until(lambda: world.broker.sessions and world.broker.sessions[-1].paused)
        await asyncio.sleep(world.rng.uniform(0, 12))
        assert await world.stop() <= 25.0
        world.judge(redelivered=True)
        assert len(world.left) == 100
        assert world.pipeline.counters.in_flight == 0

    play(lambda: Large(seed, prefetch=1_000, memory_limit_bytes=LIMIT), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_resource_alarm_keeps_dead_letters_waiting_and_makes_each_once(seed: int) -> None:
    """Half an hour without a confirm: the originals stay, good documents flow, and no copy is published twice."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        world.broker.raise_alarm()
        for number in range(20):
            world.publish(b'{"n":"no %d"}' % number, guilty=True)
        world.publish_many(20, start=100)
        await world.start()
        await world.until(lambda: len(world.elastic.documents) == 20)
        await world.until(lambda: world.pipeline.copying_held)
        await asyncio.sleep(HOUR / 2)
        assert not world.dead_letters
        world.broker.end_alarm()
        await world.until_settled(60.0)
        assert world.pipeline.copying_held is None
        world.judge()
        assert len(world.broker.sessions) == 1

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_messages_that_come_again_and_again_are_warned_about(seed: int) -> None:
    """A quorum queue drops a message at its delivery limit: somebody should know before."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.publish_many(20)
        for message in world.published.values():
            message.returns = message.deliveries = 16
        await world.start()
        await world.until_settled()
        (warning,) = world.log.named("amqp.worn")
        assert (warning["queue"], warning["deliveries"]) == (QUEUE, 16)

    play(lambda: SimulatedPipeline(seed), scenario)
