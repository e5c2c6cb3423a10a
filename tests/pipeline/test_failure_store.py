"""What a data stream's failure store took: acked or dead-lettered as configured, and told in both cases."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from sidecar.core.results.policy import ErrorPolicy
from sidecar.core.wire.properties import decode, header
from tests.fakes.elasticsearch import must_be_number
from tests.pipeline.simulated_pipeline import DEAD, INDEX, SimulatedPipeline, play

if TYPE_CHECKING:
    from tests.fakes.broker import Stored

SEEDS = range(4)
DEAD_LETTER = ErrorPolicy(on_failure_store="dead-letter")


class Stream(SimulatedPipeline):
    """A world whose index is a data stream with a failure store."""

    def fill(self, count: int, *, bad_each: int, guilty: bool) -> None:
        """Publish documents, of which every so many is refused by the mapping."""
        self.elastic.has_failure_store = True
        self.elastic.reject = must_be_number("n")
        for number in range(count):
            bad = number % bad_each == 0
            body = b'{"n":"no %d"}' % number if bad else b'{"n":%d}' % number
            self.publish(body, f"id-{number}", guilty=bad and guilty)

    def _acked(self, message: Stored) -> None:
        if message.body not in self.elastic.failure_store:
            super()._acked(message)


@pytest.mark.parametrize("seed", SEEDS)
def test_by_default_it_is_acked_and_told(seed: int) -> None:
    """Nobody would notice otherwise: Elasticsearch answers 201. A line a batch, without document text; no hold."""

    async def scenario(world: Stream) -> None:
        world.fill(60, bad_each=3, guilty=False)
        await world.start()
        await world.until_settled()
        assert (len(world.elastic.documents), len(world.elastic.failure_store)) == (40, 20)
        assert world.dead_letters == []
        account = world.pipeline.counters
        assert account.total("ack") == 60
        assert account.outcomes() == {"success": 40, "failure_store": 20}
        world.pipeline.flush_failure_log()
        told = world.log.named("items.in_failure_store")
        assert sum(int(str(line["count"])) for line in told) == 20
        assert f"GET {INDEX}::failures/_search" in str(told[0]["example"])
        assert str(told[0]["example_id"]).startswith("id-")
        assert "no " not in str([line["example"] for line in told])
        assert not world.log.named("items.rejected")
        (group,) = world.pipeline.snapshot().failures
        assert (group.kind.verdict, group.kind.reason, group.count) == ("ack", "failure-store", 20)

    play(lambda: Stream(seed, action="create"), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_as_dead_letters_they_say_why(seed: int) -> None:
    """With a reason of their own, and the data stream named: there the failure is found."""

    async def scenario(world: Stream) -> None:
        world.fill(60, bad_each=3, guilty=True)
        await world.start()
        await world.until_settled()
        world.judge()
        assert len(world.dead_letters) == 20
        copy = world.broker.queues[DEAD].ready[0]
        told = [
            decode(header(copy.properties, name) or b"V")
            for name in (b"sidecar-reason", b"sidecar-status", b"sidecar-index")
        ]
        assert told == ["failure-store", 201, INDEX]
        assert world.log.named("items.in_failure_store")
        assert world.pipeline.counters.outcomes()["failure_store"] == 20

    play(lambda: Stream(seed, action="create", error_policy=DEAD_LETTER), scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_as_dead_letters_they_are_guarded(seed: int) -> None:
    """A mapping that fits nothing empties no queue into the dead letters, though a failure store takes all of it."""

    async def scenario(world: Stream) -> None:
        world.fill(80, bad_each=1, guilty=True)
        await world.start()
        await world.until(lambda: world.pipeline.held)
        await asyncio.sleep(60)
        assert len(world.dead_letters) == 10
        assert "10 documents in a row were refused: failure-store" in str(world.pipeline.held)

    play(lambda: Stream(seed, action="create", error_policy=DEAD_LETTER, reject_guard=10), scenario)
