"""What users and their messages' history decide: conflicts, targets that take nothing, rounds, the guard."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.results.policy import ErrorPolicy
from sidecar.core.wire.properties import decode, header
from tests.fakes.elasticsearch import Failure, must_be_number
from tests.pipeline.simulated_pipeline import DEAD, INDEX, SimulatedPipeline, play

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCKED = Failure(403, "cluster_block_exception", "index [docs] blocked by: [FORBIDDEN/8/index write (api)];")
MISSING = Failure(404, "index_not_found_exception", "no such index [docs]")
BROKEN = Failure(500, "null_pointer_exception", "oh dear")


def fail(world: SimulatedPipeline, failure: Failure, *, only: Callable[[Any], bool] = lambda _: True) -> None:
    """Have Elasticsearch refuse the items that `only` fits."""
    world.elastic.reject = lambda document, _: failure if only(document) else None


def reason_of(world: SimulatedPipeline, position: int = 0) -> object:
    """Return the reason of a dead letter."""
    value = header(world.broker.queues[DEAD].ready[position].properties, b"sidecar-reason")
    assert value is not None
    return decode(value)


@pytest.mark.parametrize(("choice", "dead"), [("ack", 0), ("dead-letter", 1)])
def test_a_true_conflict_is_settled_as_configured(choice: str, dead: int) -> None:
    """Somebody else created the document: an ack, or a dead letter with the reason `conflict`."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.broker.on_ack = lambda _: None  # what loses a conflict is acked, and stored nowhere
        first = world.publish(b'{"n":1}', "same")
        await world.start()
        await world.until(lambda: world.elastic.applied[first])
        world.publish(b'{"n":2}', "same")
        await world.until_settled()
        assert world.elastic.sources(INDEX) == [first]
        assert len(world.dead_letters) == dead
        if dead:
            assert reason_of(world) == "conflict"
        await world.end()

    play(lambda: SimulatedPipeline(action="create", error_policy=ErrorPolicy(on_conflict=choice)), scenario)  # type: ignore[arg-type]


def test_a_blocked_target_goes_round_by_the_delay_queue_until_it_is_taken() -> None:
    """Uncounted, for as long as it takes, and nobody else waits: all others are stored meanwhile."""

    async def scenario(world: SimulatedPipeline) -> None:
        fail(world, BLOCKED, only=lambda document: document["n"] >= 50)
        world.publish_many(60)
        await world.start()
        await world.until(lambda: len(world.elastic.documents) == 50)
        await world.until(lambda: len(world.broker.delayed) == 10)
        await asyncio.sleep(95)
        assert not world.dead_letters
        fail(world, BLOCKED, only=lambda _: False)
        await world.until(lambda: len(world.elastic.documents) == 60)
        await world.until_settled()
        assert 30 <= world.pipeline.counters.total("delay") <= 50, "10 messages, after 10, 20, 40, 80 seconds"
        assert world.pipeline.copying_held is None
        await world.end()

    play(SimulatedPipeline, scenario)


def test_one_blocked_target_stops_nobody_when_the_others_are_quiet() -> None:
    """However many messages it has, and however often they go round: a good one for another target goes at once."""

    async def scenario(world: SimulatedPipeline) -> None:
        fail(world, BLOCKED, only=lambda document: document["to"] == "blocked")
        # Five times the prefetch; as they go round they soon are more in a row than any guard allows.
        for number in range(500):
            world.publish(b'{"n":%d,"to":"blocked"}' % number, f"id-{number}")
        await world.start()
        for number in range(5):
            await asyncio.sleep(60)
            world.publish(b'{"n":%d,"to":"open"}' % number, f"late-{number}")
            await world.until(lambda number=number: len(world.elastic.documents) == number + 1, 5.0)  # type: ignore[misc]
            assert world.pipeline.limiter.held is None
        asked = len(world.elastic.requests)
        await asyncio.sleep(3_600)
        each = (len(world.elastic.requests) - asked) * 10 / 500
        assert each <= 3_600 / 300 + 2, "a target that is blocked for long is asked once in five minutes"
        fail(world, BLOCKED, only=lambda _: False)
        await world.until_settled(600.0)
        assert not world.dead_letters

    play(lambda: SimulatedPipeline(prefetch=100, encoder_config=EncoderConfig(index=Template("{body.to}"))), scenario)


