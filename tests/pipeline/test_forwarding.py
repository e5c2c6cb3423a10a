"""A stage of a chain between two simulated brokers: `sidecar.sinks.amqp` behind the pipeline, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, cast

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.forward import ACTION, ForwardConfig
from sidecar.core.encoding.template import Template
from sidecar.core.far import SINK
from sidecar.core.results.policy import ErrorPolicy
from sidecar.core.wire.properties import header, short
from sidecar.pipeline.pipeline import Pipeline
from sidecar.ports import QUEUE_DURABLE_AFTER_SECONDS
from sidecar.sinks.amqp import AmqpSink
from tests.fakes.broker import Broker, Stored, properties
from tests.fakes.outlet import SimulatedOutlet
from tests.pipeline.simulated_pipeline import QUEUE, SimulatedPipeline, play

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

STAGING = "staging"
HERE = Template(STAGING)
EACH_ITS_OWN = Template("{header.to|staging}")


class Chain(SimulatedPipeline):
    """A world in which messages are passed on to the queue ``staging`` of another broker.

    Args:
        seed: of all chance.
        routing_key: with which they are published.
        exchange: likewise.
        envelope: whether they are put into one.
        on_unroutable: as configured.
        plan: what differs from small batches (10 items).

    Attributes:
        far: the broker that they are passed on to.
        outlet: by which.
        staged: what the far broker got, in order, by queue.
    """

    sink = "amqp"

    def __init__(
        self,
        seed: int = 0,
        *,
        routing_key: Template = HERE,
        exchange: bytes = b"",
        envelope: bool = False,
        on_unroutable: str = "hold",
        **plan: object,
    ) -> None:
        self.staging = ForwardConfig(routing_key=routing_key, exchange=exchange, envelope=envelope)
        encoder_config = EncoderConfig(index=routing_key, action=Template(ACTION), id_mode="none")
        choices = ErrorPolicy(on_unroutable=on_unroutable)  # type: ignore[arg-type]
        self.outlet = cast("SimulatedOutlet", None)
        super().__init__(
            seed,
            **{"encoder_config": encoder_config, "error_policy": choices, "merges_batches": False, "far": SINK, **plan},
        )  # type: ignore[arg-type]
        self.far = Broker(self.rng)
        self.far.declare(STAGING)
        self.far.on_publish = self._staged
        self.staged: dict[str, list[Stored]] = {}
        self.outlet = SimulatedOutlet(self.far)
        self.expected.watch_outlet(self.outlet)

    def _new_pipeline(self) -> Pipeline:
        log = cast("FilteringBoundLogger", self.log)
        outlet = self.outlet or SimulatedOutlet(Broker(self.rng))  # before there is a far broker, nothing runs
        sink = AmqpSink(self.plan, self.staging, outlet)
        return Pipeline(self.plan, sink, rng=self.rng, log=log, wall_clock=self._wall_clock)

    def fresh(self) -> Pipeline:
        listener = self.outlet.on_blocked
        pipeline = super().fresh()
        self.outlet.on_blocked = listener  # whoever uses an outlet listens to it
        return pipeline

    def _staged(self, queue: str, stored: Stored) -> None:
        self.staged.setdefault(queue, []).append(stored)
        body = stored.body.partition(b'"body":')[2].removesuffix(b"}") if self.staging.envelope else stored.body
        self.elastic.applied[body] += 1  # which is what the judge takes for stored

    def bodies(self, queue: str = STAGING) -> list[bytes]:
        """Return the bodies that a queue of the far broker got, in order."""
        return [stored.body for stored in self.staged.get(queue, [])]

    def send(self, body: bytes, raw: bytes) -> None:
        """Publish a message with such properties to the work queue."""
        self.published[body] = self.broker.publish(QUEUE, body, raw)


def test_a_batch_is_one_publish_and_an_ack_comes_after_its_confirms() -> None:
    """In the order of delivery, and byte by byte; nothing is a dead letter, nothing is there twice."""

    async def scenario(world: Chain) -> None:
        bodies = world.publish_many(200, with_ids=False)
        await world.start()
        await world.until_settled()
        assert world.bodies() == bodies
        assert max(world.outlet.calls) == 10
        assert len(world.outlet.calls) <= 25
        assert world.outlet.opened == 1
        account = world.pipeline.counters
        assert account.documents == {("publish", "success"): 200}
        assert account.total("ack") == 200
        world.judge()

    play(Chain, scenario)


@pytest.mark.parametrize("seed", range(5))
def test_order_of_one_route_is_that_of_delivery(seed: int) -> None:
    """With four batches in flight, groups that come of age, and chunks of every size."""

    async def scenario(world: Chain) -> None:
        await world.start()
        bodies = []
        for start in range(0, 300, 30):
            bodies += world.publish_many(30, with_ids=False, start=start)
            await asyncio.sleep(world.rng.uniform(0, 0.2))
        await world.until_settled()
        assert world.bodies() == bodies
        world.judge()

    play(lambda: Chain(seed, batch_max_age_seconds=0.05), scenario)


def test_a_full_queue_slows_down_and_loses_nothing() -> None:
    """``basic.nack``: never the message's fault; again in place, slower, and a hold when nothing is taken for long."""

    async def scenario(world: Chain) -> None:
        queue = world.far.queues[STAGING]
        queue.full = True
        world.publish_many(100, with_ids=False)
        await world.start()
        await world.until(lambda: world.pipeline.held, 120)
        assert "basic.nack" in str(world.pipeline.held)
        assert world.log.named("sink.throttled")
        assert world.log.named("sink.held")
        assert world.pipeline.counters.documents["publish", "too_many"] >= 50
        queue.full = False
        await world.until_settled(120)
        assert world.log.named("sink.resumed")
        assert not world.broker.delayed
        world.judge()

    play(Chain, scenario)


