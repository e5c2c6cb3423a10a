"""The library on a real broker, row by row of its table in docs/library.md."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from sidecar import (
    ACK,
    DEAD_LETTER,
    DELAY,
    DISCARD,
    REQUEUE,
    BatchConsumer,
    Consumer,
    Message,
    Outgoing,
    Publisher,
    Verdict,
    consume,
)
from sidecar.errors import BrokerError
from tests.servers.amqp import Outgoing as Published

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.servers.amqp import Amqp
    from tests.servers.provider import Broker

WITHIN_SECONDS = 20.0
SOON = {"batch_max_age": "50ms"}


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(WITHIN_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for is at the broker
            await asyncio.sleep(0.02)


class Scripted(BatchConsumer):
    """Gives each message the verdict that a function has for it, and remembers the batches."""

    def __init__(self, say: Callable[[Message], Verdict] = lambda _: ACK, **options: Any) -> None:
        super().__init__(**options)
        self.say = say
        self.batches: list[list[bytes]] = []

    async def process(self, batch: list[Message]) -> AsyncIterator[Verdict]:
        self.batches.append([message.body for message in batch])
        for message in batch:
            yield self.say(message)

    @property
    def bodies(self) -> list[bytes]:
        """All that came, in order."""
        return [body for batch in self.batches for body in batch]


def publish(amqp: Amqp, queue: str, *bodies: bytes, **properties: Any) -> None:
    """Declare the queue as the library would, and publish to it."""
    amqp.declare_queue(queue, {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000})
    published = amqp.publish([Published(body, queue, properties=properties) for body in bodies])
    assert not published.nacked
    assert not published.returned


def left(amqp: Amqp, queue: str) -> int:
    """Return how many messages wait in a queue."""
    state = amqp.queue_state(queue)
    return state.ready if state is not None else 0


def test_batches_by_size_or_timeout(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """A batch is complete by count; what is left over goes when the first of it is old enough."""
    publish(amqp, queue_name, *(b"%d" % number for number in range(7)))

    async def main() -> list[list[bytes]]:
        url = rabbitmq.amqp_url
        async with Scripted(amqp_url=url, amqp_queue=queue_name, batch_max_items=3, batch_max_age="300ms") as consumer:
            await until(lambda: consumer.counts()["ack"] == 7)
        return consumer.batches

    assert run(main()) == [[b"0", b"1", b"2"], [b"3", b"4", b"5"], [b"6"]]
    assert left(amqp, queue_name) == 0


def test_batches_by_bytes_key_set_and_flush_message(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """What aio-pika-batch doesn't have: limits in bytes, a batch a key, sets whose size is told, and signals."""
    amqp.declare_queue(queue_name, {"x-queue-type": "quorum"})
    url = rabbitmq.amqp_url

    def keyed(body: bytes, key: str, **headers: str) -> Published:
        return Published(body, queue_name, properties={"correlation_id": key, "headers": headers})

    async def main() -> None:
        aged: dict[str, Any] = {"amqp_url": url, "amqp_queue": queue_name, "batch_max_age": "60s"}
        async with Scripted(**aged, batch_max_bytes=25) as consumer:
            amqp.publish([Published(b"0123456789", queue_name) for _ in range(5)])
            await until(lambda: consumer.counts().get("ack") == 4)
            assert [len(batch) for batch in consumer.batches] == [2, 2]
        async with Scripted(
            **aged,
            batch_key="{correlation_id}",
            batch_complete_count="{header.size|}",
            batch_flush_when="{header.last|}",
        ) as consumer:
            amqp.publish([
                keyed(b"a1", "a"), keyed(b"b1", "b", size="2"), keyed(b"a2", "a"), keyed(b"b2", "b"),
                keyed(b"", "a", last="yes"), keyed(b"c1", "c", last="yes"),
            ])  # fmt: skip
            await until(lambda: consumer.counts().get("ack") == 6)  # the signal as well
        assert sorted(consumer.batches[-3:]) == [[b"a1", b"a2"], [b"b1", b"b2"], [b"c1"]]

    run(main())
    assert left(amqp, queue_name) == 0


