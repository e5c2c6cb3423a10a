"""A day, played: simulated servers, one sidecar or several between them, in virtual time, told as a trace."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.results.policy import ErrorPolicy
from sidecar.pipeline.app import App
from sidecar.pipeline.config import PipelineConfig
from sidecar.pipeline.pipeline import Pipeline
from sidecar.sinks.elasticsearch import ElasticsearchSink
from tests import invariants
from tests.builders import long_string
from tests.builders import properties as raw_properties
from tests.fakes import clock
from tests.fakes.broker import Broker, properties
from tests.fakes.elasticsearch import (
    TARGET_FAILURES,
    Client,
    Elasticsearch,
    Failure,
    Refusal,
    Trouble,
    must_be_number,
)
from tests.simulation.oracle import Discrepancy, Judge
from tests.simulation.scenario import (
    BEACONS,
    BROKER_FAULTS,
    CLUSTER_FAULTS,
    DELAY_FAULTS,
    DELETIONS,
    ITEM_FAULTS,
    PEACE_AT_SECONDS,
    REQUEST_FAULTS,
    SIDECAR_FAULTS,
    Publication,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from sidecar.pipeline.work import Sink
    from sidecar.ports import BrokerSession, OutboundMessage, Receive
    from tests.fakes.broker import Queue, SimulatedSession, Stored
    from tests.fakes.elasticsearch import Item, Request, Sent
    from tests.simulation.scenario import Day, Fault

QUEUE, DEAD = "work", "work.dead"
WALL_SECONDS = 1_700_000_000.0
_PATIENCE_SECONDS = 7_200.0
_RETURN_SECONDS = 120.0
_MOST_TURNS = 60_000  # of the loop; a bad day takes some thousands
_BEACON_NUMBER = 100_000
_REFUSALS = {
    "proxy 503": Refusal(503, html=True),
    "proxy 502": Refusal(502, html=True),
    "breaker": Refusal(429, "circuit_breaking_exception", "[parent] Data too large", retry_after_seconds=1.0),
    "login": Refusal(401, "security_exception", "missing authentication credentials"),
    "forbidden": Refusal(403, "security_exception", "action [indices:data/write/bulk] is unauthorized"),
    "refuses all": Refusal(400, "illegal_argument_exception", "something is wrong with all of you"),
    "parameter": Refusal(400, "illegal_argument_exception", "request [/_bulk] contains unrecognized parameter: [x]"),
}
_FAILURES = {
    **TARGET_FAILURES,
    "no privilege": Failure(403, "security_exception", "action [indices:data/write/bulk[s]] is unauthorized"),
    "shards": Failure(503, "unavailable_shards_exception", "primary shard is not active"),
    "failing": Failure(500, "internal_server_error", "something broke"),
    "item breaker": Failure(429, "circuit_breaking_exception", "[parent] Data too large"),
}

_ROOM_ITEMS = {"pool": 3, "rejecting": 0}
"""What the write pool takes while a fault lasts."""


class Telling(Protocol):
    """Keeps a trace if it is asked to."""

    telling: bool

    def tell(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        ...


class Log:
    """Hands what a sidecar logs on to the trace."""

    def __init__(self, world: Telling, name: str) -> None:
        self._world = world
        self._name = name

    def _note(self, event: str, **details: object) -> None:
        if self._world.telling:
            told = " ".join(f"{name}={value}" for name, value in details.items())
            self._world.tell(self._name, f"says {event} {told}".rstrip())

    debug = info = warning = error = exception = _note


class Life:
    """One sidecar from its start to its end.

    Attributes:
        received: messages that the broker's side handed to it.
        late: those of them that came after SIGTERM.
        well: the last thing that it heard of Elasticsearch, in this turn of the loop, is that a request was stored.
        fit: messages that came and that a request can be made of.
        unfit_left: the others that left, by how many fit ones came before them.
        crashed: it was killed.
        over: it isn't there any more.
    """

    def __init__(self, world: World, place: int, number: int) -> None:
        self.place = place
        self.name = f"sidecar {place}" + (f", life {number}" if number else "")
        self.client = Client(world.elastic)
        self.sessions: list[SimulatedSession] = []
        self.received = self.fit = 0
        self.unfit_left: Counter[int] = Counter()
        self.late: dict[Stored, None] = {}
        self.largest_chunk_bytes = 0
        self.crashed = self.over = self.well = False
        self.began_at = asyncio.get_running_loop().time()
        self.ended_at = 0.0
        self.begin(world)

    def begin(self, world: World) -> None:
        """Start the sidecar."""
        setting = world.day.setting
        log = cast("FilteringBoundLogger", Log(world, self.name))
        self._log = log
        self.pipeline = self.new_pipeline(world)
        self.app = App(
            self.pipeline, self._connector(world), rng=world.rng, log=log, shutdown_seconds=setting.shutdown_seconds
        )
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.app.run(self.stop), name=self.name)

    def new_pipeline(self, world: World) -> Pipeline:
        """Return a pipeline that does what is planned."""
        return Pipeline(world.plan, world.sink(self), rng=world.rng, log=self._log, wall_clock=wall_clock)

    def crash(self) -> None:
        """End it as ``kill -9`` does, its sessions being lost."""
        self.task.cancel()

    def _connector(self, world: World) -> Callable[[Receive], Awaitable[BrokerSession]]:
        return remembering(world.broker.connector([QUEUE], created=lambda: world.created(self)), self, world)

    def end(self) -> None:
        """Note that it is gone."""
        self.over = True
        self.ended_at = asyncio.get_running_loop().time()


def remembering(connect: Callable[[Receive], Awaitable[Any]], life: Any, world: Any) -> Callable[[Receive], Any]:
    """Return `connect` for a sidecar: each session that it opens is noted as that sidecar's."""

    async def remember(receive: Receive) -> BrokerSession:
        session = await connect(receive)
        life.sessions.append(session)
        world.owners[session] = life
        world.tell("broker", f"{life.name} connected")
        return session

    return remember


