"""The library's consumers between a simulated broker and functions of all kinds, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from sidecar import ACK, DEAD_LETTER, DELAY, DISCARD, BatchConsumer, Consumer, Message, Verdict
from sidecar.core import timestamps
from sidecar.core.wire.properties import decode, header
from tests.builders import long_string, properties
from tests.fakes import clock
from tests.fakes.broker import Broker
from tests.pipeline.simulated_pipeline import DEAD, QUEUE, Log
from tests.simulation.rest import remains

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from sidecar.pipeline.app import Connect

    Say = Callable[[Message], Awaitable[Verdict]]


async def ack(_: Message) -> Verdict:
    """Ack."""
    return ACK


class Shop(BatchConsumer):
    """A consumer on a simulated broker that keeps notes.

    Attributes:
        say: gives the verdict of a message.
        notes: what happened, in order: ``started``, batches, ``stopped``.
    """

    def __init__(self, broker: Broker, say: Say = ack, **options: Any) -> None:
        self.kept = Log()
        defaults = {"amqp_queue": QUEUE, "batch_max_items": 2, "batch_max_age": 0.1}
        super().__init__(log=cast("Any", self.kept), **{**defaults, **options})  # type: ignore[arg-type]
        self.broker = broker
        self.say = say
        self.notes: list[Any] = []

    def _connect(self) -> Connect:
        return self.broker.connector([QUEUE])

    async def on_start(self) -> None:
        self.notes.append("started")
        await asyncio.sleep(0.01)

    async def on_stop(self) -> None:
        await asyncio.sleep(0.01)
        self.notes.append("stopped")

    async def process(self, batch: list[Message]) -> list[Verdict]:
        self.notes.append([message.body for message in batch])
        return [await self.say(message) for message in batch]

    @property
    def bodies(self) -> list[bytes]:
        """What was shown, in order."""
        return [body for note in self.notes if isinstance(note, list) for body in note]


async def until(predicate: Callable[[], object], within: float = 60.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(within):
        while not predicate():  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.02)


def play(scenario: Callable[[Broker], Coroutine[object, object, None]]) -> None:
    """Play a scenario in virtual time, beside a broker with the work queue and its dead letters."""

    async def main() -> None:
        broker = Broker(random.Random(7))
        broker.declare(QUEUE)
        broker.declare(DEAD)
        await scenario(broker)
        assert len(asyncio.all_tasks()) == 1, f"tasks are left: {asyncio.all_tasks()}"

    clock.run(main())


def waits(broker: Broker) -> list[bytes]:
    """Return what is in the queue, in consumers' hands or not."""
    return [one.body for one in (*broker.unsettled(QUEUE), *broker.queues[QUEUE].ready)]


# Life ----------------------------------------------------------------------------------------------------------------


def test_it_is_started_once_even_while_it_starts() -> None:
    """A second start while the first one prepares is refused: nobody would stop the second consumer."""

    async def scenario(broker: Broker) -> None:
        shop = Shop(broker)
        results = await asyncio.gather(shop.start(), shop.start(), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), RuntimeError]
        await until(lambda: shop.is_healthy)
        assert len(broker.sessions) == 1
        await shop.stop()
        assert shop.notes == ["started", "stopped"]

    play(scenario)


def test_after_a_start_that_failed_it_can_be_started() -> None:
    """What `on_start` raises leaves nothing behind."""

    class Moody(Shop):
        moods = iter([LookupError("no table"), None])

        async def on_start(self) -> None:
            mood = next(self.moods)
            if mood is not None:
                raise mood

    async def scenario(broker: Broker) -> None:
        shop = Moody(broker)
        with pytest.raises(LookupError):
            await shop.start()
        assert not shop.is_running
        async with shop:
            await until(lambda: shop.is_healthy)

    play(scenario)


def test_stopped_twice_at_once_and_started_again_it_lives() -> None:
    """The second stop ends with the first; it doesn't forget a consumer that was started since."""

    class Quick(Shop):
        async def on_start(self) -> None:
            self.notes.append("started")

    async def scenario(broker: Broker) -> None:
        shop = Quick(broker)
        await shop.start()
        await until(lambda: shop.is_healthy)

        async def again() -> None:
            await shop.stop()
            await shop.start()

        await asyncio.gather(again(), shop.stop(), shop.stop())
        assert shop.is_running
        broker.publish(QUEUE, b"1")
        await until(lambda: shop.bodies == [b"1"])
        await shop.stop()
        assert not shop.is_running
        assert shop.notes == ["started", "stopped", "started", [b"1"], "stopped"]
        await shop.stop()  # of what doesn't run: nothing

    play(scenario)


