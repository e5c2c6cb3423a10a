"""What is told of the work: times, states, and the log in a storm."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from sidecar.core.results.policy import ErrorPolicy
from sidecar.core.stats.snapshot import NotReady
from tests.builders import properties
from tests.fakes.elasticsearch import TARGET_FAILURES, Failure, Trouble, must_be_number
from tests.pipeline.expected_metrics import scrape
from tests.pipeline.simulated_pipeline import DEAD, INDEX, QUEUE, SimulatedPipeline, play

if TYPE_CHECKING:
    from sidecar.core.stats.snapshot import Snapshot

AGE_SECONDS = 30
REASONS = ("malformed", "rejected")


def state(world: SimulatedPipeline) -> Snapshot:
    """Return what the sidecar tells."""
    assert world.app is not None
    return world.app.snapshot()


def reason(world: SimulatedPipeline) -> str | None:
    """Return why it isn't ready."""
    not_ready = state(world).not_ready
    return not_ready.reason if not_ready is not None else None


@pytest.mark.parametrize("milliseconds", [False, True])
def test_times_are_measured_from_publishing_where_a_message_says_when(milliseconds: bool) -> None:
    """One value for a batch: its first message's."""

    async def scenario(world: SimulatedPipeline) -> None:
        published = int(world._wall_clock()) - AGE_SECONDS
        timestamp = published * 1000 if milliseconds else published
        for number in range(30):
            world.broker.publish(QUEUE, b'{"n":%d}' % number, properties(timestamp=timestamp))
        await world.start()
        await world.until_settled()
        account = world.pipeline.counters
        for histogram in (account.queue_wait_seconds, account.end_to_end_seconds):
            assert histogram.count == 3
            assert AGE_SECONDS <= histogram.total / 3 <= AGE_SECONDS + 5
        assert account.end_to_end_seconds.total >= account.queue_wait_seconds.total
        assert (account.bulk_seconds.count, account.batch_items.total) == (3, 30)

    play(SimulatedPipeline, scenario)


@pytest.mark.parametrize("timestamp", [None, 0, 5, 2**63, 1_600_000_000])
def test_a_time_that_is_missing_or_absurd_measures_nothing(timestamp: int | None) -> None:
    """Then the time until it is stored begins with the batch."""

    async def scenario(world: SimulatedPipeline) -> None:
        raw = b"\0\0" if timestamp is None else properties(timestamp=timestamp)
        for number in range(10):
            world.broker.publish(QUEUE, b'{"n":%d}' % number, raw)
        await world.start()
        await world.until_settled()
        account = world.pipeline.counters
        assert account.queue_wait_seconds.count == 0
        assert account.end_to_end_seconds.count == 1
        assert 0.0 <= account.end_to_end_seconds.total <= 5.0

    play(SimulatedPipeline, scenario)


def test_a_publisher_whose_clock_is_ahead_makes_no_negative_times() -> None:
    """Clocks differ."""

    async def scenario(world: SimulatedPipeline) -> None:
        raw = properties(timestamp=int(world._wall_clock()) + 100)
        world.broker.publish(QUEUE, b"{}", raw)
        await world.start()
        await world.until_settled()
        account = world.pipeline.counters
        assert (account.queue_wait_seconds.total, account.end_to_end_seconds.total) == (0.0, 0.0)
        assert account.queue_wait_seconds.count == 1

    play(SimulatedPipeline, scenario)