def wall_clock() -> float:
    """Return the time of day in a simulated day."""
    return WALL_SECONDS + asyncio.get_running_loop().time()


class World:
    """The servers and the sidecars of one day.

    Args:
        day: the plan.
        telling: keep a trace.

    Attributes:
        trace: what happened, by time: seconds, who, what.
    """

    def __init__(self, day: Day, *, telling: bool = False) -> None:
        setting = day.setting
        self.day = day
        self.telling = telling
        self.trace: list[tuple[float, str, str]] = []
        self.rng = random.Random(day.seed)
        self.broker = Broker(self.rng, chunk_items=(1, setting.chunk_items))
        self.broker.consumer_timeout_seconds = setting.consumer_timeout_seconds or None
        self.elastic = Elasticsearch(
            self.rng,
            latency_seconds=(0.05, 0.5) if setting.slow else (0.001, 0.02),
            capacity_items=setting.capacity_items or None,
            timeout_seconds=setting.timeout_seconds,
            max_content_bytes=setting.max_content_bytes,
        )
        self.elastic.looks_see_trouble = setting.looks_see_trouble
        self.plan = self.make_plan()
        self.lives: list[Life] = []
        self.owners: dict[SimulatedSession, Life] = {}
        self.judge = self.make_judge()
        self._present: dict[int, Life] = {}
        self._last_number: dict[int, int] = {}
        self._rooms: list[int] = []  # what the write pool takes, for each fault that narrows it now
        self._pending = len(day.messages)
        self._unroutable: list[tuple[Publication, bool]] = []
        self._turns = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._set_up_hooks()
        self._set_up_faults()

    def tell(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        if self.telling:
            self.trace.append((asyncio.get_running_loop().time(), who, what))

    # What another kind of day does otherwise -------------------------------------------------------------------------

    def make_plan(self) -> PipelineConfig:
        """Return what all sidecars of the day do."""
        return _plan(self.day)

    def make_judge(self) -> Judge:
        """Return what judges the day."""
        return Judge(self.day, self.broker, self.elastic, self.lives)

    def new_life(self, place: int, number: int) -> Life:
        """Return a sidecar that starts."""
        return Life(self, place, number)

    def sink(self, life: Life) -> Sink:
        """Return the trade of a sidecar that starts."""
        return ElasticsearchSink(self.plan, life.client)

    def properties(self, publication: Publication) -> bytes:
        """Return the raw properties of a message."""
        return _properties(self.day, publication)

    def beacon(self, number: int) -> Publication:
        """Return a good message for the end of a day."""
        index = "documents" if self.day.setting.indices == 1 else "index-0"
        return Publication(0.0, number, "good", f"beacon-{number}", index)

    coroutine = "App.run"
    """What the task of a sidecar runs."""

    def rested(self) -> None:
        """Take notice that everything is settled, and that the sidecars are still there."""

    # Set up ----------------------------------------------------------------------------------------------------------

    def _set_up_hooks(self) -> None:
        broker, elastic, judge = self.broker, self.elastic, self.judge
        limit = self.day.setting.delivery_limit
        broker.declare(QUEUE).delivery_limit = limit or None
        broker.declare(DEAD)
        self._expire()
        broker.on_vanished = self._vanished
        broker.on_deliver = self._delivered
        broker.on_ack = self._acked
        broker.on_return = self._returned
        broker.on_publish = self._copied
        broker.on_delay = self._delayed
        broker.on_lost = self._lost
        elastic.on_sent = self._sent
        elastic.on_ended = self._ended
        elastic.on_result = lambda _, item, result: judge.result(item, result)
        elastic.poison = lambda source: b'"x":"poison"' in source
        elastic.reject = must_be_number("n")

    def _expire(self) -> None:
        """Have the queue expire, where that is planned; again whenever it was made anew."""
        if self.day.setting.expires_seconds:
            self.broker.expire_after(QUEUE, self.day.setting.expires_seconds)

    def created(self, life: Life) -> None:
        """Note that a sidecar is about to create the queue."""
        self.tell("broker", f"{life.name} creates the queue")
        self.judge.queue_created(life)
        self._declare_again()

    def _declare_again(self) -> None:
        if QUEUE not in self.broker.queues:
            self.broker.declare(QUEUE).delivery_limit = self.day.setting.delivery_limit or None
            self._expire()
            unroutable, self._unroutable = self._unroutable, []
            for publication, planned in unroutable:
                self._publish(publication, planned=planned)

    def _vanished(self, queue: Queue, expired: bool) -> None:
        self.tell("broker", f"the queue {'expired' if expired else 'is deleted'} with {len(queue.ready)} messages")
        if queue.name == QUEUE:
            self.judge.queue_vanished(queue, expired=expired)

    def _set_up_faults(self) -> None:
        faults = self.day.faults
        self._request_faults = [fault for fault in faults if fault.kind in REQUEST_FAULTS]
        self._item_faults = [fault for fault in faults if fault.kind in ITEM_FAULTS]
        if self._request_faults:
            self.elastic.trouble = self._trouble
        if self._item_faults:
            self.elastic.item_fault = self._item_fault

    def _trouble(self, request: Request) -> Trouble | Refusal | None:
        for fault in self._request_faults:
            if fault.at <= request.at < fault.at + fault.seconds and self._meets(fault):
                refusal = _REFUSALS.get(fault.kind)
                return Trouble[fault.kind] if refusal is None else refusal._replace(applied=fault.applied)
        return None

    def _item_fault(self, item: Item) -> Failure | None:
        now = asyncio.get_running_loop().time()
        for fault in self._item_faults:
            if item.index == fault.target and fault.at <= now < fault.at + fault.seconds and self._meets(fault):
                return _FAILURES[fault.kind]
        return None

    def _meets(self, fault: Fault) -> bool:
        return fault.share >= 1.0 or self.rng.random() < fault.share

    # What the servers see --------------------------------------------------------------------------------------------

    def _names(self, bodies: list[bytes]) -> str:
        return names([self.judge.number(body) for body in bodies])

    def _delivered(self, session: SimulatedSession, chunk: list[Stored]) -> None:
        life = self.owners[session]
        self.judge.delivered(life, session, chunk)
        if self.telling:
            again = " again" if any(stored.deliveries > 1 for stored in chunk) else ""
            self.tell("broker", f"{self._names([one.body for one in chunk])} →{again} {life.name}")

    def _acked(self, stored: Stored) -> None:
        self.judge.acked(stored)
        if self.telling:
            self.tell("broker", f"ack of {self._names([stored.body])}")

    def _returned(self, stored: Stored, why: str) -> None:
        self.judge.returned(stored, why)
        if self.telling:
            self.tell("broker", f"{self._names([stored.body])} back in the queue ({why})")

    def _copied(self, queue: str, stored: Stored) -> None:
        if queue == DEAD:
            self.judge.copied(stored)
            if self.telling:
                self.tell("broker", f"copy of {self._names([stored.body])} in {queue}")

    def _delayed(self, copy: OutboundMessage) -> None:
        self.judge.delayed(copy)
        if self.telling:
            self.tell("broker", f"copy of {self._names([copy.body])} in {copy.routing_key.decode()}")

    def _lost(self, session: SimulatedSession, reason: str) -> None:
        life = self.owners.get(session)
        if self.telling and life is not None:
            self.tell("broker", f"the session of {life.name} is lost: {reason}")

    def _life_of(self, sent: Sent) -> Life:
        return next(life for life in self.lives if life.client is sent.client)

    def _item_names(self, sent: Sent) -> str:
        found = [self.judge.item_number(item) for item in sent.items]
        return names([number for number in found if number is not None])

    def _sent(self, sent: Sent) -> None:
        life = self._life_of(sent)
        self.judge.sent(life, sent)
        if self.telling:
            self.tell(life.name, f"sends {self._item_names(sent)}")

    def _ended(self, sent: Sent) -> None:
        life = self._life_of(sent)
        self.judge.ended(life, sent)
        if self.telling:
            came = f" ({sent.request.outcome})" if sent.request is not None else ""
            self.tell("elasticsearch", f"answers {life.name} about {self._item_names(sent)}: {sent.outcome}{came}")

    # The day ---------------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Live through the day.

        Raises:
            Discrepancy: something doesn't hold.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unhandled)
        for place in range(self.day.setting.sidecars):
            self._start(place)
        for at, publications in groupby(self.day.messages, lambda one: one.at):
            # Timers of one moment come in any order: each moment has one.
            loop.call_at(at, self._publish_all, list(publications))
        for fault in self.day.faults:
            loop.call_at(fault.at, self._begin, fault)
        await asyncio.sleep(self._peace_at())
        for task in self._tasks:  # restarts that take their time
            await task
        self.tell("world", "peace")
        await self._settle()
        self.rested()
        await self._rest()
        for place in list(self._present):
            await self._terminate(place)
        self._see_that_all_is_closed()
        self.judge.watch()
        self.judge.conclude()

    def _peace_at(self) -> float:
        """When everything was published and every fault is over: a small day is short."""
        ends = [one.at for one in self.day.messages[-1:]] + [one.at + one.seconds for one in self.day.faults]
        return min(PEACE_AT_SECONDS, max(ends, default=0.0)) + 0.5

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if "handle" in context and error is not None:
            self.judge.fault("fell", f"in a callback: {error!r}")

    def watch(self) -> None:
        """Check what must hold at every moment; called between any two turns of the loop."""
        self._turns += 1
        if self._turns > _MOST_TURNS:
            raise Discrepancy(
                "endless", f"no end after {self._turns} turns, at {asyncio.get_running_loop().time():.3f} s"
            )
        for life in self.lives:
            if not life.over and life.task.done() and not life.stop.is_set():
                error = None if life.task.cancelled() else life.task.exception()
                self.judge.fault("fell", f"{life.name}: {innermost(error)!r}")
        self.judge.watch()

    @property
    def _settled(self) -> bool:
        broker = self.broker
        ready = QUEUE not in broker.queues or broker.queues[QUEUE].ready
        return not (self._pending or ready or broker.delayed or broker.unsettled(QUEUE))

    async def _settle(self) -> None:
        """Wait for the end of it all, with a good message from time to time: faults are found by comparing."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE_SECONDS
        beacons = 0
        while not self._settled or beacons < 2:
            if loop.time() > until:
                ready = len(self.broker.declare(QUEUE).ready)
                detail = f"{ready} ready, {len(self.broker.unsettled(QUEUE))} unsettled"
                held = [life.pipeline.held or life.pipeline.copying_held for life in self._present.values()]
                raise Discrepancy("endless", f"{detail}, {len(self.broker.delayed)} delayed, held: {held}")
            self._publish(self.beacon(_BEACON_NUMBER + beacons), planned=False)
            beacons += 1
            for _ in range(1 if beacons < BEACONS else 10):
                await asyncio.sleep(1.0)
                if self._settled:
                    break

    async def _rest(self) -> None:
        """Wait until the sidecars, which have nothing to do, keep nothing of this day."""
        until = asyncio.get_running_loop().time() + _RETURN_SECONDS
        while found := self._residue():
            if asyncio.get_running_loop().time() > until:
                self.judge.fault("residue", f"at rest: {found}")
                return
            await asyncio.sleep(1.0)

    def _residue(self) -> list[str]:
        """Return what is left of what is over; nothing where some trouble is not."""
        lives = list(self._present.values())
        # Some faults never end. And what a hold could be ended with, somebody else may have stored.
        if not self.broker.takes_all or any(life.pipeline.held for life in lives):
            return []
        found = invariants.tasks(len(lives), self.coroutine) + invariants.timers(asyncio.get_running_loop())
        for life in lives:
            if life.pipeline._flow_control.consuming:
                found += [f"{life.name}: {one}" for one in invariants.at_rest(life.pipeline, life.new_pipeline(self))]
        return found

    def _see_that_all_is_closed(self) -> None:
        """See that those sidecars that ended in order closed whatever they had opened."""
        for life in self.lives:
            closed = [session.closes for session in life.sessions]
            if not life.crashed and not all(closed):
                self.judge.fault("residue", f"{life.name} left a session open: {closed}")
        found = invariants.tasks(0) + invariants.timers(asyncio.get_running_loop())
        if found:
            self.judge.fault("residue", f"after the end: {found}")

    def _publish_all(self, publications: list[Publication]) -> None:
        for publication in publications:
            self._publish(publication)

    def _publish(self, publication: Publication, *, planned: bool = True) -> None:
        if QUEUE not in self.broker.queues:  # unroutable: whoever publishes tries again
            self._unroutable.append((publication, planned))
            return
        self._pending -= planned
        self.judge.published(publication)
        if self.telling:
            document = f" of {publication.document}" if publication.document else ""
            action = "" if publication.action == "index" else f", {publication.action}"
            self.tell("publisher", f"#{publication.number}{document}, {publication.kind}{action}")
        self.broker.publish(QUEUE, publication.body, self.properties(publication))

    # Sidecars --------------------------------------------------------------------------------------------------------

    def _start(self, place: int) -> None:
        number = sum(life.place == place for life in self.lives)
        life = self.new_life(place, number)
        self.lives.append(life)
        self._present[place] = life
        self.tell("world", f"{life.name} starts")

    async def _terminate(self, place: int) -> None:
        loop = asyncio.get_running_loop()
        life = self._present.pop(place, None)
        if life is None:
            return
        self.tell("world", f"SIGTERM to {life.name}")
        asked_at = loop.time()
        life.stop.set()
        done, _ = await asyncio.wait([life.task], timeout=600.0)
        took = loop.time() - asked_at
        if not done:
            raise Discrepancy("drain", f"{life.name} didn't end within 600 s of SIGTERM")
        if life.task.exception() is not None:
            raise Discrepancy("fell", f"{life.name}: {innermost(life.task.exception())!r}")
        life.end()
        self.tell("world", f"{life.name} ended after {took:.1f} s")
        if took > self.day.setting.shutdown_seconds:
            self.judge.fault("drain", f"{life.name} took {took:.1f} s to end")
        if life.pipeline.counters.in_flight:
            self.judge.fault("account", f"{life.name} ended with {life.pipeline.counters.summary()}")

    async def _kill(self, place: int) -> None:
        life = self._present.pop(place, None)
        if life is None:
            return
        self.tell("world", f"kill -9 of {life.name}")
        life.crashed = True
        for session in life.sessions:
            session.lose("the client vanished")
        life.end()
        life.crash()
        await asyncio.wait([life.task])

    async def _restart(self, fault: Fault) -> None:
        place = int(fault.target)
        if place not in self._present:
            return
        await (self._terminate(place) if fault.kind == "SIGTERM" else self._kill(place))
        await asyncio.sleep(fault.seconds)
        self._start(place)

    # Faults ----------------------------------------------------------------------------------------------------------

    def _begin(self, fault: Fault) -> None:
        self.tell("world", f"{fault.kind} {fault.target} for {fault.seconds:g} s, share {fault.share:g}")
        if fault.kind in SIDECAR_FAULTS:
            self._tasks.append(asyncio.create_task(self._restart(fault), name=f"restart at {fault.at}"))
        elif fault.kind in CLUSTER_FAULTS:
            self._begin_cluster_fault(fault)
        elif fault.kind == "session lost":
            life = self._present.get(int(fault.target))
            if life is not None and life.sessions:
                life.sessions[-1].lose("connection reset by peer")
        elif fault.kind in DELETIONS:
            if QUEUE in self.broker.queues:
                self.broker.delete(QUEUE)
            asyncio.get_running_loop().call_later(fault.seconds, self._declare_again)
        elif fault.kind in BROKER_FAULTS or fault.kind in DELAY_FAULTS:
            self._begin_broker_fault(fault)

    def _begin_broker_fault(self, fault: Fault) -> None:
        broker = self.broker
        later = partial(asyncio.get_running_loop().call_later, fault.seconds)
        if fault.kind == "broker away":
            broker.down = True
            for session in list(broker.sessions):
                session.lose("connection reset by peer")
            later(setattr, broker, "down", False)
        elif fault.kind in ("full", "silent"):
            dead = broker.declare(DEAD)
            setattr(dead, fault.kind, True)
            later(setattr, dead, fault.kind, False)
        elif fault.kind == "unroutable":
            queue = broker.queues.pop(DEAD, None)
            if queue is not None:
                later(self._route_again, queue)
        elif fault.kind == "alarm":
            broker.raise_alarm()
            later(broker.end_alarm)
        elif fault.kind == "delays full":
            broker.delays_full = True
            later(setattr, broker, "delays_full", False)
        elif fault.kind == "delays undeclarable":
            which = int(fault.target) if fault.target else None
            broker.delays_undeclarable.add(which)
            later(broker.delays_undeclarable.discard, which)

    def _begin_cluster_fault(self, fault: Fault) -> None:
        loop = asyncio.get_running_loop()
        if fault.kind == "restart":
            self.elastic.restart()
            self.elastic.down = True
            loop.call_later(fault.seconds, setattr, self.elastic, "down", False)
        elif fault.kind == "slow":
            self.elastic.slow_seconds = (0.5, 6.0)
            loop.call_later(fault.seconds, setattr, self.elastic, "slow_seconds", None)
        else:
            room = _ROOM_ITEMS[fault.kind]
            self._rooms.append(room)
            self.elastic.capacity_items = min(self._rooms)
            loop.call_later(fault.seconds, self._room_again, room)

    def _room_again(self, room: int) -> None:
        self._rooms.remove(room)
        self.elastic.capacity_items = min(self._rooms, default=self.day.setting.capacity_items or None)

    def _route_again(self, queue: Queue) -> None:
        queue.ready.extend(self.broker.queues[DEAD].ready if DEAD in self.broker.queues else ())
        self.broker.queues[DEAD] = queue


def innermost(error: BaseException | None) -> BaseException | None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _plan(day: Day) -> PipelineConfig:
    setting = day.setting
    encoder_config = EncoderConfig(
        index=Template("documents" if setting.indices == 1 else "{header.i}"),
        action=Template("{header.a}" if setting.action == "mixed" else setting.action),
        id_mode=setting.id_mode,  # type: ignore[arg-type] # one of them
        # By its routing an item is known; but only what has the same is folded.
        routing=Template("{header.m}") if setting.by_recipe and setting.coalesce == "none" else None,
        version=Template("{header.v}") if setting.versions else None,
        coalesce=setting.coalesce,  # type: ignore[arg-type] # one of them
    )
    return PipelineConfig(
        encoder_config=encoder_config,
        batch_max_items=setting.batch_max_items,
        batch_max_bytes=setting.batch_max_bytes,
        batch_max_age_seconds=setting.batch_max_age_seconds,
        bulk_concurrency=setting.bulk_concurrency,
        prefetch=setting.prefetch,
        memory_limit_bytes=setting.memory_limit_bytes,
        hold_max_seconds=setting.hold_max_seconds,
        retry_max_attempts=setting.retry_max_attempts,
        error_policy=ErrorPolicy(
            on_conflict=setting.on_conflict,  # type: ignore[arg-type]
            on_index_missing=setting.on_index_missing,  # type: ignore[arg-type]
            on_index_blocked=setting.on_index_blocked,  # type: ignore[arg-type]
            on_delay_refused=setting.on_delay_refused,  # type: ignore[arg-type]
        ),
        on_reject=setting.on_reject,  # type: ignore[arg-type]
        reject_guard=setting.reject_guard,
    )


def _properties(day: Day, publication: Publication) -> bytes:
    """Return the properties of a message: an id, and what the recipe asks for."""
    if not day.setting.by_recipe:
        return properties(message_id=publication.document) if publication.document else b"\0\0"
    headers = [
        (b"m", long_string(b"m%d" % publication.number)),
        (b"i", long_string(publication.index.encode())),
        (b"a", long_string(publication.action.encode())),
        (b"v", long_string(b"%d" % (publication.number + 1))),
    ]
    return raw_properties(headers, **({"message_id": publication.document.encode()} if publication.document else {}))


def names(numbers: list[int]) -> str:
    """Return numbers for people: ``#1-#4, #7``."""
    told: list[str] = []
    at = 0
    while at < len(numbers):
        end = at
        while end + 1 < len(numbers) and numbers[end + 1] == numbers[end] + 1:
            end += 1
        told.append(f"#{numbers[at]}" if end == at else f"#{numbers[at]}-#{numbers[end]}")
        at = end + 1
    return ", ".join(told)


class Played(NamedTuple):
    """What came of a day.

    Attributes:
        discrepancy: the first one, or None.
        seconds: that passed, virtually.
    """

    day: Day
    discrepancy: Discrepancy | None
    trace: list[tuple[float, str, str]]
    seconds: float
    requests: int


def play(day: Day, *, telling: bool = False, world_of: Callable[..., World] = World) -> Played:
    """Play a day; what doesn't hold is in the result.

    Args:
        day: the plan.
        telling: keep a trace.
        world_of: makes its world, where another kind of day has one of its own.
    """
    worlds: list[World] = []
    seconds = [0.0]

    async def main() -> None:
        world = world_of(day, telling=telling)
        worlds.append(world)
        try:
            await world.live()
        finally:
            seconds[0] = asyncio.get_running_loop().time()

    def watch() -> None:
        for world in worlds:
            world.watch()

    found: Discrepancy | None = None
    collecting = gc.isenabled()
    gc.disable()  # a day leaves little behind, and it is collected between days
    try:
        clock.run(main(), watcher=watch)
    except Discrepancy as discrepancy:
        found = discrepancy
    except clock.Stuck as stuck:
        found = Discrepancy("endless", str(stuck))
    finally:
        if collecting:
            gc.enable()
    (world,) = worlds
    return Played(day, found, world.trace, seconds[0], len(world.elastic.requests))