@pytest.mark.parametrize("ways", ["run", "with", "wait"])
def test_cancelling_whoever_waits_drains(ways: str) -> None:
    """What is in work is finished and acked, and `on_stop` comes after it, though the wait was cancelled."""

    async def slow(_: Message) -> Verdict:
        await asyncio.sleep(3.0)
        return ACK

    async def scenario(broker: Broker) -> None:
        shop = Shop(broker, slow, batch_max_items=1)
        for number in range(2):
            broker.publish(QUEUE, b"%d" % number)

        async def life() -> None:
            async with shop:
                await shop.wait()

        async def only_waits() -> None:
            await shop.start()
            await shop.wait()

        waiter = asyncio.create_task({"run": life, "with": life, "wait": only_waits}[ways]())
        await until(lambda: shop.bodies)
        waiter.cancel()
        done, _ = await asyncio.wait([waiter], timeout=100.0)
        assert done
        assert waiter.cancelled()
        if ways == "wait":
            assert shop.is_running
            await shop.stop()
        assert not waits(broker)
        assert shop.notes == ["started", [b"0"], [b"1"], "stopped"]
        assert shop.counts()["ack"] == 2
        assert shop.counts()["requeue"] == 0

    play(scenario)


def test_a_block_that_raises_is_drained_and_its_exception_comes_out() -> None:
    """As with any other block."""

    async def slow(_: Message) -> Verdict:
        await asyncio.sleep(1.0)
        return ACK

    async def scenario(broker: Broker) -> None:
        shop = Shop(broker, slow)
        broker.publish(QUEUE, b"0")

        async def block() -> None:
            async with shop as entered:
                assert entered is shop
                await until(lambda: shop.bodies)
                raise LookupError("in the block")

        with pytest.raises(LookupError, match="in the block"):
            await block()
        assert (waits(broker), shop.notes[-1]) == ([], "stopped")

    play(scenario)


def test_what_on_stop_raises_comes_out_and_it_can_be_started_again() -> None:
    """An error in the clean-up is told, and doesn't leave a consumer that seems to run."""

    class Careless(Shop):
        async def on_stop(self) -> None:
            await super().on_stop()
            raise LookupError("in the clean-up")

    async def scenario(broker: Broker) -> None:
        shop = Careless(broker)
        for _ in range(2):
            await shop.start()
            await until(lambda: shop.is_healthy)
            with pytest.raises(LookupError, match="in the clean-up"):
                await shop.stop()
            assert (shop.is_running, shop.unready) == (False, "not running")
            assert all(session.over for session in broker.sessions)

    play(scenario)


def test_a_fault_of_ours_comes_out_of_wait_and_stop_after_the_clean_up() -> None:
    """It isn't swallowed, `on_stop` is called, and it can be started again."""

    class Broken(Shop):
        def _connect(self) -> Connect:
            async def connect(_: object) -> Any:
                raise ZeroDivisionError

            return connect

    async def scenario(broker: Broker) -> None:
        shop = Broken(broker)
        await shop.start()
        with pytest.raises(ExceptionGroup) as caught:
            await shop.wait()
        assert caught.group_contains(ZeroDivisionError)
        assert (shop.is_running, shop.is_healthy, shop.unready) == (False, False, "not running")
        assert shop.notes == ["started", "stopped"]
        with pytest.raises(ExceptionGroup):
            await shop.stop()
        await shop.start()
        await until(lambda: not shop.is_running)
        with pytest.raises(ExceptionGroup):
            await shop.stop()
        assert shop.notes == ["started", "stopped"] * 2

    play(scenario)


def test_health_says_why_it_is_not_healthy() -> None:
    """Before the start, while the broker is away, while it consumes, while it drains, and after the end."""

    async def slow(_: Message) -> Verdict:
        await asyncio.sleep(5.0)
        return ACK

    async def scenario(broker: Broker) -> None:
        shop = Shop(broker, slow)
        assert (shop.is_running, shop.is_healthy, shop.unready, shop.counts()) == (False, False, "not running", {})
        broker.down = True
        await shop.start()
        await asyncio.sleep(0.5)
        assert (shop.is_running, shop.is_healthy) == (True, False)
        assert shop.unready == "not-connected: connection refused"
        broker.down = False
        await until(lambda: shop.is_healthy)
        assert (shop.is_running, shop.unready) == (True, None)
        broker.publish(QUEUE, b"0")
        await until(lambda: shop.bodies)
        counts = shop.counts()
        assert (counts.pop("received"), counts.pop("in_flight")) == (1, 1)
        assert counts == dict.fromkeys(("ack", "delay", "requeue", "dead_letter", "discard", "stale"), 0)
        stopping = asyncio.create_task(shop.stop())
        await asyncio.sleep(1.0)
        assert (shop.is_running, shop.is_healthy, shop.unready) == (False, False, "not running")
        await stopping
        assert shop.counts()["ack"] == shop.counts()["received"] == 1

    play(scenario)


