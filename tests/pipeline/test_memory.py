"""Compressed bodies that come together, and what comes to light of them at once."""

from __future__ import annotations

import gzip

import pytest

from sidecar.core.flow.prefetch_window import MESSAGE_BYTES
from tests.fakes.broker import properties
from tests.pipeline.simulated_pipeline import QUEUE, SimulatedPipeline, play

DOCUMENT_BYTES = 100_000
LIMIT_BYTES = 350_000


class Bombs(SimulatedPipeline):
    """A world whose memory is watched."""

    max_bytes = 0

    def bomb(self, number: int, document_id: str) -> None:
        body = gzip.compress(b'{"n":%d,"pad":"%s"}' % (number, b" " * DOCUMENT_BYTES), mtime=0)
        self.broker.publish(QUEUE, body, properties(message_id=document_id, content_encoding="gzip"))

    def _acked(self, message: object) -> None:
        """What is stored has other bytes than what came."""

    def watch(self) -> None:
        super().watch()
        session = self.pipeline._session
        if session is not None:
            held = sum(ledger.memory_bytes + MESSAGE_BYTES * ledger.open for ledger in session.ledgers)
            self.max_bytes = max(self.max_bytes, held)


def limited(age_seconds: float = 1.0) -> Bombs:
    return Bombs(memory_limit_bytes=LIMIT_BYTES, batch_max_age_seconds=age_seconds, batch_max_items=50)


@pytest.mark.parametrize("age_seconds", [1.0, 3_600.0])
def test_memory_has_its_bound_whatever_comes_to_light(age_seconds: float) -> None:
    """Sixty small bodies in few chunks hold 6 MB: never more than the limit and one document, and all are stored."""

    async def scenario(world: Bombs) -> None:
        for number in range(60):
            world.bomb(number, f"id-{number % 40}")
        await world.start()
        account = world.pipeline.counters
        await world.until(lambda: account.received[QUEUE] == 60 and not world.pipeline._unadmitted, 600.0)
        await world.stop()
        assert account.settled[QUEUE, "ack"] == 60
        assert len(world.elastic.documents) == 40
        assert [one for one in world.elastic.documents.values() if b'"n":59,' in one]
        for history in world.elastic.history.values():
            numbers = [int(one.source[5:].split(b",")[0]) for one in history]
            assert numbers == sorted(numbers)
        assert LIMIT_BYTES - DOCUMENT_BYTES < world.max_bytes < LIMIT_BYTES + 2 * DOCUMENT_BYTES

    play(lambda: limited(age_seconds), scenario)  # type: ignore[arg-type]


def test_a_drain_gives_back_what_there_was_no_room_for() -> None:
    """In the middle of a chunk, in order, and nothing that came later is stored before it."""

    async def scenario(world: Bombs) -> None:
        await world.start()
        await world.until(lambda: world.log.named("amqp.consuming"))
        world.elastic.down = True
        for number in range(30):
            world.bomb(number, f"id-{number % 7}")
        await world.until(lambda: world.pipeline.held)
        await world.stop()
        assert len(world.left) == 30
        world.elastic.down = False
        await world.start()
        await world.until_settled(600.0)
        assert sorted(int(one[5:].split(b",")[0]) for one in world.elastic.documents.values()) == list(range(23, 30))

    play(limited, scenario)  # type: ignore[arg-type]


def test_a_lost_session_takes_along_what_waits_for_room() -> None:
    """It is stale, and comes again."""

    async def scenario(world: Bombs) -> None:
        for number in range(30):
            world.bomb(number, f"id-{number}")
        await world.start()
        await world.until(lambda: world.pipeline._waiting)
        world.lose_session()
        await world.until_settled(600.0)
        assert len(world.elastic.documents) == 30

    play(limited, scenario)  # type: ignore[arg-type]