def test_readiness_names_what_is_to_be_mended() -> None:
    """First RabbitMQ, then Elasticsearch, then the route of dead letters; and the end."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.broker.down = True
        await world.start()
        await asyncio.sleep(3.0)
        assert reason(world) == "not-connected"
        assert not state(world).reached_broker
        assert state(world).reached_elasticsearch
        world.broker.down = False
        await world.until(lambda: reason(world) is None)
        assert state(world).connected
        world.elastic.trouble = lambda _: Trouble.REFUSED
        world.publish_many(30)
        await world.until(lambda: reason(world) == "held")
        held_at = asyncio.get_running_loop().time()
        await asyncio.sleep(20.0)
        told = state(world)
        assert told.held is not None
        assert told.not_ready is not None
        assert told.not_ready.detail == told.held
        assert told.breaker in {"open", "half-open"}
        assert told.held_seconds == pytest.approx(asyncio.get_running_loop().time() - held_at, abs=0.1)
        assert told.next_try_seconds <= 30.0
        world.elastic.trouble = lambda _: None
        await world.until(lambda: reason(world) is None)
        assert (state(world).breaker, state(world).held_seconds) == ("closed", 0.0)
        world.broker.declare(DEAD).full = True
        world.publish(b"not json", guilty=True)
        await world.until(lambda: reason(world) == "dead-letters-held")
        world.broker.declare(DEAD).full = False
        await world.until(lambda: reason(world) is None)
        await world.until_settled()
        world.elastic.latency_seconds = (3.0, 3.0)
        world.publish_many(30, start=100)
        await world.until(lambda: state(world).bulk_in_flight > 0)
        stopping = asyncio.create_task(world.stop())
        await asyncio.sleep(0.1)
        assert reason(world) == "draining"
        await stopping

    play(SimulatedPipeline, scenario)


@pytest.mark.parametrize("on_reject", ["dead-letter", "discard"])
def test_a_storm_of_rejects_is_few_lines_and_each_reject_is_in_one(on_reject: str) -> None:
    """Also those that are told last: the end waits for no timer."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        for number in range(5_000):
            world.publish((b'{"n":"no %d"}' if number % 2 else b"not json %d") % number, f"id-{number}", guilty=True)
        await world.start()
        seconds = await world.until_settled(600.0)
        verdict = "discard" if on_reject == "discard" else "dead_letter"
        assert {group.kind.verdict for group in state(world).failures} == {verdict}
        assert sum(group.count for group in state(world).failures) == 5_000
        await world.stop()
        lines = world.log.named("items.rejected")
        assert sum(line["count"] for line in lines) == 5_000  # type: ignore[misc]
        assert len(lines) <= 2 * (3 + 1 + seconds / 10)
        assert all(line["example_id"] for line in lines)

    play(lambda: SimulatedPipeline(on_reject=on_reject, reject_guard=0), scenario)


def test_what_goes_round_by_the_delay_queue_is_told_as_well() -> None:
    """It would be silent otherwise: a blocked index fills no dead-letter queue."""

    async def scenario(world: SimulatedPipeline) -> None:
        blocked = Failure(403, "cluster_block_exception", "index [x] blocked by: [FORBIDDEN/8/index write]")
        world.elastic.reject = lambda _document, _id: blocked
        world.publish(b'{"n":1}', "id-1")
        await world.start()
        await world.until(lambda: world.log.named("items.delayed"))
        (line,) = world.log.named("items.delayed")
        assert (line["error_type"], line["count"], line["example_id"]) == ("cluster_block_exception", 1, "id-1")
        (group,) = state(world).failures
        assert group.kind.verdict == "delay"
        world.elastic.reject = lambda _document, _id: None
        await world.until_settled()
        await world.until(lambda: world.elastic.documents, 60.0)

    play(SimulatedPipeline, scenario)


@pytest.mark.parametrize("choices", [ErrorPolicy(on_index_blocked="hold"), ErrorPolicy(on_index_missing="hold")])
def test_what_waits_in_place_for_its_target_is_told_and_a_hold(choices: ErrorPolicy) -> None:
    """All messages have one target, and that accepts none: not ready, with the reason; each message is told once."""
    error_type = "index_closed_exception" if choices.on_index_blocked == "hold" else "index_not_found_exception"
    failure = Failure(400 if choices.on_index_blocked == "hold" else 404, error_type, "no document is accepted")

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = lambda _document, _id: failure
        for number in range(3):
            world.publish(b'{"n":%d}' % number, f"id-{number}")
        await world.start()
        await world.until(lambda: reason(world) == "held", 10)
        not_ready = state(world).not_ready
        assert not_ready is not None
        assert not_ready.detail == f"the index {INDEX!r} accepts no documents: {error_type}: {failure.reason}"
        (line,) = world.log.named("items.waiting")
        assert (line["error_type"], line["count"], line["example_id"]) == (error_type, 3, "id-0")
        await asyncio.sleep(60)
        assert reason(world) == "held"
        (group,) = state(world).failures
        assert (group.kind.verdict, group.count) == ("wait", 3)
        world.elastic.reject = lambda _document, _id: None
        await world.until_settled(60.0)
        assert state(world).not_ready is None

    play(lambda: SimulatedPipeline(error_policy=choices), scenario)