@pytest.mark.parametrize(
    ("failure", "choices", "reason"),
    [
        (BLOCKED, ErrorPolicy(on_index_blocked="dead-letter"), "index-blocked"),
        (MISSING, ErrorPolicy(), "index-missing"),
    ],
)
def test_targets_may_be_given_up(failure: Failure, choices: ErrorPolicy, reason: str) -> None:
    """Dead letters with the target's reason."""

    async def scenario(world: SimulatedPipeline) -> None:
        fail(world, failure)
        world.publish_many(5)
        await world.start()
        await world.until(lambda: len(world.dead_letters) == 5)
        assert reason_of(world) == reason
        await world.until_settled()
        await world.end()

    play(lambda: SimulatedPipeline(error_policy=choices, reject_guard=0), scenario)


@pytest.mark.parametrize(
    ("failure", "choices"),
    [(BLOCKED, ErrorPolicy(on_index_blocked="hold")), (MISSING, ErrorPolicy(on_index_missing="hold"))],
)
def test_targets_may_be_waited_for_in_place(failure: Failure, choices: ErrorPolicy) -> None:
    """Neither copies nor attempts: the message stays here until its target takes it."""

    async def scenario(world: SimulatedPipeline) -> None:
        fail(world, failure)
        world.publish_many(5)
        await world.start()
        await asyncio.sleep(300)
        assert not world.dead_letters
        assert not world.broker.delayed
        fail(world, failure, only=lambda _: False)
        await world.until_settled()
        assert len(world.elastic.documents) == 5
        await world.end()

    play(lambda: SimulatedPipeline(error_policy=choices), scenario)


def test_failures_without_an_id_go_round_and_are_buried_at_last() -> None:
    """Attempts in place, then three rounds of 10, 20 and 40 s, each with as many attempts, then a dead letter."""

    async def scenario(world: SimulatedPipeline) -> None:
        fail(world, BROKEN)
        body = world.publish(b'{"n":1}')
        await world.start()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await world.until(lambda: world.dead_letters == [body], within=600)
        assert reason_of(world) == "retries-exhausted"
        assert loop.time() - began > 10 + 20 + 40
        assert len(world.elastic.requests) == 4 * 5
        assert world.pipeline.counters.total("delay") == 3
        await world.until_settled()
        await world.end()

    play(SimulatedPipeline, scenario)


def test_failures_with_an_id_dont_go_round() -> None:
    """Later operations on the document would overtake them."""

    async def scenario(world: SimulatedPipeline) -> None:
        fail(world, BROKEN)
        body = world.publish(b'{"n":1}', "one")
        await world.start()
        await world.until(lambda: world.dead_letters == [body])
        assert len(world.elastic.requests) == 5
        assert world.pipeline.counters.total("delay") == 0
        await world.until_settled()
        await world.end()

    play(SimulatedPipeline, scenario)


def test_the_guard_holds_instead_of_emptying_the_queue_into_the_dead_letters() -> None:
    """So many rejects of a type with nothing stored between them; it resumes when one is stored."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        for number in range(80):
            world.publish(b'{"n":"no %d"}' % number, f"id-{number}", guilty=True)
        await world.start()
        await world.until(lambda: world.pipeline.limiter.held)
        await asyncio.sleep(600)
        assert len(world.dead_letters) == 30
        assert len(world.log.named("elasticsearch.held")) == 1
        assert "30 documents in a row were refused" in str(world.pipeline.limiter.held)
        world.elastic.reject = lambda _document, _id: None
        await world.until_settled(within=300)
        assert len(world.dead_letters) == 30
        assert len(world.elastic.documents) == 50
        await world.end()

    play(lambda: SimulatedPipeline(reject_guard=30), scenario)


@pytest.mark.parametrize("seed", range(4))
def test_the_guard_holds_what_is_too_large_for_a_proxy(seed: int) -> None:
    """413 for each document alone is a limit of the proxy's, too: many in a row hold, and go on when it takes them."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.max_content_bytes = 20
        world.publish_many(80)
        await world.start()
        await world.until(lambda: world.pipeline.held)
        await asyncio.sleep(200)
        assert world.dead.total() == 10
        assert "10 documents in a row were refused" in str(world.pipeline.held)
        world.guilty.update(dict.fromkeys(world.dead))
        world.elastic.max_content_bytes = 100_000
        await world.until_settled(within=300)
        world.judge()
        assert len(world.elastic.documents) == 70

    play(lambda: SimulatedPipeline(seed, reject_guard=10), scenario)


