"""A sidecar between the simulated servers, watched at every turn of the loop, and judged without its own words.

The judge knows what was published, what Elasticsearch applied and what the broker holds; it asks the product nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, cast

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.pipeline.app import App
from sidecar.pipeline.config import PipelineConfig
from sidecar.pipeline.pipeline import Pipeline
from sidecar.sinks.elasticsearch import ElasticsearchSink
from tests import invariants
from tests.fakes import clock
from tests.fakes.broker import Broker, Stored, properties
from tests.fakes.elasticsearch import Elasticsearch
from tests.pipeline.expected_metrics import ExpectedMetrics
from tests.pipeline.memory_account import MemoryAccount

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from structlog.typing import FilteringBoundLogger

    from sidecar.ports import Tracing

QUEUE = "work"
DEAD = "work.dead"
INDEX = "documents"
_COUNT_TIMERS_EVERY = 64  # turns of the loop
_COUNT_MEMORY_EVERY = 16
_REST_SECONDS = 61.0


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.events: list[tuple[float, str, dict[str, object]]] = []

    def _note(self, event: str, **details: object) -> None:
        self.events.append((asyncio.get_running_loop().time(), event, details))

    debug = info = warning = error = exception = _note

    def named(self, event: str) -> list[dict[str, object]]:
        """Return the details of each event of that name."""
        return [details for _, name, details in self.events if name == event]


class SimulatedPipeline:
    """A broker, an Elasticsearch, and one sidecar at a time between them.

    Args:
        seed: of all chance.
        prefetch: of the consuming channel.
        shutdown_seconds: how long the end may take.
        plan: what differs from small batches (10 items) of the index ``documents``.

    Attributes:
        published: all messages of the work queue, by body; bodies are unlike.
        guilty: bodies that deserve the dead-letter queue.
        order: the bodies of each document id, in the order of their publishing.
        dead: how often the copy of each body reached the dead-letter queue.
        queues: that the sidecar consumes from.
        ended: the sidecar was told to stop, and did.
        sink: what batches go to: ``elasticsearch``, ``amqp`` or ``handler``.
        expected: what the metrics should say.
        memory: what the deliveries of the sidecar that runs hold.
    """

    sink = "elasticsearch"

    def __init__(
        self,
        seed: int = 0,
        *,
        action: str = "index",
        prefetch: int = 100,
        shutdown_seconds: float = 25.0,
        **plan: object,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.broker = Broker(self.rng)
        self.elastic = Elasticsearch(self.rng)
        self.log = Log()
        self.queues = [QUEUE]
        encoder_config = EncoderConfig(index=Template(INDEX), action=Template(action))
        self.tracing: Tracing | None = None
        self.plan = PipelineConfig(
            **{"encoder_config": encoder_config, "batch_max_items": 10, "prefetch": prefetch, **plan}
        )  # type: ignore[arg-type]
        self.expected = ExpectedMetrics(self.plan, self._wall_clock)
        self.expected.watch_elasticsearch(self.elastic)
        self.prefetch = prefetch
        self.shutdown_seconds = shutdown_seconds
        self.published: dict[bytes, Stored] = {}
        self.guilty: dict[bytes, None] = {}  # a dict, for it remembers the order
        self.order: dict[str, list[bytes]] = {}
        self.dead: Counter[bytes] = Counter()
        self.wrong_acks: list[bytes] = []
        self.waiting: list[tuple[Callable[[], object], asyncio.Future[None]]] = []
        self.pipeline: Pipeline = self._new_pipeline()
        self.memory = MemoryAccount(self.pipeline)
        self.app: App | None = None
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self.ended = False
        self._killed_sessions = 0  # those of sidecars that nobody could close
        self._earlier_sessions = 0  # those of sidecars that are gone
        self._turns = 0
        self.broker.declare(QUEUE)
        self.broker.declare(DEAD)
        self.broker.on_ack = self._acked
        self.broker.on_publish = self._copied

    # The sidecar -----------------------------------------------------------------------------------------------------

    def _new_pipeline(self) -> Pipeline:
        log = cast("FilteringBoundLogger", self.log)
        return Pipeline(
            self.plan,
            ElasticsearchSink(self.plan, self.elastic, self.tracing),
            rng=self.rng,
            log=log,
            wall_clock=self._wall_clock,
        )

    def fresh(self) -> Pipeline:
        """Return a pipeline of the same plan that is never started: what one at rest is compared with."""
        return self._new_pipeline()

    @staticmethod
    def _wall_clock() -> float:
        return 1_700_000_000.0 + asyncio.get_running_loop().time()

    async def start(self) -> None:
        """Start a sidecar; returns at once."""
        self.pipeline = self._new_pipeline()
        self.memory = MemoryAccount(self.pipeline)
        self.expected.begin()
        self.ended = False
        self._stop = asyncio.Event()
        self._earlier_sessions = len(self.broker.sessions)
        log = cast("FilteringBoundLogger", self.log)
        connect = self.memory.watch_sessions(self.expected.watch_sessions(self.broker.connector(self.queues)))
        self.app = App(self.pipeline, connect, rng=self.rng, log=log, shutdown_seconds=self.shutdown_seconds)
        self._running = asyncio.create_task(self.app.run(self._stop), name="sidecar")

    async def stop(self) -> float:
        """Send SIGTERM and wait for the end; return how long it took, in seconds."""
        assert self._running is not None
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        self._stop.set()
        await self._running
        self._running = None
        self.ended = True
        return loop.time() - asked_at

    async def crash(self) -> None:
        """End the sidecar as ``kill -9`` does: nothing more is written, the broker notices at once."""
        assert self._running is not None
        self._killed_sessions = len(self.broker.sessions)
        for session in self.broker.sessions:
            session.lose("the client vanished")
        self._running.cancel()
        await asyncio.wait([self._running])
        self._running = None

    def lose_session(self, reason: str = "connection reset by peer") -> None:
        """Break the connection to the broker."""
        self.broker.sessions[-1].lose(reason)

    async def end(self) -> None:
        """Stop the sidecar if it still runs."""
        if self._running is not None:
            await self.stop()

    # Messages --------------------------------------------------------------------------------------------------------

    def publish(self, body: bytes, document_id: str | None = None, *, guilty: bool = False) -> bytes:
        """Publish a message that is unlike all others; return its body."""
        assert body not in self.published
        stored = self.broker.publish(QUEUE, body, properties(message_id=document_id) if document_id else b"\0\0")
        self.published[body] = stored
        if guilty:
            self.guilty[body] = None
        if document_id is not None:
            self.order.setdefault(document_id, []).append(body)
        return body

    def publish_many(self, count: int, *, with_ids: bool = True, start: int = 0) -> list[bytes]:
        """Publish `count` documents, each with an id of its own where it is to have one."""
        return [
            self.publish(b'{"n":%d}' % number, f"id-{number}" if with_ids else None)
            for number in range(start, start + count)
        ]

    @property
    def ready(self) -> int:
        """How many messages wait in the work queue."""
        return len(self.broker.queues[QUEUE].ready)

    @property
    def left(self) -> list[bytes]:
        """What the broker still has of the work queue, in consumers' hands or not."""
        waiting = list(self.broker.queues[QUEUE].ready)
        return [message.body for message in (*self.broker.unsettled(QUEUE), *waiting)]

    @property
    def dead_letters(self) -> list[bytes]:
        """The bodies in the dead-letter queue."""
        return [message.body for message in self.broker.queues[DEAD].ready] if DEAD in self.broker.queues else []

    # Watching --------------------------------------------------------------------------------------------------------

    def _acked(self, message: Stored) -> None:
        """Nothing is acked before it is stored, or its copy is, unless it is to be thrown away."""
        body = message.body
        safe = self.elastic.applied[body] or self.dead[body] or self.broker.delayed[body]
        if body in self.published and not safe and self.plan.on_reject != "discard":
            self.wrong_acks.append(body)

    def _copied(self, queue: str, message: Stored) -> None:
        if queue == DEAD:
            self.dead[message.body] += 1

    def watch(self) -> None:
        """Check what must hold at every moment; called between any two turns of the loop."""
        account = self.pipeline.counters
        open_deliveries = 0
        self._turns += 1
        if self._turns % _COUNT_TIMERS_EVERY == 0:
            timers = invariants.timers(asyncio.get_event_loop())
            assert len(timers) <= invariants.MOST_TIMERS, timers
        for session in self.broker.sessions[self._earlier_sessions :]:
            for channel in session.channels:
                ledger = channel.ledger
                open_deliveries += ledger.open
                assert ledger.memory_bytes == 0 or (ledger.memory_bytes > 0 and ledger.open), invariants.memory(ledger)
                if self._turns % _COUNT_MEMORY_EVERY == 0:
                    assert not (why := self.memory.differs(ledger)), why
                if not session.over and not ledger.closed:
                    assert ledger.outstanding == len(channel.unacked), f"{ledger}, broker: {len(channel.unacked)}"
                    assert len(channel.consumers_own) <= self.prefetch
                if session.over and not session.lost.done():
                    assert not channel.outstanding
        if self._running is not None:
            assert account.in_flight == open_deliveries, f"in flight {account.in_flight}, open {open_deliveries}"
            session = self.pipeline._session
            told = sum(ledger.open for ledger in session.ledgers) if session is not None else 0
            assert told == account.in_flight, f"told as in flight {told}, in the account {account.in_flight}"
            assert not (why := invariants.pause(self.pipeline)), why
        assert account.in_flight >= 0
        assert not self.wrong_acks, f"acked, but stored nowhere: {self.wrong_acks}"
        assert not self.elastic.crowded, f"two operations in flight on {self.elastic.crowded}"
        assert self.elastic.in_flight <= self.plan.bulk_concurrency
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        for predicate, future in self.waiting:
            if not future.done() and predicate():
                future.set_result(None)
        self.waiting = [(predicate, future) for predicate, future in self.waiting if not future.done()]

    async def until(self, predicate: Callable[[], object], within: float = 60.0) -> float:
        """Wait until something holds; return the time when it did.

        Raises:
            AssertionError: it didn't hold within so many virtual seconds.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if not predicate():
            self.waiting.append((predicate, future))
            try:
                async with asyncio.timeout(within):
                    await future
            except TimeoutError:
                raise AssertionError(f"not within {within} s: {self.summary()}") from None
        return loop.time()

    @property
    def quiet(self) -> bool:
        """Whether a sidecar runs to which nothing is delivered, and that waits for no answer and no confirm."""
        busy = any(queue.ready for name, queue in self.broker.queues.items() if name in self.queues) or any(
            self.broker.unsettled(name) for name in self.queues
        )
        return self._running is not None and not busy and not self.expected.counts.in_flight

    async def until_settled(self, within: float = 60.0) -> float:
        """Wait until nothing is left of the work queue."""
        return await self.until(lambda: not self.ready and not self.broker.unsettled(QUEUE), within)

    def summary(self) -> str:
        """Return the state in a line, for failures."""
        return (
            f"seed {self.seed}, {self.ready} ready, {len(self.left)} left, {len(self.elastic.documents)} documents, "
            f"{len(self.dead_letters)} dead letters, {len(self.elastic.requests)} requests, "
            f"held {self.pipeline.limiter.held!r}, burying held {self.pipeline.copying_held!r}, "
            f"account {self.pipeline.counters.summary()}"
        )

    def check_metrics(self, *, quiet: bool) -> None:
        """Compare what ``/metrics`` tells with what passed at the ports."""
        if self.app is not None:
            self.expected.check(self.app.snapshot(), quiet=quiet, sink=self.sink)

    # Rest ------------------------------------------------------------------------------------------------------------

    @property
    def at_rest(self) -> bool:
        """Whether a sidecar runs that has nothing to do, and nothing is in its way."""
        broker, pipeline = self.broker, self.pipeline
        if self._running is None or pipeline._session is None or pipeline._session.lost.done():
            return False
        busy = any(broker.queues[name].ready or broker.unsettled(name) for name in self.queues if name in broker.queues)
        waits = pipeline.held or pipeline._flow_control.waiting or broker.delayed or self.elastic.in_flight
        return broker.takes_all and not (busy or waits)

    async def rest(self) -> None:
        """See that a sidecar at rest keeps nothing of what it did; otherwise do nothing."""
        if not self.at_rest:
            return
        await asyncio.sleep(_REST_SECONDS)
        if not self.at_rest:
            return
        found = invariants.at_rest(self.pipeline, self.fresh())
        found += invariants.tasks(1) + invariants.timers(asyncio.get_running_loop())
        assert not found, f"at rest: {found}; {self.summary()}"

    def gone(self) -> None:
        """See that a sidecar that ended in order closed whatever it had opened."""
        sessions = self.broker.sessions[self._killed_sessions :]
        assert all(session.closes for session in sessions), f"not closed: {[one.closes for one in sessions]}"
        found = invariants.tasks(0) + invariants.timers(asyncio.get_running_loop())
        assert not found, f"after the end: {found}; {self.summary()}"

    # Judging ---------------------------------------------------------------------------------------------------------

    def judge(self, *, redelivered: bool = False) -> None:
        """Judge a world that came to rest.

        Args:
            redelivered: sessions were lost or requests went unanswered, so what has no id may be stored twice.
        """
        left, dead, applied = Counter(self.left), Counter(self.dead_letters), self.elastic.applied
        for body in self.published:
            places = bool(applied[body]) + bool(dead[body]) + bool(left[body])
            assert places >= 1, f"lost: {body!r}; {self.summary()}"
            assert left[body] <= 1, f"twice in the queue: {body!r}; {self.summary()}"
            if not redelivered:
                assert places == 1, f"in two places: {body!r}; {self.summary()}"
                assert applied[body] <= 1, f"stored {applied[body]} times: {body!r}; {self.summary()}"
                assert dead[body] <= 1, f"dead-lettered twice: {body!r}; {self.summary()}"
        innocent = [body for body in dead if body not in self.guilty]
        assert not innocent, f"dead-lettered without a fault: {innocent}; {self.summary()}"
        acquitted = [body for body in self.guilty if applied[body]]
        assert not acquitted, f"stored though at fault: {acquitted}; {self.summary()}"
        self._judge_order(left, redelivered=redelivered)

    def _judge_order(self, left: Counter[bytes], *, redelivered: bool) -> None:
        for document_id, bodies in self.order.items():
            good = [body for body in bodies if body not in self.guilty]
            history = [applied.source for applied in self.elastic.history.get((INDEX, document_id), [])]
            if not redelivered:
                in_order = [body for body in good if body in history]
                assert history == in_order, f"out of order: {history}; {self.summary()}"
            if good and not any(left[body] for body in bodies):
                stored = self.elastic.documents.get((INDEX, document_id))
                assert stored == good[-1], f"{document_id}: {stored!r}, not {good[-1]!r}; {self.summary()}"


def play(
    world_of: Callable[[], SimulatedPipeline], scenario: Callable[[SimulatedPipeline], Coroutine[object, object, None]]
) -> SimulatedPipeline:
    """Play a scenario in virtual time in a world that is watched throughout; return the world.

    Raises:
        AssertionError: with the seed, so that it can be played again.
    """
    worlds: list[SimulatedPipeline] = []

    async def main() -> None:
        world = world_of()
        worlds.append(world)
        await scenario(world)
        if world.quiet:
            world.check_metrics(quiet=True)
        await world.rest()
        await world.end()
        if world.ended:
            world.check_metrics(quiet=False)
        world.gone()

    def watch() -> None:
        for world in worlds:
            world.watch()

    try:
        clock.run(main(), watcher=watch)
    except BaseException as error:
        for world in worlds:
            error.add_note(f"in {world.summary()}")
        raise
    return worlds[0]