def test_messages_with_one_id_keep_their_order_through_refusals() -> None:
    """The second is published when the first is confirmed: the next stage never sees the newer one first."""

    async def scenario(world: Chain) -> None:
        queue = world.far.queues[STAGING]
        await world.start()
        bodies = [world.publish(b'{"n":%d}' % number, "same" if number % 3 else f"id-{number}") for number in range(60)]
        for _ in range(20):
            queue.full = not queue.full
            await asyncio.sleep(0.3)
        queue.full = False
        await world.until_settled(120)
        mine = [body for body in world.bodies() if short(world.published[body].properties, "message_id") == b"same"]
        assert mine == [body for at, body in enumerate(bodies) if at % 3]
        world.order.clear()  # the judge's own look at order is about documents
        world.judge()

    play(lambda: Chain(3), scenario)


def test_what_is_unroutable_waits_until_the_queue_is_there() -> None:
    """By default the next stage may be started later; meanwhile the sidecar isn't ready, and says why."""

    async def scenario(world: Chain) -> None:
        world.far.delete(STAGING)
        world.publish_many(50, with_ids=False)
        await world.start()
        await world.until(lambda: world.pipeline.held)
        not_ready = world.pipeline.snapshot().not_ready
        assert not_ready is not None
        assert (not_ready.reason, not_ready.detail) == ("held", "unroutable: 312 NO_ROUTE")
        await asyncio.sleep(60)
        assert sum(world.outlet.calls[-8:]) == 8, "probes of one message each"
        world.far.declare(STAGING)
        await world.until_settled()
        assert sorted(world.bodies()) == sorted(world.published)
        assert not world.dead_letters
        world.judge()

    play(Chain, scenario)


