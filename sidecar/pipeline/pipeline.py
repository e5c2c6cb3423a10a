"""The whole program: from deliveries to requests, and from answers back to acks.

    receive ─▶ [chunks] ─▶ aggregate: compose ─▶ order ─▶ batcher ─▶ [outbox] ─▶ dispatch ─▶ send ─▶ work
                                                                                               │
    session ◀── acks ◀── ledger ◀── settling ◀────────── fates ◀────────── conclusions ◀───────┘
    session ◀── copies ◀── copying ◀───┘                  [outbox] ◀── again ◀──┘
    session ◀── pause, resume, consume, give back ◀── consuming: bounds in bytes and time

The work is the trade's business (`sidecar.pipeline.work`): bulk requests, publishes, or somebody's own code.
Data goes right; only settlements and dead letters come back left. Everything between two awaits is synchronous, so that
nothing can be half settled. The hot path works on chunks and batches: no task, await or log line for each message.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.core.flow.limiter import Permit, SendLimiter
from sidecar.core.flow.prefetch_window import PrefetchWindow
from sidecar.core.flow.reject_guard import RejectGuard
from sidecar.core.scheduling.batcher import Batch, Batcher
from sidecar.core.scheduling.coalesce import Coalescer, undo_coalesce
from sidecar.core.scheduling.order import DocumentOrder
from sidecar.core.scheduling.send_queue import SendQueue
from sidecar.core.stats.counters import Counters
from sidecar.core.stats.snapshot import NotReady, Snapshot
from sidecar.core.wire.properties import published_at
from sidecar.core.wire.republish import Failure
from sidecar.pipeline.admission import Admission
from sidecar.pipeline.flow_control import FlowControl
from sidecar.pipeline.settler import Settler
from sidecar.pipeline.waking import wait_until
from sidecar.pipeline.work import Workplace

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.encoding.encoder import Rejection
    from sidecar.core.ledger import Ledger
    from sidecar.core.message import Message
    from sidecar.pipeline.config import PipelineConfig
    from sidecar.pipeline.work import Sink
    from sidecar.ports import BrokerSession


@dataclass(slots=True)
class _InFlight:
    """A request on its way.

    Attributes:
        hung: it left before the last hold began.
    """

    batch: Batch
    hung: bool = False


class Pipeline:
    """Moves messages from a broker session to the work that is done with them, and settles each by its own result.

    Args:
        config: what to do.
        sink: what becomes of messages before they are gathered, and of batches.
        rng: the only source of chance.
        log: where state changes are told.
        wall_clock: seconds since 1970, for what people read.
    """

    def __init__(
        self,
        config: PipelineConfig,
        sink: Sink,
        *,
        rng: random.Random,
        log: FilteringBoundLogger,
        wall_clock: Callable[[], float],
    ) -> None:
        self.counters = Counters()
        self.limiter = SendLimiter(
            config.bulk_concurrency, config.retry_delay_min_seconds, config.retry_delay_max_seconds
        )
        self._config = config
        self._rng = rng
        self._wall_clock = wall_clock
        self._encoder = sink.encoder(self._make_id)
        guard = RejectGuard(config.reject_guard)
        self._guard = guard
        self._admission = Admission(
            config,
            guard,
            sink.encoder(self._make_id),
            rng=rng,
            log=log,
            wall_clock=wall_clock,
            changed=self._hold_changed,
        )
        self._order = DocumentOrder()
        coalesces = config.encoder_config.coalesce != "none"
        self._batcher = Batcher(
            config.batch_max_items, config.batch_max_bytes, config.batch_max_age_seconds, coalesces=coalesces
        )
        self._coalescer = (
            Coalescer(
                config.encoder_config.coalesce,
                self._order,
                self._batcher,
                conflicts_matter=config.error_policy.on_conflict == "dead-letter",
                equal_wins=config.encoder_config.version_type == "external_gte",
            )
            if coalesces
            else None
        )
        self._send_queue = SendQueue(config.batch_max_items, config.batch_max_bytes, merges=config.merges_batches)
        self._adds_individually = config.encoder_config.adds_individually
        self._chunks: asyncio.Queue[list[Message]] = asyncio.Queue()
        self._waiting: list[Message] = []  # delivered, but not admitted: no room, or held by the guard
        self._unadmitted = 0
        self._flow_control = FlowControl(
            PrefetchWindow(config.memory_limit_bytes, config.prefetch, config.batch_max_items),
            self,
            sink.check,
            hold_max_seconds=config.hold_max_seconds,
            far=config.far,
            rng=rng,
            log=log,
        )
        self._settler = Settler(
            config, self, self._flow_control, self.limiter, self.counters, log=log, wall_clock=wall_clock
        )
        self._work = sink.employ(
            Workplace(
                settling=self._settler,
                send_queue=self._send_queue,
                limiter=self.limiter,
                guard=guard,
                counters=self.counters,
                hold_changed=self._hold_changed,
                starved=self._window_full,
                rng=rng,
                log=log,
                wall_clock=wall_clock,
            )
        )
        self._in_flight: dict[asyncio.Task[None], _InFlight] = {}
        self._session: BrokerSession | None = None
        self._wake = asyncio.Event()  # something changed that dispatch should look at
        self._probes = 0
        self._preparing = asyncio.Lock()  # its waiters have their turn in the order in which they came
        self._draining = False
        self._sending = True
        self._drained = asyncio.Event()

    @property
    def copying_held(self) -> str | None:
        """Why the route of dead letters takes nothing, or None."""
        return self._settler.republisher.held

    @property
    def held(self) -> str | None:
        """Why only probes are sent or no more messages are admitted, or None."""
        return self.limiter.held or self._admission.held

    @property
    def requests_held(self) -> bool:
        """Whether only probes are sent."""
        return self.limiter.held is not None

    @property
    def probes(self) -> int:
        """How many probes there were, of requests and of encoding."""
        return self._probes + self._admission.probes

    @property
    def probing(self) -> bool:
        """Whether a probe is out."""
        return self.limiter.probing

    @property
    def storing(self) -> bool:
        """Whether admitted messages are still being stored, because only admission is held."""
        return self.limiter.held is None and bool(self._in_flight or self._send_queue or self._batcher.open_groups)

    @property
    def copies_on_their_way(self) -> bool:
        """Whether copies are published whose confirm isn't there yet."""
        return self._settler.republisher.unconfirmed

    def snapshot(self) -> Snapshot:
        """Return what is happening at this moment."""
        session, limiter, consuming, now = self._session, self.limiter, self._flow_control, self._now()
        ledgers = session.ledgers if session is not None else []
        hold = limiter if limiter.held is not None else self._admission
        return Snapshot(
            counters=self.counters,
            queues=tuple(ledger.queue for ledger in ledgers),
            connected=session is not None,
            reached_broker=self.counters.sessions > 0,
            reached_elasticsearch=consuming.sink_reached,
            not_ready=self._not_ready(),
            held=hold.held,
            held_seconds=now - hold.held_since if hold.held is not None else 0.0,
            next_try_seconds=max(0.0, self._next_try() - now),
            breaker="open" if self._admission.held is not None else limiter.breaker,
            copies_held=self._settler.republisher.held,
            delays_held=self._settler.republisher.delays_held,
            in_flight=sum(ledger.open for ledger in ledgers),
            in_flight_bytes=sum(ledger.memory_bytes for ledger in ledgers),
            bulk_in_flight=len(self._in_flight),
            bulk_limit=limiter.limit,
            prefetch=consuming.prefetch,
            failures=self._settler.failure_log.groups(),
        )

    def _next_try(self) -> float:
        """Return when the next request or probe of admission is due, in seconds of the loop's clock."""
        admits = self.limiter.held is not None or self._admission.held is None
        return self.limiter.pause_until() if admits else self._admission.probe_at

    def _not_ready(self) -> NotReady | None:
        """Return why nothing is consumed or stored now; what has to be mended first comes first."""
        consuming = self._flow_control
        if self._session is None:
            return NotReady("not-connected", "there is no connection to RabbitMQ")
        if consuming.waiting:
            return NotReady(self._config.far.waiting, consuming.unavailable_reason or self.held or "")
        if self.held is not None:
            return NotReady("held", self.held)
        if self._settler.republisher.held is not None:
            return NotReady("dead-letters-held", self._settler.republisher.held)
        if self._settler.republisher.delays_held is not None:
            return NotReady("delays-held", self._settler.republisher.delays_held)
        if not consuming.started:
            return NotReady("starting", "consuming is about to begin")
        return None

    def flush_failure_log(self) -> None:
        """Log what is left to be told of failures: the end is near."""
        self._settler.failure_log.finish()

    # Life ------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._aggregate())
            tasks.create_task(self._dispatch(tasks))
            tasks.create_task(self._settler.republisher.run())
            tasks.create_task(self._flow_control.run())

    def attach(self, session: BrokerSession) -> None:
        """Work for `session` from now on."""
        self._session = session
        self.counters.sessions += 1
        self._settler.attach(session)
        self._flow_control.attach(session)
        self._wake.set()

    def detach(self) -> None:
        """Note that the session was lost: what it delivered is stale, and dropped where it isn't in flight.

        What is in flight stays in the order until it is answered, so that a redelivery waits behind its own ghost.
        """
        if self._session is None:
            return
        self._session = None
        self._settler.detach()
        self._flow_control.detach()
        self._forget_closed()

    def _forget_closed(self) -> None:
        """Drop what the broker has again, but for what is in flight: that stays in the order until it is answered."""
        self.release(
            self._settler.republisher.drop_stale() + self._batcher.drop_closed() + self._send_queue.drop_closed()
        )
        for flight in self._in_flight.values():
            self._order.drop_followers(flight.batch.messages)

    async def stop_consuming(self) -> None:
        """Stop the deliveries for good: when this returns, no more come.

        Raises:
            BrokerError: the session was lost.
        """
        await self._flow_control.stop()

    async def drain(self, sending_until: float, deadline: float) -> None:
        """Send what was admitted, as long as Elasticsearch takes it, and wait for the answers.

        Call it when no more deliveries come. What isn't stored when it returns is to be given back.

        Args:
            sending_until: nothing more is sent from then on, in seconds of the loop's clock. What is on its way is
                still waited for: cut off, it would be stored and given back as well.
            deadline: what isn't answered by then is cut off.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout_at(sending_until):
                await self._admit_all()
        self._draining = True
        self._wake.set()
        try:
            async with asyncio.timeout_at(sending_until):
                await self._drained.wait()
        except TimeoutError:
            self._sending = False
            if self._in_flight:
                await asyncio.wait(list(self._in_flight), timeout=deadline - self._now())
            for task in self._in_flight:
                task.cancel()
            # The last answers may have sent copies on their way: given back now, the originals would be there twice.
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._settler.republisher.wait_idle()

    async def give_back(self) -> None:
        """Write every ack that is due, and have the broker take back the rest, in the order of delivery.

        Call it when nothing is delivered any more. Results that come late are void from its first moment on.

        Raises:
            BrokerError: the session was lost: the broker has them in any case.
        """
        session = self._session
        if session is None:
            return
        outstanding = self._settler.close()
        self._forget_closed()
        await session.give_back(outstanding)

    def count_requeued(self, ledger: Ledger, count: int) -> None:
        """Count deliveries that the broker was given back unseen."""
        self.counters.settle(ledger.queue, "requeue", count)

    def probe_now(self) -> None:
        """Probe at once, whatever pause there is."""
        self.limiter.probe_now()
        self._admission.probe_now()
        self._wake.set()

    def wake(self) -> None:
        """Take notice: nothing more comes for now, or there is room again."""
        self._wake.set()

    # Deliveries ------------------------------------------------------------------------------------------------------

    def receive(self, chunk: list[Message]) -> None:
        """Take a chunk off the wire: count it and queue it."""
        session = self._session
        keep = not self._flow_control.discarding
        size_bytes = sum([message.memory_bytes for message in chunk]) if keep else 0
        if session is not None and len(session.ledgers) == 1:
            (ledger,) = session.ledgers
            self.counters.received[ledger.queue] += len(chunk)
            ledger.memory_bytes += size_bytes
        else:
            for message in chunk:
                self.counters.received[message.ledger.queue] += 1
                message.ledger.memory_bytes += message.memory_bytes if keep else 0
        if keep:
            self._unadmitted += len(chunk)
            self._chunks.put_nowait(chunk)
            self._flow_control.on_delivered(chunk, size_bytes)

    async def _aggregate(self) -> None:
        while True:
            chunk = await self._chunks.get()
            if self._draining:
                return  # what isn't admitted by now goes back: behind it nothing may be sent either
            await self._prepare(chunk)
            while self._waiting and not self._draining:
                self._wake.set()
                if self._guard.room:
                    await self._flow_control.wait_for_memory(lambda: self._unadmitted)
                else:
                    await self._wait_for_guard()
                if self._waiting and not self._draining:
                    self._admit(self._waiting)

    async def _wait_for_guard(self) -> None:
        """Wait until the guard admits messages again, or none wait; new deliveries wait behind the others."""
        while not self._draining:
            self._queue_arrivals()
            if not self._waiting:
                return
            if await self._admission.probe(self._waiting):
                await self._prepare_again()
                return
            await self._admission.pause()

    def _queue_arrivals(self) -> None:
        """Append new deliveries to the waiting messages; drop those of a closed epoch."""
        while not self._chunks.empty():
            self._waiting += self._chunks.get_nowait()
        live = [message for message in self._waiting if not message.ledger.closed]
        self._unadmitted -= len(self._waiting) - len(live)
        self._waiting = live

    async def _prepare_again(self) -> None:
        """Prepare the waiting messages again: the result of an earlier call may be an exception."""
        prepare = self._config.encoder_config.prepare
        if prepare is not None:
            async with self._preparing:
                await prepare(self._waiting)

    async def _prepare(self, chunk: list[Message]) -> None:
        """Admit a chunk, after what has to be waited for before; one after the other, in order."""
        prepare = self._config.encoder_config.prepare
        if prepare is None:
            self._admit(chunk)
            return
        async with self._preparing:
            if not chunk[0].ledger.closed:
                await prepare(chunk)
            if not self._waiting:  # in a drain: behind what goes back nothing may be sent
                self._admit(chunk)

    async def _admit_all(self) -> None:
        """Admit what has come, as far as there is room, and wait for what is being prepared."""
        while not self._waiting and not self._chunks.empty():
            await self._prepare(self._chunks.get_nowait())
        async with self._preparing:
            return

    def _admit(self, chunk: list[Message]) -> None:
        """Encode and batch messages while there is room for their bytes and the guard allows it."""
        self._unadmitted -= len(chunk)
        self._waiting = []
        if chunk[0].ledger.closed:  # an epoch ends between two chunks, never inside one
            return
        while chunk and not self._waiting and (room := self._guard.room):
            self._encode(chunk[:room])
            chunk = chunk[room:]
        self._waiting += chunk
        self._unadmitted += len(self._waiting)
        if self._window_full():
            self._wake.set()

    def _encode(self, messages: list[Message]) -> None:
        """Encode and batch messages while there is room for their bytes."""
        self._encoder.room_bytes = self._flow_control.room_bytes
        encoded, rejections = self._encoder.encode(messages, self._wall_clock())
        self._waiting = [*self._encoder.left]  # a copy, because messages are appended to it
        self._admission.observe(messages[: len(messages) - len(self._waiting)], encoded, rejections)
        if rejections:
            self._refuse(rejections)
        if self._coalescer is None:
            self._batch(self._order.admit(encoded))
        else:
            self._coalesce(self._coalescer, encoded)

    def _refuse(self, rejections: list[Rejection]) -> None:
        """Have those dead-lettered that can't be stored; of those without a reason there is nothing to be stored."""
        nothing = [reject.message for reject in rejections if not reject.reason]
        if nothing:
            self._settler.ack_as(nothing, "discard")
        self._settler.dead_letter(
            Failure(reject.message, reject.reason, reject.detail, error_type=reject.error_type)
            for reject in rejections
            if reject.reason
        )

    def _batch(self, messages: list[Message]) -> None:
        """Add messages that are free to go to their groups; dispatch must know of complete ones and of new clocks."""
        if not messages:
            return
        first = not self._batcher.open_groups
        complete = self._correlate(messages) if self._adds_individually else self._batcher.add(messages, self._now())
        self._gathered(complete, first=first)

    def _gathered(self, complete: list[Batch], *, first: bool) -> None:
        if complete:
            self._put(complete)
        if complete or first or self._draining:
            self._wake.set()

    def _coalesce(self, coalescer: Coalescer, messages: list[Message]) -> None:
        """Add messages to their groups, but for those that have an earlier one do what they would have done."""
        first = not self._batcher.open_groups
        folded, complete = coalescer.admit(messages, self._now())
        self.counters.coalesced += folded
        self._acknowledge_signals(messages)
        self._gathered(complete, first=first)

    def _correlate(self, messages: list[Message]) -> list[Batch]:
        """Add messages to the groups that they belong to."""
        complete = self._batcher.add_correlated(messages, self._now())
        self._acknowledge_signals(messages)
        return complete

    def _acknowledge_signals(self, messages: list[Message]) -> None:
        """Ack those that are mere signals.

        At once: there is nothing of them to be stored, and their acks cover no message before them that isn't settled.
        """
        signals = [message for message in messages if message.correlation.is_signal]
        if signals:
            self._settler.ack_as(signals, "ack")

    def release(self, messages: Iterable[Message]) -> None:
        """Let the next operations on the same documents go."""
        self._batch(self._order.release(messages))

    def retry(self, messages: list[Message]) -> None:
        """Send again messages that still have their place in the order of their documents."""
        # Batches that are never joined are of one key each: whatever goes again goes by itself.
        count = self._config.batch_max_items if self._config.merges_batches else 1
        for at in range(0, len(messages), count):
            some = messages[at : at + count]
            batch = Batch(some, sum(message.bulk_bytes for message in some), self._now())
            batch.mergeable = True
            self._send_queue.put_back(batch)
        self._wake.set()

    def readmit(self, messages: list[Message]) -> None:
        """Send messages again, behind later operations on the same documents."""
        self.retry(self._order.admit(messages))

    def retry_uncoalesced(self, message: Message) -> None:
        """Have a message that did what others should do as well go by itself, and the others behind it, one by one."""
        followers = undo_coalesce(message)
        if message.ledger.closed:
            self.release([message])
            return
        self._order.insert_after(message, followers)
        batch = Batch([message], message.bulk_bytes, self._now())
        batch.mergeable = True
        self._send_queue.put_back(batch)
        self._wake.set()

    def _put(self, complete: list[Batch]) -> None:
        now, wall = self._now(), self._wall_clock()
        for batch in complete:
            self.counters.complete(batch.trigger or "", batch.message_count, batch.body_bytes)
            since = published_at(batch.messages[0].properties, wall)
            if since is not None:
                waited = wall - (now - batch.opened_at) - since
                self.counters.queue_wait_seconds.observe(max(0.0, waited))
        self._send_queue.put(complete)

    def _window_full(self) -> bool:
        """Whether nothing more comes before something is settled, and all that came was admitted."""
        return (bool(self._waiting) or self._chunks.empty()) and self._flow_control.exhausted

    # Requests --------------------------------------------------------------------------------------------------------

    async def _dispatch(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            now = self._now()
            self._complete(now)
            while self._sending and (permit := self._permit(now)) is not Permit.NOTHING:
                probe = permit is Permit.PROBE
                batch = self._send_queue.take_probe(self._rng.random()) if probe else self._send_queue.take(now)
                if batch is None:
                    break
                if probe:
                    self.limiter.probe_sent()
                    self._probes += 1
                self._in_flight[tasks.create_task(self._send(batch, probe=probe))] = _InFlight(batch)
            if self._draining and self._nothing_to_do():
                self._drained.set()
            await self._sleep(now)

    def _permit(self, now: float) -> Permit:
        hung = sum(flight.hung for flight in self._in_flight.values())
        return self.limiter.permit(now, len(self._in_flight), hung)

    def _complete(self, now: float) -> None:
        """Complete the groups that nothing more is to be waited for."""
        if self._draining:
            self._put(self._batcher.take_all())
            return
        self._put(self._batcher.take_expired(now))
        if not self._in_flight and not self._send_queue and self._window_full():
            # Nobody would ever send the message that completes a group: 999 hot documents, a batch size of 1,000.
            self._put(self._batcher.take_oldest())

    def _nothing_to_do(self) -> bool:
        """Whether draining is over: all is stored or buried, or nothing more will be for now."""
        if self._in_flight:
            return False
        if self.limiter.held is not None or self._session is None:
            return True
        copying = self._settler.republisher
        if copying.moving:
            return False
        if not copying.idle:  # their destinations refuse messages
            return not (self._send_queue or self._batcher.open_groups)
        if self._send_queue:  # what waits for its target goes back at once, and what is behind it on the same document
            return self._send_queue.only_waits and not self._batcher.open_groups
        return not self._order

    async def _sleep(self, now: float) -> None:
        """Sleep until something happens, or until the clock makes a difference."""
        moments = [self._batcher.next_deadline()]
        ready_at = self._send_queue.ready_at()
        if ready_at is not None:
            pause_until = self.limiter.pause_until()
            moments.append(max(ready_at, pause_until) if self.limiter.held is None else pause_until)
        until = min((moment for moment in moments if moment is not None and moment > now), default=None)
        await wait_until(self._wake, until)

    async def _send(self, batch: Batch, *, probe: bool) -> None:
        task = asyncio.current_task()
        try:
            await self._work.carry_out(batch, probe=probe)
        finally:
            if task is not None:
                self._in_flight.pop(task, None)
            self._wake.set()

    def _hold_changed(self) -> None:
        """Take notice that a hold began or ended: what was sent before one began hangs."""
        if self.limiter.held is not None:
            for flight in self._in_flight.values():
                flight.hung = True
        self._flow_control.hold_changed()

    def _make_id(self) -> str:
        return f"{self._rng.getrandbits(128):032x}"

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
