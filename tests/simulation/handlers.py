"""Days of the library: real consumers between the simulated broker and a function that does all that functions do.

The judge knows what the function gave for each message, by the function's own notes, and what the broker saw. What
follows from one for the other it takes from docs/library.md.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from sidecar import ACK, DEAD_LETTER, DELAY, DISCARD, REQUEUE, BatchConsumer, Consumer, Verdict
from sidecar.core.encoding.template import RETRY_COUNT
from sidecar.core.wire.properties import decode, header
from sidecar.library import consumers, handler_sink
from sidecar.pipeline.pipeline import Pipeline
from tests.builders import long_string
from tests.builders import properties as raw_properties
from tests.simulation.oracle import Judge
from tests.simulation.rest import remains
from tests.simulation.scenario import DELAY_FAULTS, Day, draw
from tests.simulation.world import QUEUE, Life, Log, Played, World, play

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Any

    from sidecar import Message, Options
    from sidecar.pipeline.app import Connect
    from sidecar.ports import OutboundMessage
    from tests.fakes.broker import Queue, SimulatedSession, Stored

_FIRST_DELAY_SECONDS = 2.0
_ROUNDS = 2
_FAULTS = frozenset({
    "session lost", "broker away", "full", "unroutable", "alarm", "SIGTERM", "kill", "delays full",
    "delays undeclarable", "queue deleted",
})  # fmt: skip
_VERDICTS = {"ack": ACK, "dead-letter": DEAD_LETTER, "delay": DELAY, "requeue": REQUEUE, "discard": DISCARD}
_SENDING_SHARE = 0.8  # of the time for the end something may still be in work


@dataclass(frozen=True, slots=True)
class HandlerSink:
    """How the function works.

    Attributes:
        form: ``yields``, ``returns`` (a list), ``one`` (verdict for all) or ``single`` (messages one by one).
        ending: how a consumer is ended: ``stop``, ``with``, ``twice`` (at once), ``waiter`` (whoever waits is
            cancelled), ``raises`` (in the block of ``async with``).
        workers: batches at once.
        by_key: batches are of one key.
        on_exception: the default after an exception.
        on_missing: the default for what has no verdict.
    """

    form: str = "yields"
    ending: str = "stop"
    workers: int = 1
    by_key: bool = False
    on_exception: str = "delay"
    on_missing: str = "delay"


class Job(NamedTuple):
    """A message that will be published.

    Attributes:
        script: what is given for it, the first time, the second time, …; after the last of them ``ack``. Besides the
            kinds of verdicts ``none`` (a value that is no verdict), ``raise``, ``cancel`` (the function lets a
            cancellation out that is its own), ``short`` (nothing is given for it), ``long`` (one too many), ``hang``
            (it takes a minute).
    """

    at: float
    number: int
    script: tuple[str, ...] = ()
    document: str = ""
    key: str = ""
    index: str = ""
    action: str = "index"
    guilty: bool = False
    unfit: bool = False

    @property
    def kind(self) -> str:
        """What the trace says of it."""
        return " ".join(self.script) or "ack"

    @property
    def body(self) -> bytes:
        """The body, unlike that of any other."""
        return b"job %d" % self.number


@dataclass(frozen=True, slots=True)
class HandlerDay(Day):
    """A day of a consumer with a function."""

    handling: HandlerSink = HandlerSink()


def draw_handlers(seed: int) -> HandlerDay:
    """Return the day of a seed."""
    plain = draw(seed)
    rng = random.Random(f"handlers {seed}")
    pick = rng.choice
    form = pick(("yields", "yields", "returns", "one", "single"))
    handling = HandlerSink(
        form=form,
        ending=pick(("stop", "with", "twice", "waiter", "raises")),
        workers=pick((1, 2, 4)),
        by_key=form != "single" and rng.random() < 0.3,
        on_exception=pick(("delay", "requeue", "dead-letter", "discard")),
        on_missing=pick(("delay", "requeue", "dead-letter", "discard")),
    )
    setting = replace(
        plain.setting,
        sidecars=1,
        coalesce="none",
        batch_max_items=1 if form == "single" else pick((2, 5, 10)),
        consumer_timeout_seconds=0.0,
        delivery_limit=0,
        reject_guard=1000,
        memory_limit_bytes=pick((1 << 26, 1 << 26, 12_000)),
        on_reject=pick(("dead-letter", "dead-letter", "dead-letter", "broker", "discard")),
    )
    setting = replace(setting, prefetch=setting.batch_max_items * (handling.workers + 2))
    faults = tuple(
        fault._replace(target="0" if fault.target.isdecimal() and len(fault.target) == 1 else fault.target)
        for fault in plain.faults
        if fault.kind in _FAULTS
    )
    jobs: Any = tuple(_jobs(rng, handling))
    return HandlerDay(seed, setting, jobs, faults, handling)


def _jobs(rng: random.Random, handling: HandlerSink) -> Iterator[Job]:
    kinds = ["ack"] * 6 + [
        "dead-letter",
        "dead-letter",
        "delay",
        "delay",
        "requeue",
        "discard",
        "raise",
        "cancel",
        "none",
        "hang",
    ]
    kinds += ["short", "long"] if handling.form in ("yields", "returns") else []
    at = 0.0
    for number in range(1, rng.choice((6, 20, 50)) + 1):
        script = tuple(rng.choice(kinds) for _ in range(rng.choice((0, 1, 1, 2))))
        script = rng.choice((script, ("delay",) * 4)) if rng.random() < 0.1 else script
        key = rng.choice("abc") if handling.by_key else ""
        yield Job(round(at, 3), number, script, rng.choice(("", f"id-{number}")), key)
        at = min(40.0, at + rng.choice((0.0, 0.0, 0.0, 0.0, 0.1, 0.7, 4.0)))


@dataclass(slots=True)
class Call:
    """A call of the function.

    Attributes:
        shown: each message as the broker has it, and how often it was delivered at that moment; None: the broker
            has taken it back meanwhile.
        given: what was given, in order.
        exception: the name of the type of what was raised in the end.
        cut: it was cancelled.
    """

    life: HandlerLife
    began_at: float
    shown: list[tuple[Stored | None, int]]
    given: list[object]
    exception: str = ""
    cut: bool = False


class Function:
    """The function of one consumer: follows the scripts of its messages and keeps notes of it."""

    def __init__(self, life: HandlerLife, judge: HandlerJudge, day: HandlerDay) -> None:
        self._life = life
        self._judge = judge
        self._day = day

    async def steps(self, batch: list[Message], call: Call) -> AsyncIterator[object]:
        """Yield what the scripts say."""
        for message in batch:
            number = int(message.body[4:])
            times = self._judge.shown[number]
            self._judge.shown[number] += 1
            script = self._judge.fates[number].publication.script  # type: ignore[attr-defined] # it is a `Job`
            step = script[times] if times < len(script) else "ack"
            self._judge.seen[step] += 1
            await asyncio.sleep(60.0 if step == "hang" else 0.01 * (number % 5))
            if step == "raise":
                raise LookupError(f"secret {number}")
            if step == "cancel":
                raise asyncio.CancelledError
            for value in _values(step, number):
                call.given.append(value)
                yield value


def _values(step: str, number: int) -> list[object]:
    if step in ("short", "long"):
        return [ACK] * (2 * (step == "long"))
    if step == "none":
        return [None]
    verdict = _VERDICTS.get(step, ACK)
    if step == "dead-letter":
        return [verdict.because(f"reason-{number}", f"detail {number}")]
    return [verdict.after(1.0 + number % 3)] if step == "delay" and number % 2 else [verdict]


@contextmanager
def _noted(judge: HandlerJudge, call: Call) -> Iterator[None]:
    """Note how a call ends."""
    judge.began(call)
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        call.cut = task is not None and task.cancelling() > 0
        call.exception = type(error).__name__
        raise
    except GeneratorExit:  # closed after a value too many
        raise
    except Exception as error:
        call.exception = type(error).__name__
        raise
    finally:
        judge.finished(call)


class _Hooks:
    """What all consumers of a day have in common."""

    life: HandlerLife
    world: HandlerWorld
    function: Function

    async def on_start(self) -> None:
        """Note it."""
        self.life.started += 1

    async def on_stop(self) -> None:
        """Note it."""
        self.life.stopped += 1
        self.world.judge.stopped(self.life)

    def _connect(self) -> Connect:
        return self.life._connector(self.world)

    def _begin(self, batch: list[Message]) -> Call:
        now = asyncio.get_running_loop().time()
        return Call(self.life, now, self.world.judge.look(self.life, batch), [])


class _Batches(_Hooks, BatchConsumer):
    def process(self, batch: list[Message]) -> Any:
        """Do it in the form of the day."""
        ways = {"yields": self.yields, "returns": self.returns, "one": self.one}
        return ways[self.world.day.handling.form](batch)

    async def yields(self, batch: list[Message]) -> AsyncIterator[Any]:
        """Yield the values."""
        call = self._begin(batch)
        with _noted(self.world.judge, call):
            async for value in self.function.steps(batch, call):
                yield value

    async def returns(self, batch: list[Message]) -> Any:
        """Return the values."""
        call = self._begin(batch)
        with _noted(self.world.judge, call):
            return await self._all(batch, call)

    async def one(self, batch: list[Message]) -> Any:
        """Return the first value for all."""
        call = self._begin(batch)
        with _noted(self.world.judge, call):
            first = (await self._all(batch, call))[0]
            call.given = [first] * len(batch) if isinstance(first, Verdict) else []
            return first

    async def _all(self, batch: list[Message], call: Call) -> list[object]:
        try:
            return [value async for value in self.function.steps(batch, call)]
        except BaseException:
            call.given.clear()  # what wasn't returned was never given
            raise


class _Singles(_Hooks, Consumer):
    async def process(self, message: Message) -> Any:
        """Return the first value."""
        call = self._begin([message])
        with _noted(self.world.judge, call):
            values = [value async for value in self.function.steps([message], call)]
            return values[0]


def _consumer(life: HandlerLife, world: HandlerWorld) -> Any:
    """Return the consumer of a life: its hooks, its function and its way to the simulated broker."""
    setting, handling = world.day.setting, world.day.handling
    options: Options = {
        "amqp_queue": QUEUE,
        "workers": handling.workers,
        "batch_max_age": setting.batch_max_age_seconds,
        "memory_limit": setting.memory_limit_bytes,
        "on_exception": _VERDICTS[handling.on_exception],
        "on_missing_verdict": _VERDICTS[handling.on_missing],
        "on_reject": setting.on_reject,  # type: ignore[typeddict-item] # one of them
        "delayed_retry_max_rounds": _ROUNDS,
        "delayed_retry_delay": _FIRST_DELAY_SECONDS,
        "shutdown_timeout": setting.shutdown_seconds,
    }
    if handling.form != "single":
        options["batch_max_items"] = setting.batch_max_items
    if handling.by_key:
        options["batch_key"] = "{header.k}"
    log: Any = Log(world, life.name)
    consumer: Any = (_Singles if handling.form == "single" else _Batches)(log=log, **options)
    consumer.life, consumer.world = life, world
    consumer.function = Function(life, world.judge, world.day)
    return consumer


class HandlerLife(Life):
    """A consumer from its start to its end.

    Attributes:
        started: how often ``on_start`` was called.
        stopped: how often ``on_stop`` was called.
    """

    world: HandlerWorld

    def begin(self, world: Any) -> None:
        """Start the consumer, in one of the ways in which that can be done."""
        self.world = world
        self.started = self.stopped = 0
        self.asked_at = 0.0
        self.consumer = _consumer(self, world)
        # What is looked at before the first turn of the loop; the consumer makes its own.
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self._live(world.day.handling.ending), name=self.name)

    def new_pipeline(self, world: World) -> Pipeline:
        """Return a pipeline like that of the consumer."""
        consumer, plan = self.consumer, self.consumer._config()
        sink = handler_sink.HandlerSink(plan, consumer._process(), consumer.settings)
        return Pipeline(plan, sink, rng=world.rng, log=consumer._log, wall_clock=time.time)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of the consumer."""
        app = self.consumer._app
        pipeline: Pipeline = app._pipeline
        return pipeline

    @property
    def is_there(self) -> bool:
        """Whether the consumer has a pipeline."""
        return self.consumer._app is not None

    async def _live(self, ending: str) -> None:
        consumer = self.consumer
        if ending == "with":
            async with consumer:
                await self._asked()
            return
        if ending == "raises":
            try:
                async with consumer:
                    await self._asked()
                    _raise()
            except LookupError:
                return
        await consumer.start()
        if ending == "waiter":
            await self._cancel_a_waiter()
        else:
            await self._asked()
        calls = [consumer.stop() for _ in range(2 if ending == "twice" else 1)]
        await asyncio.gather(*calls)

    async def _asked(self) -> None:
        await self.stop.wait()
        self.asked_at = asyncio.get_running_loop().time()

    async def _cancel_a_waiter(self) -> None:
        """Have somebody wait for the consumer, and cancel that: the consumer goes on, until it is stopped."""
        waiter = asyncio.create_task(self.consumer.wait())
        await self._asked()
        waiter.cancel()
        await asyncio.wait([waiter])
        if not self.consumer.is_running:
            self.world.judge.fault("waiter", f"{self.name} ended with somebody who waited for it")

    def crash(self) -> None:
        """End it as ``kill -9`` does."""
        self.task.cancel()
        if self.consumer._task is not None:
            self.consumer._task.cancel()