def test_conflicts_in_a_row_hold_as_well() -> None:
    """Where they are dead letters: a second run over the same messages, or versions that are all too old."""

    async def scenario(world: SimulatedPipeline) -> None:
        for number in range(80):
            world.elastic.documents[INDEX, f"id-{number}"] = b"{}"
            world.publish(b'{"n":%d}' % number, f"id-{number}", guilty=True)
        await world.start()
        await world.until(lambda: world.pipeline.held)
        await asyncio.sleep(100)
        assert len(world.dead_letters) == 10
        assert "version_conflict_engine_exception" in str(world.pipeline.held)

    play(
        lambda: SimulatedPipeline(
            action="create", error_policy=ErrorPolicy(on_conflict="dead-letter"), reject_guard=10
        ),
        scenario,
    )


def test_without_a_guard_all_are_dead_lettered() -> None:
    """`0` turns it off."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        for number in range(80):
            world.publish(b'{"n":"no %d"}' % number, f"id-{number}", guilty=True)
        await world.start()
        await world.until(lambda: len(world.dead_letters) == 80)
        await world.until_settled()
        await world.end()

    play(lambda: SimulatedPipeline(reject_guard=0), scenario)


def test_a_stored_document_between_rejects_resets_the_guard() -> None:
    """Bad documents among good ones are no reason to stop, however many they are."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        for number in range(200):
            bad = number % 2 == 0
            body = b'{"n":"no %d"}' % number if bad else b'{"n":%d}' % number
            world.publish(body, f"id-{number}", guilty=bad)
        await world.start()
        await world.until_settled()
        assert len(world.dead_letters) == 100
        assert not world.log.named("elasticsearch.held")
        await world.end()

    play(lambda: SimulatedPipeline(reject_guard=30), scenario)


def test_where_every_target_is_blocked_all_wait() -> None:
    """A queue that nobody takes anything of must not go round and round."""

    async def scenario(world: SimulatedPipeline) -> None:
        fail(world, BLOCKED)
        world.publish_many(1500)
        await world.start()
        await world.until(lambda: world.pipeline.limiter.held)
        await asyncio.sleep(300)
        assert world.pipeline.counters.total("delay") == 1000
        requests = len(world.elastic.requests)
        await asyncio.sleep(300)
        assert len(world.elastic.requests) - requests < 15
        fail(world, BLOCKED, only=lambda _: False)
        await world.until(lambda: len(world.elastic.documents) == 1500, within=300)
        await world.until_settled()
        await world.end()

    play(SimulatedPipeline, scenario)


def test_rejects_may_be_left_to_the_broker() -> None:
    """`basic.reject`, so that the queue's own dead-lettering takes them; no copy of ours."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        bad = [world.publish(b'{"n":"no %d"}' % number, guilty=True) for number in range(5)]
        world.publish_many(20)
        await world.start()
        await world.until_settled()
        assert sorted(message.body for message in world.broker.rejected) == bad
        assert not world.dead_letters
        assert world.pipeline.counters.total("dead_letter") == 5
        await world.end()

    play(lambda: SimulatedPipeline(on_reject="broker"), scenario)


def test_rejects_may_be_discarded() -> None:
    """Acked, counted apart, and told in the log."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        for number in range(5):
            world.publish(b'{"n":"no %d"}' % number, guilty=True)
        world.publish_many(20)
        await world.start()
        await world.until_settled()
        assert not world.dead_letters
        assert world.pipeline.counters.total("discard") == 5
        assert world.pipeline.counters.total("ack") == 20
        assert sum(event["count"] for event in world.log.named("items.rejected")) == 5
        await world.end()

    play(lambda: SimulatedPipeline(on_reject="discard"), scenario)


def test_waiting_for_a_target_counts_for_nothing_later() -> None:
    """Held for a blocked target, then met by a failure that counts: it has all its attempts."""

    async def scenario(world: SimulatedPipeline) -> None:
        fail(world, BLOCKED)
        world.publish_many(3)
        await world.start()
        await asyncio.sleep(60)
        failures = [BROKEN] * 4

        def fail_four_times(document: Any, _: object) -> Failure | None:
            return failures.pop() if document["n"] == 0 and failures else None

        world.elastic.reject = fail_four_times
        await world.until_settled(120.0)
        assert not failures
        assert not world.dead_letters
        await world.end()

    play(lambda: SimulatedPipeline(error_policy=ErrorPolicy(on_index_blocked="hold")), scenario)
