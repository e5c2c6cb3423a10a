"""A day of forwarding, played: a simulated near broker, one sidecar, and the far broker byte by byte.

Between the sidecar and the far broker stands all that the product has, down to the frames:
`ReconnectingPublisher`, `PublisherConnection`, `ConfirmChannel` and `AmqpProtocol`, over a network in virtual time.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, cast

from sidecar.amqp.connection import ConnectOptions, forget_leftovers
from sidecar.amqp.publisher import ReconnectingPublisher
from sidecar.amqp.topology import Topology
from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.forward import ACTION, ForwardConfig
from sidecar.core.encoding.template import Template
from sidecar.core.far import SINK
from sidecar.core.results.policy import ErrorPolicy
from sidecar.pipeline.app import App
from sidecar.pipeline.config import PipelineConfig
from sidecar.pipeline.pipeline import Pipeline
from sidecar.sinks.amqp import AmqpSink
from tests.fakes import clock, network
from tests.fakes.amqp_server import AmqpServer, Channel, Exchange, Refusal, by_chance, each, withheld
from tests.fakes.broker import Broker
from tests.simulation.forwarding_oracle import ARRIVES_SECONDS, Arrival, ForwardingJudge
from tests.simulation.forwarding_scenario import Forwarded
from tests.simulation.oracle import Discrepancy
from tests.simulation.rest import remains
from tests.simulation.world import DEAD, QUEUE, Log, innermost, names, remembering, wall_clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from sidecar.ports import BrokerSession, OutboundMessage, Receive
    from tests.fakes.amqp_server import Connection, Publish
    from tests.fakes.broker import SimulatedSession, Stored
    from tests.simulation.forwarding_scenario import FarFault, ForwardingDay

_PATIENCE_SECONDS = 7_200.0
_MOST_TURNS = 60_000  # of the loop; a bad day takes some thousands
_BEACON_NUMBER = 100_000
_BEACONS = 10
# The last: for a moment after the broker closed a channel, its number is still written to.
_EXPECTED = ("NOT_FOUND - no exchange", "PRECONDITION_FAILED - poison", "CHANNEL_ERROR - expected 'channel.open'")
_LATE_SECONDS = 0.05
_LONG_ROUTE = "r" * 255
_DRAIN_SECONDS = 6.0  # to close a connection that doesn't answer


class ForwardingLife:
    """One sidecar from its start to its end; see `tests.simulation.world.Life`.

    Attributes:
        first_published_at: when its first message came to the far broker.
        missed_at: when it learned last that a queue isn't there.
    """

    def __init__(self, world: ForwardingWorld, number: int) -> None:
        setting = world.day.setting
        self.name = f"life-{number}"
        self.sessions: list[SimulatedSession] = []
        self.received = 0
        self.first_published_at: float | None = None
        self.missed_at: dict[str, float] = {}
        self.over = False
        self.stop = asyncio.Event()
        log = cast("FilteringBoundLogger", Log(world, self.name))
        self.outlet = ReconnectingPublisher(
            (f"{world.far.url}?name={self.name}",),
            Topology(exchange=setting.exchange or None, publishes=True),
            ConnectOptions(),
            confirm_timeout_seconds=setting.confirm_timeout_seconds,
        )
        sink = AmqpSink(world.plan, world.staging, self.outlet)
        self.pipeline = Pipeline(world.plan, sink, rng=world.rng, log=log, wall_clock=wall_clock)
        self.app = App(
            self.pipeline, self._connector(world), rng=world.rng, log=log, shutdown_seconds=setting.shutdown_seconds
        )
        self.task = asyncio.create_task(self.app.run(self.stop), name=self.name)

    def _connector(self, world: ForwardingWorld) -> Callable[[Receive], Awaitable[BrokerSession]]:
        return remembering(world.near.connector([QUEUE]), self, world)


class ForwardingWorld:
    """The brokers and the sidecar of one day.

    Args:
        day: the plan.
        telling: keep a trace.

    Attributes:
        trace: what happened, by time: seconds, who, what.
    """

    def __init__(self, day: ForwardingDay, *, telling: bool = False) -> None:
        setting = day.setting
        self.day = day
        self.telling = telling
        self.trace: list[tuple[float, str, str]] = []
        self.rng = random.Random(day.seed)
        self.near = Broker(self.rng, chunk_items=(1, setting.chunk_items))
        self.far = AmqpServer()
        self.far.frame_max = setting.frame_max
        self.far.version = "4.1.0"
        key = Template("{header.to}" if setting.routes > 1 else "far-0")
        self.staging = ForwardConfig(routing_key=key, exchange=setting.exchange.encode(), envelope=setting.envelope)
        self.plan = _plan(day, key)
        self.lives: list[ForwardingLife] = []
        self.owners: dict[SimulatedSession, ForwardingLife] = {}
        self.judge = ForwardingJudge(day, self.near, self.lives)
        self._life: ForwardingLife | None = None
        self._pending = len(day.messages)
        self._turns = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._now: Counter[str] = Counter()  # faults of each kind that last
        self._nacked_share = 0.0
        self._alarm_waits = False
        self._arrivals: dict[Publish, Arrival] = {}
        self.near.declare(QUEUE)
        self.near.declare(DEAD)
        self.near.on_deliver = lambda session, chunk: self.judge.delivered(self.owners[session], session, chunk)
        self.near.on_return = lambda stored, _: self.judge.came_back(stored)
        self.near.on_ack = self._acked
        self.near.on_publish = self._copied
        self.near.on_delay = self._delayed
        self.far.on_published = self._arrived
        self.far.nacks = self._is_nacked
        self.far.on_left = self._left
        self.far.confirms = {"each": each, "chance": by_chance(self.rng), "late": self._confirm_late}[setting.confirms]
        self._confirms = self.far.confirms

    def tell(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        if self.telling:
            self.trace.append((_time(), who, what))

    # The near broker -------------------------------------------------------------------------------------------------

    def _acked(self, stored: Stored) -> None:
        self.judge.acked(stored)
        self.tell("broker", f"ack of {self._name(stored.body)}")

    def _copied(self, queue: str, stored: Stored) -> None:
        if queue == DEAD:
            self.tell("broker", f"copy of {self._name(stored.body)} in {queue}")
            self.judge.copied(stored)

    def _delayed(self, copy: OutboundMessage) -> None:
        self.tell("broker", f"copy of {self._name(copy.body)} in {copy.routing_key.decode()}")
        self.judge.delayed(copy)

    def _name(self, body: bytes) -> str:
        return names([self.judge.number(body)]) if self.telling else ""

    def _publish_all(self, some: list[Forwarded]) -> None:
        for one in some:
            self._pending -= 1
            self._publish(one)

    def _publish(self, one: Forwarded) -> None:
        self.judge.published(one)
        self.tell("publisher", f"#{one.number} to {one.route[:9]!r} {one.document} {one.coded} {one.extra}".rstrip())
        self.near.publish(QUEUE, one.body, one.properties)

    # The far broker --------------------------------------------------------------------------------------------------

    def _declare(self, name: str, at: float) -> None:
        if name in self.far.queues:
            return
        queue = self.far.declare(name)
        queue.full = bool(self._now[f"full {name}"])
        self.judge.declared(queue, at)

    def _bind(self) -> None:
        if self.day.setting.exchange:
            exchange = self.far.vhosts["/"].exchanges.setdefault("far", Exchange("far", "direct"))
            exchange.bindings = [(name, name) for name in (*self._routes, _LONG_ROUTE)]

    @property
    def _routes(self) -> list[str]:
        return [f"far-{number}" for number in range(self.day.setting.routes)]

    def _is_nacked(self, publish: Publish) -> bool:
        if b'"x":"poison"' in publish.body:
            self.tell("far broker", f"closes the channel over {self._name(publish.body)}")
            raise Refusal(406, "PRECONDITION_FAILED - poison")
        return self.rng.random() < self._nacked_share

    def _arrived(self, publish: Publish) -> None:
        connection = self.far.connections[publish.connection]
        if self._alarm_waits:
            self._alarm_waits = False
            self.far.alarm = "low on memory"
        life = next((life for life in self.lives if life.name == connection.name), None)
        queue = self.far.queues[publish.routed[0]] if publish.routed else None
        if self.telling:
            where = publish.routed or ("nowhere" if publish.accepted else "refused")
            self.tell("far broker", f"{self._name(publish.body)} as {publish.connection}/{publish.tag} in {where}")
        arrival = self.judge.arrived(publish, queue, life, connection)
        if arrival is not None:
            asyncio.get_running_loop().call_later(ARRIVES_SECONDS, self._look_at_confirm, arrival, 0)

    def _left(self, channel: Channel) -> None:
        """See that a sidecar gives up a connection only if something on it isn't confirmed."""
        life = self._life
        if not channel.confirming or life is None or life.stop.is_set() or life.name != channel.connection.name:
            return
        if channel.published and not channel.unconfirmed and _time() - channel.confirmed_at > ARRIVES_SECONDS:
            self.judge.fault(
                "given up", f"{life.name} closed connection {channel.connection.number}, all was confirmed"
            )

    def _look_at_confirm(self, arrival: Arrival, looks: int) -> None:
        """See whether a confirm has reached the sidecar: it was sent a while ago, and the connection lives."""
        publish, life = arrival.publish, arrival.life
        if arrival.lost or life is None or life.over:
            return
        if publish.confirmed is None or not looks:
            looks = looks if publish.confirmed is None else 1
            asyncio.get_running_loop().call_later(ARRIVES_SECONDS, self._look_at_confirm, arrival, looks)
            return
        arrival.sure = publish.confirmed
        if publish.returned:
            life.missed_at[publish.routing_key] = _time()

    def _confirm_late(self, channel: Channel) -> None:
        if len(channel.unconfirmed) == 1:
            asyncio.get_running_loop().call_later(_LATE_SECONDS, self._confirm_rest, channel)

    @staticmethod
    def _confirm_rest(channel: Channel) -> None:
        """Confirm the last ones singly, the last of them first; the others by one ack if they are alike."""
        for tag in sorted(channel.unconfirmed, reverse=True)[:3]:
            channel.confirm(tag)
        while channel.open and channel.unconfirmed:
            tags = sorted(channel.unconfirmed)
            alike = [channel.unconfirmed[tag].accepted for tag in tags]
            count = next((at for at, accepted in enumerate(alike) if accepted != alike[0]), len(alike))
            channel.confirm(tags[count - 1], multiple=True)

    # The day ---------------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Live through the day.

        Raises:
            Discrepancy: something doesn't hold.
        """
        loop = asyncio.get_running_loop()
        setting = self.day.setting
        loop.set_exception_handler(self._unhandled)
        await self.far.accept_connections()
        self._declare(_LONG_ROUTE, -60.0)
        for name in self._routes:
            if setting.appears_at:
                loop.call_at(setting.appears_at, self._declare, name, setting.appears_at)
            else:
                self._declare(name, -60.0)
        if setting.dies_after:
            loop.call_at(setting.appears_at + setting.dies_after, self._kill_far, 1.0)
        self._bind()
        self._start()
        for at, some in groupby(self.day.messages, lambda one: one.at):
            loop.call_at(at, self._publish_all, list(some))
        for fault in self.day.faults:
            loop.call_at(fault.at, self._begin, fault)
        await asyncio.sleep(self._peace_at())
        for task in self._tasks:
            await task
        self.tell("world", "peace")
        await self._settle()
        await self._look_at_rest()
        await self._terminate()
        self.judge.watch()
        self.judge.conclude()

    def _peace_at(self) -> float:
        ends = [one.at for one in self.day.messages[-1:]]
        ends += [one.at + one.seconds + one.dies_after for one in self.day.faults]
        return max([*ends, self.day.setting.appears_at + self.day.setting.dies_after]) + 1.5

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if "handle" in context and error is not None:
            self.judge.fault("fell", f"in a callback: {error!r}")
        elif error is not None:
            forget_leftovers(_Strict(self), context)  # type: ignore[arg-type]

    def watch(self) -> None:
        """Check what must hold at every moment; called between any two turns of the loop."""
        self._turns += 1
        if self._turns > _MOST_TURNS:
            raise Discrepancy("endless", f"no end after {self._turns} turns, at {_time():.3f} s")
        life = self._life
        if life is not None and life.task.done() and not life.stop.is_set():
            error = None if life.task.cancelled() else life.task.exception()
            self.judge.fault("fell", f"{life.name}: {innermost(error)!r}")
        for complaint in self.far.complaints:
            if not complaint.startswith(_EXPECTED):
                self.judge.fault("complaint", complaint)
        self.far.complaints.clear()
        if self.far.alarm is not None:
            self._watch_blocked()
        self.judge.watch()

    def _watch_blocked(self) -> None:
        """See that who was told of an alarm waits for its end, however long that takes."""
        for connection in self.far.connections:
            leaves = connection.blocked and not connection.ended
            usable = any(channel.confirming and channel.open for channel in connection.channels.values())
            life = self._life
            if leaves and usable and life is not None and life.name == connection.name and not life.stop.is_set():
                if life.outlet.connection is not None:
                    continue
                self.judge.fault("given up", f"{life.name} closed connection {connection.number} in an alarm")

    @property
    def _settled(self) -> bool:
        near = self.near
        return not (self._pending or near.queues[QUEUE].ready or near.delayed or near.unsettled(QUEUE))

    async def _settle(self) -> None:
        """Wait for the end of it all, with a good message from time to time: faults are found by comparing."""
        until = _time() + _PATIENCE_SECONDS
        beacons = 0
        while not self._settled or beacons < 2:
            if _time() > until:
                held = self._life.pipeline.held if self._life is not None else None
                raise Discrepancy("endless", f"{len(self.near.unsettled(QUEUE))} unsettled, held: {held}")
            self._publish(Forwarded(0.0, _BEACON_NUMBER + beacons, f"beacon-{beacons}"))
            beacons += 1
            for _ in range(1 if beacons < _BEACONS else 10):
                await asyncio.sleep(1.0)
                if self._settled:
                    break

    async def _look_at_rest(self) -> None:
        """See that nothing is kept of messages that are settled."""
        await asyncio.sleep(1.0)
        if self._life is None or not self._settled:
            return
        kept = remains(self._life.pipeline)
        producer = self._life.outlet._publisher
        publisher = producer._channel if producer is not None and producer.lost is None else None
        if publisher is not None:
            named = {name: getattr(publisher, name) for name in ("_open", "_tokens", "_returns", "_limits")}
            kept += [f"{len(held)} in {name} of the publisher" for name, held in named.items() if held]
        if kept:
            self.judge.fault("kept", ", ".join(kept))

    # The sidecar -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._life = ForwardingLife(self, len(self.lives))
        self.lives.append(self._life)
        self.tell("world", f"{self._life.name} starts")

    async def _terminate(self) -> None:
        life, self._life = self._life, None
        if life is None:
            return
        self.tell("world", f"SIGTERM to {life.name}")
        asked_at = _time()
        life.stop.set()
        done, _ = await asyncio.wait([life.task], timeout=600.0)
        if not done:
            raise Discrepancy("drain", f"{life.name} didn't end within 600 s of SIGTERM")
        if life.task.exception() is not None:
            raise Discrepancy("fell", f"{life.name}: {innermost(life.task.exception())!r}")
        if _time() - asked_at > self.day.setting.shutdown_seconds:
            self.judge.fault("drain", f"{life.name} took {_time() - asked_at:.1f} s to end")
        if life.pipeline.counters.in_flight:
            self.judge.fault("account", f"{life.name} ended with {life.pipeline.counters.summary()}")
        closing_at = _time()
        await life.outlet.close()
        life.over = True
        if _time() - closing_at > _DRAIN_SECONDS:
            self.judge.fault("drain", f"{life.name} took {_time() - closing_at:.1f} s to close its connection")
        await asyncio.sleep(ARRIVES_SECONDS)
        for connection in self.far.connections:
            # A broker that reads nothing, because of an alarm, hasn't noticed.
            if connection.ended is None and connection.name == life.name and not _peer(connection).is_closing():
                self.judge.fault("left open", f"connection {connection.number} of {life.name}")

    async def _kill(self) -> None:
        life, self._life = self._life, None
        if life is None:
            return
        self.tell("world", f"kill -9 of {life.name}")
        life.over = True
        for session in life.sessions:
            session.lose("the client vanished")
        for connection in self.far.connections:
            if connection.name == life.name and not connection.ended:
                _peer(connection).abort()
        life.task.cancel()
        await asyncio.wait([life.task])
        await life.outlet.close()

    async def _restart(self, fault: FarFault) -> None:
        if self._life is None:
            return
        await (self._terminate() if fault.kind == "SIGTERM" else self._kill())
        await asyncio.sleep(fault.seconds)
        self._start()

    # Faults ----------------------------------------------------------------------------------------------------------

    def _begin(self, fault: FarFault) -> None:
        self.tell("world", f"{fault.kind} {fault.target} for {fault.seconds:g} s, share {fault.share:g}, {fault.size}")
        if fault.kind in {"SIGTERM", "kill"}:
            self._tasks.append(asyncio.create_task(self._restart(fault), name=f"restart at {fault.at}"))
        elif fault.kind == "session lost":
            for session in self._life.sessions[-1:] if self._life is not None else ():
                session.lose("connection reset by peer")
        else:
            self._begin_far_fault(fault)

    def _begin_far_fault(self, fault: FarFault) -> None:
        far = self.far
        later = partial(asyncio.get_running_loop().call_later, fault.seconds)
        if fault.kind in {"connection lost", "cut"}:
            if fault.kind == "cut":
                far.cut(**{"received" if fault.size < 0 else "sent": abs(fault.size)})
            far.kill()
        elif fault.kind in {"far away", "far killed"}:
            self._kill_far(fault.seconds, killed=fault.kind == "far killed")
        elif fault.kind == "queue missing":
            if far.queues.pop(fault.target, None) is not None:
                self.judge.deleted(fault.target)
            later(self._queue_again, fault)
        elif fault.kind == "channel closed":
            for channel in self._publishing():
                channel.close(541, "INTERNAL_ERROR")
        else:
            self._set(fault, on=True)
            later(partial(self._set, fault, on=False))

    def _set(self, fault: FarFault, *, on: bool) -> None:
        """Begin or end what lasts; of several that overlap, the last one ends it."""
        far = self.far
        key = f"{fault.kind} {fault.target}" if fault.kind == "full" else fault.kind
        self._now[key] += 1 if on else -1
        lasts = self._now[key] > 0
        if fault.kind == "full" and fault.target in far.queues:
            far.queues[fault.target].full = lasts
        elif fault.kind == "nacks":
            self._nacked_share = fault.share if lasts else 0.0
        elif fault.kind == "far alarm":
            self._alarm_waits = lasts and fault.share < 1.0  # for a message: those behind it are not read any more
            if not self._alarm_waits:
                (far.block if lasts else far.unblock)()
        elif fault.kind == "silent":
            far.confirms = withheld if lasts else self._confirms
            for channel in [] if lasts else self._publishing():
                self._confirm_rest(channel)
        elif fault.kind == "exchange missing":
            if lasts:
                far.vhosts["/"].exchanges.pop("far", None)
            else:
                self._bind()

    def _publishing(self) -> list[Channel]:
        """Return the channels in confirm mode."""
        return [one for connection in self.far.connections for one in connection.channels.values() if one.confirming]

    def _queue_again(self, fault: FarFault) -> None:
        if fault.target not in self.far.queues:
            self.tell("far broker", f"the queue {fault.target} is declared")
            self._declare(fault.target, _time())
            if fault.dies_after:
                asyncio.get_running_loop().call_later(fault.dies_after, self._kill_far, 0.5)

    def _kill_far(self, seconds: float, *, killed: bool = True) -> None:
        """Kill the far broker, or cut it off; it comes back after a while."""
        if killed:
            self.tell("far broker", "is killed")
            self.judge.killed(self.rng.random() < 0.5)
        self._now["away"] += 1
        self._tasks.append(asyncio.create_task(self._come_back(seconds), name=f"away at {_time()}"))
        self.far.kill()

    async def _come_back(self, seconds: float) -> None:
        await self.far.refuse_connections()
        await asyncio.sleep(seconds)
        self._now["away"] -= 1
        if not self._now["away"]:
            await self.far.accept_connections()


class _Strict:
    """Takes the place of a loop: what `forget_leftovers` doesn't forget is a fault."""

    def __init__(self, world: ForwardingWorld) -> None:
        self._world = world

    def default_exception_handler(self, context: dict[str, object]) -> None:
        self._world.judge.fault("fell", f"in a task: {context.get('exception')!r}")


