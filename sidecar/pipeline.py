"""The whole program: from deliveries to requests, and from answers back to acks.

    receive ─▶ [chunks] ─▶ aggregate: compose ─▶ order ─▶ batcher ─▶ [outbox] ─▶ dispatch ─▶ send ─▶ work
                                                                                               │
    session ◀── acks ◀── ledger ◀── settling ◀────────── fates ◀────────── conclusions ◀───────┘
    session ◀── copies ◀── copying ◀───┘                  [outbox] ◀── again ◀──┘
    session ◀── pause, resume, consume, give back ◀── consuming: bounds in bytes and time

The work is the trade's business (`sidecar.work`): bulk requests, publishes, or somebody's own code.
Data goes right; only settlements and dead letters come back left. Everything between two awaits is synchronous, so that
nothing can be half settled. The hot path works on chunks and batches: no task, await or log line for each message.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.admission import Admission
from sidecar.consuming import Consuming
from sidecar.core.account import Account
from sidecar.core.batcher import Batch, Batcher
from sidecar.core.coalesce import Coalescer, uncover
from sidecar.core.copies import Letter
from sidecar.core.guard import RejectGuard
from sidecar.core.order import Order
from sidecar.core.outbox import Outbox
from sidecar.core.pacing import Pacing, Permit
from sidecar.core.properties import published_at
from sidecar.core.state import State, Unready
from sidecar.core.window import Window
from sidecar.settling import Settling
from sidecar.waking import wait_until
from sidecar.work import Workplace

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.compose import Reject
    from sidecar.core.ledger import Ledger
    from sidecar.core.message import Message
    from sidecar.plan import Plan
    from sidecar.ports import BrokerSession
    from sidecar.work import Trade


@dataclass(slots=True)
class _Flight:
    """A request on its way.

    Attributes:
        hung: it left before the last hold began.
    """

    batch: Batch
    hung: bool = False


class Pipeline:
    """Moves messages from a broker session to the work that is done with them, and settles each by its own result.

    Args:
        plan: what to do.
        trade: what becomes of messages before they are gathered, and of batches.
        dice: the only source of chance.
        log: where state changes are told.
        wall_clock: seconds since 1970, for what people read.
    """

    def __init__(
        self,
        plan: Plan,
        trade: Trade,
        *,
        dice: random.Random,
        log: FilteringBoundLogger,
        wall_clock: Callable[[], float],
    ) -> None:
        self.account = Account()
        self.pacing = Pacing(plan.bulk_concurrency, plan.retry_delay_min_seconds, plan.retry_delay_max_seconds)
        self._plan = plan
        self._dice = dice
        self._wall_clock = wall_clock
        self._composer = trade.composer(self._make_id)
        guard = RejectGuard(plan.reject_guard)
        self._guard = guard
        self._admission = Admission(
            plan,
            guard,
            trade.composer(self._make_id),
            dice=dice,
            log=log,
            wall_clock=wall_clock,
            changed=self._hold_changed,
        )
        self._order = Order()
        coalesces = plan.recipe.coalesce != "none"
        self._batcher = Batcher(plan.batch_max_items, plan.batch_max_bytes, plan.batch_max_age_seconds, folds=coalesces)
        self._coalescer = (
            Coalescer(
                plan.recipe.coalesce,
                self._order,
                self._batcher,
                conflicts_matter=plan.choices.on_conflict == "dead-letter",
                equal_wins=plan.recipe.version_type == "external_gte",
            )
            if coalesces
            else None
        )
        self._outbox = Outbox(plan.batch_max_items, plan.batch_max_bytes, joins=plan.batches_join)
        self._gathers_singly = plan.recipe.gathers_singly
        self._chunks: asyncio.Queue[list[Message]] = asyncio.Queue()
        self._left: list[Message] = []  # delivered, but not admitted: no room, or held by the guard
        self._unadmitted = 0
        self._consuming = Consuming(
            Window(plan.memory_limit_bytes, plan.prefetch, plan.batch_max_items),
            self,
            trade.unavailable,
            hold_max_seconds=plan.hold_max_seconds,
            far=plan.far,
            dice=dice,
            log=log,
        )
        self._settling = Settling(
            plan, self, self._consuming, self.pacing, self.account, log=log, wall_clock=wall_clock
        )
        self._work = trade.employ(
            Workplace(
                settling=self._settling,
                outbox=self._outbox,
                pacing=self.pacing,
                guard=guard,
                account=self.account,
                hold_changed=self._hold_changed,
                starved=self._window_full,
                dice=dice,
                log=log,
                wall_clock=wall_clock,
            )
        )
        self._in_flight: dict[asyncio.Task[None], _Flight] = {}
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
        return self._settling.copying.held

    @property
    def held(self) -> str | None:
        """Why only probes are sent or no more messages are admitted, or None."""
        return self.pacing.held or self._admission.held

    @property
    def requests_held(self) -> bool:
        """Whether only probes are sent."""
        return self.pacing.held is not None

    @property
    def probes(self) -> int:
        """How many probes there were, of requests and of encoding."""
        return self._probes + self._admission.probes

    @property
    def probing(self) -> bool:
        """Whether a probe is out."""
        return self.pacing.probing

    @property
    def storing(self) -> bool:
        """Whether admitted messages are still being stored, because only admission is held."""
        return self.pacing.held is None and bool(self._in_flight or self._outbox or self._batcher.open_groups)

    @property
    def copies_on_their_way(self) -> bool:
        """Whether copies are published whose confirm isn't there yet."""
        return self._settling.copying.on_their_way

    def state(self) -> State:
        """Return what is happening at this moment."""
        session, pacing, consuming, now = self._session, self.pacing, self._consuming, self._now()
        ledgers = session.ledgers if session is not None else []
        hold = pacing if pacing.held is not None else self._admission
        return State(
            account=self.account,
            queues=tuple(ledger.queue for ledger in ledgers),
            connected=session is not None,
            reached_broker=self.account.sessions > 0,
            reached_elasticsearch=consuming.reached,
            unready=self._unready(),
            held=hold.held,
            held_seconds=now - hold.held_since if hold.held is not None else 0.0,
            next_try_seconds=max(0.0, self._next_try() - now),
            breaker="open" if self._admission.held is not None else pacing.breaker,
            copies_held=self._settling.copying.held,
            delays_held=self._settling.copying.delays_held,
            in_flight=sum(ledger.open for ledger in ledgers),
            in_flight_bytes=sum(ledger.held_bytes for ledger in ledgers),
            bulk_in_flight=len(self._in_flight),
            bulk_limit=pacing.limit,
            prefetch=consuming.prefetch,
            failures=self._settling.failures.groups(),
        )

    def _next_try(self) -> float:
        """Return when the next request or probe of admission is due, in seconds of the loop's clock."""
        admits = self.pacing.held is not None or self._admission.held is None
        return self.pacing.pause_until() if admits else self._admission.probe_at

    def _unready(self) -> Unready | None:
        """Return why nothing is consumed or stored now; what has to be mended first comes first."""
        consuming = self._consuming
        if self._session is None:
            return Unready("not-connected", "there is no connection to RabbitMQ")
        if consuming.waiting:
            return Unready(self._plan.far.waiting, consuming.unavailable_reason or self.held or "")
        if self.held is not None:
            return Unready("held", self.held)
        if self._settling.copying.held is not None:
            return Unready("dead-letters-held", self._settling.copying.held)
        if self._settling.copying.delays_held is not None:
            return Unready("delays-held", self._settling.copying.delays_held)
        if not consuming.begun:
            return Unready("starting", "consuming is about to begin")
        return None

    def tell_failures(self) -> None:
        """Log what is left to be told of failures: the end is near."""
        self._settling.failures.finish()

    # Life ------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._aggregate())
            tasks.create_task(self._dispatch(tasks))
            tasks.create_task(self._settling.copying.run())
            tasks.create_task(self._consuming.run())

    def attach(self, session: BrokerSession) -> None:
        """Work for `session` from now on."""
        self._session = session
        self.account.sessions += 1
        self._settling.attach(session)
        self._consuming.attach(session)
        self._wake.set()

    def detach(self) -> None:
        """Note that the session was lost: what it delivered is stale, and dropped where it isn't in flight.

        What is in flight stays in the order until it is answered, so that a redelivery waits behind its own ghost.
        """
        if self._session is None:
            return
        self._session = None
        self._settling.detach()
        self._consuming.detach()
        self._forget_closed()

    def _forget_closed(self) -> None:
        """Drop what the broker has again, but for what is in flight: that stays in the order until it is answered."""
        self.release(self._settling.copying.forget_closed() + self._batcher.drop_closed() + self._outbox.drop_closed())
        for flight in self._in_flight.values():
            self._order.cut(flight.batch.messages)

    async def stop_consuming(self) -> None:
        """Stop the deliveries for good: when this returns, no more come.

        Raises:
            BrokerError: the session was lost.
        """
        await self._consuming.stop()

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
                    await self._settling.copying.settled()

    async def give_back(self) -> None:
        """Write every ack that is due, and have the broker take back the rest, in the order of delivery.

        Call it when nothing is delivered any more. Results that come late are void from its first moment on.

        Raises:
            BrokerError: the session was lost: the broker has them in any case.
        """
        session = self._session
        if session is None:
            return
        outstanding = self._settling.close()
        self._forget_closed()
        await session.give_back(outstanding)

    def returned(self, ledger: Ledger, count: int) -> None:
        """Count deliveries that the broker was given back unseen."""
        self.account.settle(ledger.queue, "requeue", count)

    def try_now(self) -> None:
        """Probe at once, whatever pause there is."""
        self.pacing.try_now()
        self._admission.try_now()
        self._wake.set()

    def changed(self) -> None:
        """Take notice: nothing more comes for now, or there is room again."""
        self._wake.set()

    # Deliveries ------------------------------------------------------------------------------------------------------

    def receive(self, chunk: list[Message]) -> None:
        """Take a chunk off the wire: count it and queue it."""
        session = self._session
        keep = not self._consuming.dropping
        size_bytes = sum([message.held_bytes for message in chunk]) if keep else 0
        if session is not None and len(session.ledgers) == 1:
            (ledger,) = session.ledgers
            self.account.received[ledger.queue] += len(chunk)
            ledger.held_bytes += size_bytes
        else:
            for message in chunk:
                self.account.received[message.ledger.queue] += 1
                message.ledger.held_bytes += message.held_bytes if keep else 0
        if keep:
            self._unadmitted += len(chunk)
            self._chunks.put_nowait(chunk)
            self._consuming.arrived(chunk, size_bytes)

    async def _aggregate(self) -> None:
        while True:
            chunk = await self._chunks.get()
            if self._draining:
                return  # what isn't admitted by now goes back: behind it nothing may be sent either
            await self._prepare(chunk)
            while self._left and not self._draining:
                self._wake.set()
                if self._guard.room:
                    await self._consuming.room(lambda: self._unadmitted)
                else:
                    await self._wait_for_guard()
                if self._left and not self._draining:
                    self._admit(self._left)

    async def _wait_for_guard(self) -> None:
        """Wait until the guard admits messages again, or none wait; new deliveries wait behind the others."""
        while not self._draining:
            self._queue_arrivals()
            if not self._left:
                return
            if await self._admission.probe(self._left):
                await self._prepare_again()
                return
            await self._admission.pause()

    def _queue_arrivals(self) -> None:
        """Append new deliveries to the waiting messages; drop those of a closed epoch."""
        while not self._chunks.empty():
            self._left += self._chunks.get_nowait()
        live = [message for message in self._left if not message.ledger.closed]
        self._unadmitted -= len(self._left) - len(live)
        self._left = live

    async def _prepare_again(self) -> None:
        """Prepare the waiting messages again: the result of an earlier call may be an exception."""
        prepare = self._plan.recipe.prepare
        if prepare is not None:
            async with self._preparing:
                await prepare(self._left)

    async def _prepare(self, chunk: list[Message]) -> None:
        """Admit a chunk, after what has to be waited for before; one after the other, in order."""
        prepare = self._plan.recipe.prepare
        if prepare is None:
            self._admit(chunk)
            return
        async with self._preparing:
            if not chunk[0].ledger.closed:
                await prepare(chunk)
            if not self._left:  # in a drain: behind what goes back nothing may be sent
                self._admit(chunk)

    async def _admit_all(self) -> None:
        """Admit what has come, as far as there is room, and wait for what is being prepared."""
        while not self._left and not self._chunks.empty():
            await self._prepare(self._chunks.get_nowait())
        async with self._preparing:
            return

    def _admit(self, chunk: list[Message]) -> None:
        """Encode and batch messages while there is room for their bytes and the guard allows it."""
        self._unadmitted -= len(chunk)
        self._left = []
        if chunk[0].ledger.closed:  # an epoch ends between two chunks, never inside one
            return
        while chunk and not self._left and (room := self._guard.room):
            self._encode(chunk[:room])
            chunk = chunk[room:]
        self._left += chunk
        self._unadmitted += len(self._left)
        if self._window_full():
            self._wake.set()

    def _encode(self, messages: list[Message]) -> None:
        """Encode and batch messages while there is room for their bytes."""
        self._composer.room_bytes = self._consuming.room_bytes
        composed, rejects = self._composer.compose(messages, self._wall_clock())
        self._left = [*self._composer.left]  # a copy, because messages are appended to it
        self._admission.note(messages[: len(messages) - len(self._left)], composed, rejects)
        if rejects:
            self._refuse(rejects)
        if self._coalescer is None:
            self._batch(self._order.enter(composed))
        else:
            self._coalesce(self._coalescer, composed)

    def _refuse(self, rejects: list[Reject]) -> None:
        """Have those dead-lettered that can't be stored; of those without a reason there is nothing to be stored."""
        nothing = [reject.message for reject in rejects if not reject.reason]
        if nothing:
            self._settling.acknowledge(nothing, "discard")
        self._settling.reject(
            Letter(reject.message, reject.reason, reject.detail, error_type=reject.error_type)
            for reject in rejects
            if reject.reason
        )

    def _batch(self, messages: list[Message]) -> None:
        """Add messages that are free to go to their groups; dispatch must know of complete ones and of new clocks."""
        if not messages:
            return
        first = not self._batcher.open_groups
        complete = self._correlate(messages) if self._gathers_singly else self._batcher.add(messages, self._now())
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
        self.account.coalesced += folded
        self._acknowledge_signals(messages)
        self._gathered(complete, first=first)

    def _correlate(self, messages: list[Message]) -> list[Batch]:
        """Add messages to the groups that they belong to."""
        complete = self._batcher.correlate(messages, self._now())
        self._acknowledge_signals(messages)
        return complete

    def _acknowledge_signals(self, messages: list[Message]) -> None:
        """Ack those that are mere signals.

        At once: there is nothing of them to be stored, and their acks cover no message before them that isn't settled.
        """
        signals = [message for message in messages if message.correlation.is_signal]
        if signals:
            self._settling.acknowledge(signals, "ack")

    def release(self, messages: Iterable[Message]) -> None:
        """Let the next operations on the same documents go."""
        self._batch(self._order.leave(messages))

    def retry(self, messages: list[Message]) -> None:
        """Send again messages that still have their place in the order of their documents."""
        # Batches that are never joined are of one key each: whatever goes again goes by itself.
        count = self._plan.batch_max_items if self._plan.batches_join else 1
        for at in range(0, len(messages), count):
            some = messages[at : at + count]
            batch = Batch(some, sum(message.bulk_bytes for message in some), self._now())
            batch.mendable = True
            self._outbox.put_again(batch)
        self._wake.set()

    def readmit(self, messages: list[Message]) -> None:
        """Send messages again, behind later operations on the same documents."""
        self.retry(self._order.enter(messages))

    def take_apart(self, message: Message) -> None:
        """Have a message that did what others should do as well go by itself, and the others behind it, one by one."""
        followers = uncover(message)
        if message.ledger.closed:
            self.release([message])
            return
        self._order.line_up(message, followers)
        batch = Batch([message], message.bulk_bytes, self._now())
        batch.mendable = True
        self._outbox.put_again(batch)
        self._wake.set()

    def _put(self, complete: list[Batch]) -> None:
        now, wall = self._now(), self._wall_clock()
        for batch in complete:
            self.account.complete(batch.trigger or "", batch.gathered, batch.body_bytes)
            since = published_at(batch.messages[0].properties, wall)
            if since is not None:
                waited = wall - (now - batch.opened_at) - since
                self.account.queue_wait_seconds.observe(max(0.0, waited))
        self._outbox.put(complete)

    def _window_full(self) -> bool:
        """Whether nothing more comes before something is settled, and all that came was admitted."""
        return (bool(self._left) or self._chunks.empty()) and self._consuming.starved

    # Requests --------------------------------------------------------------------------------------------------------

    async def _dispatch(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            now = self._now()
            self._complete(now)
            while self._sending and (permit := self._permit(now)) is not Permit.NOTHING:
                probe = permit is Permit.PROBE
                batch = self._outbox.take_probe(self._dice.random()) if probe else self._outbox.take(now)
                if batch is None:
                    break
                if probe:
                    self.pacing.probe_sent()
                    self._probes += 1
                self._in_flight[tasks.create_task(self._send(batch, probe=probe))] = _Flight(batch)
            if self._draining and self._nothing_to_do():
                self._drained.set()
            await self._sleep(now)

    def _permit(self, now: float) -> Permit:
        hung = sum(flight.hung for flight in self._in_flight.values())
        return self.pacing.permit(now, len(self._in_flight), hung)

    def _complete(self, now: float) -> None:
        """Complete the groups that nothing more is to be waited for."""
        if self._draining:
            self._put(self._batcher.take_all())
            return
        self._put(self._batcher.take_aged(now))
        if not self._in_flight and not self._outbox and self._window_full():
            # Nobody would ever send the message that completes a group: 999 hot documents, a batch size of 1,000.
            self._put(self._batcher.take_oldest())

    def _nothing_to_do(self) -> bool:
        """Whether draining is over: all is stored or buried, or nothing more will be for now."""
        if self._in_flight:
            return False
        if self.pacing.held is not None or self._session is None:
            return True
        copying = self._settling.copying
        if copying.moving:
            return False
        if not copying.idle:  # their destinations refuse messages
            return not (self._outbox or self._batcher.open_groups)
        if self._outbox:  # what waits for its target goes back at once, and what is behind it on the same document
            return self._outbox.only_waits and not self._batcher.open_groups
        return not self._order

    async def _sleep(self, now: float) -> None:
        """Sleep until something happens, or until the clock makes a difference."""
        moments = [self._batcher.due()]
        ready_at = self._outbox.ready_at()
        if ready_at is not None:
            pause_until = self.pacing.pause_until()
            moments.append(max(ready_at, pause_until) if self.pacing.held is None else pause_until)
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
        if self.pacing.held is not None:
            for flight in self._in_flight.values():
                flight.hung = True
        self._consuming.hold_changed()

    def _make_id(self) -> str:
        return f"{self._dice.getrandbits(128):032x}"

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
