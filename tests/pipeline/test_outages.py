"""Elasticsearch is away, refuses everybody, or doesn't say what it did: nobody's message is at fault."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.results.policy import ErrorPolicy
from tests.fakes.elasticsearch import Failure, Refusal, Trouble
from tests.pipeline.simulated_pipeline import INDEX, SimulatedPipeline, play

if TYPE_CHECKING:
    from tests.fakes.elasticsearch import Request

SEEDS = range(4)
OUTAGES: dict[str, Trouble | Refusal] = {
    "refused": Trouble.REFUSED,
    "lost": Trouble.LOST_BEFORE,
    "hangs": Trouble.HANGS_BEFORE,
    "503": Refusal(503, html=True),
    "502": Refusal(502, html=True),
    "504": Refusal(504),
}
CONFIGURATION_FAULTS: dict[str, Trouble | Refusal] = {
    "401": Refusal(401, "security_exception", "missing authentication credentials"),
    "403": Refusal(403, "security_exception", "action [indices:data/write/bulk] is unauthorized"),
    "404": Refusal(404, html=True),
    "405": Refusal(405),
    "media type": Refusal(400, "media_type_header_exception", "Invalid media-type value on headers [Accept]"),
    "parameter": Refusal(400, "illegal_argument_exception", "request [/_bulk] contains unrecognized parameter: [x]"),
    "not Elasticsearch's": Refusal(400, html=True),
}
ALL_FAULTS: dict[str, Trouble | Refusal] = {**OUTAGES, **CONFIGURATION_FAULTS}
CREATE = EncoderConfig(index=Template(INDEX), action=Template("create"))
VERSIONED = EncoderConfig(index=Template(INDEX), version=Template("7"))
UNKNOWN = [Trouble.LOST_AFTER, Trouble.HANGS_AFTER, Trouble.UNREADABLE, Trouble.SHORT]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", list(ALL_FAULTS))
def test_nothing_is_dead_lettered_while_every_request_fails_and_all_is_stored_afterwards(name: str, seed: int) -> None:
    """An outage or a configuration fault of ten minutes: a hold, few requests, and it resumes by itself."""
    trouble = ALL_FAULTS[name]

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda _: trouble
        world.publish_many(200)
        await world.start()
        await asyncio.sleep(600)
        assert not world.dead_letters
        assert len(world.left) == 200
        assert world.pipeline.limiter.held is not None
        assert len(world.elastic.requests) < 50, f"{len(world.elastic.requests)} requests in an outage of 600 s"
        assert all(request.items == 1 for request in world.elastic.requests[8:]), "a probe carries a single item"
        world.elastic.trouble = lambda _: None
        await world.until_settled(120.0)
        world.judge(redelivered=True)
        assert not world.dead_letters
        assert len(world.elastic.documents) == 200
        assert world.pipeline.limiter.held is None
        assert len(world.log.named("elasticsearch.held")) >= 1
        assert len(world.log.named("elasticsearch.resumed")) == 1

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_probes_carry_ever_different_items(seed: int) -> None:
    """One item that Elasticsearch doesn't survive must not keep the hold up for ever."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda request: Trouble.LOST_BEFORE if "id-0" in request.ids else None
        world.publish_many(30)
        await world.start()
        await world.until(lambda: len(world.elastic.documents) == 29, 300.0)

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_recovery_is_gradual(seed: int) -> None:
    """After an outage one request is in flight at first, not all of them."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda _: Trouble.REFUSED
        world.publish_many(500)
        await world.start()
        await asyncio.sleep(30)
        world.elastic.trouble = lambda _: None
        world.elastic.most_in_flight = 0
        await world.until(lambda: any(request.outcome == "stored" for request in world.elastic.requests))
        assert world.elastic.most_in_flight <= 1
        await world.until_settled()
        world.judge(redelivered=True)

    play(lambda: SimulatedPipeline(seed, prefetch=500, bulk_concurrency=8), scenario)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trouble", UNKNOWN, ids=lambda trouble: trouble.name.lower())
def test_an_unknown_outcome_ends_in_one_document_for_each_id(trouble: Trouble, seed: int) -> None:
    """Applied without an answer, or with one that can't be matched: the same items go again; nothing is guessed."""

    async def scenario(world: SimulatedPipeline) -> None:
        once: list[int] = []

        def first_three(request: Request) -> Trouble | None:
            once.append(request.number)
            return trouble if len(once) in (1, 3, 4) else None

        world.elastic.trouble = first_three
        world.publish_many(200)
        await world.start()
        await world.until_settled(600.0)
        world.judge(redelivered=True)
        assert len(world.elastic.documents) == 200
        assert not world.dead_letters

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_create_that_was_stored_without_an_answer_is_no_conflict(seed: int) -> None:
    """The second attempt gets a 409: an ack, never a dead letter."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda request: Trouble.LOST_AFTER if request.number == 0 else None
        world.publish_many(50)
        await world.start()
        await world.until_settled(600.0)
        world.judge(redelivered=True)
        assert world.elastic.statuses[409] > 0

    play(lambda: SimulatedPipeline(seed, action="create"), scenario)


@pytest.mark.parametrize("trouble", UNKNOWN, ids=lambda trouble: trouble.name.lower())
@pytest.mark.parametrize("lost_before", [0, 1, 2])
@pytest.mark.parametrize("encoder_config", [CREATE, VERSIONED], ids=["create", "version"])
def test_whichever_request_was_stored_without_an_answer_its_conflict_is_our_own(
    encoder_config: EncoderConfig, lost_before: int, trouble: Trouble
) -> None:
    """A batch, or probes with what never left before: where conflicts are dead letters, these are acks."""

    async def scenario(world: SimulatedPipeline) -> None:
        def failing(request: Request) -> Trouble | None:
            if request.number < lost_before:
                return Trouble.LOST_BEFORE
            return trouble if request.number < lost_before + 6 else None

        world.elastic.trouble = failing
        world.publish_many(50)
        await world.start()
        await world.until_settled(600.0)
        assert world.elastic.statuses[409] > 0
        assert not world.dead_letters
        assert len(world.elastic.documents) == 50

    play(
        lambda: SimulatedPipeline(
            encoder_config=encoder_config, bulk_concurrency=1, error_policy=ErrorPolicy(on_conflict="dead-letter")
        ),
        scenario,
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_attempts_are_not_counted_in_a_second_outage(seed: int) -> None:
    """Items that met an outage twice, with probes that passed between, outlast the second one however long it is."""

    async def scenario(world: SimulatedPipeline) -> None:
        away = [True]
        world.elastic.trouble = lambda _: Trouble.REFUSED if away[0] else None
        world.publish_many(3)
        await world.start()
        await asyncio.sleep(5)
        world.elastic.looks_see_trouble = True
        # One probe passes, then Elasticsearch is away again.
        world.elastic.trouble = lambda _: None if not world.elastic.documents else Trouble.REFUSED
        await asyncio.sleep(1_800)
        assert not world.dead_letters, "an outage emptied the queue into the dead letters"
        world.elastic.trouble = lambda _: None
        await world.until_settled(120.0)
        world.judge(redelivered=True)

    play(lambda: SimulatedPipeline(seed, batch_max_age_seconds=0.1), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_item_that_nobody_survives_is_found_and_blamed_alone(seed: int) -> None:
    """Probes pass and the same batch fails again without an answer: it is halved until the item is alone."""

    async def scenario(world: SimulatedPipeline) -> None:
        killer = world.publish(b'{"n":"kills"}', "killer", guilty=True)
        world.elastic.trouble = lambda request: Trouble.LOST_BEFORE if "killer" in request.ids else None
        world.publish_many(99)
        await world.start()
        await world.until_settled(3_600.0)
        world.judge(redelivered=True)
        assert world.dead_letters == [killer]
        assert len(world.elastic.documents) == 99

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_whole_request_429_slows_down_and_obeys_retry_after(seed: int) -> None:
    """The same items again, not before Elasticsearch wants them."""

    async def scenario(world: SimulatedPipeline) -> None:
        busy = Refusal(429, "circuit_breaking_exception", "[parent] Data too large", retry_after_seconds=7.0)
        world.elastic.trouble = lambda request: busy if request.number == 0 else None
        world.publish_many(10)
        await world.start()
        await world.until_settled()
        world.judge()
        first, second = world.elastic.requests[:2]
        assert second.at - first.at >= 7.0
        assert len(world.elastic.requests) == 2

    play(lambda: SimulatedPipeline(seed), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_items_that_fail_inside_elasticsearch_are_tried_a_counted_number_of_times(seed: int) -> None:
    """A 500 of an item: again in place, five attempts, then `retries-exhausted`; the others are stored meanwhile."""

    async def scenario(world: SimulatedPipeline) -> None:
        broken = Failure(500, "illegal_state_exception", "shard is in a bad mood")
        world.elastic.item_fault = lambda item: broken if item.document_id == "broken" else None
        body = world.publish(b'{"n":"x"}', "broken", guilty=True)
        world.publish_many(30)
        await world.start()
        await world.until_settled(600.0)
        world.judge()
        assert world.dead_letters == [body]
        assert sum("broken" in request.ids for request in world.elastic.requests) == 5

    play(lambda: SimulatedPipeline(seed), scenario)


FULL_DISK = Failure(
    429, "cluster_block_exception", "index [docs] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded];"
)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("whole", [False, True])
def test_where_429_is_all_that_comes_for_long_it_is_an_outage(seed: int, whole: bool) -> None:
    """A disk at its flood stage: a hold, told once, with few requests; and it goes on by itself when there is room."""

    async def scenario(world: SimulatedPipeline) -> None:
        if whole:
            world.elastic.trouble = lambda _: Refusal(429, "circuit_breaking_exception", "[parent] Data too large")
        else:
            world.elastic.item_fault = lambda _: FULL_DISK
        world.publish_many(200)
        await world.start()
        await world.until(lambda: world.pipeline.held, 40.0)
        await asyncio.sleep(200)
        assert len(world.elastic.requests) < 40
        assert len(world.log.named("elasticsearch.held")) == 1
        assert not world.dead_letters
        world.elastic.trouble, world.elastic.item_fault = lambda _: None, lambda _: None
        await world.until_settled(60.0)
        world.judge()
        assert world.pipeline.held is None

    play(lambda: SimulatedPipeline(seed, prefetch=200), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pool_that_is_full_for_some_seconds_is_no_outage(seed: int) -> None:
    """It slows down, and nothing else: with the pool's room back everything goes on at once."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.item_fault = lambda _: FULL_DISK
        world.publish_many(200)
        await world.start()
        await asyncio.sleep(4)
        assert world.pipeline.held is None
        world.elastic.item_fault = lambda _: None
        await world.until_settled(15.0)
        world.judge()
        assert not world.log.named("elasticsearch.held")

    play(lambda: SimulatedPipeline(seed, prefetch=200), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_429_of_a_request_that_was_stored_in_part_is_no_conflict(seed: int) -> None:
    """Bodies are taken in pieces: the second attempt finds what the first one stored, which is our own doing."""

    async def scenario(world: SimulatedPipeline) -> None:
        busy = Refusal(429, "circuit_breaking_exception", "[parent] Data too large", applied=5)
        world.elastic.trouble = lambda request: busy if request.number == 0 else None
        world.publish_many(10)
        await world.start()
        await world.until_settled()
        world.judge(redelivered=True)
        assert world.elastic.statuses[409] > 0
        assert not world.dead_letters

    play(
        lambda: SimulatedPipeline(seed, action="create", error_policy=ErrorPolicy(on_conflict="dead-letter")), scenario
    )
