"""What `/metrics` tells, as whole tables: each scenario names every sample that isn't zero, with its number.

Virtual time makes the times exact: nothing on the wire to RabbitMQ takes time, a request takes 1.5 s, and a look at
Elasticsearch 0.5 s, so messages that are published before the start are delivered at 0.5 s.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.far import HANDLER
from sidecar.library.handler_sink import HandlerSink
from sidecar.library.settings import load
from sidecar.library.transforming import hook
from sidecar.library.verdicts import ACK, DEAD_LETTER, DELAY, DISCARD, REQUEUE, Verdict
from sidecar.pipeline.pipeline import Pipeline
from tests.builders import properties
from tests.fakes.elasticsearch import Failure, Refusal, Trouble, must_be_number
from tests.pipeline.expected_metrics import scrape
from tests.pipeline.simulated_pipeline import INDEX, QUEUE, SimulatedPipeline, play
from tests.pipeline.test_forwarding import STAGING, Chain

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from structlog.typing import FilteringBoundLogger

    from tests.fakes.elasticsearch import Item, Request

OTHER = "other"
EPOCH = 1_700_000_000  # virtual time 0, in seconds since 1970
BLOCKED = Failure(403, "cluster_block_exception", "index [documents] blocked by: [FORBIDDEN/8/index write (api)];")
BROKEN = Failure(500, "io_exception", "no space left on device")
FULL = Failure(429, "es_rejected_execution_exception", "no room")
ANY = float("nan")  # told, but not to the number
AT_REST = {"ready": 1.0, "amqp_connected": 1.0}


@dataclass(frozen=True)
class Case:
    """A scenario, and what is told when it is over.

    Attributes:
        of: makes its world.
        scenario: what happens; it ends at the moment of the scrape.
        told: every sample that isn't zero, but for `bulk_limit`.
    """

    of: Callable[[], SimulatedPipeline]
    scenario: Callable[[Any], Coroutine[object, object, None]]
    told: dict[str, float]


CASES: dict[str, Case] = {}


def case(of: Callable[[], SimulatedPipeline], **told: float) -> Callable[[Any], Any]:
    """Make a scenario a case: names are short for those of the samples, see `_sample`."""

    def add(scenario: Any) -> Any:
        CASES[scenario.__name__] = Case(of, scenario, {_sample(name): count for name, count in told.items()})
        return scenario

    return add


_LABELS = {"settled": ("messages_settled_total", ("queue", "verdict")),
           "received": ("messages_received_total", ("queue",)),
           "documents": ("documents_total", ("action", "outcome")),
           "batches": ("batches_total", ("trigger",)),
           "requests": ("bulk_requests_total", ("outcome",)),
           "retries": ("retries_total", ("reason",)),
           "splits": ("splits_total", ("reason",))}  # fmt: skip


def _sample(name: str) -> str:
    """Return the sample of a short name: ``settled__work__ack`` for the verdict `ack` of the queue `work`."""
    short, *values = name.split("__")
    if not values:
        return name
    whole, labels = _LABELS[short]
    return f"{whole}{{{','.join(f'{label}={value}' for label, value in zip(labels, values, strict=True))}}}"


def told(world: SimulatedPipeline) -> dict[str, float]:
    """Return every sample that isn't zero, but for those that differ from release to release and `bulk_limit`."""
    assert world.app is not None
    samples = scrape(world.app.snapshot())
    return {
        name: value
        for name, value in samples.items()
        if value and name != "bulk_limit" and not name.startswith("build_info") and not name.endswith("_created")
    }


def exact(made: Callable[[], SimulatedPipeline]) -> Callable[[], SimulatedPipeline]:
    """Return what makes the same world with exact times."""

    def make() -> SimulatedPipeline:
        world = made()
        world.broker._latency_seconds = (0.0, 0.0)
        world.broker._chunk_items = (1_000, 1_000)
        world.elastic.latency_seconds, world.elastic.item_seconds = (0.5, 0.5), 0.0
        world.queues = [QUEUE, OTHER]
        world.broker.declare(OTHER)
        return world

    return make