def test_a_verdict_for_each_message(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """Each message of a batch gets its own: the others neither wait for it nor share its fate."""
    verdicts = {b"ack": ACK, b"dead": DEAD_LETTER, b"later": DELAY.after(300.0), b"drop": DISCARD}
    publish(amqp, queue_name, *verdicts)

    async def main() -> dict[str, int]:
        async with Scripted(
            lambda message: verdicts[message.body], amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, **SOON
        ) as consumer:
            await until(lambda: consumer.batches and not consumer.counts()["in_flight"])
        assert len(consumer.batches) == 1
        return consumer.counts()

    counts = run(main())
    amqp.delete_queue(f"{queue_name}.delay.300000")
    assert [counts[name] for name in ("ack", "dead_letter", "delay", "discard", "requeue")] == [1, 1, 1, 1, 0]
    assert left(amqp, queue_name) == 0
    assert left(amqp, f"{queue_name}.dead") == 1


def test_retries_are_counted_and_then_dead_letters(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """A delayed message comes back after a while, twice as long each time, and not more often than it may."""
    publish(amqp, queue_name, b"never", message_id="7")

    async def main() -> list[int]:
        rounds: list[int] = []

        def say(message: Message) -> Verdict:
            rounds.append(message.rounds)
            return DELAY.because("no-such-customer", "customer 12 is not there")

        async with Scripted(
            say,
            amqp_url=rabbitmq.amqp_url,
            amqp_queue=queue_name,
            batch_max_items=1,
            delayed_retry_max_rounds=2,
            delayed_retry_delay="50ms",
        ) as consumer:
            await until(lambda: consumer.counts().get("dead_letter") == 1)
        return rounds

    assert run(main()) == [0, 1, 2]
    for milliseconds in (50, 100):
        amqp.delete_queue(f"{queue_name}.delay.{milliseconds}")
    (letter,) = amqp.drain(f"{queue_name}.dead")
    assert (letter.body, letter.message_id) == (b"never", "7")
    assert letter.headers["sidecar-reason"] == "retries-exhausted"
    assert letter.headers["sidecar-error-reason"] == "after 2 rounds: no-such-customer customer 12 is not there"


def test_dead_letters_say_why(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """The dead-letter queue is there unasked, and a dead letter is the whole message, with the reason."""
    publish(amqp, queue_name, b"\xff\x00", message_id="7", type="order")

    async def main() -> None:
        say = DEAD_LETTER.because("no-such-customer", "customer 12 is not there")
        async with Scripted(lambda _: say, amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, **SOON) as consumer:
            await until(lambda: consumer.counts().get("dead_letter") == 1)

    run(main())
    (letter,) = amqp.drain(f"{queue_name}.dead")
    assert (letter.body, letter.message_id) == (b"\xff\x00", "7")
    assert letter.headers["sidecar-reason"] == "no-such-customer"
    assert letter.headers["sidecar-error-reason"] == "customer 12 is not there"
    assert letter.headers["sidecar-queue"] == queue_name


def test_requeue_is_native_and_uncounted(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """It comes again at once, from the broker itself, and nothing of it is copied or counted against it."""
    publish(amqp, queue_name, b"0", b"1", b"2")

    async def main() -> tuple[list[bool], dict[str, int]]:
        seen: list[tuple[bytes, bool, int]] = []

        def say(message: Message) -> Verdict:
            seen.append((message.body, message.redelivered, message.rounds))
            return REQUEUE if message.body == b"1" and len(seen) < 8 else ACK

        async with Scripted(say, amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, **SOON) as consumer:
            await until(lambda: consumer.counts().get("ack") == 3)
        assert all(rounds == 0 for _, _, rounds in seen)
        return [redelivered for body, redelivered, _ in seen if body == b"1"], consumer.counts()

    redelivered, counts = run(main())
    assert redelivered == [False, *[True] * 5]
    assert (counts["requeue"], counts["delay"], counts["in_flight"]) == (5, 0, 0)
    assert left(amqp, queue_name) == 0


def test_many_requeues_among_acks_lose_nothing(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """An ack of all up to a message never takes along one before it that goes back: each comes again, and once."""
    publish(amqp, queue_name, *(b"%d" % number for number in range(300)))

    async def main() -> tuple[Scripted, dict[str, int]]:
        seen: set[bytes] = set()

        def say(message: Message) -> Verdict:
            first = message.body not in seen
            seen.add(message.body)
            return REQUEUE if first and int(message.body) % 2 else ACK

        async with Scripted(
            say, amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, workers=4, batch_max_items=60, **SOON
        ) as consumer:
            await until(lambda: consumer.counts().get("ack") == 300)
        return consumer, consumer.counts()

    consumer, counts = run(main())
    assert (counts["received"], counts["ack"], counts["requeue"]) == (450, 300, 150)
    assert {body: consumer.bodies.count(body) for body in set(consumer.bodies)} == {
        b"%d" % number: 1 + number % 2 for number in range(300)
    }
    assert left(amqp, queue_name) == 0


@pytest.mark.parametrize("kind", [LookupError, asyncio.CancelledError])
def test_an_exception_costs_only_messages_without_a_verdict(
    kind: type[BaseException], rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any
) -> None:
    """What was yielded before it counts; the others get the default, here dead letters that name the exception."""
    publish(amqp, queue_name, b"0", b"1", b"2", b"3")

    async def main() -> dict[str, int]:
        def say(message: Message) -> Verdict:
            if message.body == b"2":
                raise kind("secret")
            return ACK

        async with Scripted(
            say, amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, on_exception=DEAD_LETTER, **SOON
        ) as consumer:
            await until(lambda: consumer.counts().get("dead_letter") == 2)
        return consumer.counts()

    counts = run(main())
    assert (counts["ack"], counts["dead_letter"]) == (2, 2)
    letters = amqp.drain(f"{queue_name}.dead")
    assert [letter.body for letter in letters] == [b"2", b"3"]
    for letter in letters:
        assert letter.headers["sidecar-error-type"] == kind.__name__
        assert "secret" not in str(letter.headers)


def test_a_message_without_a_verdict_is_never_lost(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """Too few verdicts are not guessed at: nobody knows which message has none, so all of the batch come again."""
    publish(amqp, queue_name, b"0", b"1", b"2")

    class Forgetful(BatchConsumer):
        calls = 0

        async def process(self, batch: list[Message]) -> list[Verdict]:
            self.calls += 1
            return [ACK for message in batch if self.calls > 1 or message.body != b"1"]

    async def main() -> dict[str, int]:
        consumer = Forgetful(
            amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, on_missing_verdict=REQUEUE, batch_max_age="200ms"
        )
        async with consumer:
            await until(lambda: consumer.counts().get("ack") == 3)
        return consumer.counts()

    counts = run(main())
    assert (counts["requeue"], counts["ack"]) == (3, 3)
    assert left(amqp, queue_name) == 0


@pytest.mark.parametrize("fails", [False, True])
def test_a_value_that_is_not_a_verdict_shifts_no_other(
    fails: bool, rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any
) -> None:
    """From such a value on no verdict of its batch is used: nothing is acked, or dead-lettered, in another's place."""
    publish(amqp, queue_name, b"0", b"1", b"2", b"3")

    class Forgetful(BatchConsumer):
        calls = 0

        async def process(self, batch: list[Message]) -> AsyncIterator[Any]:
            self.calls += 1
            if self.calls > 1:
                for _ in batch:
                    yield ACK
                return
            for value in (ACK, None, DEAD_LETTER, ACK):
                yield value
            if fails:
                raise ValueError

    async def main() -> dict[str, int]:
        options: Any = {"on_missing_verdict": REQUEUE, "on_exception": REQUEUE, "batch_max_age": "200ms"}
        async with Forgetful(amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, **options) as consumer:
            await until(lambda: consumer.counts().get("ack") == 4)
        return consumer.counts()

    counts = run(main())
    assert (counts["requeue"], counts["ack"], counts.get("dead_letter", 0)) == (3, 4, 0)
    assert left(amqp, queue_name) == left(amqp, f"{queue_name}.dead") == 0


def test_workers_work_at_once(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """As many batches as there are workers are in work at once, and no more."""
    publish(amqp, queue_name, *(b"%d" % number for number in range(12)))

    class Slow(BatchConsumer):
        now = most = 0
        barrier: asyncio.Barrier

        async def process(self, batch: list[Message]) -> Verdict:
            self.now += 1
            self.most = max(self.most, self.now)
            await self.barrier.wait()  # none of them ends before three are there
            self.now -= 1
            return ACK

    async def main() -> int:
        consumer = Slow(amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, workers=3, batch_max_items=2)
        consumer.barrier = asyncio.Barrier(3)
        async with consumer:
            await until(lambda: consumer.counts().get("ack") == 12)
        return consumer.most

    assert run(main()) == 3


def test_connections_are_recovered(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """When the broker drops the connection, the consumer is unhealthy for a moment, and goes on by itself."""
    publish(amqp, queue_name, b"before")

    async def main() -> list[bytes]:
        async with Scripted(amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, **SOON) as consumer:
            await until(lambda: consumer.counts().get("ack") == 1)
            session = consumer._app.session
            session._consume_protocol.abort()
            await until(lambda: not consumer.is_healthy)
            publish(amqp, queue_name, b"after")
            await until(lambda: consumer.counts()["ack"] == 2 and consumer.is_healthy)
        return consumer.bodies

    assert run(main()) == [b"before", b"after"]


def test_shutdown_finishes_what_is_in_work(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """SIGTERM: the batch in work is finished and acked, what waits is worked off, and then `run` returns."""
    publish(amqp, queue_name, *(b"%d" % number for number in range(5)))
    done: list[bytes] = []

    async def process(batch: list[Message]) -> Verdict:
        if not done:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.1)
        done.extend(message.body for message in batch)
        return ACK

    async def main() -> None:
        await consume(process, amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, batch_max_items=2)

    run(main())
    assert sorted(done) == [b"0", b"1", b"2", b"3", b"4"]
    assert left(amqp, queue_name) == 0


def test_what_is_not_finished_in_time_goes_back(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """A handler that hangs is cut off when the time for the end is over, and its messages are with the broker."""
    publish(amqp, queue_name, b"0", b"1")

    class Hanging(BatchConsumer):
        calls = 0

        async def process(self, batch: list[Message]) -> Verdict:
            self.calls += 1
            await asyncio.Event().wait()
            return ACK

    async def main() -> None:
        consumer = Hanging(amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, shutdown_timeout="500ms", **SOON)
        async with consumer:
            await until(lambda: consumer.calls)

    run(main())
    assert left(amqp, queue_name) == 2


def test_hooks_run_once(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """`on_start` comes before the first message and `on_stop` after the last, each once, in all ways to run."""
    publish(amqp, queue_name, b"0")

    class Hooked(Scripted):
        def __init__(self, **options: Any) -> None:
            super().__init__(lambda _: self.note("message"), **options)
            self.steps: list[str] = []

        def note(self, step: str) -> Verdict:
            self.steps.append(step)
            return ACK

        async def on_start(self) -> None:
            self.note("start")

        async def on_stop(self) -> None:
            self.note("stop")

    async def main() -> list[str]:
        consumer = Hooked(amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, **SOON)
        running = asyncio.create_task(consumer.run())
        await until(lambda: consumer.counts().get("ack") == 1)
        os.kill(os.getpid(), signal.SIGINT)
        await running
        publish(amqp, queue_name, b"1")
        await consumer.start()
        await until(lambda: consumer.counts().get("ack") == 1)
        await consumer.stop()
        await consumer.stop()
        return consumer.steps

    assert run(main()) == ["start", "message", "stop"] * 2


def test_health(rabbitmq: Broker, queue_name: str, run: Any) -> None:
    """Running from start to stop; healthy only while it consumes, and otherwise it says why not."""

    async def main() -> None:
        consumer = Scripted(amqp_url="amqp://guest:secret@127.0.0.1:1/", amqp_queue=queue_name)
        assert (consumer.is_running, consumer.is_healthy, consumer.unready) == (False, False, "not running")
        async with consumer:
            assert (consumer.is_running, consumer.is_healthy) == (True, False)
            await until(lambda: "127.0.0.1:1" in str(consumer.unready))
            assert "secret" not in str(consumer.unready)
        assert not consumer.is_running
        consumer = Scripted(amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name)
        async with consumer:
            await until(lambda: consumer.is_healthy)
            assert (consumer.is_running, consumer.unready) == (True, None)
        assert (consumer.is_running, consumer.is_healthy) == (False, False)

    run(main())


def test_queue_and_exchange_are_declared(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """What is absent is created and bound; a queue that is there with other arguments is no error."""
    amqp.declare_queue(queue_name, {"x-queue-type": "classic"})

    async def main() -> None:
        async with Scripted(
            amqp_url=rabbitmq.amqp_url,
            amqp_queue=queue_name,
            amqp_exchange=f"{queue_name}.in",
            amqp_exchange_type="topic",
            amqp_routing_keys="order.*",
            **SOON,
        ) as consumer:
            await until(lambda: consumer.is_healthy)
            amqp.publish([Published(b"0", "order.new", f"{queue_name}.in")])
            await until(lambda: consumer.counts()["ack"] == 1)

    run(main())
    amqp.delete_exchange(f"{queue_name}.in")


def test_one_message_at_a_time(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """`Consumer` takes one message and gives one verdict; with a prefetch of 1 the next one stays in the queue."""
    publish(amqp, queue_name, b"0", b"1", b"2")

    class Jobs(Consumer):
        waiting: list[int]

        async def process(self, message: Message) -> Verdict:
            self.waiting.append(left(amqp, queue_name))
            return ACK

    async def main() -> list[int]:
        jobs = Jobs(amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, amqp_prefetch=1)
        jobs.waiting = []
        async with jobs:
            await until(lambda: jobs.counts().get("ack") == 3)
        return jobs.waiting

    assert run(main()) == [2, 1, 0]


def test_what_a_message_shows(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """Body, properties and headers as they were published, and the route of the first delivery on every round."""
    publish(
        amqp, queue_name, b'{"n": 1}', message_id="m", correlation_id="c", type="t", app_id="a", reply_to="r",
        content_type="application/json", timestamp=1_700_000_000, priority=3, headers={"k": "v", "n": 7},
    )  # fmt: skip

    async def main() -> list[tuple[object, ...]]:
        shown: list[tuple[object, ...]] = []

        def say(message: Message) -> Verdict:
            shown.append((
                message.json(), message.message_id, message.correlation_id, message.type, message.app_id,
                message.reply_to, message.content_type, message.content_encoding, message.timestamp, message.priority,
                message.headers["k"], message.headers["n"], message.queue, message.exchange, message.routing_key,
            ))  # fmt: skip
            return DELAY.after(0.05) if not message.rounds else ACK

        async with Scripted(say, amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, **SOON) as consumer:
            await until(lambda: consumer.counts().get("ack") == 1)
        return shown

    first, second = run(main())
    amqp.delete_queue(f"{queue_name}.delay.50")
    assert first == (
        {"n": 1}, "m", "c", "t", "a", "r", "application/json", None, 1_700_000_000, 3, "v", 7,
        queue_name, "", queue_name,
    )  # fmt: skip
    assert second == first


def test_publishing_is_confirmed(rabbitmq: Broker, amqp: Amqp, queue_name: str, run: Any) -> None:
    """What no queue takes is told, a lost connection too, and the next call has another one."""
    publish(amqp, queue_name, b"first", message_id="m", headers={"k": b"\xff"})

    async def main() -> None:
        async with Publisher(amqp_url=rabbitmq.amqp_url) as publisher:
            sent = Outgoing(
                body=b"second",
                routing_key=queue_name,
                message_id="m2",
                type="t",
                timestamp=1_700_000_000,
                headers={"text": "ü", "number": -7, "yes": True},
            )
            assert await publisher.publish([sent]) == [None]
            (refusal,) = await publisher.publish([Outgoing(body=b"", routing_key=f"{queue_name}.nowhere")])
            assert "NO_ROUTE" in str(refusal)
            publisher._outlet._publisher._protocol.abort()
            with pytest.raises(BrokerError):
                await publisher.publish([sent])
            async with Scripted(amqp_url=rabbitmq.amqp_url, amqp_queue=queue_name, **SOON) as consumer:
                consumer.say = lambda message: forwarded.append(Outgoing(body=message.body, like=message)) or ACK
                forwarded: list[Outgoing] = []
                await until(lambda: len(forwarded) >= 2)
            copies = [replace(outgoing, routing_key=queue_name) for outgoing in forwarded]
            assert await publisher.publish(copies) == [None] * len(copies)
        with pytest.raises(ValueError, match="routing_key has 256 bytes"):
            await publisher.publish([Outgoing(body=b"", routing_key="x" * 256)])

    run(main())
    first, second, *_ = amqp.drain(queue_name)
    assert (first.body, first.message_id, first.headers) == (b"first", "m", {"k": b"\xff"})
    assert (second.body, second.message_id) == (b"second", "m2")
    assert second.headers == {"text": "ü", "number": -7, "yes": True}
    assert second.properties.values["delivery_mode"] == 2