def test_documents_are_counted_by_action_also_where_it_differs_from_message_to_message() -> None:
    """Stored as a whole or item by item."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        for number in range(9):
            raw = properties(type=b"create" if number % 3 else b"index", message_id=b"id-%d" % number)
            world.broker.publish(QUEUE, b'{"n":%d}' % number, raw)
        await world.start()
        await world.until_settled()
        world.broker.publish(QUEUE, b'{"n":"x"}', properties(type=b"create", message_id=b"bad"))
        await world.until_settled()
        documents = world.pipeline.counters.documents
        assert documents == {
            ("create", "success"): 6,
            ("index", "success"): 3,
            ("create", "failed_client"): 1,
        }
        assert world.pipeline.counters.outcomes() == {"success": 9, "failed_client": 1}

    play(lambda: SimulatedPipeline(action="{type}"), scenario)


def test_each_line_of_an_answer_has_the_count_and_the_example_of_its_own_kind() -> None:
    """Several kinds in one answer, before and after a request, and again in the summaries of a storm."""
    kinds = {
        "a": Failure(400, "document_parsing_exception", "no number"),
        "b": Failure(400, "illegal_argument_exception", "too many fields"),
        "c": Failure(403, "cluster_block_exception", "blocked"),
    }

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.item_fault = lambda item: kinds.get((item.document_id or "").partition("-")[0])
        number = 0
        for _ in range(10):
            for kind, count in (("a", 2), ("x", 1), ("b", 3), ("c", 1), ("bad", 2)):
                for _ in range(count):
                    body = (b"no json %d" if kind == "bad" else b'{"n":%d}') % number
                    world.broker.publish(QUEUE, body, properties(message_id=b"%s-%d" % (kind.encode(), number)))
                    number += 1
        await world.start()
        await world.until(lambda: len(world.dead_letters) == 70, 60.0)
        world.elastic.item_fault = lambda _: None
        await world.until_settled(120.0)
        await world.stop()
        types = {"document_parsing_exception": "a", "illegal_argument_exception": "b", "": "bad"}
        counts: dict[str, int] = {}
        for line in world.log.named("items.rejected"):
            kind = types[str(line["error_type"])]
            assert str(line["example_id"]).startswith(f"{kind}-"), line
            assert line["reason"] == ("malformed" if kind == "bad" else "rejected")
            assert str(line["example"]).startswith({"a": "no number", "b": "too many fields"}.get(kind, "")), line
            counts[kind] = counts.get(kind, 0) + int(str(line["count"]))
        assert counts == {"a": 20, "b": 30, "bad": 20}
        for line in world.log.named("items.delayed"):
            assert (line["error_type"], line["reason"]) == ("cluster_block_exception", "index-blocked")
            assert str(line["example_id"]).startswith("c-")

    play(lambda: SimulatedPipeline(batch_max_items=9, reject_guard=0), scenario)


def test_a_summary_comes_for_each_kind_though_nothing_fails_any_more() -> None:
    """Two storms, the second of which begins within the window of the first; the end of the sidecar tells nothing."""

    async def scenario(world: SimulatedPipeline) -> None:
        await world.start()
        for storm, text in enumerate((b"no json %d", b'{"n":"no %d"}')):
            for number in range(60):
                world.publish(text % number, f"{storm}-{number}", guilty=True)
            await asyncio.sleep(5.0)
        await world.until_settled()
        await asyncio.sleep(15.0)
        lines = world.log.named("items.rejected")
        counts = {reason: [line["count"] for line in lines if line["reason"] == reason] for reason in REASONS}
        assert {reason: sum(told) for reason, told in counts.items()} == dict.fromkeys(REASONS, 60)  # type: ignore[arg-type]
        assert {reason: len(told) for reason, told in counts.items()} == dict.fromkeys(REASONS, 4)
        await world.stop()
        assert world.log.named("items.rejected") == lines

    def made() -> SimulatedPipeline:
        world = SimulatedPipeline(reject_guard=0)
        world.elastic.reject = must_be_number("n")
        world.broker._chunk_items = (10, 10)
        return world

    play(made, scenario)


def test_the_last_lines_say_what_the_metrics_say() -> None:
    """`sidecar.draining` at the moment of the signal, `sidecar.stopped` at the end; both with each verdict."""

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.reject = must_be_number("n")
        for number in range(7):
            world.publish(b'{"n":%d}' % number if number > 1 else b'{"n":"no %d"}' % number, guilty=number < 2)
        await world.start()
        await world.until_settled()
        world.elastic.trouble = lambda _: Trouble.HANGS_BEFORE
        world.publish_many(3, start=10)
        await world.until(lambda: world.elastic.in_flight)
        await world.stop()
        common = {"received": 10, "ack": 5, "dead_letter": 2, "delay": 0, "discard": 0, "stale": 0}
        (draining,) = world.log.named("sidecar.draining")
        assert draining == {"seconds": 25.0, **common, "requeue": 0, "in_flight": 3}
        (stopped,) = world.log.named("sidecar.stopped")
        work = {
            "documents": {"success": 5, "failed_client": 2},
            "batches": {"age": 2},
            "requests": {"partial": 1},
            "retries": {},
            "splits": {},
        }
        assert stopped == {**common, "requeue": 3, "in_flight": 0, **work}

    play(SimulatedPipeline, scenario)


READY = None
"""No reason: `/readyz` is 200."""


def test_every_reason_comes_and_goes_and_the_first_to_mend_is_told() -> None:
    """Of several at a time the one that has to be mended first; the metric `ready` always says the same."""
    seen: list[str | None] = []
    away = "no answer from Elasticsearch: Connection refused"

    async def scenario(world: SimulatedPipeline) -> None:
        async def becomes(expected: str | None, within: float = 60.0) -> None:
            await world.until(lambda: reason(world) == expected, within)
            seen.append(expected)
            assert scrape(state(world))["ready"] == (expected is None)

        world.broker.down = True
        world.elastic.down = True
        await world.start()
        await becomes("not-connected")
        world.broker.down = False
        await becomes("waiting-for-elasticsearch")
        await world.until(lambda: state(world).not_ready == NotReady(reason(world) or "", away))
        assert (state(world).connected, state(world).reached_elasticsearch) == (True, False)
        world.elastic.down = False
        await becomes("starting")
        await becomes(READY)
        dead = world.broker.declare(DEAD)
        dead.full = True
        world.publish(b"not json", guilty=True)
        await becomes("dead-letters-held")
        assert "dead letter" in str(state(world).copies_held) or DEAD in str(state(world).copies_held)
        world.elastic.trouble = lambda _: Trouble.REFUSED
        world.publish_many(3)
        await becomes("held")
        world.elastic.trouble = lambda _: None
        await becomes("dead-letters-held")
        dead.full = False
        await becomes(READY)
        await world.until_settled()
        world.broker.delays_full = True
        world.elastic.item_fault = lambda _: TARGET_FAILURES["blocked"]
        world.publish(b'{"n":100}', "id-100")
        await world.until(lambda: state(world).delays_held)
        world.elastic.item_fault = lambda _: None
        await becomes("delays-held")
        world.broker.delays_full = False
        await becomes(READY, 600.0)
        await world.until_settled()
        world.broker.delete(QUEUE)
        await becomes("queue-gone")
        world.broker.declare(QUEUE)
        await becomes(READY)
        stopping = asyncio.create_task(world.stop())
        await becomes("draining")
        await stopping

    play(SimulatedPipeline, scenario)
    assert {*seen} == {
        "not-connected", "waiting-for-elasticsearch", "starting", "dead-letters-held", "held", "delays-held",
        "queue-gone", "draining", READY,
    }  # fmt: skip