def put(
    world: SimulatedPipeline,
    *bodies: str,
    queue: str = QUEUE,
    age: int | None = None,
    action: str = "",
    document_id: str = "",
) -> None:
    """Publish messages of an age in seconds, as their `timestamp` says, or without one."""
    for number, body in enumerate(bodies):
        values: dict[str, Any] = {} if age is None else {"timestamp": EPOCH - age}
        if action:
            values["type"] = action.encode()
        if document_id:
            values["message_id"] = b"%s-%d" % (document_id.encode(), number)
        world.broker.publish(queue, body.encode(), properties(**values))


def numbers(count: int) -> list[str]:
    """Return so many small documents, each of them 7 bytes."""
    return [f'{{"n":{at % 2}}}' for at in range(count)]


def script(*troubles: Trouble | Refusal | None) -> Callable[[Request], Trouble | Refusal | None]:
    """Return trouble for the first requests, in order."""
    left = list(troubles)
    return lambda _: left.pop(0) if left else None


async def settled(world: SimulatedPipeline) -> None:
    """Wait until nothing is left in either queue and nothing is on its way."""
    await world.until(lambda: world.quiet, 600.0)


# Stored --------------------------------------------------------------------------------------------------------------


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=8)),
    **AT_REST,
    received__work=3, received__other=7, settled__work__ack=3, settled__other__ack=7,
    documents__index__success=10, requests__stored=2,
    batches__count=1, batches__age=1, batch_items_count=2, batch_items_sum=10,
    batch_bytes_count=2, batch_bytes_sum=10 * len('{"index":{}}\n{"n":0}\n'),
    bulk_seconds_count=2, bulk_seconds_sum=3.0,
    queue_wait_seconds_count=2, queue_wait_seconds_sum=10.5 + 23.0,
    end_to_end_seconds_count=2, end_to_end_seconds_sum=12.0 + 25.5,
)  # fmt: skip
async def stored_from_two_queues(world: SimulatedPipeline) -> None:
    """The first batch is full at 0.5 s; the second opens at 3 s, and its age completes it at 4 s."""
    put(world, *numbers(1), age=10)
    put(world, *numbers(2), age=300)
    put(world, *numbers(5), queue=OTHER, age=200)
    await world.start()
    await asyncio.sleep(3.0)
    put(world, *numbers(1), queue=OTHER, age=20)
    await asyncio.sleep(0.3)
    put(world, *numbers(1), queue=OTHER, age=50)
    await asyncio.sleep(3.0)


@case(
    exact(SimulatedPipeline),
    **AT_REST,
    received__other=2, settled__other__ack=2, documents__index__success=2, requests__stored=1,
    batches__age=1, batch_items_count=1, batch_items_sum=2, batch_bytes_count=1, batch_bytes_sum=42,
    bulk_seconds_count=1, bulk_seconds_sum=1.5, end_to_end_seconds_count=1, end_to_end_seconds_sum=1.0 + 1.5,
)  # fmt: skip
async def stored_without_a_time_of_publishing(world: SimulatedPipeline) -> None:
    """No wait in the queue is told; the rest begins with the first message of the batch, not with the request."""
    put(world, *numbers(1), queue=OTHER)
    await world.start()
    await asyncio.sleep(1.1)
    put(world, *numbers(1), queue=OTHER)
    await asyncio.sleep(3.0)


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=4)),
    **AT_REST,
    received__work=4, settled__work__dead_letter=1, settled__work__ack=3,
    documents__index__failed_client=1, documents__index__success=3, requests__partial=1,
    batches__count=1, batch_items_count=1, batch_items_sum=4, batch_bytes_count=1, batch_bytes_sum=86,
    bulk_seconds_count=1, bulk_seconds_sum=1.5, queue_wait_seconds_count=1, queue_wait_seconds_sum=100.5,
    end_to_end_seconds_count=1, end_to_end_seconds_sum=40.0 + 2.0,
)  # fmt: skip
async def stored_but_for_the_first(world: SimulatedPipeline) -> None:
    """The wait is that of the first message of the batch; the rest that of the first that was stored."""
    world.elastic.reject = must_be_number("n")
    put(world, '{"n":"x"}', age=100)
    put(world, *numbers(1), age=40)
    put(world, *numbers(2), age=70)
    await world.start()
    await settled(world)