def _raise() -> None:
    raise LookupError("in the block")


class HandlerJudge(Judge):
    """Judges what becomes of messages by what the function gave for them."""

    day: HandlerDay

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.handling = self.day.handling
        self.shown: Counter[int] = Counter()
        self.seen: Counter[str] = Counter()
        self.expected: dict[Stored, Verdict] = {}  # what was said of messages that are not settled yet
        self.errors: dict[Stored, str] = {}
        self.discards = 0
        self._calls: list[Call] = []
        self._looked_at: Counter[int] = Counter()
        self._copied: dict[Stored, None] = {}
        self._returned: dict[Stored, None] = {}  # and not delivered again
        self._fragile = any(fault.kind in DELAY_FAULTS for fault in self.day.faults)
        # What there was no room for, while something took long, goes back unseen.
        self._is_tight = self.setting.memory_limit_bytes < 1 << 26
        self._copies_flow = self._room_is_left = False

    def delivered(self, life: Life, session: SimulatedSession, chunk: list[Stored]) -> None:
        """Note deliveries."""
        life.received += len(chunk)
        for stored in chunk:
            self.fates[self._by_body[stored.body]].deliveries += 1
            self._returned.pop(stored, None)
            self._copied.pop(stored, None)
        if session.prefetch > self.setting.prefetch:
            self.fault("prefetch", f"{session.prefetch} asked for, {self.setting.prefetch} configured")

    # The function ----------------------------------------------------------------------------------------------------

    def look(self, life: HandlerLife, batch: list[Message]) -> list[tuple[Stored | None, int]]:
        """Note what the function is shown, and see that it is what was published."""
        shown: list[tuple[Stored | None, int]] = []
        for message in batch:
            number, stored = self._by_body[message.body], _stored(life, message)
            self._looked_at[number] += 1
            shown.append((stored, stored.deliveries if stored is not None else 0))
            job: Any = self.fates[number].publication
            told = message.queue, message.exchange, message.routing_key, message.message_id, message.headers.get("k")
            if told != (QUEUE, "", QUEUE, job.document or None, job.key or None):
                self._about(number, "wrong message", f"{told}")
            if stored is None:
                continue
            told_of_delivery = message.redelivered, message.rounds
            if told_of_delivery != (stored.deliveries > 1, _rounds(stored.properties)):
                self._about(number, "wrong message", f"{told_of_delivery}")
            if stored in self.expected and not self._fragile:
                self._about(number, "shown again", f"after {self.expected[stored]}")
            self.expected.pop(stored, None)
        numbers = [self._by_body[message.body] for message in batch]
        keys = {self.fates[number].publication.key for number in numbers}  # type: ignore[attr-defined] # a `Job`
        if len(keys) > 1 or len(batch) > self.setting.batch_max_items or not batch:
            self.fault("batch", f"{life.name} is given {numbers} of {keys}")
        return shown

    def began(self, call: Call) -> None:
        """Note that a call began."""
        self._calls.append(call)
        at_once = sum(one.life is call.life for one in self._calls)
        if at_once > self.handling.workers:
            self.fault("workers", f"{at_once} calls of {call.life.name} at once")
        if call.life.stopped:
            self.fault("called after the end", f"{call.life.name}")

    def finished(self, call: Call) -> None:
        """Note how a call ended, and what that means for each of its messages."""
        self._calls.remove(call)
        life, now = call.life, asyncio.get_running_loop().time()
        if call.cut:
            graceful = not life.crashed and life.stop.is_set() and life.sessions and not life.sessions[-1].lost.done()
            if graceful and now < life.asked_at + _SENDING_SHARE * self.setting.shutdown_seconds:
                self.fault(
                    "undrained", f"{life.name} cut off a call {now - life.asked_at:.2f} s after it was told to end"
                )
            return
        count = len(call.shown)
        verdicts = _prefix(call.given)
        if len(call.given) > count or (len(call.given) < count and not call.exception):
            verdicts = []
        after = _VERDICTS[self.handling.on_exception].because("exception")
        missing = _VERDICTS[self.handling.on_missing].because("no-verdict")
        verdicts += [after if call.exception else missing] * (count - len(verdicts))
        for (stored, deliveries), verdict in zip(call.shown, verdicts, strict=True):
            if stored is not None and stored.deliveries == deliveries and stored not in self._returned:
                self.expected[stored] = verdict
                self.errors[stored] = call.exception

    def stopped(self, life: HandlerLife) -> None:
        """Note that a consumer cleans up: nothing is in work any more."""
        if any(call.life is life for call in self._calls):
            self.fault("stopped at work", f"on_stop of {life.name} is called before its work has ended")

    # The broker ------------------------------------------------------------------------------------------------------

    def acked(self, stored: Stored) -> None:
        """Note an ack: the function said so, or a copy is where it said."""
        number = self._by_body[stored.body]
        self.acks += 1
        self.fates[number].acks += 1
        verdict = self.expected.pop(stored, None)
        if verdict is None:
            self._about(number, "acked undecided")
            return
        rejected = verdict.kind == "dead-letter" or (verdict.kind == "delay" and self._exhausted(stored))
        discarded = verdict.kind == "discard" or (rejected and self.setting.on_reject == "discard")
        if stored in self._copied or verdict.kind == "ack":
            return
        self.discards += discarded
        if not discarded:
            self._about(number, "acked", f"after {verdict}, without a copy")

    def _exhausted(self, stored: Stored) -> bool:
        """Whether a message that is to be delayed may be rejected instead."""
        return _rounds(stored.properties) >= _ROUNDS or self._fragile

    def _original(self, body: bytes, *kinds: str) -> Stored | None:
        """Return the message that a copy was made of, if the function wants one; and note that."""
        for stored, verdict in self.expected.items():
            if stored.body == body and verdict.kind in kinds and stored not in self._copied:
                self._copied[stored] = None
                return stored
        number = self._by_body[body]
        if not self.fates[number].unknown:
            self._about(number, "innocent copied", f"{[one for one in self.expected.items() if one[0].body == body]}")
        return None

    def copied(self, stored: Stored) -> None:
        """Note a dead letter: the function said so, and why."""
        number = self._by_body[stored.body]
        self.dead += 1
        self.fates[number].dead += 1
        if self.setting.on_reject != "dead-letter":
            self._about(number, "unwanted copy")
        original = self._original(stored.body, "dead-letter", "delay")
        if original is None:
            return
        verdict = self.expected[original]
        reason, why, error = (
            str(decode(header(stored.properties, name) or b"S\0\0\0\0"))
            for name in (b"sidecar-reason", b"sidecar-error-reason", b"sidecar-error-type")
        )
        self.seen["dead: " + reason.partition("-")[0]] += 1
        if verdict.kind == "delay" and not self._exhausted(original):
            self._about(number, "innocent dead", f"{verdict}")
        wanted = (verdict.reason or "rejected") if verdict.kind == "dead-letter" else "retries-exhausted"
        if reason != wanted and not (verdict.kind == "delay" and self._fragile):
            self._about(number, "wrong letter", f"{reason!r}, not {wanted!r}")
        if verdict.kind == "dead-letter" and verdict.detail and why != verdict.detail:
            self._about(number, "wrong letter", f"{why!r}, not {verdict.detail!r}")
        if verdict.reason == "exception" and error != self.errors[original]:
            self._about(number, "wrong letter", f"{error!r}, not {self.errors[original]!r}")
        if "secret" in why:
            self._about(number, "secret", why)

    def delayed(self, copy: OutboundMessage) -> None:
        """Note a delayed copy: the function said so, and for how long."""
        number = self._by_body[copy.body]
        self.delays += 1
        self.fates[number].delays += 1
        original = self._original(copy.body, "delay")
        if original is None:
            return
        verdict, before = self.expected[original], _rounds(original.properties)
        if before >= _ROUNDS:
            self._about(number, "delayed too often", f"after {before} rounds")
        if _rounds(copy.properties) != before + 1 and not self._fragile:
            self._about(number, "wrong copy", f"{_rounds(copy.properties)} rounds after {before}")
        seconds = verdict.seconds or _FIRST_DELAY_SECONDS * 2.0**before
        assert copy.delay is not None
        if copy.delay[1] != 1000 * seconds:
            self._about(number, "wrong copy", f"delayed by {copy.delay[1]} ms, not {seconds} s")

    def returned(self, stored: Stored, why: str) -> None:
        """Note what went back: the function said so, or its consumer ends."""
        number = self._by_body[stored.body]
        fate = self.fates[number]
        verdict = self.expected.pop(stored, None)
        fate.returns += 1
        self._returned[stored] = None
        if why == "lost":
            fate.unknown += 1
            self.losses += 1
            return
        self.nacks += 1
        ending = any(life.stop.is_set() and not life.over for life in self._lives)
        if verdict is not None and verdict.kind == "requeue":
            self.seen["requeued"] += 1
        elif not (ending or self._is_tight):
            self._about(number, "requeued", f"{verdict}")
        elif verdict is not None and verdict.kind in ("ack", "discard"):
            self._about(number, "requeued", f"at the end, after {verdict}")

    def queue_vanished(self, queue: Queue, *, expired: bool) -> None:
        """Note that the queue is deleted; one that expires beside a consumer that ends is nobody's fault."""
        ending = any(life.stop.is_set() and not life.over for life in self._lives)
        super().queue_vanished(queue, expired=expired and not ending)

    # Between two turns, and at the end -------------------------------------------------------------------------------

    def _look_at_life(self, life: Life) -> None:
        assert isinstance(life, HandlerLife)
        if not life.is_there:
            return
        super()._look_at_life(life)
        for session in life.sessions[-1:]:
            for channel in session.channels:
                ledger = channel.ledger
                tags = ledger.open_tags()
                held = sum(len(channel.unacked[tag].body) for tag in tags) if not session.over else 0
                alive = not (session.over or ledger.closed)
                if alive and (ledger.memory_bytes < 0 or (ledger.memory_bytes and not held)):
                    self.fault("memory account", f"{ledger.memory_bytes} bytes held for {len(tags)} open deliveries")

    def rested(self, life: Life) -> None:
        """Note that everything is settled: nothing of it may be left in a consumer."""
        left = remains(life.pipeline)
        if left:
            self.fault("remains", f"{life.name} still has {', '.join(left)}")
        assert isinstance(life, HandlerLife)
        if not (self._fragile or (life.consumer.is_healthy and life.consumer.unready is None)):
            self.fault("unhealthy", f"{life.name}: {life.consumer.unready}")

    def _judge_places(self) -> None:
        rejected = Counter(message.body for message in self._broker.rejected)
        self.rejects = rejected.total()
        for number, fate in self.fates.items():
            if not (fate.acks or fate.vanished or rejected[fate.publication.body]):
                self._about(number, "lost")
            if not self._looked_at[number] and not fate.vanished:
                self._about(number, "never shown")
        for life in self._lives:
            assert isinstance(life, HandlerLife)
            if (life.started, life.stopped) != (1, 1):
                self.fault("hooks", f"{life.name}: started {life.started} times, stopped {life.stopped} times")

    def _judge_order(self) -> None:
        """There are no documents."""

    def _judge_accounts(self) -> None:
        super()._judge_accounts()
        if self.losses or any(life.crashed for life in self._lives) or self._lost_sessions():
            return
        counted = sum(life.pipeline.counters.total("discard") for life in self._lives)
        if counted != self.discards:
            self.fault("account", f"{counted} discarded, {self.discards} by the function")

    def _judge_storms(self) -> None:
        """There are no requests."""