def test_it_ends_while_it_reads_nothing_for_lack_of_memory() -> None:
    """What is in work is finished, and the rest goes back in its order."""

    async def slow(_: Message) -> Verdict:
        await asyncio.sleep(2.0)
        return ACK

    async def scenario(broker: Broker) -> None:
        shop = Shop(broker, slow, batch_max_items=1, memory_limit=3000, shutdown_timeout=4.0)
        bodies = [b"%d" % number * 1000 for number in range(8)]
        for body in bodies:
            broker.publish(QUEUE, body)
        await shop.start()
        await until(lambda: shop.bodies)
        await until(lambda: broker.sessions[0].paused)
        await shop.stop()
        left = waits(broker)
        assert left == bodies[-len(left) :]
        assert shop.counts()["ack"] == 8 - len(left) > 0
        assert shop.counts()["in_flight"] == 0

    play(scenario)


def test_what_hangs_is_cut_off_in_time_and_goes_back() -> None:
    """`shutdown_timeout` is the limit, not the default; the function is cancelled, so that it can clean up."""
    cleaned: list[bytes] = []

    async def hangs(message: Message) -> Verdict:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(message.body)
        return ACK

    async def scenario(broker: Broker) -> None:
        shop = Shop(broker, hangs, shutdown_timeout=3.0)
        broker.publish(QUEUE, b"0")
        await shop.start()
        await until(lambda: shop.bodies)
        began_at = asyncio.get_running_loop().time()
        await shop.stop()
        assert 2.0 < asyncio.get_running_loop().time() - began_at <= 3.0
        assert (cleaned, waits(broker), shop.counts()["requeue"]) == ([b"0"], [b"0"], 1)
        assert not shop.kept.named("handler.failed")

    play(scenario)


def test_a_single_message_consumer_gets_messages_one_by_one() -> None:
    """With a prefetch of 1 the next one comes when one is done; an exception costs only its own message."""
    seen: list[tuple[bytes, int]] = []

    class Jobs(Consumer):
        def _connect(self) -> Connect:
            return self.broker.connector([QUEUE])

        async def process(self, message: Message) -> Verdict:
            seen.append((message.body, len(self.broker.queues[QUEUE].ready)))
            await asyncio.sleep(0.5)
            if message.body == b"1":
                raise LookupError
            return ACK

        broker: Broker

    async def scenario(broker: Broker) -> None:
        jobs = Jobs(amqp_queue=QUEUE, amqp_prefetch=1, on_exception=DEAD_LETTER, log=cast("Any", Log()))
        jobs.broker = broker
        for number in range(3):
            broker.publish(QUEUE, b"%d" % number)
        async with jobs:
            await until(lambda: jobs.counts().get("ack") == 2)
        assert seen == [(b"0", 2), (b"1", 1), (b"2", 0)]
        assert [letter.body for letter in broker.queues[DEAD].ready] == [b"1"]

    play(scenario)