@case(
    exact(SimulatedPipeline),
    bulk_in_flight=1, messages_in_flight=3, in_flight_bytes=9 + 2 * 9, amqp_connected=1, ready=1,
    received__work=1, received__other=2, batches__age=1, batch_items_count=1, batch_items_sum=3,
    batch_bytes_count=1, batch_bytes_sum=63,
)  # fmt: skip
async def on_the_way(world: SimulatedPipeline) -> None:
    """Sent, and not answered yet."""
    put(world, *numbers(1))
    put(world, *numbers(2), queue=OTHER)
    await world.start()
    await asyncio.sleep(2.0)


# Items ---------------------------------------------------------------------------------------------------------------


def _of_documents(documents: dict[str, Failure]) -> Callable[[Item], Failure | None]:
    """Return what is wrong with an item the first time, by what its id begins with."""
    seen: set[str] = set()

    def look(item: Item) -> Failure | None:
        document_id = item.document_id or ""
        failure = documents.get(document_id.partition("-")[0]) if document_id not in seen else None
        seen.add(document_id)
        return failure

    return look


@case(
    exact(lambda: SimulatedPipeline(
        batch_max_items=28, encoder_config=EncoderConfig(index=Template(INDEX), action=Template("{type}"))
    )),
    **AT_REST,
    received__work=25, received__other=3,
    settled__work__ack=20, settled__work__dead_letter=5, settled__other__ack=3,
    documents__index__success=3 + 7 + 6, documents__index__failed_client=5, documents__index__failed_server=7,
    documents__index__too_many=6, documents__delete__noop=4, documents__create__success=1,
    documents__create__conflict=2, requests__partial=1, requests__stored=2, batches__count=1,
    retries__failed=7, retries__throttled=6,
)  # fmt: skip
async def every_outcome_of_items(world: SimulatedPipeline) -> None:
    """Each outcome has a count of its own; what failed for the moment is stored the next time."""
    world.elastic.item_fault = _of_documents({"broken": BROKEN, "full": FULL})
    world.elastic.reject = must_be_number("n")
    for number in range(2):
        world.elastic.documents[INDEX, f"there-{number}"] = b"{}"
    put(world, *numbers(3), action="index", document_id="good")
    put(world, *numbers(4), action="delete", document_id="gone")
    put(world, *['{"n":"x"}'] * 5, action="index", document_id="bad")
    put(world, *numbers(7), action="index", document_id="broken")
    put(world, *numbers(6), action="index", document_id="full")
    put(world, *numbers(1), action="create", document_id="new", queue=OTHER)
    put(world, *numbers(2), action="create", document_id="there", queue=OTHER)
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(action="upsert", batch_max_items=5)),
    **AT_REST,
    received__work=5, settled__work__ack=5, documents__upsert__success=5, documents__upsert__failed_server=2,
    requests__partial=1, requests__stored=1, batches__count=1, retries__failed=2,
)  # fmt: skip
async def documents_of_an_action_that_no_item_is_called_by(world: SimulatedPipeline) -> None:
    """An `upsert` is sent as an update."""
    conflict = Failure(409, "version_conflict_engine_exception", "somebody else wrote it")
    world.elastic.item_fault = _of_documents({"twice": conflict})
    put(world, *numbers(3), document_id="once")
    put(world, *numbers(2), document_id="twice")
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(action="create", batch_max_items=5)),
    **AT_REST,
    received__work=5, settled__work__ack=5, documents__create__success=3, documents__create__failure_store=2,
    requests__partial=1, batches__count=1,
)  # fmt: skip
async def documents_in_a_failure_store(world: SimulatedPipeline) -> None:
    """They are acked, and told apart."""
    world.elastic.has_failure_store = True
    world.elastic.reject = must_be_number("n")
    put(world, *numbers(3), '{"n":"x"}', '{"n":"y"}')
    await world.start()
    await settled(world)