def test_what_a_queue_confirms_that_has_just_appeared_is_acked_when_it_is_safe() -> None:
    """RabbitMQ forgets what is in a queue that is a second old; the first publish of all may be to such a one."""

    async def scenario(world: Chain) -> None:
        first = world.publish_many(10, with_ids=False)
        await world.start()
        await world.until(lambda: len(world.bodies()) == len(first))
        await asyncio.sleep(QUEUE_DURABLE_AFTER_SECONDS - 0.1)
        assert world.pipeline.counters.total("ack") == 0
        await world.until_settled()
        del world.far.queues[STAGING]
        second = world.publish_many(10, with_ids=False, start=10)
        await world.until(lambda: world.pipeline.held, 120)
        world.far.declare(STAGING)
        await world.until(lambda: len(world.bodies()) > len(first), 120)
        await asyncio.sleep(QUEUE_DURABLE_AFTER_SECONDS - 0.1)
        assert world.pipeline.counters.total("ack") == len(first)
        await world.until_settled(120)
        third = world.publish_many(10, with_ids=False, start=20)
        await world.until_settled(1.9)
        assert sorted(world.bodies()) == sorted(first + second + third)
        world.judge()

    play(lambda: Chain(batch_max_age_seconds=0.05), scenario)


def test_what_a_killed_broker_forgets_is_published_again() -> None:
    """It is killed when it has confirmed, and its queue is so young that it comes back empty: nothing is acked."""

    async def scenario(world: Chain) -> None:
        world.publish_many(10, with_ids=False)
        await world.start()
        await world.until(lambda: len(world.bodies()) == 10)
        await asyncio.sleep(0.5)
        world.staged.clear()
        world.elastic.applied.clear()
        world.outlet.lose()
        await world.until_settled(120)
        assert sorted(world.bodies()) == sorted(world.published)
        world.judge(redelivered=True)

    play(Chain, scenario)


def test_only_the_target_that_is_missing_waits() -> None:
    """Messages have routes of their own: those that no queue takes stay here, the others flow, and nothing is held."""

    async def scenario(world: Chain) -> None:
        for number in range(60):
            to = b"S\0\0\0\7" + (b"staging" if number % 4 else b"nowhere")
            world.send(b'{"n":%d}' % number, b"\x20\0\0\0\0\x0f\x02to" + to)
        await world.start()
        await world.until(lambda: len(world.bodies()) == 45)
        assert world.pipeline.held is None
        await world.until(lambda: world.pipeline.counters.in_flight == 15)
        await asyncio.sleep(20)
        assert world.pipeline.held is None
        world.far.declare("nowhere")
        await world.until_settled()
        assert set(world.bodies("nowhere")) == {b'{"n":%d}' % number for number in range(0, 60, 4)}
        world.judge()

    play(lambda: Chain(routing_key=EACH_ITS_OWN), scenario)


def test_where_the_whole_prefetch_waits_it_is_a_hold() -> None:
    """Nothing else comes then: the sidecar isn't ready, and after SIDECAR_HOLD_MAX the messages go back."""

    async def scenario(world: Chain) -> None:
        world.far.delete(STAGING)
        world.publish_many(80, with_ids=False)
        await world.start()
        await world.until(lambda: world.pipeline.held, 300)
        await world.until(lambda: world.ready == 80, 400)
        assert not world.wrong_acks
        world.far.declare(STAGING)
        await world.until_settled(600)
        world.judge(redelivered=True)

    play(lambda: Chain(routing_key=EACH_ITS_OWN, prefetch=40, hold_max_seconds=30.0), scenario)


