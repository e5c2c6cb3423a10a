"""Bad days from a seed: faults of both servers at random times, restarts, all kinds of messages; then a judge."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, NamedTuple

from tests.fakes.elasticsearch import Refusal, Trouble, must_be_number
from tests.pipeline.world import DEAD, World

if TYPE_CHECKING:
    from tests.fakes.elasticsearch import Request

TROUBLES: tuple[Trouble | Refusal, ...] = (
    *Trouble,
    Refusal(503, html=True),
    Refusal(502, html=True),
    Refusal(429, "circuit_breaking_exception", "[parent] Data too large", retry_after_seconds=1.0),
    Refusal(401, "security_exception", "missing authentication credentials"),
    Refusal(403, "security_exception", "action [indices:data/write/bulk] is unauthorized"),
    Refusal(400, "illegal_argument_exception", "something is wrong with all of you"),
    Refusal(400, "illegal_argument_exception", "request [/_bulk] contains unrecognized parameter: [x]"),
)
_PEACE_AT_SECONDS = 90.0
_PATIENCE_SECONDS = 3_600.0


class Window(NamedTuple):
    """A time in which requests fare badly.

    Attributes:
        share: of the requests in it that the trouble meets.
    """

    start: float
    end: float
    trouble: Trouble | Refusal
    share: float


class BadDay:
    """Everything that will happen on one day.

    Args:
        seed: of all chance; the same seed gives the same day, to the last callback.
    """

    def __init__(self, seed: int) -> None:
        dice = self._dice = random.Random(f"day {seed}")
        self.seed = seed
        self.with_ids = dice.choice((0.0, 0.5, 1.0, 1.0))
        self.action = "create" if dice.random() < 0.15 else "index"
        self.hot = 0 if self.action == "create" else dice.choice((0, 0, 3, 20))
        self.windows = [self._window() for _ in range(dice.choice((0, 0, 1, 1, 2, 4)))]
        self.poisons = dice.choice((0, 0, 0, 1, 2))
        self.bad_share = dice.choice((0.0, 0.05, 0.3))
        self.messages = dice.randint(20, 200)
        incidents = dice.choice((0, 0, 1, 2, 5))
        self.incidents = sorted(
            (dice.uniform(0, _PEACE_AT_SECONDS - 30), dice.choice(_INCIDENTS)) for _ in range(incidents)
        )
        self.restarts = 0

    def _window(self) -> Window:
        dice = self._dice
        start = dice.uniform(0, _PEACE_AT_SECONDS - 40)
        trouble = dice.choice(TROUBLES)
        # A fault that fails some requests with a 400 and others not can't be told from items at fault.
        blaming = isinstance(trouble, Refusal) and trouble.status == 400
        share = 1.0 if blaming or dice.random() < 0.6 else dice.uniform(0.1, 0.9)
        return Window(start, start + dice.uniform(0.1, 40), trouble, share)

    @property
    def peaceful(self) -> bool:
        """Whether nothing happens that makes a message come twice, or an outcome unknown."""
        return not (self.windows or self.incidents or self.poisons)

    def world(self) -> World:
        """Return the world before the day."""
        dice = self._dice
        batch = dice.choice((1, 5, 10, 50))
        world = World(
            self.seed,
            # Where only poisonous items fit in, none of them can be told from a fault that fails every request.
            prefetch=max(5, batch * dice.choice((1, 3, 10))),
            action=self.action,
            batch_max_items=batch,
            batch_max_age_seconds=dice.choice((0.05, 0.5, 1.0)),
            batch_max_bytes=dice.choice((200, 100_000)),
            bulk_concurrency=dice.choice((1, 2, 4, 8)),
            memory_limit_bytes=dice.choice((1 << 26, 1 << 26, 40_000, 12_000)),
            hold_max_seconds=dice.choice((5.0, 20.0, 300.0)),
            # Where requests fail now and then for a minute, a document may be unlucky more than five times.
            retry_max_attempts=50,
        )
        world.elastic.looks_see_trouble = dice.random() < 0.5
        world.elastic.capacity_items = dice.choice((None, None, 10, 60))
        world.elastic.latency_seconds = dice.choice(((0.001, 0.02), (0.05, 0.5)))
        world.elastic.reject = must_be_number("n")
        world.elastic.poison = lambda source: b"poison" in source
        world.elastic.trouble = self._trouble
        return world

    def _trouble(self, request: Request) -> Trouble | Refusal | None:
        for window in self.windows:
            if window.start <= request.at < window.end and self._dice.random() < window.share:
                return window.trouble
        return None

    # The day ---------------------------------------------------------------------------------------------------------

    async def pass_by(self, world: World) -> None:
        """Live through the day, and judge it."""
        await world.start()
        publishing = asyncio.create_task(self._publish(world), name="publishing")
        loop = asyncio.get_running_loop()
        for at, incident in self.incidents:
            await asyncio.sleep(max(0.0, at - loop.time()))
            await self._happen(world, incident)
        await publishing
        await asyncio.sleep(max(0.0, _PEACE_AT_SECONDS - loop.time()))
        # A poisonous item is only blamed when others pass: so there are others.
        for number in range(10):
            world.publish(b'{"n":%d,"beacon":true}' % number, f"beacon-{number}")
            await asyncio.sleep(0.5)
        await world.until_settled(_PATIENCE_SECONDS)
        await world.stop()
        world.judge(redelivered=not self.peaceful)
        assert not world.left
        assert world.pipeline.account.in_flight == 0
        if self.with_ids == 1.0:
            expected = sum(any(body not in world.guilty for body in bodies) for bodies in world.order.values())
            assert len(world.elastic.documents) == expected
        self._judge_storms(world)

    async def _publish(self, world: World) -> None:
        dice = self._dice
        poisons = dice.sample(range(self.messages), self.poisons)
        number = 0
        while number < self.messages:
            for _ in range(min(self.messages - number, dice.choice((1, 1, 5, 100)))):
                self._publish_one(world, number, poisonous=number in poisons)
                number += 1
            await asyncio.sleep(dice.choice((0.0, 0.1, 3.0)) if asyncio.get_running_loop().time() < 60.0 else 0.0)

    def _publish_one(self, world: World, number: int, *, poisonous: bool) -> None:
        dice = self._dice
        bad = dice.random() < self.bad_share
        body = b'{"n":%d}' % number
        if poisonous:
            body = b'{"n":%d,"x":"poison"}' % number
        elif bad:
            body = dice.choice((b'{"n":"no %d"}', b"not json %d", b"[%d]")) % number
        name = None
        if dice.random() < self.with_ids:
            name = f"hot-{dice.randrange(self.hot)}" if self.hot and dice.random() < 0.7 else f"id-{number}"
        world.publish(body, name, guilty=bad or poisonous)

    async def _happen(self, world: World, incident: str) -> None:
        dice = self._dice
        loop = asyncio.get_running_loop()
        if incident == "session lost" and world.broker.sessions:
            world.lose_session()
        elif incident == "broker away":
            world.broker.down = True
            if world.broker.sessions:
                world.lose_session()
            loop.call_later(dice.uniform(0.1, 20), setattr, world.broker, "down", False)
        elif incident in ("full", "silent"):
            dead = world.broker.declare(DEAD)
            setattr(dead, incident, True)
            loop.call_later(dice.uniform(0.1, 40), setattr, dead, incident, False)
        elif incident == "alarm":
            world.broker.raise_alarm()
            loop.call_later(dice.uniform(0.1, 60), world.broker.end_alarm)
        elif incident in ("SIGTERM", "kill"):
            self.restarts += 1
            if incident == "SIGTERM":
                assert await world.stop() <= world.shutdown_seconds
            else:
                await world.crash()
            await asyncio.sleep(5.0)  # what is on its way to Elasticsearch arrives before the next one starts
            await world.start()

    def _judge_storms(self, world: World) -> None:
        """In an outage there are few requests, whatever else happens."""
        for window in self.windows:
            # A request without an answer holds after the client's patience only; some may succeed in between.
            if window.share < 1.0 or window.trouble in (Trouble.HANGS_AFTER, Trouble.HANGS_BEFORE):
                continue
            # Those on their way, those that left before the first no came back, halves, then one probe after the other.
            count = sum(window.start <= request.at < window.end for request in world.elastic.requests)
            seconds = window.end - window.start
            most = (1 + self.restarts) * 3 * world.plan.bulk_concurrency + 1.3 * seconds + 10
            assert count <= most, f"{count} requests in {seconds:.0f} s of {window.trouble}"


_INCIDENTS = ("session lost", "session lost", "broker away", "full", "silent", "alarm", "SIGTERM", "kill")