# Requests ------------------------------------------------------------------------------------------------------------


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=3)),
    **AT_REST,
    received__work=3, settled__work__ack=3, documents__index__success=3, requests__throttled=2, requests__stored=1,
    batches__count=1, retries__throttled=2 * 3,
)  # fmt: skip
async def requests_without_room(world: SimulatedPipeline) -> None:
    """Twice; all of the batch is sent again each time."""
    world.elastic.trouble = script(Refusal(429, "es_rejected_execution_exception", "no room"), Refusal(429))
    put(world, *numbers(3))
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=8)),
    **AT_REST,
    received__work=8, settled__work__ack=8, documents__index__success=8, requests__split_size=2, requests__stored=3,
    batches__count=1, splits__too_large=2,
)  # fmt: skip
async def requests_too_large(world: SimulatedPipeline) -> None:
    """Halved, and one of the halves again."""
    world.elastic.trouble = script(Refusal(413), Refusal(413))
    put(world, *numbers(8))
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=6)),
    **AT_REST,
    received__work=6, settled__work__ack=6, documents__index__success=6, requests__split_fault=1, requests__stored=2,
    batches__count=1, splits__refused=1,
)  # fmt: skip
async def requests_that_an_item_spoils(world: SimulatedPipeline) -> None:
    """Halved, until the item is alone."""
    world.elastic.trouble = script(Refusal(400, "x_content_parse_exception", "unexpected character"))
    put(world, *numbers(6))
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=5)),
    **AT_REST,
    received__work=5, settled__work__ack=5, documents__index__success=5, requests__hold=3, requests__stored=2,
    batches__count=1,
)  # fmt: skip
async def requests_that_the_configuration_spoils(world: SimulatedPipeline) -> None:
    """A batch and two probes are refused; then a probe passes, and the others after it."""
    world.elastic.trouble = script(*[Refusal(401, "security_exception", "unable to authenticate")] * 3)
    put(world, *numbers(5))
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=5)),
    **AT_REST,
    received__work=5, settled__work__ack=5, documents__index__success=5, requests__unanswered=2, requests__stored=4,
    batches__count=1, retries__unanswered=5 + 4, splits__unanswered=1,
)  # fmt: skip
async def requests_without_an_answer(world: SimulatedPipeline) -> None:
    """More than two items aren't survived: a probe passes, the other four fail again and are halved."""
    world.elastic.trouble = lambda request: Trouble.LOST_BEFORE if request.items > 2 else None
    put(world, *numbers(5))
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=4)),
    **AT_REST,
    received__work=4, settled__work__ack=4, documents__index__success=4, requests__unanswered=1, requests__stored=2,
    batches__count=1, retries__unanswered=4, batch_items_count=1, batch_items_sum=4,
    batch_bytes_count=1, batch_bytes_sum=4 * 21, bulk_seconds_count=3, bulk_seconds_sum=60.0 + 1.5 + 1.5,
    end_to_end_seconds_count=2,
    end_to_end_seconds_sum=ANY,  # the pause before the probe is chance's
)  # fmt: skip
async def requests_given_up(world: SimulatedPipeline) -> None:
    """The time of a request counts without an answer as well."""
    world.elastic.trouble = script(Trouble.HANGS_BEFORE)
    put(world, *numbers(4))
    await world.start()
    await settled(world)


