"""What a trouble leaves behind when it is over: nothing. `World.rest` compares the sidecar with a new one."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, NamedTuple

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.results.policy import ErrorPolicy
from tests.builders import long_string
from tests.builders import properties as raw_properties
from tests.fakes.elasticsearch import TARGET_FAILURES, Failure, Refusal, Trouble, must_be_number
from tests.pipeline.simulated_pipeline import DEAD, QUEUE, SimulatedPipeline, play

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = 1_000
TROUBLE_SECONDS = 36.0
BUSY = Failure(429, "es_rejected_execution_exception", "rejected execution")
FAILING = Failure(500, "internal_server_error", "something broke")


class Kind(NamedTuple):
    """A trouble: how it begins, and how it ends."""

    begin: Callable[[SimulatedPipeline], object]
    end: Callable[[SimulatedPipeline], object]


def requests(trouble: Trouble | Refusal) -> Kind:
    return Kind(
        lambda world: setattr(world.elastic, "trouble", lambda _: trouble),
        lambda world: setattr(world.elastic, "trouble", lambda _: None),
    )


def items(failure: Failure, *, all_of_them: bool = False) -> Kind:
    return Kind(
        lambda world: setattr(
            world.elastic, "item_fault", lambda item: failure if all_of_them or item.index == "other" else None
        ),
        lambda world: setattr(world.elastic, "item_fault", lambda _: None),
    )


def dead_letters(name: str) -> Kind:
    return Kind(
        lambda world: setattr(world.broker.queues[DEAD], name, True),
        lambda world: setattr(world.broker.queues[DEAD], name, False),
    )


TROUBLES = {
    "away": requests(Trouble.REFUSED),
    "hangs": requests(Trouble.HANGS_BEFORE),
    "503": requests(Refusal(503, html=True)),
    "refuses all": requests(Refusal(400, "illegal_argument_exception", "something is wrong with all of you")),
    "429": requests(Refusal(429, "circuit_breaking_exception", "Data too large", retry_after_seconds=2.0)),
    "busy": items(BUSY),
    "full": items(BUSY, all_of_them=True),
    "failing": items(FAILING),
    "blocked": items(TARGET_FAILURES["closed"]),
    "all blocked": items(TARGET_FAILURES["closed"], all_of_them=True),
    "delays full": Kind(
        lambda world: setattr(world.broker, "delays_full", True),
        lambda world: setattr(world.broker, "delays_full", False),
    ),
    "delays undeclarable": Kind(
        lambda world: world.broker.delays_undeclarable.add(None),
        lambda world: world.broker.delays_undeclarable.clear(),
    ),
    "dead letters full": dead_letters("full"),
    "dead letters silent": dead_letters("silent"),
    "alarm": Kind(lambda world: world.broker.raise_alarm(), lambda world: world.broker.end_alarm()),
    "alarm until a restart": Kind(
        lambda world: world.broker.raise_alarm(),
        lambda world: (world.broker.sessions and world.lose_session(), world.broker.end_alarm()),
    ),
    "broker away": Kind(
        lambda world: (setattr(world.broker, "down", True), world.lose_session()),
        lambda world: setattr(world.broker, "down", False),
    ),
}
NONE = Kind(lambda _: None, lambda _: None)
PAIRS = [
    *((name, "delays full") for name in ("blocked", "all blocked", "failing", "alarm", "away", "429", "broker away")),
    *((name, "delays undeclarable") for name in ("blocked", "all blocked", "failing")),
    *((name, "dead letters full") for name in ("away", "busy", "alarm", "blocked", "hangs")),
    *((name, "alarm") for name in ("away", "full", "blocked", "503")),
]
LOST = ("", "during", "at the end")
CASES = [
    # Each alone, with the session kept, and with it lost; in pairs one of the three. The rest takes long.
    pytest.param(one, other, lost, marks=() if number % 3 == at or (not other and not lost) else pytest.mark.full)
    for number, (one, other) in enumerate([*((name, "") for name in TROUBLES), *PAIRS])
    for at, lost in enumerate(LOST)
]


def world(seed: int) -> SimulatedPipeline:
    encoder_config = EncoderConfig(index=Template("{header.i}"), id_mode="none")
    made = SimulatedPipeline(
        seed,
        encoder_config=encoder_config,
        prefetch=60,
        retry_max_attempts=3,
        delayed_retry_max_rounds=20,
        hold_max_seconds=15.0,
        memory_limit_bytes=60_000,
        error_policy=ErrorPolicy(),
    )
    made.elastic.reject = must_be_number("n")
    return made


def publish(made: SimulatedPipeline, number: int) -> None:
    """Publish a message; every third is for another index, and every seventh malformed."""
    body = b'{"n":"x%d"}' % number if number % 7 == 3 else b'{"n":%d}' % number
    index = b"other" if number % 3 == 1 else b"documents"
    made.published[body] = made.broker.publish(QUEUE, body, raw_properties([(b"i", long_string(index))]))


@pytest.mark.parametrize(("one", "other", "lost"), CASES)
def test_a_trouble_that_is_over_leaves_nothing_behind(one: str, other: str, lost: str) -> None:
    """Alone, or beside another one that begins later and ends earlier; with the session lost meanwhile, or kept.

    Messages come all the time: before, during and after it.
    """
    first, second = TROUBLES[one], TROUBLES.get(other, NONE)

    async def scenario(made: SimulatedPipeline) -> None:
        numbers = itertools.count()
        await made.start()

        async def come(seconds: float) -> None:
            for _ in range(int(seconds)):
                for _ in range(2):
                    publish(made, next(numbers))
                await asyncio.sleep(1.0)

        await come(5.0)
        first.begin(made)
        await come(8.0)
        second.begin(made)
        await come(6.0)
        if lost == "during" and made.pipeline._session is not None:
            made.lose_session()
        await come(6.0)
        second.end(made)
        await come(TROUBLE_SECONDS - 20.0)
        first.end(made)
        if lost == "at the end" and made.pipeline._session is not None:
            made.lose_session()
        await come(5.0)
        # What ends a hold are messages: the last ones may be all that there are.
        while not made.at_rest:
            await come(10.0)
            await asyncio.sleep(20.0)
            assert asyncio.get_running_loop().time() < 3_600.0, made.summary()
        publish(made, 7 * MANY + 3)  # a dead letter, now that nothing is in its way
        await made.until_settled()
        assert all(one.delay is not None for one in made.pipeline._settler.republisher._destinations.values())

    play(lambda: world(len(one) + len(other)), scenario)  # which looks at what is left
