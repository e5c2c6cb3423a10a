"""`sidecar.sinks.amqp`: when a confirm may be believed."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.ports import QUEUE_DURABLE_AFTER_SECONDS, Unroutable
from sidecar.sinks.amqp import Routes
from tests.builders import message
from tests.fakes import clock


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_newest_queue_of_a_batch_counts_wherever_its_message_stands(position: int) -> None:
    """Its messages are safe some seconds after it appeared; those of older queues don't shorten that."""

    async def scenario() -> None:
        now = asyncio.get_running_loop().time
        routes = Routes()
        batch = [message(tag) for tag in range(3)]
        for at, one in enumerate(batch):
            one.made = b"young" if at == position else b"old"
        await routes.old_enough(batch, [Unroutable("NO_ROUTE") if one.made == b"young" else None for one in batch])
        await asyncio.sleep(60)
        appeared_at = now()
        assert await routes.old_enough(batch, [None] * 3)
        assert now() - appeared_at == pytest.approx(QUEUE_DURABLE_AFTER_SECONDS)
        assert not await routes.old_enough(batch, [None] * 3)

    clock.run(scenario())