@pytest.mark.parametrize(("choice", "verdict"), [("dead-letter", "dead_letter"), ("delay", "delay")])
def test_what_is_unroutable_may_leave(choice: str, verdict: str) -> None:
    """As a dead letter ``unroutable``, or round by the delay queue, uncounted."""

    async def scenario(world: Chain) -> None:
        world.far.delete(STAGING)
        for number in range(5):
            world.publish(b'{"n":%d}' % number, guilty=choice == "dead-letter")
        await world.start()
        await world.until(lambda: world.pipeline.counters.total(verdict) >= 5)  # type: ignore[arg-type]
        if choice == "delay":
            world.far.declare(STAGING)
            await world.until_settled()
            await world.until(lambda: len(world.bodies()) == 5)
            (returned, *_) = world.staged[STAGING]
            assert header(returned.properties, b"sidecar-retry-count") is None, "rounds are a stage's own"
            return
        await world.until_settled()
        (letter, *_) = world.broker.queues["work.dead"].ready
        assert header(letter.properties, b"sidecar-reason") == b"S\0\0\0\x0aunroutable"
        assert header(letter.properties, b"sidecar-error-type") == b"S\0\0\0\x08NO_ROUTE"
        assert header(letter.properties, b"sidecar-action") == b"S\0\0\0\x07publish"
        world.judge()

    play(lambda: Chain(on_unroutable=choice), scenario)


def test_the_guard_keeps_a_missing_header_from_emptying_this_queue() -> None:
    """Messages that can't be addressed never reach the far broker; they hold as those that it refuses."""

    async def scenario(world: Chain) -> None:
        for number in range(100):
            world.broker.publish(QUEUE, b"%d" % number)
        await world.start()
        await world.until(lambda: world.pipeline.held)
        await asyncio.sleep(60)
        assert "20 messages in a row were rejected: missing-field: the message has no header.to" in str(
            world.pipeline.held
        )
        assert len(world.dead_letters) == 20
        assert len(world.log.named("sink.held")) == 1

    play(lambda: Chain(routing_key=Template("{header.to}"), reject_guard=20), scenario)


def test_the_guard_keeps_a_missing_queue_from_emptying_this_one() -> None:
    """A thousand dead letters ``unroutable`` in a row are nobody's message's fault."""

    async def scenario(world: Chain) -> None:
        world.far.delete(STAGING)
        for number in range(60):
            world.publish(b'{"n":%d}' % number)
        await world.start()
        await world.until(lambda: world.pipeline.held)
        await asyncio.sleep(30)
        assert len(world.dead_letters) == 20

    play(lambda: Chain(on_unroutable="dead-letter", reject_guard=20), scenario)


@pytest.mark.parametrize("seed", range(8))
def test_a_lost_connection_publishes_again_and_loses_nothing(seed: int) -> None:
    """Whether the messages or only their confirms were lost, nobody knows: duplicates at most."""

    async def scenario(world: Chain) -> None:
        world.publish_many(300, with_ids=False)
        await world.start()
        for _ in range(5):
            calls = len(world.outlet.calls)
            await world.until(lambda calls=calls: len(world.outlet.calls) > calls or not world.left)  # type: ignore[misc]
            await asyncio.sleep(world.rng.uniform(0, 0.003))
            world.outlet.lose()
        await world.until_settled(300)
        assert set(world.bodies()) == set(world.published)
        assert not world.dead_letters
        assert world.outlet.opened >= 2
        world.judge(redelivered=True)

    play(lambda: Chain(seed), scenario)


def test_a_connection_that_was_lost_with_nothing_on_its_way_costs_nobody_a_hold() -> None:
    """The next batch opens another one."""

    async def scenario(world: Chain) -> None:
        world.publish_many(20, with_ids=False)
        await world.start()
        await world.until_settled()
        world.outlet.lose()
        await asyncio.sleep(60)
        world.publish_many(20, with_ids=False, start=20)
        await world.until_settled()
        assert not world.log.named("sink.held")
        assert world.outlet.opened == 2
        world.judge()

    play(Chain, scenario)


def test_nothing_is_consumed_before_the_far_broker_answers() -> None:
    """And an outage is sat out, with a reason; no attempt is counted, nothing dead-lettered."""

    async def scenario(world: Chain) -> None:
        world.far.down = True
        world.publish_many(50, with_ids=False)
        await world.start()
        await asyncio.sleep(20)
        assert world.ready == 50
        not_ready = world.pipeline.snapshot().not_ready
        assert not_ready is not None
        assert (not_ready.reason, not_ready.detail) == ("waiting-for-sink", "connection refused")
        assert len(world.log.named("sink.unreachable")) == 1
        world.far.down = False
        await world.until_settled()
        world.far.down = True
        world.outlet.lose()
        world.publish_many(50, with_ids=False, start=50)
        await asyncio.sleep(120)
        assert "connection refused" in str(world.pipeline.held)
        world.far.down = False
        await world.until_settled(120)
        assert set(world.bodies()) == set(world.published)
        assert not world.dead_letters
        world.judge()

    play(lambda: Chain(retry_max_attempts=2), scenario)