def _peer(connection: Connection) -> network.Transport:
    """Return the client's end of a connection."""
    return cast("network.Transport", connection.transport).peer


def _time() -> float:
    return asyncio.get_running_loop().time()


def _plan(day: ForwardingDay, key: Template) -> PipelineConfig:
    setting = day.setting
    return PipelineConfig(
        encoder_config=EncoderConfig(index=key, action=Template(ACTION), id_mode="none"),
        batch_max_items=setting.batch_max_items,
        batch_max_age_seconds=setting.batch_max_age_seconds,
        merges_batches=False,
        bulk_concurrency=setting.bulk_concurrency,
        prefetch=setting.prefetch,
        hold_max_seconds=setting.hold_max_seconds,
        retry_max_attempts=setting.retry_max_attempts,
        error_policy=ErrorPolicy(on_unroutable=setting.on_unroutable),  # type: ignore[arg-type]
        far=SINK,
    )


class PlayedForwarding(NamedTuple):
    """What came of a day; see `tests.simulation.world.Played`."""

    day: ForwardingDay
    discrepancy: Discrepancy | None
    trace: list[tuple[float, str, str]]
    seconds: float
    requests: int


def play_forwarding(day: ForwardingDay, *, telling: bool = False) -> PlayedForwarding:
    """Play a day; what doesn't hold is in the result."""
    worlds: list[ForwardingWorld] = []
    seconds = [0.0]

    async def main() -> None:
        world = ForwardingWorld(day, telling=telling)
        worlds.append(world)
        try:
            await world.live()
        finally:
            seconds[0] = _time()

    def watch() -> None:
        for world in worlds:
            world.watch()

    found: Discrepancy | None = None
    collecting = gc.isenabled()
    gc.disable()
    try:
        network.run(main(), rng=random.Random(f"network {day.seed}"), watcher=watch)
    except Discrepancy as discrepancy:
        found = discrepancy
    except clock.Stuck as stuck:
        found = Discrepancy("endless", str(stuck))
    finally:
        if collecting:
            gc.enable()
    (world,) = worlds
    return PlayedForwarding(day, found, world.trace, seconds[0], len(world.far.published))