# What remains --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_key", [None, "{message_id}"])
def test_a_delayed_message_remembers_its_first_delivery(batch_key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not its first delay: the function may take its time, and later rounds don't change it."""
    seen: list[tuple[float, object]] = []

    def now() -> float:
        return 1_700_000_000.0 + asyncio.get_running_loop().time()

    async def say(message: Message) -> Verdict:
        seen.append((now(), message.headers.get("sidecar-received-at")))
        await asyncio.sleep(30.0)
        return ACK if len(seen) == 3 else DELAY

    async def scenario(broker: Broker) -> None:
        shop = Shop(broker, say, batch_key=batch_key)
        await shop.start()
        broker.publish(QUEUE, b"{}", properties(message_id=b"1"))
        await until(lambda: len(seen) == 3 and not waits(broker), 600.0)
        await shop.stop()

    monkeypatch.setattr("sidecar.library.consumers.time", SimpleNamespace(time=now))
    play(scenario)
    (began_at, nothing), *later = seen
    assert nothing is None
    for _, received in later:
        moment = timestamps.read(received)
        assert moment is not None
        assert 0.0 <= began_at - moment.timestamp() < 0.5  # a batch waits a tenth of a second


def test_batches_stay_of_one_key_when_messages_are_retried_together() -> None:
    """Messages whose delay queue refuses them go again; each call still gets one key."""

    async def later(message: Message) -> Verdict:
        return ACK if broker_of[0].delays_full is False else DELAY

    broker_of: list[Broker] = []

    async def scenario(broker: Broker) -> None:
        broker_of.append(broker)
        broker.delays_full = True
        shop = Shop(
            broker, later, batch_key="{header.k}", batch_max_items=4, workers=4, amqp_prefetch=100,
            delayed_retry_max_rounds=100,
        )  # fmt: skip
        keys = b"abbccc"  # groups that no limit by count falls between
        for number in range(len(keys)):
            raw = properties([(b"k", long_string(keys[number : number + 1]))])
            broker.publish(QUEUE, b"%d" % number, raw)
        async with shop:
            await until(lambda: len(shop.bodies) > 20)
            broker.delays_full = False
            await until(lambda: shop.counts()["ack"] == len(keys), within=600.0)
            assert not remains(shop._app._pipeline)  # type: ignore[union-attr]
        for note in shop.notes:
            if isinstance(note, list):
                assert len({keys[int(body)] for body in note}) == 1, note

    play(scenario)


@pytest.mark.parametrize("verdict", [ACK, DISCARD, DEAD_LETTER], ids=lambda verdict: verdict.kind)
def test_what_waited_in_place_leaves_its_place(verdict: Verdict) -> None:
    """Whatever it is settled by: otherwise there would be ever less room for others to wait."""

    rooms: list[Any] = []

    async def say(_: Message) -> Verdict:
        return verdict if rooms and len(rooms[0]) else DELAY

    async def scenario(broker: Broker) -> None:
        broker.delays_undeclarable.add(None)
        shop = Shop(broker, say, delayed_retry_max_rounds=10)
        broker.publish(QUEUE, b"first")
        async with shop:
            pipeline = shop._app._pipeline  # type: ignore[union-attr]
            rooms.append(pipeline._settler.waiting_room)
            await until(lambda: len(rooms[0]))
            await until(lambda: not waits(broker), within=600.0)
            await asyncio.sleep(3.0)
            assert not remains(pipeline)

    play(scenario)


@pytest.mark.parametrize("full", [False, True])
def test_waiting_in_place_counts_as_rounds_do(full: bool) -> None:
    """A message that is always delayed waits as often as allowed and is a dead letter then. Refusals don't count."""
    shown_at: list[float] = []

    async def say(_: Message) -> Verdict:
        shown_at.append(asyncio.get_running_loop().time())
        return DELAY.after(2.0)

    async def scenario(broker: Broker) -> None:
        if full:
            broker.delays_full = True
        else:
            broker.delays_undeclarable.add(None)
        shop = Shop(broker, say, delayed_retry_max_rounds=5)
        broker.publish(QUEUE, b"0")
        async with shop:
            await until(lambda: broker.queues[DEAD].ready, within=600.0)
        (letter,) = broker.queues[DEAD].ready
        assert decode(header(letter.properties, b"sidecar-reason") or b"") == "retries-exhausted"
        waited = [after - before for before, after in itertools.pairwise(shown_at)]
        assert sum(pause > 1.9 for pause in waited) == 5
        assert max(waited) < 2.5

    play(scenario)


def test_no_more_wait_in_place_than_half_of_the_prefetch() -> None:
    """Those for which there is no room are dead letters at once: others must still come, and none is tried for ever."""

    async def say(message: Message) -> Verdict:
        return ACK if message.body == b"good" else DELAY.after(50.0)

    async def scenario(broker: Broker) -> None:
        broker.delays_undeclarable.add(None)
        shop = Shop(broker, say, batch_max_items=1, amqp_prefetch=8)
        for number in range(12):
            broker.publish(QUEUE, b"%d" % number)
        async with shop:
            await until(lambda: len(broker.queues[DEAD].ready) == 8)
            broker.publish(QUEUE, b"good")
            await until(lambda: shop.counts()["ack"] == 1, within=5.0)
            assert shop.counts()["in_flight"] == 4
            assert len(shop.bodies) <= 12 + 1 + 12  # one refusal each may come before it is known

    play(scenario)


def test_the_dead_letter_of_an_exception_names_its_place_and_not_its_text() -> None:
    """Type and place, in the header and in the log; the text may quote the message."""

    async def fails(message: Message) -> Verdict:
        raise LookupError(f"secret {message.body!r}")

    async def scenario(broker: Broker) -> None:
        shop = Shop(broker, fails, on_exception=DEAD_LETTER)
        broker.publish(QUEUE, b"0")
        async with shop:
            await until(lambda: broker.queues[DEAD].ready)
        (letter,) = broker.queues[DEAD].ready
        told = [
            str(decode(header(letter.properties, name) or b""))
            for name in (b"sidecar-reason", b"sidecar-error-type", b"sidecar-error-reason")
        ]
        assert told[:2] == ["exception", "LookupError"]
        assert told[2].startswith("LookupError at test_library.py:")
        assert told[2].endswith(" in fails")
        (failed,) = shop.kept.named("handler.failed")
        assert failed["messages"] == 1
        assert "secret" not in f"{told}{failed}"

    play(scenario)
