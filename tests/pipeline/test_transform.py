"""``SIDECAR_TRANSFORM``: somebody's own code, through the whole pipeline in virtual time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.wire.properties import decode, header
from sidecar.library.transforming import hook
from tests.fakes.broker import Stored, properties
from tests.pipeline.simulated_pipeline import DEAD, INDEX, QUEUE, SimulatedPipeline, play

SEEDS = range(6)


def documents(shown: Any) -> Any:
    """Return as many documents as the message says; of a fault none."""
    told = shown.json()
    if told["count"] < 0:
        raise LookupError(told)
    made = [{"n": told["n"], "item": item} for item in range(told["count"])]
    return made[0] if len(made) == 1 else made


async def documents_later(shown: Any) -> Any:
    """Return the same, after a while that is different for each message."""
    await asyncio.sleep(shown.json()["n"] * 7 % 5)
    return documents(shown)


async def never(_: Any) -> Any:
    """Hang."""
    await asyncio.Event().wait()


class Transformed(SimulatedPipeline):
    """A world whose documents are made by a function."""

    def __init__(self, seed: int, function: Any, **plan: Any) -> None:
        hooked = hook(function)
        encoder_config = EncoderConfig(index=Template(INDEX), transform=hooked.transform, prepare=hooked.prepare)
        super().__init__(seed, **{"encoder_config": encoder_config, "batch_max_items": 10, **plan})

    def _acked(self, message: Stored) -> None:
        """Nothing is acked before all that is made of it is stored, or its copy is."""
        told = json.loads(message.body)
        stored = [self.elastic.applied[json.dumps({"n": told["n"], "item": item}, separators=(",", ":")).encode()]
                  for item in range(told["count"])]  # fmt: skip
        if not (all(stored) and told["count"] >= 0) and message.body not in self.dead:
            self.wrong_acks.append(message.body)

    def tell(self, number: int, count: int, document_id: str | None = None) -> None:
        """Publish a message of which so many documents are to be made."""
        body = json.dumps({"n": number, "count": count}).encode()
        self.broker.publish(QUEUE, body, properties(message_id=document_id or f"m{number}"))


@pytest.mark.parametrize("function", [documents, documents_later])
@pytest.mark.parametrize("seed", SEEDS)
def test_one_several_and_none_are_settled_with_their_message(seed: int, function: Any) -> None:
    """Each message once: acked when all its documents are stored, discarded without any, dead-lettered for a fault."""

    async def scenario(world: Transformed) -> None:
        counts = [world.rng.choice([-1, 0, 1, 1, 3, 12]) for _ in range(60)]
        for number, count in enumerate(counts):
            world.tell(number, count)
        await world.start()
        await world.until(lambda: world.pipeline.counters.received.total() == 60)
        if seed % 2:
            world.lose_session()
        await world.until_settled(600.0)
        wanted = {f"m{number}": {"n": number, "item": 0} for number, count in enumerate(counts) if count == 1}
        for number, count in enumerate(counts):
            wanted |= {f"m{number}-{item}": {"n": number, "item": item} for item in range(count) if count > 1}
        found = {name: json.loads(source) for (_, name), source in world.elastic.documents.items()}
        assert found == wanted
        assert len(world.dead_letters) == counts.count(-1)
        for letter in world.broker.queues[DEAD].ready:
            told = [
                decode(header(letter.properties, name) or b"S") for name in (b"sidecar-reason", b"sidecar-error-type")
            ]
            assert told == ["transform-failed", "LookupError"]
        if not seed % 2:
            account = world.pipeline.counters
            assert account.total("discard") == counts.count(0)
            assert account.total("dead_letter") == counts.count(-1)

    play(lambda: Transformed(seed, function), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_asynchronous_code_keeps_the_order(seed: int) -> None:
    """However long each call takes, operations on one document are applied in the order of the queue."""

    async def scenario(world: Transformed) -> None:
        for number in range(40):
            world.tell(number, 1, document_id=f"id-{number % 3}")
        await world.start()
        await world.until_settled(600.0)
        for key in range(3):
            history = [json.loads(applied.source)["n"] for applied in world.elastic.history[INDEX, f"id-{key}"]]
            assert history == [number for number in range(40) if number % 3 == key]

    play(lambda: Transformed(seed, documents_later), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_drain_waits_for_what_is_being_prepared(seed: int) -> None:
    """What came is prepared and stored before the end, as long as there is time."""

    async def scenario(world: Transformed) -> None:
        for number in range(30):
            world.tell(number, 1)
        await world.start()
        await world.until(lambda: world.pipeline.counters.received.total() == 30)
        received_at = asyncio.get_running_loop().time()
        await world.stop()
        assert asyncio.get_running_loop().time() > received_at
        assert len(world.elastic.documents) + world.ready == 30
        assert world.elastic.documents
        assert world.pipeline.counters.in_flight == 0

    play(lambda: Transformed(seed, documents_later, shutdown_seconds=200.0), scenario)


def test_code_that_hangs_does_not_hold_up_the_end() -> None:
    """Everything goes back to the queue within the shutdown time."""

    async def scenario(world: Transformed) -> None:
        for number in range(30):
            world.tell(number, 1)
        await world.start()
        await world.until(lambda: world.pipeline.counters.received.total() == 30)
        assert await world.stop() <= world.shutdown_seconds
        assert (world.ready, len(world.elastic.documents)) == (30, 0)

    play(lambda: Transformed(1, never), scenario)