def test_an_exchange_that_isnt_there_is_a_hold() -> None:
    """RabbitMQ closes the channel over it, again and again: nobody's message is at fault."""

    async def scenario(world: Chain) -> None:
        world.publish_many(30, with_ids=False)
        await world.start()
        await asyncio.sleep(120)
        assert "no exchange 'far'" in str(world.pipeline.held)
        assert not world.dead_letters
        world.far.bind("far", STAGING, STAGING)
        await world.until_settled(120)
        world.judge()

    play(lambda: Chain(exchange=b"far", retry_max_attempts=2), scenario)


def test_a_broker_short_of_resources_is_a_hold_and_nothing_is_there_twice() -> None:
    """What was written waits at its door; nothing more is written until it takes messages again."""

    async def scenario(world: Chain) -> None:
        world.publish_many(30, with_ids=False)
        await world.start()
        await world.until_settled()
        world.far.raise_alarm("low on disk")
        world.publish_many(60, with_ids=False, start=30)
        await world.until(lambda: world.pipeline.held)
        assert world.pipeline.held == "RabbitMQ takes no messages for now: low on disk"
        await asyncio.sleep(100)
        assert len(world.bodies()) == 30
        world.far.end_alarm()
        await world.until_settled(120)
        assert Counter(world.bodies()) == Counter(list(world.published))
        world.judge()

    play(Chain, scenario)


def test_what_couldnt_even_be_sent_speaks_against_nobody() -> None:
    """One alarm after the other, and the same messages each time: no attempt is counted."""

    async def scenario(world: Chain) -> None:
        await world.start()
        for start in range(0, 30, 5):
            world.far.raise_alarm()
            world.publish_many(5, with_ids=False, start=start)
            await world.until(lambda: world.pipeline.held)
            await asyncio.sleep(5)
            world.far.end_alarm()
            await world.until(lambda: not world.pipeline.held, 120)
        await world.until_settled(120)
        assert not world.dead_letters
        world.judge()

    play(lambda: Chain(retry_max_attempts=1, batch_max_items=1), scenario)


def test_a_message_that_costs_the_connection_each_time_is_found_and_the_others_pass() -> None:
    """Larger than the far broker takes, say (406): halved until it is alone, and blamed only while others pass."""

    async def scenario(world: Chain) -> None:
        route = world.far.route

        def refusing(exchange: bytes, routing_key: bytes) -> object:
            if routing_key == b"poison":
                raise KeyError  # by which the simulated broker closes the connection
            return route(exchange, routing_key)

        world.far.route = refusing  # type: ignore[method-assign, assignment]
        world.publish_many(40, with_ids=False)
        body = b'{"n":"poison"}'
        world.guilty[body] = None
        world.send(body, b"\x20\0\0\0\0\x0e\x02toS\0\0\0\6poison")
        world.publish_many(40, with_ids=False, start=40)
        await world.start()
        for number in range(80, 400):  # others come, so that there is something to tell it from an outage
            world.publish_many(1, with_ids=False, start=number)
            await asyncio.sleep(5)
            if world.dead_letters:
                break
        assert world.dead_letters == [body]
        await world.until_settled(300)
        (letter,) = world.broker.queues["work.dead"].ready
        assert header(letter.properties, b"sidecar-reason") == b"S\0\0\0\x11retries-exhausted"
        world.judge(redelivered=True)

    play(lambda: Chain(routing_key=EACH_ITS_OWN), scenario)