# What becomes of messages --------------------------------------------------------------------------------------------


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=3)),
    **AT_REST,
    received__other=2 * 3, settled__other__delay=3, settled__other__ack=3, documents__index__failed_client=3,
    documents__index__success=3, requests__partial=1, requests__stored=1, batches__count=2, retries__delayed=3,
)  # fmt: skip
async def delayed(world: SimulatedPipeline) -> None:
    """The copies come back to the queue of their originals."""
    world.elastic.item_fault = _of_documents({"blocked": BLOCKED})
    put(world, *numbers(3), queue=OTHER, document_id="blocked")
    await world.start()
    await world.until(lambda: len(world.elastic.documents) == 3, 60.0)
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=4)),
    **AT_REST,
    received__work=2, received__other=5, settled__work__dead_letter=2, settled__other__ack=4,
    settled__other__dead_letter=1, documents__index__success=4, requests__stored=1, batches__count=1,
)  # fmt: skip
async def rejected_before_a_request(world: SimulatedPipeline) -> None:
    """No document is counted of what was never sent."""
    put(world, "not json", "")
    put(world, *numbers(4), "[1]", queue=OTHER)
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=4, on_reject="discard")),
    **AT_REST,
    received__work=2, received__other=4, settled__work__discard=2, settled__other__ack=1, settled__other__discard=3,
    documents__index__success=1, documents__index__failed_client=3, requests__partial=1, batches__count=1,
)  # fmt: skip
async def discarded(world: SimulatedPipeline) -> None:
    """Before a request, and after one."""
    world.elastic.reject = must_be_number("n")
    put(world, "not json", "")
    put(world, *numbers(1), *['{"n":"x"}'] * 3, queue=OTHER)
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=6, on_reject="broker")),
    **AT_REST,
    received__work=2, received__other=5, settled__work__dead_letter=2, settled__other__ack=2,
    settled__other__dead_letter=3, documents__index__success=2, documents__index__failed_client=4,
    requests__partial=1, batches__count=1,
)  # fmt: skip
async def left_to_the_broker(world: SimulatedPipeline) -> None:
    """A `basic.reject` is a dead letter as well; one answer rejects messages of both queues."""
    world.elastic.reject = must_be_number("n")
    put(world, "not json", '{"n":"x"}')
    put(world, *numbers(2), *['{"n":"x"}'] * 3, queue=OTHER)
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=2, shutdown_seconds=10.0)),
    amqp_connected=1,
    received__work=3, received__other=4, settled__work__requeue=3, settled__other__requeue=2, settled__other__ack=2,
    documents__index__success=2, requests__stored=1, batches__count=3, batches__drain=1,
)  # fmt: skip
async def requeued_at_the_end(world: SimulatedPipeline) -> None:
    """What isn't answered in time goes back; a group that isn't full is complete."""
    put(world, *numbers(2), queue=OTHER)
    await world.start()
    await settled(world)
    world.elastic.trouble = lambda _: Trouble.HANGS_BEFORE
    put(world, *numbers(3))
    put(world, *numbers(2), queue=OTHER)
    await asyncio.sleep(0.1)
    await world.stop()


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=9)),
    **AT_REST,
    amqp_reconnects_total=2, received__work=3 * 2, received__other=3 * 1, settled__work__stale=2 * 2,
    settled__other__stale=2 * 1, settled__work__ack=2, settled__other__ack=1, documents__index__success=3,
    requests__stored=1, batches__age=1,
)  # fmt: skip
async def stale(world: SimulatedPipeline) -> None:
    """The session is lost twice before the batch is complete."""
    put(world, *numbers(2))
    put(world, *numbers(1), queue=OTHER)
    await world.start()
    for _ in range(2):
        await world.until(lambda: len(world.broker.unsettled(QUEUE)) == 2)
        await asyncio.sleep(0.5)
        world.lose_session()
        await asyncio.sleep(0.01)
    await settled(world)


# Batches -------------------------------------------------------------------------------------------------------------


