"""Messages of several documents, through the whole pipeline in virtual time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.wire.properties import header
from tests.fakes.broker import Stored, properties
from tests.fakes.elasticsearch import Failure, must_be_number
from tests.pipeline.simulated_pipeline import DEAD, INDEX, QUEUE, SimulatedPipeline, play
from tests.simulation.rest import objects, remains

SEEDS = range(8)
BLOCKED = Failure(403, "cluster_block_exception", "index [documents] blocked by: [FORBIDDEN/8/index write (api)];")
BROKEN = Failure(500, "io_exception", "no space left on device")


class Bundles(SimulatedPipeline):
    """A world whose messages are JSON arrays of documents."""

    def __init__(self, seed: int = 0, **plan: Any) -> None:
        encoder_config = EncoderConfig(index=Template(INDEX), split="array")
        super().__init__(seed, **{"encoder_config": encoder_config, "batch_max_items": 10, **plan})
        self.wanted: dict[str, dict[str, Any]] = {}

    def _acked(self, message: Stored) -> None:
        """Nothing is acked before each of its documents is stored, or its copy is."""
        if message.body in self.dead or message.body in self.broker.delayed:
            return
        stored = self.elastic.applied
        missing = [
            one for one in json.loads(message.body) if not stored[json.dumps(one, separators=(",", ":")).encode()]
        ]
        if missing:
            self.wrong_acks.append(message.body)

    def bundle(self, document_id: str, documents: list[dict[str, Any]], *, with_id: bool = True) -> None:
        body = json.dumps(documents, separators=(",", ":")).encode()
        self.broker.publish(QUEUE, body, properties(message_id=document_id) if with_id else b"\0\0")
        for item, document in enumerate(documents):
            self.wanted[f"{document_id}-{item}"] = document

    def stored(self) -> dict[str, Any]:
        return {name: json.loads(source) for (_, name), source in self.elastic.documents.items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_document_is_stored_and_each_message_acked_once(seed: int) -> None:
    """Of all sizes, across batches, through 429s, a lost session and a crash."""

    async def scenario(world: Bundles) -> None:
        world.elastic.capacity_items = 15
        number = 0
        for at in range(60):
            count = world.rng.choice([1, 2, 3, 25])
            world.bundle(f"m{at}", [{"n": number + item} for item in range(count)])
            number += count
        await world.start()
        await world.until(lambda: len(world.elastic.documents) > 50)
        world.lose_session()
        await world.until(lambda: len(world.elastic.documents) > 150)
        await world.crash()
        await world.start()
        await world.until_settled(3_600.0)
        assert world.stored() == world.wanted
        assert world.pipeline.counters.in_flight == 0

    play(lambda: Bundles(seed, prefetch=20), scenario)  # type: ignore[arg-type]


def test_the_good_ones_stay_and_the_message_is_dead_lettered_with_the_list_of_the_bad_ones() -> None:
    """One that is no object never gets into a request, one that the mapping refuses does: both are named."""

    async def scenario(world: Bundles) -> None:
        world.elastic.reject = must_be_number("n")
        documents: list[Any] = [{"n": 0}, {"n": "bad"}, 7, {"n": 3}]
        body = json.dumps(documents, separators=(",", ":")).encode()
        world.broker.publish(QUEUE, body, properties(message_id="m"))
        await world.start()
        await world.until_settled()
        assert world.stored() == {"m-0": {"n": 0}, "m-3": {"n": 3}}
        (letter,) = world.broker.queues[DEAD].ready
        assert letter.body == body
        assert (header(letter.properties, b"sidecar-items") or b"")[5:] == b"1,2"
        assert (header(letter.properties, b"sidecar-reason") or b"")[5:] == b"rejected"
        assert world.pipeline.counters.settled[QUEUE, "dead_letter"] == 1
        assert world.pipeline.counters.settled[QUEUE, "ack"] == 0

    play(Bundles, scenario)  # type: ignore[arg-type]


@pytest.mark.parametrize("on_reject", ["discard", "broker"])
def test_rejects_are_settled_whole_however_they_are_settled(on_reject: str) -> None:
    """Once for the message, when its last document is decided."""

    async def scenario(world: Bundles) -> None:
        world.elastic.reject = must_be_number("n")
        for at in range(5):
            world.bundle(f"m{at}", [{"n": at}, {"n": f"bad {at}"}])
        world.wrong_acks = []
        await world.start()
        await world.until_settled()
        verdict = "discard" if on_reject == "discard" else "dead_letter"
        assert world.pipeline.counters.settled[QUEUE, verdict] == 5
        assert len(world.elastic.documents) == 5

    class Careless(Bundles):
        def _acked(self, message: Stored) -> None:
            """A discarded message is acked, though not all of it is stored."""

    play(lambda: Careless(on_reject=on_reject), scenario)  # type: ignore[arg-type]


def test_with_ids_a_blocked_document_takes_its_message_round() -> None:
    """The whole of it is written again when it is back: the same documents, none twice."""

    async def scenario(world: Bundles) -> None:
        world.elastic.item_fault = lambda item: BLOCKED if item.document_id == "m0-1" else None
        for at in range(3):
            world.bundle(f"m{at}", [{"n": 10 * at + item} for item in range(3)])
        await world.start()
        await world.until(lambda: world.pipeline.counters.settled[QUEUE, "delay"])
        world.elastic.item_fault = lambda _: None
        await world.until_settled(600.0)
        await world.until(lambda: not world.broker.delayed, 600.0)
        await world.until_settled(600.0)
        assert world.stored() == world.wanted

    play(Bundles, scenario)  # type: ignore[arg-type]


def test_without_ids_a_blocked_document_waits_in_its_place() -> None:
    """Round by the delay queue its neighbours would be stored twice."""

    async def scenario(world: Bundles) -> None:
        world.elastic.item_fault = lambda item: BLOCKED if item.source == b'{"n":1}' else None
        world.bundle("m", [{"n": 0}, {"n": 1}, {"n": 2}], with_id=False)
        await world.start()
        await world.until(lambda: len(world.elastic.documents) == 2)
        assert world.pipeline.counters.settled[QUEUE, "delay"] == 0
        world.elastic.item_fault = lambda _: None
        await world.until_settled(600.0)
        assert sorted(one["n"] for one in world.stored().values()) == [0, 1, 2]

    play(Bundles, scenario)  # type: ignore[arg-type]


def test_a_single_document_without_an_id_goes_round_with_its_message() -> None:
    """Nothing else of the message would be there twice."""

    async def scenario(world: Bundles) -> None:
        world.elastic.item_fault = lambda item: BLOCKED if item.source == b'{"n":1}' else None
        world.bundle("m", [{"n": 1}], with_id=False)
        await world.start()
        await world.until(lambda: world.pipeline.counters.settled[QUEUE, "delay"])
        world.elastic.item_fault = lambda _: None
        await world.until(lambda: len(world.elastic.documents) == 1, 600.0)

    play(Bundles, scenario)  # type: ignore[arg-type]


def test_nothing_of_documents_is_left_when_their_messages_are_settled() -> None:
    """Neither in the program's own books nor as an object: stored, rejected, delayed, held up and redelivered."""

    async def scenario(world: Bundles) -> None:
        before = objects()
        world.elastic.reject = must_be_number("n")
        world.elastic.item_fault = lambda item: BLOCKED if item.document_id == "m3-1" else None
        for at in range(30):
            world.bundle(f"m{at}", [{"n": 10 * at + item} for item in range(3)])
        world.broker.publish(QUEUE, b'[{"n":"bad"},{"n":1},7]', properties(message_id="bad"))
        await world.start()
        await world.until(lambda: len(world.elastic.documents) > 20)
        world.lose_session()
        await world.until(lambda: world.pipeline.counters.settled[QUEUE, "delay"])
        world.elastic.item_fault = lambda _: None
        await world.until(lambda: not world.broker.delayed and world.log.named("amqp.consuming"), 600.0)
        await world.until_settled(600.0)
        await asyncio.sleep(5.0)
        assert not remains(world.pipeline)
        assert objects() == before
        assert sum(ledger.memory_bytes for session in world.broker.sessions for ledger in session.ledgers) == 0

    class Lenient(Bundles):
        def _acked(self, message: Stored) -> None:
            """What comes again may be acked for what was stored before."""

    play(Lenient, scenario)  # type: ignore[arg-type]