def _stored(life: HandlerLife, message: Message) -> Stored | None:
    """Return a message as the broker has it; None: it has taken it back."""
    delivery = message._delivery
    for channel in life.sessions[-1].channels:
        if channel.ledger is delivery.ledger:
            return channel.unacked.get(delivery.tag)
    return None


def _rounds(raw: bytes) -> int:
    value = header(raw, RETRY_COUNT)
    number = decode(value) if value is not None else 0
    return number if isinstance(number, int) else 0


def _prefix(given: list[object]) -> list[Verdict]:
    """Return the verdicts before the first value that is none."""
    verdicts = []
    for value in given:
        if not isinstance(value, Verdict):
            break
        verdicts.append(value)
    return verdicts


class HandlerWorld(World):
    """The broker and the consumers of a day."""

    day: HandlerDay
    judge: HandlerJudge
    coroutine = "_BaseConsumer._live"

    def make_judge(self) -> HandlerJudge:
        """Return what judges the day."""
        return HandlerJudge(self.day, self.broker, self.elastic, self.lives)

    def new_life(self, place: int, number: int) -> Life:
        """Return a consumer that starts."""
        return HandlerLife(self, place, number)

    def properties(self, publication: Any) -> bytes:
        """Return the raw properties of a message."""
        named = {"message_id": publication.document.encode()} if publication.document else {}
        keyed = [(b"k", long_string(publication.key.encode()))] if publication.key else None
        return raw_properties(keyed, **named)

    def beacon(self, number: int) -> Any:
        """Return a message that is acked."""
        return Job(0.0, number, key="a" if self.day.handling.by_key else "")

    def rested(self) -> None:
        """Look at what the consumers keep when everything is settled."""
        for life in self._present.values():
            self.judge.rested(life)


def play_handlers(seed: int, *, telling: bool = False) -> tuple[Played, HandlerWorld]:
    """Play the day of a seed; return what came of it, and its world."""
    worlds: list[HandlerWorld] = []

    def world_of(*arguments: Any, **options: Any) -> World:
        worlds.append(HandlerWorld(*arguments, **options))
        return worlds[0]

    real = consumers.random
    consumers.random = SimpleNamespace(Random=lambda: worlds[0].rng)  # type: ignore[assignment] # no chance of its own
    try:
        return play(draw_handlers(seed), telling=telling, world_of=world_of), worlds[0]
    finally:
        consumers.random = real
