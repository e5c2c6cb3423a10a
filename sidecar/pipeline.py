"""The whole program: from deliveries to requests, and from answers back to acks.

    receive ─▶ [chunks] ─▶ aggregate: compose ─▶ order ─▶ batcher ─▶ [outbox] ─▶ dispatch ─▶ send ─▶ sink
                                                                                               │
    session ◀── acks ◀── ledger ◀──────────────────── verdicts ◀──────────────────── conclude ◀┘
    session ◀── copies ◀── copying ◀─────── dead letters, delays ◀──────────────────────┘
    session ◀── pause, resume, consume, give back ◀── consuming: bounds in bytes and time

Data goes right; only settlements and dead letters come back left. Everything between two awaits is synchronous, so that
nothing can be half settled. The hot path works on chunks and batches: no task, await or log line for each message.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import orjson

from sidecar.consuming import Consuming
from sidecar.copying import Copying, Route
from sidecar.core import bulk
from sidecar.core.account import Account
from sidecar.core.batcher import Batch, Batcher
from sidecar.core.compose import Composer, Recipe
from sidecar.core.copies import Letter, delay_seconds, may_go_round, own_doing, rounds
from sidecar.core.order import Order
from sidecar.core.outbox import Outbox
from sidecar.core.pacing import Pacing, Permit, backoff_seconds
from sidecar.core.policy import Choices, Course, Fate, Rule, Verdict, decide, judge, judge_request
from sidecar.core.properties import published_at
from sidecar.core.state import State, Unready
from sidecar.core.window import Window
from sidecar.errors import SinkError
from sidecar.ops.failures import FailureLog

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.account import Settled
    from sidecar.core.bulk import Fault, Result
    from sidecar.core.ledger import Ledger
    from sidecar.core.message import Message
    from sidecar.ports import Answer, BrokerSession, Sink

OK = 200
BLOCKED_GUARD = 1000  # messages in a row that no target takes, before everything waits
STORED_STATUSES = frozenset({200, 201})
_THROTTLED_LOG_SECONDS = 10.0
_WITHHELD_SHARE = 0.75  # of the prefetch: beyond it acks are written singly, or the broker would stop delivering


_OUTCOMES = {
    Verdict.ACK: "noop",
    Verdict.CONFLICT: "conflict",
    Verdict.THROTTLED: "too_many",
    Verdict.BLOCKED: "failed_client",
    Verdict.MISSING: "failed_client",
    Verdict.COUNTED: "failed_server",
    Verdict.DEAD_LETTER: "failed_client",
}
"""How the documents of a verdict are counted."""


class _Fates(NamedTuple):
    """The messages of one answer, by what happens to them next."""

    stored: list[Message]
    throttled: list[Message]
    later: list[Message]
    delayed: list[Letter]
    letters: list[Letter]


@dataclass(slots=True)
class _Flight:
    """A request on its way.

    Attributes:
        hung: it left before the last hold began.
    """

    batch: Batch
    hung: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the pipeline is to do; the meaning of each is that of the setting of its name."""

    recipe: Recipe
    batch_max_items: int = 1000
    batch_max_bytes: int = 5 * 1024 * 1024
    batch_max_age_seconds: float = 1.0
    bulk_concurrency: int = 4
    prefetch: int = 6000
    memory_limit_bytes: int = 64 * 1024 * 1024
    hold_max_seconds: float = 300.0
    retry_max_attempts: int = 5
    retry_delay_min_seconds: float = 0.5
    retry_delay_max_seconds: float = 30.0
    delayed_retry_max_rounds: int = 3
    delayed_retry_delay_seconds: float = 10.0
    choices: Choices = field(default_factory=Choices)
    on_reject: Literal["dead-letter", "broker", "discard"] = "dead-letter"
    reject_guard: int = 1000
    dead_letter_exchange: str = ""
    dead_letter_routing_key: str | None = None