def test_without_ids_a_document_that_fails_for_good_is_dead_lettered_without_a_round() -> None:
    """Its attempts in place are used up; its neighbours are stored once."""

    async def scenario(world: Bundles) -> None:
        world.elastic.item_fault = lambda item: BROKEN if item.source == b'{"n":1}' else None
        world.bundle("m", [{"n": 0}, {"n": 1}, {"n": 2}], with_id=False)
        await world.start()
        await world.until_settled(600.0)
        assert sorted(one["n"] for one in world.stored().values()) == [0, 2]
        (letter,) = world.broker.queues[DEAD].ready
        assert (header(letter.properties, b"sidecar-reason") or b"")[5:] == b"retries-exhausted"
        assert (header(letter.properties, b"sidecar-items") or b"")[5:] == b"1"

    play(Bundles, scenario)  # type: ignore[arg-type]


def test_a_drain_in_an_outage_gives_messages_back_whole() -> None:
    """Half stored or not: they come again, and end in the same documents."""

    async def scenario(world: Bundles) -> None:
        await world.start()
        await world.until(lambda: world.log.named("amqp.consuming"))
        for at in range(8):
            world.bundle(f"m{at}", [{"n": 10 * at + item} for item in range(4)])
        await world.until(lambda: len(world.elastic.documents) >= 10)
        world.elastic.down = True
        await world.until(lambda: world.pipeline.held)
        await world.stop()
        world.elastic.down = False
        await world.start()
        await world.until_settled()
        assert world.stored() == world.wanted
        assert not world.dead_letters

    play(Bundles, scenario)  # type: ignore[arg-type]