@case(
    exact(lambda: SimulatedPipeline(batch_max_bytes=50)),
    **AT_REST,
    received__work=5, settled__work__ack=5, documents__index__success=5, requests__stored=3, batches__bytes=2,
    batches__age=1, batch_items_count=3, batch_items_sum=5, batch_bytes_count=3, batch_bytes_sum=5 * 21,
    bulk_seconds_count=3, bulk_seconds_sum=4.5, end_to_end_seconds_count=3, end_to_end_seconds_sum=1.5 + 1.5 + 2.5,
)  # fmt: skip
async def complete_by_bytes(world: SimulatedPipeline) -> None:
    """Two documents fit; the last is alone until its age is reached."""
    put(world, *numbers(5))
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(
        encoder_config=EncoderConfig(
            index=Template(INDEX), batch_key=Template("{type|}"), batch_flush_when=Template("{app_id|}"),
            batch_complete_count=Template("{correlation_id|}"),
        ),
        batch_max_age_seconds=100.0,
    )),
    **AT_REST,
    received__work=1 + 2 + 3 + 1, settled__work__ack=7, documents__index__success=6, requests__stored=3,
    batches__message=2, batches__complete=1, batch_items_count=3, batch_items_sum=6, batch_bytes_count=3,
    batch_bytes_sum=6 * 21, bulk_seconds_count=3, bulk_seconds_sum=4.5, end_to_end_seconds_count=3,
    end_to_end_seconds_sum=4.5,
)  # fmt: skip
async def complete_by_a_message(world: SimulatedPipeline) -> None:
    """One with a document, a mere signal, and the last of a set of three. The signal is no document."""
    for body, values in (
        ('{"n":0}', {"type": b"a", "app_id": b"last"}),
        *[('{"n":0}', {"type": b"b"})] * 2,
        ("", {"type": b"b", "app_id": b"last"}),
        *[('{"n":1}', {"type": b"c", "correlation_id": b"3"})] * 3,
    ):
        world.broker.publish(QUEUE, body.encode(), properties(**values))
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(prefetch=5, batch_max_age_seconds=1000.0)),
    **AT_REST,
    received__work=5, settled__work__ack=5, documents__index__success=5, requests__stored=1, batches__pressure=1,
)  # fmt: skip
async def complete_by_pressure(world: SimulatedPipeline) -> None:
    """The prefetch is too small for the batch."""
    put(world, *numbers(5))
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(encoder_config=EncoderConfig(index=Template(INDEX), coalesce="latest"))),
    **AT_REST,
    received__work=6, settled__work__ack=6, documents__index__success=2, requests__stored=1, batches__age=1,
    coalesced_total=4, batch_items_count=1, batch_items_sum=6, batch_bytes_count=1,
    batch_bytes_sum=2 * len('{"index":{"_id":"a-0"}}\n{"n":0}\n'), bulk_seconds_count=1, bulk_seconds_sum=1.5,
    end_to_end_seconds_count=1, end_to_end_seconds_sum=2.5,
)  # fmt: skip
async def coalesced(world: SimulatedPipeline) -> None:
    """Two documents remain of six messages; the batch had all of them."""
    for _ in range(5):
        put(world, *numbers(1), document_id="a")
    put(world, *numbers(1), document_id="b")
    await world.start()
    await settled(world)


@case(
    exact(lambda: SimulatedPipeline(
        batch_max_items=4, encoder_config=EncoderConfig(index=Template(INDEX), split="array")
    )),
    **AT_REST,
    received__work=2, received__other=1, settled__work__ack=1, settled__work__dead_letter=1, settled__other__ack=1,
    documents__index__success=3 + 2 + 1, documents__index__failed_client=2, requests__partial=2, batches__count=2,
)  # fmt: skip
async def several_documents_in_a_message(world: SimulatedPipeline) -> None:
    """A message is settled once, whatever it holds; a dead letter if any document of it was rejected."""
    world.elastic.reject = must_be_number("n")
    put(world, '[{"n":1},{"n":2},{"n":3}]', '[{"n":"x"},{"n":4},{"n":"y"}]')
    put(world, '[{"n":5},{"n":6}]', queue=OTHER)
    await world.start()
    await settled(world)


def _transform(shown: Any) -> Any:
    return [{"n": number} for number in range(shown.json()["n"])]


def _transforming() -> SimulatedPipeline:
    hooked = hook(_transform)
    encoder_config = EncoderConfig(index=Template(INDEX), transform=hooked.transform, prepare=hooked.prepare)
    return SimulatedPipeline(batch_max_items=5, encoder_config=encoder_config)


@case(
    exact(_transforming),
    **AT_REST,
    received__work=4, received__other=2, settled__work__discard=2, settled__work__ack=1, settled__work__dead_letter=1,
    settled__other__ack=2, documents__index__success=2 + 1 + 2, requests__stored=1, batches__count=1,
)  # fmt: skip
async def transformed(world: SimulatedPipeline) -> None:
    """Nothing is made of two messages, and an error of one."""
    put(world, '{"n":2}', '{"n":0}', '{"n":0}', '{"m":0}')
    put(world, '{"n":1}', '{"n":2}', queue=OTHER)
    await world.start()
    await settled(world)


# Other sinks ---------------------------------------------------------------------------------------------------------