class Pipeline:
    """Moves messages from a broker session to a sink, and settles each by the result of its own item.

    Args:
        plan: what to do.
        sink: where requests go.
        dice: the only source of chance.
        log: where state changes are told.
        wall_clock: seconds since 1970, for what people read.
    """

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        *,
        dice: random.Random,
        log: FilteringBoundLogger,
        wall_clock: Callable[[], float],
    ) -> None:
        self.account = Account()
        self.pacing = Pacing(plan.bulk_concurrency, plan.retry_delay_min_seconds, plan.retry_delay_max_seconds)
        self._plan = plan
        self._sink = sink
        self._dice = dice
        self._log = log
        self._wall_clock = wall_clock
        self._composer = Composer(plan.recipe, self._make_id)
        self._order = Order()
        self._batcher = Batcher(plan.batch_max_items, plan.batch_max_bytes, plan.batch_max_age_seconds)
        self._outbox = Outbox(plan.batch_max_items, plan.batch_max_bytes)
        self._correlates = plan.recipe.correlates
        self._path = bulk.path(plan.recipe.path_index)
        self._chunks: asyncio.Queue[list[Message]] = asyncio.Queue()
        route = Route(
            plan.dead_letter_exchange,
            plan.dead_letter_routing_key,
            plan.retry_delay_min_seconds,
            plan.retry_delay_max_seconds,
        )
        self._copying = Copying(route, self, log, wall_clock)
        self._failures = FailureLog(log, self.target, wall_clock)
        self._consuming = Consuming(
            Window(plan.memory_limit_bytes, plan.prefetch, plan.batch_max_items),
            self,
            sink.unavailable,
            hold_max_seconds=plan.hold_max_seconds,
            dice=dice,
            log=log,
        )
        self._refused_in_a_row: Counter[str] = Counter()  # by error type, since something was stored
        # Where all messages have one target and that is blocked, everything waits; where they have several, the others'
        # messages may just be rare.
        self._blocked_guard = BLOCKED_GUARD if plan.recipe.path_index is not None else 0
        self._in_flight: dict[asyncio.Task[None], _Flight] = {}
        self._succeeded_sent_at = -1.0  # when the last request left that was answered item by item
        self._session: BrokerSession | None = None
        self._wake = asyncio.Event()  # something changed that dispatch should look at
        self._throttled_silent_until = 0.0
        self._probes = 0
        self._draining = False
        self._sending = True
        self._drained = asyncio.Event()

    @property
    def copying_held(self) -> str | None:
        """Why the route of dead letters takes nothing, or None."""
        return self._copying.held

    @property
    def held(self) -> str | None:
        """Why nothing but probes is sent, or None."""
        return self.pacing.held

    @property
    def probes(self) -> int:
        """How many probes were sent, ever."""
        return self._probes

    @property
    def probing(self) -> bool:
        """Whether a probe is out."""
        return self.pacing.probing

    @property
    def copies_on_their_way(self) -> bool:
        """Whether copies are published whose confirm isn't there yet."""
        return self._copying.on_their_way

    def state(self) -> State:
        """Return what is happening at this moment."""
        session, pacing, consuming, now = self._session, self.pacing, self._consuming, self._now()
        ledgers = session.ledgers if session is not None else []
        return State(
            account=self.account,
            queues=tuple(ledger.queue for ledger in ledgers),
            connected=session is not None,
            reached_broker=self.account.sessions > 0,
            reached_elasticsearch=consuming.reached,
            unready=self._unready(),
            held=pacing.held,
            held_seconds=now - pacing.held_since if pacing.held is not None else 0.0,
            next_try_seconds=max(0.0, pacing.pause_until() - now),
            breaker=pacing.breaker,
            copies_held=self._copying.held,
            in_flight=sum(ledger.open for ledger in ledgers),
            in_flight_bytes=sum(ledger.held_bytes for ledger in ledgers),
            bulk_in_flight=len(self._in_flight),
            bulk_limit=pacing.limit,
            prefetch=consuming.prefetch,
            failures=self._failures.groups(),
        )

    def _unready(self) -> Unready | None:
        """Return why nothing is consumed or stored now; what has to be mended first comes first."""
        consuming = self._consuming
        if self._session is None:
            return Unready("not-connected", "there is no connection to RabbitMQ")
        if consuming.waiting:
            return Unready("waiting-for-elasticsearch", consuming.unavailable_reason or self.pacing.held or "")
        if self.pacing.held is not None:
            return Unready("held", self.pacing.held)
        if self._copying.held is not None:
            return Unready("dead-letters-held", self._copying.held)
        if not consuming.begun:
            return Unready("starting", "consuming is about to begin")
        return None

    def tell_failures(self) -> None:
        """Log what is left to be told of failures: the end is near."""
        self._failures.finish()

    # Life ------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._aggregate())
            tasks.create_task(self._dispatch(tasks))
            tasks.create_task(self._copying.run())
            tasks.create_task(self._consuming.run())

    def attach(self, session: BrokerSession) -> None:
        """Work for `session` from now on."""
        self._session = session
        self.account.sessions += 1
        self._copying.attach(session)
        self._consuming.attach(session)
        self._wake.set()

    def detach(self) -> None:
        """Note that the session was lost: what it delivered is stale, and dropped where it isn't in flight.

        What is in flight stays in the order until it is answered, so that a redelivery waits behind its own ghost.
        """
        session, self._session = self._session, None
        if session is None:
            return
        for ledger in session.ledgers:
            self.account.settle(ledger.queue, "stale", ledger.close())
        self._copying.detach()
        self._consuming.detach()
        self._forget_closed()

    def _forget_closed(self) -> None:
        """Drop what the broker has again, but for what is in flight: that stays in the order until it is answered."""
        self._copying.forget_closed()
        self._release(self._batcher.drop_closed() + self._outbox.drop_closed())
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
        while not self._chunks.empty():
            self._admit(self._chunks.get_nowait())
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
                    await self._copying.settled()

    async def give_back(self) -> None:
        """Write every ack that is due, and have the broker take back the rest, in the order of delivery.

        Call it when nothing is delivered any more. Results that come late are void from its first moment on.

        Raises:
            BrokerError: the session was lost: the broker has them in any case.
        """
        session = self._session
        if session is None:
            return
        outstanding = []
        for ledger in session.ledgers:
            session.settle(ledger, ledger.collect(singly=True))
            outstanding.append((ledger, ledger.open_tags()))
            self.account.settle(ledger.queue, "requeue", ledger.close())
        self._forget_closed()
        await session.give_back(outstanding)

    def returned(self, ledger: Ledger, count: int) -> None:
        """Count deliveries that the broker was given back unseen."""
        self.account.settle(ledger.queue, "requeue", count)

    def try_now(self) -> None:
        """Probe at once, whatever pause there is."""
        self.pacing.try_now()
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
            self._chunks.put_nowait(chunk)
            self._consuming.arrived(chunk, size_bytes)

    async def _aggregate(self) -> None:
        while True:
            self._admit(await self._chunks.get())

    def _admit(self, chunk: list[Message]) -> None:
        if chunk[0].ledger.closed:  # an epoch ends between two chunks, never inside one
            return
        composed, rejects = self._composer.compose(chunk, self._wall_clock())
        if rejects:
            self._reject(Letter(reject.message, reject.reason, reject.detail) for reject in rejects)
        self._batch(self._order.enter(composed))
        if self._window_full():
            self._wake.set()

    def _batch(self, messages: list[Message]) -> None:
        """Add messages that are free to go to their groups; dispatch must know of complete ones and of new clocks."""
        if not messages:
            return
        first = not self._batcher.open_groups
        complete = self._correlate(messages) if self._correlates else self._batcher.add(messages, self._now())
        if complete:
            self._put(complete)
        if complete or first or self._draining:
            self._wake.set()

    def _correlate(self, messages: list[Message]) -> list[Batch]:
        """Add messages to the groups that they belong to, and ack those that are mere signals.

        At once: there is nothing of them to be stored, and their acks cover no message before them that isn't settled.
        """
        complete = self._batcher.correlate(messages, self._now())
        signals = [message for message in messages if message.correlation.is_signal]
        if signals:
            self.acknowledge(signals, "ack")
        return complete

    def _put(self, complete: list[Batch]) -> None:
        now, wall = self._now(), self._wall_clock()
        for batch in complete:
            self.account.complete(batch.trigger or "", len(batch.messages), batch.body_bytes)
            since = published_at(batch.messages[0].properties, wall)
            if since is not None:
                waited = wall - (now - batch.opened_at) - since
                self.account.queue_wait_seconds.observe(max(0.0, waited))
        self._outbox.put(complete)

    def _window_full(self) -> bool:
        """Whether nothing more comes before something is settled, and all that came was admitted."""
        return self._chunks.empty() and self._consuming.starved

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
        if self._copying.held is not None:
            return not (self._outbox or self._batcher.open_groups)
        return not (self._outbox or self._order) and self._copying.idle

    async def _sleep(self, now: float) -> None:
        """Sleep until something happens, or until the clock makes a difference."""
        moments = [self._batcher.due()]
        ready_at = self._outbox.ready_at()
        if ready_at is not None:
            pause_until = self.pacing.pause_until()
            moments.append(max(ready_at, pause_until) if self.pacing.held is None else pause_until)
        timer = None
        until = min((moment for moment in moments if moment is not None and moment > now), default=None)
        if until is not None:
            timer = asyncio.get_running_loop().call_at(until, self._wake.set)
        await self._wake.wait()
        self._wake.clear()
        if timer is not None:
            timer.cancel()

    async def _send(self, batch: Batch, *, probe: bool) -> None:
        sent_at = self._now()
        task = asyncio.current_task()
        try:
            answer = await self._sink.bulk(self._path, bulk.body(batch.messages))
            self.account.bulk_seconds.observe(self._now() - sent_at)
            self._conclude(batch, answer, sent_at, probe=probe)
        except SinkError as error:
            self.account.bulk_seconds.observe(self._now() - sent_at)
            self._unanswered(batch, str(error), probe=probe)
        finally:
            if task is not None:
                self._in_flight.pop(task, None)
            self._wake.set()

    # Verdicts --------------------------------------------------------------------------------------------------------

    def _conclude(self, batch: Batch, answer: Answer, sent_at: float, *, probe: bool) -> None:
        messages = batch.messages
        if answer.status == OK and bulk.all_stored(answer.body, len(messages)):
            self._heard()
            self._succeeded_sent_at = max(self._succeeded_sent_at, sent_at)
            self.pacing.stored(self._now(), sent_at, len(messages) / self._plan.batch_max_items)
            self.account.requests["stored"] += 1
            self._count_stored(messages)
            self._store(messages)
            self._note_stored(batch, messages, sent_at)
            return
        results = bulk.results(answer.body, len(messages)) if answer.status == OK else None
        if results is not None:
            self._succeeded_sent_at = max(self._succeeded_sent_at, sent_at)
            self.account.requests["partial"] += 1
            self._apply(batch, results, sent_at, probe=probe)
        else:
            self._refused(batch, answer, sent_at, probe=probe)

    def _count_stored(self, messages: list[Message]) -> None:
        action = self._plan.recipe.constant_action
        if action is not None:
            self.account.documents[action, "success"] += len(messages)
        else:
            self.account.documents.update((message.action, "success") for message in messages)

    def _note_stored(self, batch: Batch, stored: list[Message], sent_at: float) -> None:
        """Measure how long the first message of a request took; one for all of them, or it would cost too much."""
        now, wall = self._now(), self._wall_clock()
        since = published_at(stored[0].properties, wall)
        self.account.end_to_end_seconds.observe(now - batch.opened_at if since is None else max(0.0, wall - since))
        self._log.debug(
            "batch.stored",
            items=len(stored),
            of=len(batch.messages),
            bytes=batch.body_bytes,
            trigger=batch.trigger,
            seconds=round(now - sent_at, 3),
        )

    def _heard(self) -> None:
        """Note that Elasticsearch is there and speaks of our items: a hold is over."""
        if self.pacing.answered():
            self._log.info("elasticsearch.resumed")
            self._consuming.hold_changed()

    def _store(self, messages: list[Message]) -> None:
        """Ack messages: nothing more will be written for them."""
        self._refused_in_a_row.clear()
        self._release(messages)
        self.acknowledge(messages, "ack")

    def _release(self, messages: Iterable[Message]) -> None:
        """Let the next operations on the same documents go."""
        self._batch(self._order.leave(messages))

    def acknowledge(self, messages: list[Message], verdict: Settled) -> None:
        """Settle messages by acks: one frame up to the first that is open, in each channel."""
        session = self._session
        if session is None:
            return
        for ledger in session.ledgers:
            mine = [message for message in messages if message.ledger is ledger]
            if mine:
                count = ledger.store(mine)
                self.account.settle(ledger.queue, verdict, count)
                self._write_acks(session, ledger)
                self._consuming.settled(count)

    def _write_all_acks(self) -> None:
        """Write the acks that wait behind a hole when a hold begins: it may take long until that is filled.

        They would take up the room in which the broker can deliver something to probe with, run into its consumer
        timeout, and be stored again if the session were lost.
        """
        session = self._session
        if session is not None:
            for ledger in session.ledgers:
                self._write_acks(session, ledger)

    def _write_acks(self, session: BrokerSession, ledger: Ledger) -> None:
        settlements = ledger.collect()
        held = self.pacing.held is not None or self._copying.held is not None
        if held or ledger.withheld > _WITHHELD_SHARE * self._consuming.prefetch:
            settlements += ledger.collect(singly=True)
        if settlements:
            session.settle(ledger, settlements)

    def copying_changed(self) -> None:
        """Take notice of copies that were confirmed, or of a route that takes none."""
        if self._copying.held is not None:
            self._write_all_acks()
        self._wake.set()

    def _apply(self, batch: Batch, results: list[Result], sent_at: float, *, probe: bool) -> None:
        """Map each result to its own message: the reason why this program exists."""
        fates = self._sort(batch.messages, results)
        letters, delayed = fates.letters, fates.delayed
        guarded: list[Letter] = []
        if fates.stored:
            self._refused_in_a_row.clear()
        else:
            letters, guarded = self._guard(fates.letters, self._plan.reject_guard)
            delayed, kept = self._guard(fates.delayed, self._blocked_guard)
            guarded += kept
        if guarded:
            self._hold_back(batch, guarded, probe=probe)
        elif len(fates.throttled) < len(results):
            self._heard()
        if fates.throttled:
            share = len(fates.throttled) / len(results)
            example = next(result for result in results if judge(result, "").verdict is Verdict.THROTTLED)
            reason = f"{example.status} {example.error_type}: {bulk.blank(example.reason, b'')}"
            again = batch.again(fates.throttled)
            if fates.stored:  # there is room, only not for all at once: no reason to wait ever longer
                again.tries = 0
            self._crowded(again, sent_at, share, reason, probe=probe)
        else:
            self.pacing.stored(self._now(), sent_at, len(results) / self._plan.batch_max_items)
        if fates.later:
            self._go_again(batch.again(fates.later), "failed")
        if fates.stored:
            self._store(fates.stored)
            self._note_stored(batch, fates.stored, sent_at)
        if letters:
            self._reject(letters)
        if delayed:
            self._send_round(delayed)

    def _guard(self, letters: list[Letter], most: int) -> tuple[list[Letter], list[Letter]]:
        """Split what was refused into what may leave and what may not, since too many of its kind came in a row.

        A broken mapping would empty the queue into the dead letters otherwise; and where every target is blocked, the
        whole queue would go round and round.
        """
        passed: list[Letter] = []
        guarded: list[Letter] = []
        for letter in letters:
            if most and self._refused_in_a_row[letter.error_type] >= most:
                guarded.append(letter)
            else:
                self._refused_in_a_row[letter.error_type] += 1
                passed.append(letter)
        return passed, guarded

    def _hold_back(self, batch: Batch, guarded: list[Letter], *, probe: bool) -> None:
        example = guarded[0]
        for letter in guarded:
            letter.message.attempts -= 1  # it is the document's kind that is on trial, not this one
        count = self._refused_in_a_row[example.error_type]
        reason = f"{count} documents in a row were refused: {example.error_type}: {example.detail}"
        self._hold(f"guard {example.error_type}", reason, probe=probe)
        again = batch.again([letter.message for letter in guarded])
        again.ready_at = 0.0
        self._put_again(again)

    def _sort(self, messages: list[Message], results: list[Result]) -> _Fates:
        fates = _Fates([], [], [], [], [])
        outcomes = self.account.documents
        action = self._plan.recipe.constant_action or ""
        for message, result in zip(messages, results, strict=True):
            if result.status in STORED_STATUSES:  # most of them, without looking it up in the table
                fates.stored.append(message)
                outcome = "failure_store" if result.failure_store else "success"
                outcomes[message.action or action, outcome] += 1
                continue
            rule = judge(result, message.action or action)
            outcomes[message.action or action, _OUTCOMES[rule.verdict]] += 1
            fate = self._decide(message, rule)
            if fate is Fate.STORED:
                fates.stored.append(message)
            elif fate is Fate.THROTTLED:
                fates.throttled.append(message)
            elif fate is Fate.AGAIN:
                fates.later.append(message)
            elif fate is Fate.DELAY:
                fates.delayed.append(self._round(message, result, rule))
            else:
                fates.letters.append(self._letter(message, result, rule))
        return fates

    def _decide(self, message: Message, rule: Rule) -> Fate:
        plan = self._plan
        if rule.verdict is not Verdict.THROTTLED:
            message.attempts += 1
        fate = decide(
            rule,
            plan.choices,
            own_doing=own_doing(message),
            may_try=message.attempts < plan.retry_max_attempts,
            may_go_round=may_go_round(
                message, versioned=plan.recipe.version is not None, most_rounds=plan.delayed_retry_max_rounds
            ),
        )
        if fate is Fate.AGAIN and rule.verdict is not Verdict.COUNTED:
            message.attempts -= 1  # it waits for its target, and that counts for nothing later
        return fate

    def _round(self, message: Message, result: Result, rule: Rule) -> Letter:
        """Return the delayed copy of a message: a failure's rounds are counted, waiting for a target is not."""
        counted = rule.verdict is Verdict.COUNTED
        first_seconds = self._plan.delayed_retry_delay_seconds
        seconds = delay_seconds(message, first_seconds, counted=counted, now=self._wall_clock())
        letter = self._letter(message, result, rule)
        return letter._replace(delay_milliseconds=max(1, int(1000 * seconds)), rounds=rounds(message) + counted)

    def _send_round(self, letters: list[Letter]) -> None:
        self._failures.note(letters, "delay")
        self._release(letter.message for letter in letters)
        self.account.retries["delayed"] += len(letters)
        self._copying.add(letters)

    def _may_try_again(self, message: Message) -> bool:
        message.attempts += 1
        return message.attempts < self._plan.retry_max_attempts

    @staticmethod
    def _letter(message: Message, result: Result, rule: Rule) -> Letter:
        reason = rule.reason or "retries-exhausted"
        detail = bulk.blank(result.reason, message.source or message.body)
        return Letter(message, reason, detail, result.status, result.error_type)

    def _crowded(
        self,
        again: Batch,
        sent_at: float,
        share: float,
        reason: str,
        *,
        probe: bool,
        retry_after_seconds: float = 0.0,
    ) -> None:
        """Slow down, since there was no room for `again`; where there is none for anything for long, hold."""
        self._throttle(sent_at, share, retry_after_seconds)
        if share >= 1.0 and self.pacing.crowded_out(self._now()):
            self.account.retries["throttled"] += len(again.messages)
            self._hold("429", reason, probe=probe, retry_after_seconds=retry_after_seconds)
            again.ready_at = 0.0
            self._put_again(again)
        else:
            self._go_again(again, "throttled")

    def _throttle(self, sent_at: float, share: float, retry_after_seconds: float = 0.0) -> None:
        if self.pacing.throttled(self._now(), sent_at, self._dice.random(), share, retry_after_seconds):
            now = self._now()
            if now >= self._throttled_silent_until:  # a line for a spell of it, not one for each request
                self._throttled_silent_until = now + _THROTTLED_LOG_SECONDS
                self._log.info("elasticsearch.throttled", limit=int(self.pacing.limit), share=round(share, 2))

    def _go_again(self, batch: Batch, reason: str) -> None:
        """Send a batch again after a backoff of its own."""
        batch.tries += 1
        plan = self._plan
        pause = backoff_seconds(
            batch.tries, self._dice.random(), plan.retry_delay_min_seconds, plan.retry_delay_max_seconds
        )
        batch.ready_at = self._now() + pause
        self.account.retries[reason] += len(batch.messages)
        self._put_again(batch)

    def _put_again(self, batch: Batch, *, first: bool = False) -> None:
        """Put a batch back, but for those of its messages whose epoch ended while it was away."""
        gone = [message for message in batch.messages if message.ledger.closed]
        if gone:
            batch = batch.again([message for message in batch.messages if not message.ledger.closed])
        if batch.messages:
            self._outbox.put_again(batch, first=first)
        self._release(gone)

    def _refused(self, batch: Batch, answer: Answer, sent_at: float, *, probe: bool) -> None:
        """Deal with a request that was answered as a whole."""
        fault = bulk.fault(answer.status, answer.body)
        course = judge_request(fault)
        for message in batch.messages:
            message.unanswered = True  # bodies are taken in pieces: what came before the fault may be stored
        if course is Course.UNKNOWN:
            reason = f"Elasticsearch answered {fault.status}: {fault.error_type or fault.reason}"
            self._unanswered(batch, reason, probe=probe, retry_after_seconds=answer.retry_after_seconds)
            return
        self.account.requests[course.name.lower()] += 1
        if course is Course.THROTTLED:
            reason = f"{fault.status} {fault.error_type}: {fault.reason}"
            self._crowded(batch, sent_at, 1.0, reason, probe=probe, retry_after_seconds=answer.retry_after_seconds)
        elif course is Course.SPLIT_SIZE:
            self._heard()
            self._split_size(batch, fault)
        elif course is Course.SPLIT_FAULT:
            self._split_fault(batch, fault, probe=probe)
        else:
            kind = f"{fault.status} {fault.error_type}"
            self._hold(kind, f"{kind}: {fault.reason}", probe=probe)
            self._put_again(batch)

    def _split_size(self, batch: Batch, fault: Fault) -> None:
        if len(batch.messages) == 1:
            detail = f"Elasticsearch refuses a request of {batch.body_bytes} bytes that holds nothing but this document"
            self._reject([Letter(batch.messages[0], "too-large", detail, fault.status, fault.error_type)])
            return
        self._outbox.max_bytes = max(1, min(self._outbox.max_bytes, batch.body_bytes // 2))
        self._split(batch, "too_large")

    def _split_fault(self, batch: Batch, fault: Fault, *, probe: bool) -> None:
        """Narrow down which item makes Elasticsearch refuse a request.

        An item is blamed only when it failed alone and another request succeeded that was sent since the first refusal:
        otherwise a fault of ours that fails every request would empty the queue into the dead letters. (Those that were
        on their way when it began may still succeed, and say nothing.)
        """
        if batch.suspected_at < 0:
            batch.suspected_at = self._now()
        if len(batch.messages) > 1:
            self._split(batch, "refused")
        elif self._succeeded_sent_at >= batch.suspected_at:
            message = batch.messages[0]
            detail = bulk.blank(fault.reason, message.source or message.body)
            self._heard()
            self._reject([Letter(message, "rejected", detail, fault.status, fault.error_type)])
        else:
            kind = f"{fault.status} {fault.error_type}"
            self._hold(kind, f"{kind}: {bulk.blank(fault.reason, b'')}", probe=probe)
            self._put_again(batch)

    def _split(self, batch: Batch, reason: str) -> None:
        self.account.splits[reason] += 1
        # Halves of a refused request go first, depth before breadth: the item at fault is found, or a fault of ours
        # noticed, after log₂ of its items. Breadth first, a fault that fails every request would cost one an item.
        first = reason == "refused"
        for half in reversed(batch.halves()) if first else batch.halves():
            half.ready_at = 0.0
            self._put_again(half, first=first)

    def _unanswered(self, batch: Batch, reason: str, *, probe: bool, retry_after_seconds: float = 0.0) -> None:
        """Deal with a request whose outcome is unknown: the same items go again when a probe was answered."""
        self.account.requests["unanswered"] += 1
        for message in batch.messages:
            message.unanswered = True
        if not probe:
            batch.unanswered += 1
        self._hold("unanswered", reason, probe=probe, retry_after_seconds=retry_after_seconds)
        batch.ready_at = 0.0
        # A probe that fails says that the outage goes on: it counts against nobody.
        suspect = not probe and batch.unanswered > 1
        if suspect and len(batch.messages) == 1 and not self._may_try_again(batch.messages[0]):
            self._reject([Letter(batch.messages[0], "retries-exhausted", reason)])
            return
        self.account.retries["unanswered"] += len(batch.messages)
        if suspect and len(batch.messages) > 1:
            # Probes passed since, and the same items fail again: there may be one that nobody survives.
            self._split(batch, "unanswered")
        else:
            self._put_again(batch)

    def _hold(self, kind: str, reason: str, *, probe: bool, retry_after_seconds: float = 0.0) -> None:
        news = self.pacing.hold(
            self._now(),
            reason,
            self._dice.random(),
            was_probe=probe,
            kind=kind,
            retry_after_seconds=retry_after_seconds,
        )
        if news:
            self._log.warning("elasticsearch.held", reason=reason)
            for flight in self._in_flight.values():
                flight.hung = True
            self._consuming.hold_changed()
            self._write_all_acks()

    # Dead letters ----------------------------------------------------------------------------------------------------

    def _reject(self, letters: Iterable[Letter]) -> None:
        """Have messages dead-lettered; what follows them on the same documents goes on at once."""
        letters = list(letters)
        self._failures.note(letters, "discard" if self._plan.on_reject == "discard" else "dead_letter")
        self._release(letter.message for letter in letters)
        on_reject = self._plan.on_reject
        if on_reject == "dead-letter":
            self._copying.add(letters)
            return
        ours = [letter.message for letter in letters if letter.message.ledger.holds(letter.message)]
        if on_reject == "discard":
            self.acknowledge(ours, "discard")
        else:
            self._leave_to_broker(ours)

    def _leave_to_broker(self, messages: list[Message]) -> None:
        """Have the queue's own dead-lettering take messages: ``basic.reject``."""
        session = self._session
        if session is None:
            return
        for message in messages:
            message.ledger.give_up(message)
            session.reject(message.ledger, message.tag)
            self.account.settle(message.ledger.queue, "dead_letter")
        self._consuming.settled(len(messages))
        self._write_all_acks()

    def target(self, message: Message) -> tuple[str, str, bytes]:
        """Return action, index and id, from the line that was made of the message, as far as one was."""
        recipe = self._plan.recipe
        if not message.line:
            return recipe.constant_action or "", recipe.path_index or "", b""
        ((verb, parameters),) = orjson.loads(message.line).items()
        index = parameters.get("_index", recipe.path_index or "")
        return message.action or verb, index, parameters.get("_id", "").encode()

    def _make_id(self) -> str:
        return f"{self._dice.getrandbits(128):032x}"

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
