"""`sidecar.sinks.amqp.Routes`: how long an ack waits for queues that may be new."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.results.bulk import Result
from sidecar.ports import QUEUE_DURABLE_AFTER_SECONDS, Unroutable
from sidecar.sinks.amqp import Routes
from tests.builders import examples, message
from tests.drawing import drew
from tests.fakes import clock

ANSWERS = {"taken": None, "no queue": Unroutable("312 NO_ROUTE"), "refused": "nack", "too large": Result(501, "", "")}
"""What the broker may say of one message."""

Said = list[tuple[bytes, str]]
"""A batch: the route of each message, and what the broker says of it."""


async def waited(routes: Routes, batch: Said) -> float:
    """Return how long the acks of a batch wait, in seconds."""
    messages = [message(number) for number in range(len(batch))]
    for one, (route, _) in zip(messages, batch, strict=True):
        one.made = route
    loop = asyncio.get_running_loop()
    began = loop.time()
    told = await routes.old_enough(messages, [ANSWERS[said] for _, said in batch])
    assert told == (loop.time() > began)
    return loop.time() - began


@pytest.mark.draws("a new queue first", "a new queue in the middle", "a new queue last", "a queue that is gone again")
@settings(max_examples=examples(150), deadline=None)
@given(
    batches=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.3, 0.9, 5.0]),
            st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from(sorted(ANSWERS))), min_size=1),
        ),
        max_size=8,
    )
)
def test_no_ack_is_earlier_than_the_queues_of_its_batch_are_safe(batches: list[tuple[float, Said]]) -> None:
    """Since the first publish of all, and since each queue appeared that was missing; and none is later than that."""

    async def main() -> None:
        routes, loop = Routes(), asyncio.get_running_loop()
        began: float | None = None
        missing: set[bytes] = set()
        appeared: dict[bytes, float] = {}
        for pause, batch in batches:
            await asyncio.sleep(pause)
            now = loop.time()
            began = now if began is None else began
            newest = began
            places = []
            for at, (route, said) in enumerate(batch):
                if said == "no queue":
                    drew("a queue that is gone again", route in appeared)
                    missing.add(route)
                elif said == "taken":
                    if route in missing:
                        missing.discard(route)
                        appeared[route] = now
                    if appeared.get(route, began) > newest or appeared.get(route) == now:
                        places.append(at)
                    newest = max(newest, appeared.get(route, began))
            drew("a new queue first", places and places[0] == 0 < len(batch) - 1)
            drew("a new queue in the middle", any(0 < at < len(batch) - 1 for at in places))
            drew("a new queue last", places and places[-1] == len(batch) - 1 > 0)
            assert await waited(routes, batch) == pytest.approx(max(0.0, newest + QUEUE_DURABLE_AFTER_SECONDS - now))

    clock.run(main())