@pytest.mark.parametrize("seed", range(5))
def test_a_drain_gives_back_what_isnt_confirmed(seed: int) -> None:
    """SIGTERM in the middle: what was published is acked, the rest is in the queue, and nothing in both."""

    async def scenario(world: Chain) -> None:
        world.publish_many(400, with_ids=False)
        await world.start()
        await asyncio.sleep(world.rng.uniform(0, 0.2))
        await world.stop()
        world.judge()
        await world.start()
        await world.until_settled()
        assert set(world.bodies()) == set(world.published)
        world.judge()

    play(lambda: Chain(seed), scenario)


@pytest.mark.parametrize("seed", range(5))
def test_a_lost_source_is_delivered_again(seed: int) -> None:
    """What was published meanwhile may be there twice; nothing is missing."""

    async def scenario(world: Chain) -> None:
        world.publish_many(200, with_ids=False)
        await world.start()
        for _ in range(3):
            await asyncio.sleep(world.rng.uniform(0.005, 0.05))
            world.lose_session()
            sessions = len(world.broker.sessions)
            await world.until(lambda sessions=sessions: len(world.broker.sessions) > sessions)  # type: ignore[misc]
        await world.until_settled(120)
        assert set(world.bodies()) == set(world.published)
        world.judge(redelivered=True)

    play(lambda: Chain(seed), scenario)


def test_the_groups_of_a_stage_are_its_own() -> None:
    """By key, and complete by a flush message: a group is one publish."""

    async def scenario(world: Chain) -> None:
        for number in range(12):
            last = number >= 10
            world.send(b'{"n":%d}' % number, properties(correlation_id="ab"[number % 2], app_id="last" if last else ""))
        await world.start()
        await world.until_settled()
        assert world.outlet.calls == [6, 6]
        assert world.bodies()[:6] == [b'{"n":%d}' % number for number in range(0, 12, 2)]
        world.judge()

    encoder_config = EncoderConfig(
        index=HERE,
        action=Template(ACTION),
        batch_key=Template("{correlation_id}"),
        batch_flush_when=Template("{app_id|}"),
    )
    play(lambda: Chain(encoder_config=encoder_config, batch_max_age_seconds=60.0, bulk_concurrency=1), scenario)


def test_headers_that_no_frame_takes_are_a_dead_letter_and_nobody_else_waits() -> None:
    """Cut, the message would not be what it was: it is ``too-large``, and says how large."""

    async def scenario(world: Chain) -> None:
        for number in range(5):
            world.publish(b'{"n":%d}' % number)
        body = b'{"large":1}'
        size = 131_000
        table = b"\x04long" + b"S" + size.to_bytes(4, "big") + b"x" * size
        world.guilty[body] = None
        world.send(body, b"\x20\0" + len(table).to_bytes(4, "big") + table)
        await world.start()
        await world.until_settled()
        await world.until(lambda: world.dead_letters == [body])
        (letter,) = world.broker.queues["work.dead"].ready
        assert header(letter.properties, b"sidecar-reason") == b"S\0\0\0\x09too-large"
        world.judge()

    play(Chain, scenario)


def test_an_envelope_is_what_is_published() -> None:
    """A body that is none is a dead letter ``malformed``; the others go on."""

    async def scenario(world: Chain) -> None:
        world.publish(b'{"n": 1}', "one")
        world.publish(b"{not json", "two", guilty=True)
        await world.start()
        await world.until_settled()
        (stored,) = world.staged[STAGING]
        assert stored.body.startswith(b'{"message_id":"one","routing_key":"work","queue":"work","received_at":"')
        assert stored.body.endswith(b'Z","body":{"n": 1}}')
        assert short(stored.properties, "message_id") == b"one"
        await world.until(lambda: world.dead_letters == [b"{not json"])

    world = play(lambda: Chain(envelope=True), scenario)
    assert world.pipeline.counters.total("dead_letter") == 1
