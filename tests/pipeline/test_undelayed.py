"""Delay queues that refuse messages: each copy has its own fate, and others never wait for a refusal."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, cast

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.far import HANDLER
from sidecar.core.results.policy import ErrorPolicy
from sidecar.core.wire.properties import decode, header
from sidecar.library.handler_sink import HandlerSink
from sidecar.library.settings import load
from sidecar.library.verdicts import DELAY, Verdict
from sidecar.pipeline.pipeline import Pipeline
from sidecar.pipeline.settler import WITHHELD_SECONDS
from tests.builders import long_string
from tests.builders import properties as raw_properties
from tests.fakes.elasticsearch import TARGET_FAILURES, Failure, must_be_number
from tests.pipeline.simulated_pipeline import DEAD, QUEUE, SimulatedPipeline, play

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from sidecar.library.messages import Message
    from tests.fakes.broker import Stored

SEEDS = range(3)
CLOSED, OPEN = "closed", "open"
FAILING = Failure(500, "internal_server_error", "something broke")


def several(**plan: object) -> SimulatedPipeline:
    """Return a world whose messages name their index: one is closed, the others are open."""
    encoder_config = EncoderConfig(index=Template("{header.i}"), id_mode="auto")
    world = SimulatedPipeline(**{"encoder_config": encoder_config, "prefetch": 60, **plan})  # type: ignore[arg-type]
    world.elastic.reject = must_be_number("n")
    world.elastic.item_fault = lambda item: TARGET_FAILURES["closed"] if item.index == CLOSED else None
    return world


def publish(world: SimulatedPipeline, number: int, index: str, document: str = "", *, body: bytes = b"") -> bytes:
    body = body or b'{"n":%d}' % number
    document_id = {"message_id": document.encode()} if document else {}
    world.published[body] = world.broker.publish(
        QUEUE, body, raw_properties([(b"i", long_string(index.encode()))], **document_id)
    )
    return body


def undelayable(world: SimulatedPipeline) -> SimulatedPipeline:
    world.broker.delays_undeclarable.add(None)
    return world


def reason_of(world: SimulatedPipeline, body: bytes) -> object:
    found = [letter for letter in world.broker.queues[DEAD].ready if letter.body == body]
    (letter,) = found
    value = header(letter.properties, b"sidecar-reason")
    return decode(value) if value is not None else None


@pytest.mark.parametrize("seed", SEEDS)
def test_each_copy_of_a_turn_has_its_own_fate(seed: int) -> None:
    """The delay queue of one can't be declared: its malformed neighbour is dead-lettered, the good one acked."""

    async def scenario(world: SimulatedPipeline) -> None:
        undelayable(world)
        publish(world, 1, CLOSED)
        bad = publish(world, 2, OPEN, body=b'{"n":"x"}')
        good = publish(world, 3, OPEN)
        await world.start()
        await world.until(lambda: world.dead_letters == [bad], 5)
        await world.until(lambda: world.published[good].acked_at is not None, WITHHELD_SECONDS + 1)
        await world.until(lambda: len(world.broker.unsettled(QUEUE)) == 1, 1)
        state = world.pipeline.snapshot()
        assert state.not_ready is not None
        assert state.not_ready.reason == "delays-held"
        assert state.delays_held is not None
        assert "work.delay.10000" in state.not_ready.detail
        assert "configure permission" in state.not_ready.detail
        assert len(world.broker.sessions) == 1
        (held,) = world.log.named("delays.held")
        assert held["queue"] == "work.delay.10000"
        world.broker.delays_undeclarable.clear()
        await world.until(lambda: world.broker.delayed, 60)
        assert world.log.named("delays.resumed")
        assert world.pipeline.snapshot().not_ready is None
        world.elastic.item_fault = lambda _: None
        await world.until_settled(400)

    play(lambda: several(seed=seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_waits_in_place_leaves_room_for_others(seed: int) -> None:
    """100 for a closed index, then 20 good ones, with a prefetch of 60: half of it waits, the rest is dead-lettered."""

    async def scenario(world: SimulatedPipeline) -> None:
        undelayable(world)
        blocked = [publish(world, number, CLOSED) for number in range(100)]
        good = [publish(world, number, OPEN) for number in range(100, 120)]
        await world.start()
        await world.until(lambda: all(world.published[body].acked_at is not None for body in good), 30)
        await world.until(lambda: len(world.broker.unsettled(QUEUE)) == 30, 5)
        assert len(world.dead_letters) == 70
        assert {reason_of(world, body) for body in world.dead_letters} == {"index-blocked"}
        await asyncio.sleep(300)
        assert len(world.dead_letters) == 70
        world.elastic.item_fault = lambda _: None
        await world.until_settled(60)
        assert sorted([*world.dead_letters, *(body for body in blocked if world.elastic.applied[body])]) == sorted(
            blocked
        )
        assert all(world.elastic.applied[body] == 1 for body in good)

    play(lambda: several(seed=seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_drain_gives_back_at_once_what_waits_in_place(seed: int) -> None:
    """A target that accepts nothing is not waited for: its messages are requeued, with those behind them."""

    async def scenario(world: SimulatedPipeline) -> None:
        undelayable(world)
        blocked = [publish(world, number, CLOSED, f"doc-{number % 5}") for number in range(20)]
        good = [publish(world, number, OPEN) for number in range(20, 25)]
        await world.start()
        await world.until(lambda: all(world.published[body].acked_at is not None for body in good), 30)
        await world.until(lambda: not world.elastic.in_flight, 5)
        assert await world.stop() < 3.0
        assert world.left == blocked

    play(lambda: several(seed=seed), scenario)


def test_what_waits_behind_a_document_counts_as_waiting() -> None:
    """Ten documents of a closed index, each with a queue of operations: they don't fill the prefetch for good."""

    async def scenario(world: SimulatedPipeline) -> None:
        undelayable(world)
        for number in range(100):
            publish(world, number, CLOSED, f"hot-{number % 10}")
        good = [publish(world, number, OPEN) for number in range(100, 120)]
        await world.start()
        await world.until(lambda: all(world.published[body].acked_at is not None for body in good), 120)
        assert len(world.broker.unsettled(QUEUE)) <= 60

    play(several, scenario)


@pytest.mark.parametrize("room", [0, 1])
def test_large_messages_that_wait_leave_memory_for_others(room: int) -> None:
    """Half of the memory limit, too, is others'."""

    async def scenario(world: SimulatedPipeline) -> None:
        undelayable(world)
        for number in range(40):
            publish(world, number, CLOSED, body=b'{"n":%d,"p":"%s"}' % (number, b"p" * 2_000))
        good = [publish(world, number, OPEN) for number in range(100, 110)]
        await world.start()
        await world.until(lambda: all(world.published[body].acked_at is not None for body in good), 120)
        held = sum(ledger.memory_bytes for ledger in world.broker.sessions[-1].ledgers)
        assert held <= 20_000 + room * 10_000

    play(lambda: several(memory_limit_bytes=40_000 + room * 20_000), scenario)


def test_all_wait_if_they_have_one_target() -> None:
    """Nothing is dead-lettered: whatever else came would meet the same refusal. The hold ends with it."""

    async def scenario(world: SimulatedPipeline) -> None:
        undelayable(world)
        world.elastic.item_fault = lambda _: TARGET_FAILURES["closed"]
        world.publish_many(200, with_ids=False)
        await world.start()
        await world.until(lambda: world.pipeline.held, 30)
        await asyncio.sleep(60)
        assert not world.dead_letters
        world.elastic.item_fault = lambda _: None
        await world.until_settled(120)
        world.judge()

    play(SimulatedPipeline, scenario)


def test_messages_are_dead_lettered_at_once_if_that_is_configured() -> None:
    """SIDECAR_ON_DELAY_REFUSED=dead-letter."""

    async def scenario(world: SimulatedPipeline) -> None:
        undelayable(world)
        bodies = [publish(world, number, CLOSED) for number in range(5)]
        await world.start()
        await world.until_settled(10)
        assert sorted(world.dead_letters) == bodies
        assert reason_of(world, bodies[0]) == "index-blocked"

    play(lambda: several(error_policy=ErrorPolicy(on_delay_refused="dead-letter")), scenario)


def test_what_used_up_its_attempts_is_dead_lettered() -> None:
    """It can neither be stored nor delayed: `retries-exhausted`."""

    async def scenario(world: SimulatedPipeline) -> None:
        undelayable(world)
        world.elastic.item_fault = lambda item: FAILING if item.index == CLOSED else None
        body = publish(world, 1, CLOSED)
        await world.start()
        await world.until_settled(60)
        assert world.dead_letters == [body]
        assert reason_of(world, body) == "retries-exhausted"

    play(lambda: several(retry_max_attempts=3), scenario)


def test_the_order_of_a_document_outlasts_a_refusal() -> None:
    """What follows a message on its document goes on only when the delay queue has that."""

    async def scenario(world: SimulatedPipeline) -> None:
        undelayable(world)
        bodies = [publish(world, number, CLOSED, "d") for number in range(8)]
        await world.start()
        await world.until(lambda: world.log.named("delays.held"), 10)
        world.elastic.item_fault = lambda _: None
        await world.until_settled(60)
        assert [applied.source for applied in world.elastic.history[CLOSED, "d"]] == bodies

    play(several, scenario)


@pytest.mark.parametrize("refusal", ["full", "undeclarable"])
def test_a_delay_queue_is_tried_without_wearing_a_message(refusal: str) -> None:
    """No message is delivered a second time for it, and few copies are published in vain; it is told once."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.broker.delays_full = refusal == "full"
        if refusal == "undeclarable":
            undelayable(world)
        stored = world.published[publish(world, 1, CLOSED)]
        await world.start()
        await asyncio.sleep(600)
        assert stored.deliveries == 1
        assert len(world.log.named("delays.held")) <= 7  # each length of delay is a queue
        assert world.pipeline.snapshot().delays_held is not None
        world.broker.delays_full = False
        world.broker.delays_undeclarable.clear()
        await world.until(lambda: world.pipeline.snapshot().delays_held is None, 120)
        await world.until(lambda: world.broker.delayed, 120)

    play(several, scenario)


def test_a_delay_queue_that_has_room_again_counts_as_open_though_nothing_is_delayed() -> None:
    """The sidecar is ready again when its target is open, and nothing needs the delay queue any more."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.broker.delays_full = True
        publish(world, 1, CLOSED)
        await world.start()
        await world.until(lambda: world.pipeline.snapshot().delays_held, 10)
        world.elastic.item_fault = lambda _: None
        world.broker.delays_full = False
        await world.until_settled(60)
        await world.until(lambda: world.pipeline.snapshot().not_ready is None, 120)

    play(several, scenario)


def test_the_documents_of_a_message_are_retried_where_it_cannot_be_delayed() -> None:
    """Split messages: those that are stored are not stored again, and the others wait in place."""

    async def scenario(world: SimulatedPipeline) -> None:
        undelayable(world)
        world.elastic.item_fault = lambda item: TARGET_FAILURES["closed"] if b"closed" in item.source else None
        body = b'[{"id":"a","n":1},{"id":"b","n":2,"t":"closed"}]'
        world.broker.publish(QUEUE, body)
        await world.start()
        await world.until(lambda: world.log.named("delays.held"), 10)
        await asyncio.sleep(60)
        assert world.broker.unsettled(QUEUE)
        world.elastic.item_fault = lambda _: None
        await world.until(lambda: not world.broker.unsettled(QUEUE), 60)
        assert len(world.elastic.documents) == 2
        assert len(world.elastic.history["documents", "a"]) == 1
        assert not world.dead_letters
        assert sum(ledger.memory_bytes for ledger in world.broker.sessions[-1].ledgers) == 0

    encoder_config = EncoderConfig(
        index=Template("{body.i|documents}"), id_mode="template", id=Template("{body.id}"), split="array"
    )
    play(lambda: SimulatedPipeline(encoder_config=encoder_config), scenario)


def test_a_dead_letter_queue_that_is_missing_holds_up_only_its_own_copies() -> None:
    """Another destination's copies are published meanwhile, and their originals acked."""

    async def scenario(world: SimulatedPipeline) -> None:
        await world.start()
        await world.until(lambda: world.broker.sessions and world.broker.sessions[0].ledgers)
        del world.broker.queues[DEAD]
        bad = publish(world, 1, OPEN, body=b'{"n":"x"}')
        await world.until(lambda: world.log.named("dead_letters.held"), 10)
        await asyncio.sleep(60)
        publish(world, 2, CLOSED)
        await world.until(lambda: world.broker.delayed, 5)
        assert world.published[bad].acked_at is None
        world.broker.declare(DEAD)
        await world.until(lambda: world.dead_letters == [bad], 60)

    play(several, scenario)


def test_a_prefetch_full_of_messages_that_wait_is_a_hold() -> None:
    """Several targets, `hold`: others are stored and it stays ready; if nothing else can come any more, it says so."""

    async def scenario(world: SimulatedPipeline) -> None:
        for number in range(20):
            publish(world, number, CLOSED)
        good = [publish(world, number, OPEN) for number in range(20, 30)]
        await world.start()
        await world.until(lambda: all(world.elastic.applied[body] for body in good), 10)
        await asyncio.sleep(300)
        assert world.pipeline.snapshot().not_ready is None
        assert len(world.broker.unsettled(QUEUE)) == 20
        lines = world.log.named("items.waiting")
        assert {line["error_type"] for line in lines} == {"index_closed_exception"}
        assert sum(line["count"] for line in lines) == 20
        for number in range(30, 100):
            publish(world, number, CLOSED)
        await world.until(lambda: world.pipeline.snapshot().not_ready is not None, 120)
        told = "the index 'closed' accepts no documents: index_closed_exception: closed"
        assert world.pipeline.snapshot().not_ready == ("held", told)
        world.elastic.item_fault = lambda _: None
        await world.until(lambda: len(world.elastic.documents) == 100, 120)
        await world.until_settled()

    play(lambda: several(error_policy=ErrorPolicy(on_index_blocked="hold")), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_ack_waits_long_for_another(seed: int) -> None:
    """Whatever the hole is: here a message that waits in place, with nothing held and little outstanding."""

    async def scenario(world: SimulatedPipeline) -> None:
        publish(world, 0, CLOSED)
        await world.start()
        for number in range(1, 100):
            body = publish(world, number, OPEN)
            await world.until(lambda body=body: world.elastic.applied[body], 10)  # type: ignore[misc]
            await asyncio.sleep(WITHHELD_SECONDS + 0.1)
            assert world.published[body].acked_at is not None

    play(lambda: several(seed=seed, error_policy=ErrorPolicy(on_index_blocked="hold")), scenario)


@pytest.mark.parametrize("refusal", ["undeclarable", "full"])
def test_a_handler_delays_a_message_only_so_often(refusal: str) -> None:
    """A wait in place counts as a round, also if the delay queue refuses the message again after it."""
    calls: list[float] = []

    async def process(messages: list[Message]) -> list[Verdict]:
        calls.append(asyncio.get_running_loop().time())
        return [DELAY] * len(messages)

    class Handled(SimulatedPipeline):
        sink = "handler"

        def _new_pipeline(self) -> Pipeline:
            sink = HandlerSink(self.plan, process, load(None, {"amqp_queue": QUEUE}))
            log = cast("FilteringBoundLogger", self.log)
            return Pipeline(self.plan, sink, rng=self.rng, log=log, wall_clock=self._wall_clock)

        def _acked(self, message: Stored) -> None:
            """Nothing is stored here."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.broker.delays_full = refusal == "full"
        if refusal == "undeclarable":
            undelayable(world)
        world.publish(b"1", guilty=True)
        await world.start()
        await world.until(lambda: world.dead, 600)
        waits = [after - before for before, after in itertools.pairwise(calls)]
        assert len([wait for wait in waits if wait > 1]) == world.plan.delayed_retry_max_rounds

    encoder_config = EncoderConfig(index=Template(""), action=Template(""))
    play(lambda: Handled(encoder_config=encoder_config, far=HANDLER), scenario)


def test_what_waits_for_its_target_is_forgotten_with_its_session() -> None:
    """An answer that comes after the session was lost lets nothing into the waiting room: it would never leave it."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.broker.delays_full = True
        for number in range(3):
            publish(world, number, CLOSED)
        await world.start()
        await world.until(lambda: world.log.named("delays.held"), 10)
        await world.until(lambda: world.elastic.in_flight, 60)
        world.lose_session()
        await world.until(lambda: not world.elastic.in_flight, 60)
        world.elastic.item_fault = lambda _: None
        world.broker.delays_full = False
        await world.until_settled(60)
        await world.until(lambda: world.at_rest, 120)  # from here on all is looked at

    play(several, scenario)
