"""Groups by what messages say of themselves, through the whole pipeline in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.wire import properties as wire
from tests.fakes.broker import properties
from tests.pipeline.simulated_pipeline import INDEX, QUEUE, SimulatedPipeline, play

if TYPE_CHECKING:
    from tests.fakes.broker import Stored

SEEDS = range(5)


def world(
    seed: int = 0, *, key: str | None = None, flush: str | None = None, size: str | None = None, **plan: object
) -> SimulatedPipeline:
    """Return a world whose messages say where they belong."""

    def template(text: str | None) -> Template | None:
        return Template(text) if text is not None else None

    encoder_config = EncoderConfig(
        index=Template(INDEX),
        batch_key=template(key),
        batch_flush_when=template(flush),
        batch_complete_count=template(size),
    )
    return SimulatedPipeline(
        seed, **{"encoder_config": encoder_config, "prefetch": 2_000, "batch_max_age_seconds": 1_000.0, **plan}
    )


def publish(of: SimulatedPipeline, number: int, **short: str) -> str:
    """Publish a document with properties; return its id."""
    body, document_id = b'{"n":%d}' % number, f"id-{number}"
    of.published[body] = of.broker.publish(QUEUE, body, properties(message_id=document_id, **short))
    return document_id


def signal(of: SimulatedPipeline, **short: str) -> Stored:
    """Publish a message without a body."""
    return of.broker.publish(QUEUE, b"", properties(**short))


def requests(of: SimulatedPipeline) -> list[list[str | None]]:
    """Return the ids of each request, in order."""
    return [list(request.ids) for request in of.elastic.requests]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_set_arrives_in_one_request_whatever_interleaves(seed: int) -> None:
    """Four sets of 250 messages, shuffled: four requests, though a batch has 100 items otherwise."""

    async def scenario(of: SimulatedPipeline) -> None:
        numbers = list(range(1_000))
        of.rng.shuffle(numbers)
        bodies = {number: publish(of, number, correlation_id=f"set-{number % 4}", type="250") for number in numbers}
        await of.start()
        await of.until_settled()
        of.judge()
        expected = [[bodies[number] for number in numbers if number % 4 == one] for one in range(4)]
        assert sorted(requests(of)) == sorted(expected)
        assert of.pipeline.counters.batches == {"complete": 4}

    play(lambda: world(seed, key="{correlation_id}", size="{type}", batch_max_items=100), scenario)


def test_a_flush_message_ends_its_batch_at_once() -> None:
    """Long before its age, with the message itself as the last; other groups go on waiting."""

    async def scenario(of: SimulatedPipeline) -> None:
        await of.start()
        await of.until(lambda: of.log.named("amqp.connected"))
        first = [publish(of, number, correlation_id="a") for number in range(3)]
        publish(of, 10, correlation_id="b")
        began = asyncio.get_running_loop().time()
        last = publish(of, 3, correlation_id="a", type="end")
        await of.until(lambda: of.elastic.requests)
        assert asyncio.get_running_loop().time() - began < 0.5
        await of.until(lambda: of.pipeline.counters.total("ack") == 4)
        assert requests(of) == [[*first, last]]

    made = play(lambda: world(key="{correlation_id}", flush="{type|}"), scenario)
    assert made.pipeline.counters.batches == {"message": 1, "drain": 1}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_signal_is_acked_and_not_stored(seed: int) -> None:
    """It has no body and needs no id; what came before it goes, and is acked when it is stored and not before."""

    async def scenario(of: SimulatedPipeline) -> None:
        bodies = [publish(of, number) for number in range(5)]
        stored = signal(of, type="flush")
        publish(of, 5)
        await of.start()
        await of.until(lambda: len(of.broker.unsettled(QUEUE)) == 1 and not of.ready)
        assert requests(of) == [bodies]
        assert stored.acked_at is not None
        assert of.left == [b'{"n":5}']
        assert of.dead_letters == []
        assert of.pipeline.counters.batches == {"message": 1}
        assert of.pipeline.counters.total("ack") == 6

    play(lambda: world(seed, flush="{type|}"), scenario)


@pytest.mark.parametrize(
    ("size", "reason"), [("0", "malformed"), ("-1", "malformed"), ("x", "malformed"), (None, "missing-field")]
)
def test_a_size_that_is_none_rejects_the_message(size: str | None, reason: str) -> None:
    """Its neighbours go on; an absent one too is said so."""

    async def scenario(of: SimulatedPipeline) -> None:
        good = [publish(of, number, type="2") for number in range(2)]
        publish(of, 7, **({"type": size} if size is not None else {}))
        of.guilty[b'{"n":7}'] = None
        await of.start()
        await of.until_settled()
        of.judge()
        assert requests(of) == [good]
        (letter,) = of.broker.queues["work.dead"].ready
        assert wire.decode(wire.header(letter.properties, b"sidecar-reason") or b"V") == reason

    play(lambda: world(size="{type}"), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_key_that_never_repeats_flows(seed: int) -> None:
    """5,000 groups of one message, an age that never comes: they go in far fewer requests."""

    async def scenario(of: SimulatedPipeline) -> None:
        for number in range(5_000):
            publish(of, number)
        await of.start()
        await of.until(lambda: len(of.left) <= 1_000)
        await of.stop()
        of.judge()
        assert set(of.pipeline.counters.batches) == {"pressure", "drain"}
        assert len(of.elastic.requests) < 200

    play(lambda: world(seed, key="{message_id}", batch_max_items=100), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_more_open_groups_than_the_prefetch_allows_flow(seed: int) -> None:
    """Sets that never become complete fill the window: the oldest go."""

    async def scenario(of: SimulatedPipeline) -> None:
        for number in range(900):
            publish(of, number, correlation_id=f"set-{number % 300}")
        await of.start()
        await of.until(lambda: len(of.left) < 200)
        await of.stop()
        of.judge()

    play(lambda: world(seed, key="{correlation_id}", size="9", prefetch=200), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_order_for_a_document_holds_across_groups(seed: int) -> None:
    """Updates of one document in different groups are applied in the order of the queue."""

    async def scenario(of: SimulatedPipeline) -> None:
        for number in range(600):
            document, group = f"id-{of.rng.randrange(20)}", of.rng.choice("abc")
            body = b'{"n":%d}' % number
            of.published[body] = of.broker.publish(QUEUE, body, properties(message_id=document, correlation_id=group))
            of.order.setdefault(document, []).append(body)
        await of.start()
        await of.until_settled(600.0)
        of.judge()

    play(lambda: world(seed, key="{correlation_id}", batch_max_items=7, batch_max_age_seconds=1.0), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lost_session_begins_the_sets_anew(seed: int) -> None:
    """What was gathered comes again, and is one set again."""

    async def scenario(of: SimulatedPipeline) -> None:
        bodies = [publish(of, number, type="10") for number in range(6)]
        await of.start()
        await of.until(lambda: len(of.broker.unsettled(QUEUE)) == 6)
        await asyncio.sleep(0.1)
        of.lose_session()
        await of.until(lambda: len(of.log.named("amqp.connected")) == 2)
        bodies += [publish(of, number, type="10") for number in range(6, 10)]
        await of.until_settled()
        of.judge(redelivered=True)
        assert [sorted(map(str, request)) for request in requests(of)] == [sorted(bodies)]
        assert of.pipeline.counters.batches == {"complete": 1}

    play(lambda: world(seed, size="{type}"), scenario)