@case(
    exact(lambda: Chain(batch_max_items=4, routing_key=Template("{type}"), on_unroutable="dead-letter")),
    **AT_REST,
    received__work=4, received__other=4, settled__work__ack=4, settled__other__ack=3, settled__other__dead_letter=1,
    documents__publish__success=7, documents__publish__failed_client=1, requests__stored=1, requests__partial=1,
    batches__count=2,
)  # fmt: skip
async def forwarded(world: Chain) -> None:
    """Published to another exchange; of the second batch one has no queue to go to."""
    put(world, *numbers(4), action=STAGING)
    await world.start()
    await settled(world)
    put(world, *numbers(3), action=STAGING, queue=OTHER)
    put(world, *numbers(1), action="nowhere", queue=OTHER)
    await settled(world)


@case(
    exact(lambda: Chain(batch_max_items=4)),
    **AT_REST,
    received__work=4, settled__work__ack=4, documents__publish__success=4, documents__publish__too_many=4,
    requests__stored=1, requests__partial=1, batches__count=1, retries__throttled=4,
)  # fmt: skip
async def forwarded_to_a_full_queue(world: Chain) -> None:
    """A `basic.nack` is no room."""
    world.far.queues[STAGING].full = True
    put(world, *numbers(4))
    await world.start()
    await asyncio.sleep(0.7)
    world.far.queues[STAGING].full = False
    await settled(world)


class Handled(SimulatedPipeline):
    """A world whose batches go to a function, which takes two seconds for each."""

    sink = "handler"

    def __init__(self) -> None:
        encoder_config = EncoderConfig(index=Template(""), action=Template(""))
        super().__init__(encoder_config=encoder_config, far=HANDLER, batch_max_items=11)

    def _new_pipeline(self) -> Pipeline:
        kinds = {b"1": ACK, b"2": DEAD_LETTER, b"3": DELAY, b"4": REQUEUE, b"5": DISCARD}
        seen: set[bytes] = set()

        async def process(messages: list[Any]) -> list[Verdict]:
            await asyncio.sleep(2.0)
            verdicts = [kinds[message.body[:1]] if message.body not in seen else ACK for message in messages]
            seen.update(message.body for message in messages)
            return verdicts

        sink = HandlerSink(self.plan, process, load(None, {"amqp_queue": QUEUE}))
        log = cast("FilteringBoundLogger", self.log)
        return Pipeline(self.plan, sink, rng=self.rng, log=log, wall_clock=self._wall_clock)


@case(
    exact(Handled),
    **AT_REST,
    received__work=1 + 2 + 3 + 3, received__other=4 + 4 + 1,
    settled__work__ack=1 + 3, settled__work__dead_letter=2, settled__work__delay=3,
    settled__other__requeue=4, settled__other__ack=4, settled__other__discard=1,
    batches__count=1, batches__age=2, batch_items_count=3, batch_items_sum=18,
    retries__delayed=3, batch_bytes_count=3, batch_bytes_sum=34 + 18, bulk_seconds_count=3, bulk_seconds_sum=6.0,
)  # fmt: skip
async def handled(world: Handled) -> None:
    """Each verdict as often as no other; what comes again is acked."""
    put(world, "1", "2a", "2b", "3a", "3b", "3c")
    put(world, "4a", "4b", "4c", "4d", "5", queue=OTHER)
    await world.start()
    await world.until(lambda: world.pipeline.counters.total("ack") == 8, 60.0)


# Conditions ----------------------------------------------------------------------------------------------------------


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=2)),
    amqp_connected=1, held=1, messages_in_flight=2, in_flight_bytes=18,
    received__work=2, requests__hold=1, batches__count=1,
)  # fmt: skip
async def held(world: SimulatedPipeline) -> None:
    """Nothing but probes is sent."""
    world.elastic.trouble = lambda _: Refusal(401, "security_exception", "unable to authenticate")
    put(world, *numbers(2))
    await world.start()
    await world.until(lambda: world.pipeline.held)


@case(
    exact(lambda: SimulatedPipeline(batch_max_items=2)),
    amqp_connected=1, held=1, dead_letters_held=1, messages_in_flight=1, in_flight_bytes=10, received__other=1,
)  # fmt: skip
async def dead_letters_held(world: SimulatedPipeline) -> None:
    """Their queue takes nothing."""
    world.broker.declare(f"{OTHER}.dead").full = True
    put(world, "not json", queue=OTHER)
    await world.start()
    await world.until(lambda: world.pipeline.copying_held)


