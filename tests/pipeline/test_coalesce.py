"""Operations that are folded, through the whole pipeline in virtual time, against a model that applies them in turn."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from tests.fakes.broker import Stored, properties
from tests.fakes.elasticsearch import merge, must_be_number
from tests.pipeline.simulated_pipeline import INDEX, QUEUE, SimulatedPipeline, play

SEEDS = range(12)
ACTIONS = ("index", "create", "update", "upsert", "delete")


class Folding(SimulatedPipeline):
    """A world whose messages name their action, and a model of what is stored when each is done in turn.

    What is acked was stored, or is covered by what was stored: only the end tells.
    """

    def __init__(self, seed: int, coalesce: str, **plan: Any) -> None:
        version = Template("{app_id}") if plan.pop("versioned", False) else None
        encoder_config = EncoderConfig(
            index=Template(INDEX),
            action=Template("{type}"),
            version=version,
            coalesce=coalesce,  # type: ignore[arg-type]
        )
        super().__init__(seed, **{"encoder_config": encoder_config, "prefetch": 2_000, "batch_max_items": 100, **plan})
        self.model: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, int] = {}

    def _acked(self, message: Stored) -> None:
        pass

    def do(self, action: str, document_id: str, document: dict[str, Any], version: int = 0) -> None:
        """Publish an operation, and have the model do it."""
        body = json.dumps(document, separators=(",", ":")).encode()
        self.broker.publish(QUEUE, body, properties(type=action, message_id=document_id, app_id=str(version)))
        if version:
            if version <= self.versions.get(document_id, 0):
                return
            self.versions[document_id] = version
        there = self.model.get(document_id)
        if action == "delete":
            self.model.pop(document_id, None)
        elif action == "index" or there is None:
            if action != "update":
                self.model[document_id] = document
        elif action != "create":
            self.model[document_id] = merge(there, document)

    def compare(self) -> None:
        """Every document is as the model has it."""
        stored = {name: json.loads(source) for (_, name), source in self.elastic.documents.items()}
        assert stored == self.model

    def sent(self) -> int:
        return sum(request.items for request in self.elastic.requests)


def any_document(world: SimulatedPipeline, number: int) -> dict[str, Any]:
    """Return a small document, often with the same names as others: texts, numbers, lists and objects among them."""
    rng = world.rng
    values: list[Any] = [number, f"text {number}", [number], None, {"x": number}, {"y": {"z": number}}, {}]
    return {name: rng.choice(values) for name in rng.sample("abc", rng.randint(0, 3))} | {"n": number}


@pytest.mark.parametrize("mode", ["none", "latest", "merge"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_document_ends_as_if_all_was_done_in_turn(seed: int, mode: str) -> None:
    """Random operations on few documents, a tiny write pool, concurrency 8: as a sequential model says."""

    async def scenario(world: Folding) -> None:
        world.elastic.capacity_items = 8
        for number in range(600):
            action = world.rng.choice(ACTIONS)
            world.do(action, f"d{world.rng.randrange(12)}", any_document(world, number))
        await world.start()
        await world.until_settled(3_600.0)
        world.compare()
        folded = world.pipeline.counters.coalesced
        assert (folded > 100) is (mode != "none")

    play(lambda: Folding(seed, mode, bulk_concurrency=8, batch_max_items=50), scenario)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
def test_with_versions_the_highest_wins_through_lost_sessions_and_crashes(seed: int) -> None:
    """`index` and `delete` in any order, with redeliveries: the state is that of the highest version of each."""

    async def scenario(world: Folding) -> None:
        versions = {f"d{at}": list(range(1, 41)) for at in range(8)}
        for one in versions.values():
            world.rng.shuffle(one)
        for at in range(40):
            for document_id, order in versions.items():
                action = world.rng.choice(["index", "delete"])
                world.do(action, document_id, {"n": order[at], "of": document_id}, order[at])
        for _ in range(3):
            await world.start()
            await world.until(lambda: world.broker.unsettled(QUEUE))
            await world.until(lambda: world.elastic.requests)
            world.lose_session()
            await world.crash()
        await world.start()
        await world.until_settled(600.0)
        world.compare()

    play(
        lambda: Folding(seed, "latest", versioned=True, bulk_concurrency=8, batch_max_items=40, prefetch=300),
        scenario,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("mode", ["latest", "merge"])
def test_a_tenth_of_the_operations_is_sent_of_a_hot_queue(mode: str) -> None:
    """20,000 writes of 100 documents, in batches of 2,000: the same end with few items."""

    async def scenario(world: Folding) -> None:
        for number in range(20_000):
            world.do("index" if number % 7 else "delete", f"d{world.rng.randrange(100)}", {"n": number})
        await world.start()
        await world.until_settled(600.0)
        world.compare()
        assert world.sent() < 2_000
        assert world.pipeline.counters.coalesced + world.sent() == 20_000
        assert world.pipeline.counters.settled[QUEUE, "ack"] == 20_000

    play(lambda: Folding(1, mode, batch_max_items=2_000, prefetch=12_000), scenario)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["latest", "merge"])
def test_when_a_folded_operation_fails_each_goes_by_itself(mode: str) -> None:
    """The bad one is dead-lettered, the good ones are stored in order: nobody pays for another."""

    async def scenario(world: Folding) -> None:
        world.elastic.reject = must_be_number("n")
        world.do("index", "d", {"n": 1})
        world.do("index", "d", {"n": 2})
        world.broker.publish(QUEUE, b'{"n":"bad"}', properties(type="index", message_id="d"))
        await world.start()
        await world.until_settled()
        world.compare()
        assert world.dead_letters == [b'{"n":"bad"}']
        assert [one.source for one in world.elastic.history[INDEX, "d"]] == [b'{"n":1}', b'{"n":2}']

    play(lambda: Folding(1, mode), scenario)  # type: ignore[arg-type]


def test_an_update_of_nothing_is_a_dead_letter_each() -> None:
    """Two merged updates of a document that isn't there are two dead letters, and what follows is stored."""

    async def scenario(world: Folding) -> None:
        world.do("update", "d", {"n": 1})
        world.do("update", "d", {"n": 2})
        world.do("create", "d", {"n": 3})
        await world.start()
        await world.until_settled()
        world.compare()
        assert sorted(world.dead_letters) == [b'{"n":1}', b'{"n":2}']

    play(lambda: Folding(1, "merge"), scenario)  # type: ignore[arg-type]


def test_what_is_folded_is_given_back_by_a_drain_in_an_outage() -> None:
    """Covered messages go back as the others, in order: none is lost."""

    async def scenario(world: Folding) -> None:
        await world.start()
        await world.until(lambda: world.log.named("amqp.consuming"))
        world.elastic.down = True
        for number in range(30):
            world.do("index", f"d{number % 3}", {"n": number})
        await world.until(lambda: world.pipeline.held)
        await world.stop()
        assert [json.loads(body)["n"] for body in world.left] == list(range(30))
        world.elastic.down = False
        await world.start()
        await world.until_settled()
        world.compare()

    play(lambda: Folding(1, "latest"), scenario)  # type: ignore[arg-type]
