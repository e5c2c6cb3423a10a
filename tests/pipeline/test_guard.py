"""The guard before a request: what can't be encoded doesn't empty a queue into the dead letters, whatever the cause."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.far import HANDLER
from sidecar.library.handler_sink import HandlerSink
from sidecar.library.settings import load
from sidecar.library.transforming import hook
from sidecar.library.verdicts import ACK, Verdict
from sidecar.pipeline.pipeline import Pipeline
from tests.builders import long_string
from tests.builders import properties as raw_properties
from tests.pipeline.simulated_pipeline import INDEX, QUEUE, SimulatedPipeline, play

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from sidecar.library.messages import Message as Shown
    from tests.fakes.broker import Stored

SEEDS = range(5)
GUARD = 30


class Tenants(SimulatedPipeline):
    """A world whose index is named by a header; what has none is rejected before any request."""

    def __init__(self, seed: int = 0, **plan: Any) -> None:
        encoder_config = plan.pop("encoder_config", None) or EncoderConfig(index=Template("{header.tenant}"))
        super().__init__(seed, **{"encoder_config": encoder_config, "reject_guard": GUARD, **plan})
        self.number = 0

    def tell(self, *, tenant: bool, document_id: str | None = None, count: int = 1) -> None:
        """Publish messages with the header or without it."""
        for _ in range(count):
            body = b'{"n":%d}' % self.number
            raw = {"message_id": (document_id or f"id-{self.number}").encode()}
            headers = [(b"tenant", long_string(INDEX.encode()))] if tenant else None
            self.published[body] = self.broker.publish(QUEUE, body, raw_properties(headers, **raw))
            if not tenant:
                self.guilty[body] = None
            if document_id is not None:
                self.order.setdefault(document_id, []).append(body)
            self.number += 1


def held(world: SimulatedPipeline) -> str:
    """Return why the pipeline is held."""
    return world.pipeline.held or ""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("on_reject", ["dead-letter", "broker", "discard"])
def test_so_many_in_a_row_leave_and_the_rest_waits(seed: int, on_reject: str) -> None:
    """Whatever becomes of rejects; the hold says why and what to do, and nothing is ready meanwhile."""

    async def scenario(world: Tenants) -> None:
        world.tell(tenant=False, count=200)
        await world.start()
        await world.until(lambda: held(world))
        await asyncio.sleep(100)
        assert len(world.left) == 200 - GUARD
        account = world.pipeline.counters
        assert account.total("discard" if on_reject == "discard" else "dead_letter") == GUARD
        assert "30 messages in a row were rejected: missing-field: the message has no header.tenant" in held(world)
        assert "SIDECAR_REJECT_GUARD" in held(world)
        assert len(world.log.named("elasticsearch.held")) == 1
        state = world.pipeline.snapshot()
        assert state.not_ready is not None
        assert (state.not_ready.reason, state.held, state.breaker) == ("held", held(world), "open")
        assert 0 < state.next_try_seconds <= 30

    play(lambda: Tenants(seed, on_reject=on_reject), scenario)


def test_a_hold_is_told_with_its_own_duration() -> None:
    """Not with the time since an outage that is over, nor with that since the start."""

    async def scenario(world: Tenants) -> None:
        world.tell(tenant=True)
        await world.start()
        for _ in (1, 2):
            await world.until_settled()
            world.elastic.down = True
            world.tell(tenant=True)
            began = await world.until(lambda: world.pipeline.limiter.held, 300)
            await asyncio.sleep(10)
            assert world.pipeline.snapshot().held_seconds == pytest.approx(asyncio.get_running_loop().time() - began)
            world.elastic.down = False
            await world.until_settled(300)
            await asyncio.sleep(1_000)
            assert world.pipeline.snapshot().held_seconds == 0.0
            world.tell(tenant=False, count=GUARD + 1)
            began = await world.until(lambda: held(world))
            await asyncio.sleep(20)
            assert world.pipeline.snapshot().held_seconds == pytest.approx(asyncio.get_running_loop().time() - began)
            world.tell(tenant=True)
            await world.until_settled(31)

    play(Tenants, scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_can_be_encoded_ends_the_hold(seed: int) -> None:
    """Once publishers are fixed, the next look finds their messages: all that waits goes on, in order."""

    async def scenario(world: Tenants) -> None:
        world.tell(tenant=False, count=GUARD + 20)
        await world.start()
        await world.until(lambda: held(world))
        await asyncio.sleep(100)
        world.tell(tenant=True, count=40)
        await world.until_settled(within=31)
        world.judge()
        assert (len(world.dead_letters), len(world.elastic.documents)) == (GUARD + 20, 40)
        assert not held(world)
        assert len(world.log.named("elasticsearch.resumed")) == 1

    play(lambda: Tenants(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_each_message_that_can_be_encoded_lets_one_row_go(seed: int) -> None:
    """One good message behind a thousand bad ones is no licence to empty the queue."""

    async def scenario(world: Tenants) -> None:
        world.tell(tenant=False, count=10 * GUARD)
        world.tell(tenant=True)
        await world.start()
        await asyncio.sleep(200)
        assert held(world)
        assert len(world.dead_letters) == 2 * GUARD
        world.tell(tenant=True, count=10)
        await world.until_settled(within=100)
        world.judge()
        assert len(world.elastic.documents) == 11

    play(lambda: Tenants(seed, prefetch=1000), scenario)


@pytest.mark.parametrize("share", [2, 5, 25])
@pytest.mark.parametrize("seed", SEEDS)
def test_bad_messages_among_good_ones_are_no_hold(seed: int, share: int) -> None:
    """Encoding runs far ahead of storing, and many rejects are made before the first good one is stored: no hold."""

    async def scenario(world: Tenants) -> None:
        world.elastic.latency_seconds = (5.0, 6.0)
        for number in range(1500):
            world.tell(tenant=number % share == share - 1)
        await world.start()
        await world.until_settled(within=2000)
        world.judge()
        assert not world.log.named("elasticsearch.held")

    play(lambda: Tenants(seed, prefetch=600, batch_max_items=100, bulk_concurrency=1), scenario)


def test_a_full_row_alone_is_no_hold() -> None:
    """As many as the guard allows, and then a good one."""

    async def scenario(world: Tenants) -> None:
        for _ in range(5):
            world.tell(tenant=False, count=GUARD)
            world.tell(tenant=True)
        await world.start()
        await world.until_settled()
        world.judge()
        assert len(world.dead_letters) == 5 * GUARD
        assert not world.log.named("elasticsearch.held")

    play(Tenants, scenario)


def test_zero_turns_it_off() -> None:
    """All are dead letters then."""

    async def scenario(world: Tenants) -> None:
        world.tell(tenant=False, count=200)
        await world.start()
        await world.until_settled()
        assert len(world.dead_letters) == 200

    play(lambda: Tenants(reject_guard=0), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_overtakes_what_waits(seed: int) -> None:
    """A document's operations are written in order, though code of somebody's own fails for a while."""
    broken = True

    def transform(shown: Any) -> Any:
        if broken:
            raise ConnectionError
        return shown.json()

    hooked = hook(transform)
    encoder_config = EncoderConfig(index=Template(INDEX), transform=hooked.transform, prepare=hooked.prepare)

    async def scenario(world: Tenants) -> None:
        nonlocal broken
        for number in range(150):
            world.tell(tenant=True, document_id=f"id-{number % 7}")
        world.guilty.update(dict.fromkeys(list(world.published)[:GUARD]))
        await world.start()
        await world.until(lambda: held(world))
        assert "transform-failed: ConnectionError at " in held(world)
        await asyncio.sleep(50)
        assert len(world.dead_letters) == GUARD
        broken = False
        await world.until(lambda: not held(world), within=31)
        await world.until_settled()
        world.judge()
        assert len(world.dead_letters) == GUARD
        assert sum(map(len, world.elastic.history.values())) == 150 - GUARD

    play(lambda: Tenants(seed, encoder_config=encoder_config), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_asynchronous_code_is_asked_again(seed: int) -> None:
    """What it made of a message that waits may be an exception; nothing is stored or thrown away because of that."""
    broken = True

    async def transform(shown: Any) -> Any:
        await asyncio.sleep(0.01)
        if broken:
            raise TimeoutError
        return shown.json()

    hooked = hook(transform)
    encoder_config = EncoderConfig(index=Template(INDEX), transform=hooked.transform, prepare=hooked.prepare)

    async def scenario(world: Tenants) -> None:
        nonlocal broken
        world.tell(tenant=True, count=150)
        world.guilty.update(dict.fromkeys(list(world.published)[:GUARD]))
        await world.start()
        await world.until(lambda: held(world))
        await asyncio.sleep(50)
        broken = False
        await world.until_settled(within=31)
        world.judge()
        assert (len(world.dead_letters), len(world.elastic.documents)) == (GUARD, 150 - GUARD)

    play(lambda: Tenants(seed, encoder_config=encoder_config), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hold_that_lasts_gives_everything_back(seed: int) -> None:
    """After SIDECAR_HOLD_MAX others could have them; then it is tried now and then, and all goes on when fixed."""

    async def scenario(world: Tenants) -> None:
        world.tell(tenant=False, count=100)
        await world.start()
        await world.until(lambda: world.log.named("amqp.given_back"), within=60)
        given_back = world.log.named("amqp.given_back")[0]
        assert "30 messages in a row" in str(given_back["reason"])
        await world.until(lambda: world.ready == 100 - GUARD)
        await asyncio.sleep(600)
        assert len(world.dead_letters) == GUARD
        assert len(world.log.named("amqp.given_back")) < 10
        assert len(world.log.named("elasticsearch.held")) == 1
        world.tell(tenant=True, count=5)
        await world.until_settled(within=1000)
        world.judge()
        assert len(world.elastic.documents) == 5

    play(lambda: Tenants(seed, hold_max_seconds=20.0), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_being_stored_is_not_given_back(seed: int) -> None:
    """Requests go on in this hold: given back now, their messages would be stored twice."""

    async def scenario(world: Tenants) -> None:
        world.elastic.latency_seconds = (7.0, 8.0)
        world.tell(tenant=True, count=50)
        world.tell(tenant=False, count=100)
        await world.start()
        await world.until(lambda: world.log.named("amqp.given_back"), within=200)
        await asyncio.sleep(10)
        assert world.pipeline.counters.total("ack") == 50
        world.judge()

    play(lambda: Tenants(seed, hold_max_seconds=5.0, bulk_concurrency=1, prefetch=200), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_drain_gives_back_what_waits_in_order(seed: int) -> None:
    """SIGTERM in the hold: what was encoded before is stored, the rest goes back as it was; fixed settings go on."""

    async def scenario(world: Tenants) -> None:
        world.tell(tenant=True, count=10)
        world.tell(tenant=False, count=100)
        order = list(world.published)
        await world.start()
        await world.until(lambda: held(world))
        assert await world.stop() < 5
        assert [message.body for message in world.broker.queues[QUEUE].ready] == order[10 + GUARD :]
        assert len(world.elastic.documents) == 10
        world.judge()
        world.plan = SimulatedPipeline(encoder_config=EncoderConfig(index=Template(INDEX))).plan
        await world.start()
        await world.until_settled()
        assert len(world.elastic.documents) == 10 + 100 - GUARD

    play(lambda: Tenants(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lost_session_changes_nothing(seed: int) -> None:
    """The hold stays, what waited is dropped, and comes again."""

    async def scenario(world: Tenants) -> None:
        world.tell(tenant=False, count=100)
        await world.start()
        await world.until(lambda: held(world) and len(world.dead_letters) == GUARD)
        for _ in range(3):
            world.lose_session()
            await asyncio.sleep(60)
            assert len(world.dead_letters) == GUARD
            assert held(world)
        world.tell(tenant=True, count=5)
        await world.until_settled(within=200)
        world.judge(redelivered=True)
        assert len(world.elastic.documents) == 5

    play(lambda: Tenants(seed, prefetch=200), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_memory_is_bounded_in_the_hold(seed: int) -> None:
    """What waits is held in memory, and no more than the limit allows."""

    async def scenario(world: Tenants) -> None:
        world.tell(tenant=False, count=2000)
        await world.start()
        await world.until(lambda: held(world))
        for _ in range(100):
            await asyncio.sleep(1)
            assert world.pipeline.snapshot().in_flight_bytes <= 60_000
        world.tell(tenant=True, count=5)
        assert len(world.dead_letters) == GUARD

    play(lambda: Tenants(seed, prefetch=1000, memory_limit_bytes=50_000), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_message_of_which_one_document_is_good_is_not_in_the_row(seed: int) -> None:
    """The answer to that one says more; what is all bad counts once a message."""

    async def scenario(world: SimulatedPipeline) -> None:
        for number in range(100):
            world.broker.publish(QUEUE, b'[{"n":%d},%d]' % (number, number))
        await world.start()
        await world.until_settled()
        assert not world.log.named("elasticsearch.held")
        for number in range(100):
            world.broker.publish(QUEUE, b"[%d,%d]" % (number, number))
        await world.until(lambda: held(world))
        await asyncio.sleep(50)
        assert len(world.dead_letters) == 100 + GUARD

    encoder_config = EncoderConfig(index=Template(INDEX), split="array")
    play(lambda: SimulatedPipeline(seed, encoder_config=encoder_config, reject_guard=GUARD), scenario)


@pytest.mark.parametrize("coalesce", ["latest", "none"])
@pytest.mark.parametrize("seed", SEEDS)
def test_flush_messages_neither_count_nor_end_the_row(seed: int, coalesce: str) -> None:
    """They are acked at once and nothing of them is stored: a batch's end among bad messages is no good sign."""

    async def scenario(world: Tenants) -> None:
        for _ in range(20):
            world.tell(tenant=False, count=10)
            raw = raw_properties([(b"flush", long_string(b"x"))])
            world.broker.publish(QUEUE, b"", raw)
        await world.start()
        await world.until(lambda: held(world))
        await asyncio.sleep(50)
        assert len(world.dead_letters) == GUARD
        world.tell(tenant=True, count=10)
        await world.until_settled(within=100)
        assert len(world.elastic.documents) == 10

    encoder_config = EncoderConfig(
        index=Template("{header.tenant}"),
        batch_flush_when=Template("{header.flush|}"),
        batch_key=Template("{header.k|}"),
        coalesce=coalesce,  # type: ignore[arg-type] # one of them
    )
    play(lambda: Tenants(seed, encoder_config=encoder_config, prefetch=1000), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_library_holds_what_it_cannot_batch(seed: int) -> None:
    """A `batch_key` that publishers don't set: the same hold, by the handler's name."""

    async def process(batch: list[Shown]) -> Verdict:
        return ACK

    class Handled(Tenants):
        sink = "handler"

        def _new_pipeline(self) -> Pipeline:
            settings = load(None, {"amqp_queue": QUEUE, "batch_key": "{header.tenant}"})
            log = cast("FilteringBoundLogger", self.log)
            sink = HandlerSink(self.plan, process, settings)
            return Pipeline(self.plan, sink, rng=self.rng, log=log, wall_clock=self._wall_clock)

        def _acked(self, message: Stored) -> None:
            """Nothing is stored here."""

    async def scenario(world: Tenants) -> None:
        world.tell(tenant=False, count=100)
        await world.start()
        await world.until(lambda: held(world))
        await asyncio.sleep(100)
        assert len(world.dead_letters) == GUARD
        assert len(world.log.named("handler.held")) == 1
        world.tell(tenant=True, count=5)
        await world.until_settled(within=100)
        assert len(world.dead_letters) == 100
        assert len(world.log.named("handler.resumed")) == 1
        assert world.pipeline.counters.total("ack") == 5

    encoder_config = EncoderConfig(index=Template(""), action=Template(""), batch_key=Template("{header.tenant}"))
    play(lambda: Handled(seed, encoder_config=encoder_config, far=HANDLER, prefetch=200), scenario)