@case(
    exact(lambda: SimulatedPipeline(
        batch_max_items=3, encoder_config=EncoderConfig(index=Template("{type}")), prefetch=100
    )),
    amqp_connected=1, delays_held=1, bulk_in_flight=1, messages_in_flight=2, in_flight_bytes=2 * 16, received__work=3,
    settled__work__ack=1, documents__index__success=1, documents__index__failed_client=2, requests__partial=1,
    batches__count=1, retries__delayed=2,
)  # fmt: skip
async def delays_held(world: SimulatedPipeline) -> None:
    """Delay queues take nothing, so messages are retried in place: they are just being sent again."""
    world.broker.delays_full = True
    world.elastic.item_fault = lambda item: BLOCKED if item.index == "closed" else None
    put(world, *numbers(2), action="closed")
    put(world, *numbers(1), action="open")
    await world.start()
    assert world.app is not None
    await world.until(lambda: world.pipeline.snapshot().delays_held)


@case(exact(SimulatedPipeline), received__work=2, settled__work__stale=2)
async def not_connected(world: SimulatedPipeline) -> None:
    """Counters go on to be told, and in-flight messages are none."""
    put(world, *numbers(2))
    await world.start()
    await world.until(lambda: world.broker.unsettled(QUEUE))
    await asyncio.sleep(0.2)
    world.broker.down = True
    world.lose_session()
    await asyncio.sleep(0.1)


# All of them ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_sample_is_to_the_number(name: str) -> None:
    """Samples that a case doesn't name are zero. Histograms are compared if it names the time of requests."""
    one = CASES[name]

    async def scenario(world: SimulatedPipeline) -> None:
        await one.scenario(world)
        found, expected = told(world), {sample: value for sample, value in one.told.items() if value}
        any_number = {sample for sample, value in expected.items() if math.isnan(value)}
        assert any_number <= found.keys()
        if "bulk_seconds_sum" not in expected:
            any_number |= {sample for sample in {*found, *expected} if _OF_HISTOGRAM.search(sample)}
        for samples in (found, expected):
            for sample in any_number:
                samples.pop(sample, None)
        assert found == pytest.approx(expected, abs=1e-6)

    play(one.of, scenario)


def test_every_metric_and_value_of_the_readme_is_moved_by_a_case() -> None:
    """Of each label too, and both queues; but for the limit, which is a decision, and the release."""
    moved = {sample for one in CASES.values() for sample, value in one.told.items() if value}
    names = {sample.partition("{")[0] for sample in moved}
    readme = Path(__file__).resolve().parents[2].joinpath("README.md").read_text(encoding="utf-8")
    table = readme.partition("<!-- metrics -->")[2].partition("<!-- /metrics -->")[0]
    missing = []
    for line in table.strip().splitlines()[2:]:
        metric, labels, meaning = (re.findall(r"`([a-z_]+)`", cell) for cell in line.strip().strip("|").split("|", 2))
        name = metric[0].removeprefix("sidecar_")
        if name in {"bulk_limit", "build_info"}:
            continue
        if not names & {name, f"{name}_sum"}:
            missing.append(name)
        values = ([f"queue={QUEUE}", f"queue={OTHER}"] if "queue" in labels else []) + [
            f"{labels[-1]}={value}" for value in meaning if labels[1:] or labels[:1] not in ([], ["queue"])
        ]
        missing += [f"{name}: {one}" for one in values if not _is_moved(name, one, moved)]
    assert not missing


def _is_moved(name: str, label: str, moved: set[str]) -> bool:
    return any(sample.startswith(f"{name}{{") and label in re.split("[{,}]", sample) for sample in moved)


def test_no_case_leaves_neighbours_alike() -> None:
    """Two labels of a metric that have the same count in every case could be swapped and nobody would see."""
    by_metric: dict[str, list[str]] = {}
    for sample in {sample for one in CASES.values() for sample in one.told}:
        if "{" in sample:
            by_metric.setdefault(sample.partition("{")[0], []).append(sample)
    for samples in by_metric.values():
        for one, other in itertools.combinations(sorted(samples), 2):
            assert any(case.told.get(one) != case.told.get(other) for case in CASES.values()), (one, other)


_OF_HISTOGRAM = re.compile(r"_(count|sum)$")
