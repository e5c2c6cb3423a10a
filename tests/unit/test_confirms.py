"""`sidecar.amqp.confirms`: an original is acked on the strength of these answers, so they are matched exactly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from sidecar.amqp.confirms import REFUSED, ConfirmChannel
from sidecar.core.wire.frames import Closed, Confirm, Returned
from sidecar.core.wire.republish import TOKEN_HEADER
from sidecar.errors import BrokerError
from sidecar.ports import OutboundMessage, Unroutable
from tests.builders import long_string, properties

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sidecar.amqp.connection import AmqpProtocol

    Answers = list[Confirm | Returned]

SAME_ID = b"the same for all"
LARGE = b"x" * (1 << 20)
UNROUTABLE = "unroutable: 312 NO_ROUTE"


class FakeWire:
    """Keeps what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.drains = 0
        self.error: Exception | None = None

    def write(self, frames: list[bytes]) -> None:
        """Take frames."""
        self.written.append(b"".join(frames))

    async def drain(self) -> None:
        """Wait for nothing."""
        self.drains += 1
        if self.error is not None:
            raise self.error


class Bench:
    """A publisher between a fake wire and the test that plays the broker."""

    def __init__(self, *, confirm_timeout_seconds: float = 60.0) -> None:
        self.protocol = FakeWire()
        self.silences: list[str] = []
        self.publisher = ConfirmChannel(
            cast("AmqpProtocol", self.protocol),
            3,
            4096,
            confirm_timeout_seconds=confirm_timeout_seconds,
            on_silence=self.silences.append,
            on_closed=lambda text: self.publisher.refuse(text),  # noqa: PLW0108 - it is made here
        )
        self.tokens = 0

    def copies(self, count: int) -> list[OutboundMessage]:
        """Return copies that all have the same message id."""
        made = []
        for _ in range(count):
            self.tokens += 1
            token = b"%d" % self.tokens
            raw = properties([(b"own", b"V"), (TOKEN_HEADER, long_string(token))], message_id=SAME_ID)
            made.append(OutboundMessage(b"", b"work.dead", raw, b"{}", token))
        return made

    async def publish(self, copies: list[OutboundMessage]) -> asyncio.Task[list[str | None]]:
        """Publish and return when all is written."""
        task = asyncio.ensure_future(self.publisher.publish(copies))
        await asyncio.sleep(0)
        return task

    async def publish_until_full(self) -> tuple[asyncio.Task[list[str | None]], asyncio.Event]:
        """Publish three large copies to a socket that is full after the first; return what makes it take more."""
        written_before, go_on = asyncio.Event(), asyncio.Event()

        async def drain() -> None:
            written_before.set()
            await go_on.wait()

        self.protocol.drain = drain  # type: ignore[method-assign]
        task = await self.publish([one._replace(body=LARGE) for one in self.copies(3)])
        await written_before.wait()
        return task, go_on


def returned(copy: OutboundMessage) -> Returned:
    """Return the broker's return of a copy."""
    return Returned(312, "NO_ROUTE", copy.properties)


def ack(tag: int, *, multiple: bool = False) -> Confirm:
    """Return a positive confirm."""
    return Confirm(tag, multiple, positive=True)


def nack(tag: int, *, multiple: bool = False) -> Confirm:
    """Return a negative one."""
    return Confirm(tag, multiple, positive=False)


def run(scenario: Coroutine[object, object, None]) -> None:
    """Run a scenario on a loop of its own."""
    asyncio.run(asyncio.wait_for(scenario, 5))


def answered(count: int, answer: Callable[[list[OutboundMessage]], Answers]) -> list[str | None]:
    """Return what `count` copies are told when the broker answers so."""
    result: list[str | None] = []

    async def scenario() -> None:
        bench = Bench()
        copies = bench.copies(count)
        task = await bench.publish(copies)
        bench.publisher.on_frames(answer(copies))
        result.extend(await task)

    run(scenario())
    return result


def test_copies_are_confirmed_one_by_one() -> None:
    """In any order, for the broker may confirm them so."""
    assert answered(3, lambda _: [ack(2), ack(3), ack(1)]) == [None] * 3


def test_one_multiple_ack_confirms_all() -> None:
    """Also by the tag 0, which means everything."""
    assert answered(3, lambda _: [ack(3, multiple=True)]) == [None] * 3
    assert answered(3, lambda _: [ack(0, multiple=True)]) == [None] * 3


def test_of_two_unroutable_copies_with_the_same_id_both_are_refused() -> None:
    """Matched by ``message_id`` the first would count as confirmed, and its original would be lost."""
    assert answered(2, lambda held: [returned(held[0]), ack(1), returned(held[1]), ack(2)]) == [UNROUTABLE] * 2


def test_returns_of_several_before_one_multiple_ack() -> None:
    """The ack covers returned and routable ones; each is told its own."""
    assert answered(4, lambda held: [returned(held[1]), returned(held[3]), ack(4, multiple=True)]) == [
        None, UNROUTABLE, None, UNROUTABLE,
    ]  # fmt: skip


def test_a_return_means_its_own_copy_only() -> None:
    """Whatever stands between it and its ack."""
    assert answered(3, lambda held: [returned(held[2]), ack(1), ack(2), ack(3)]) == [None, None, UNROUTABLE]


def test_nacks_are_refusals() -> None:
    """Single, and of all up to a tag that is already confirmed in part."""
    assert answered(2, lambda _: [nack(1), ack(2)]) == [REFUSED, None]
    assert answered(4, lambda _: [ack(2), nack(3, multiple=True), ack(4)]) == [REFUSED, None, REFUSED, None]


def test_a_return_without_our_token_blames_all_that_are_open() -> None:
    """Nobody can know whose it is, and an original acked wrongly would be lost: better publish a copy twice."""
    strange = Returned(312, "NO_ROUTE", properties(message_id=SAME_ID))
    assert answered(3, lambda _: [ack(1), strange, ack(3, multiple=True)]) == [None, UNROUTABLE, UNROUTABLE]
    broken = Returned(312, "NO_ROUTE", b"\xff\xff")
    assert answered(1, lambda _: [broken, ack(1)]) == [UNROUTABLE]


def test_confirms_of_unknown_tags_confirm_nothing() -> None:
    """Of what was never published, or is confirmed already."""
    assert answered(1, lambda _: [ack(9), nack(9), ack(1), nack(1), ack(1)]) == [None]


def test_publishing_goes_on_while_another_waits() -> None:
    """Tags go on counting; one multiple may settle copies of both."""

    async def scenario() -> None:
        bench = Bench()
        first, second = bench.copies(2), bench.copies(2)
        one = await bench.publish(first)
        two = await bench.publish(second)
        bench.publisher.on_frames([ack(1), returned(second[0]), ack(3, multiple=True)])
        assert await one == [None, None]
        assert not two.done()
        bench.publisher.on_frames([ack(4)])
        assert await two == [UNROUTABLE, None]

    run(scenario())


def test_a_refusal_is_not_remembered_for_the_next_try() -> None:
    """The same letter gets a new token, and may well be routable then."""

    async def scenario() -> None:
        bench = Bench()
        for outcome in (UNROUTABLE, None):
            (copy,) = bench.copies(1)
            task = await bench.publish([copy])
            bench.publisher.on_frames([*([returned(copy)] if outcome else []), ack(bench.tokens)])
            assert await task == [outcome]

    run(scenario())


def test_what_is_written_is_the_copy() -> None:
    """Mandatory, to the channel in confirm mode, one publish a copy, in order."""

    async def scenario() -> None:
        bench = Bench()
        copies = bench.copies(2)
        task = await bench.publish(copies)
        written = b"".join(bench.protocol.written)
        assert written.count(b"\x01\0\x03") == len(copies)
        assert [written.count(copy.properties) for copy in copies] == [1, 1]
        assert written.index(copies[0].properties) < written.index(copies[1].properties)
        bench.publisher.on_frames([ack(2, multiple=True)])
        await task

    run(scenario())


def test_large_copies_wait_for_the_socket() -> None:
    """500 bodies of 16 MiB must not pile up in the transport's buffer."""

    async def scenario() -> None:
        bench = Bench()
        small, large = bench.copies(2)
        task = await bench.publish([small, large._replace(body=LARGE)])
        assert bench.protocol.drains == 1
        bench.publisher.on_frames([ack(2, multiple=True)])
        assert await task == [None, None]

    run(scenario())


def test_a_lost_connection_fails_what_is_open_and_what_comes_after() -> None:
    """What became of the copies is unknown; so no original is acked."""

    async def scenario() -> None:
        bench = Bench()
        one, two = await bench.publish(bench.copies(2)), await bench.publish(bench.copies(1))
        bench.publisher.on_frames([ack(1)])
        bench.publisher.fail_pending("connection lost: gone")
        for task in (one, two):
            with pytest.raises(BrokerError, match="gone"):
                await task
        with pytest.raises(BrokerError, match="gone"):
            await bench.publisher.publish(bench.copies(1))
        bench.publisher.on_frames([ack(2), ack(3)])
        assert bench.silences == []

    run(scenario())


def test_a_connection_that_breaks_while_writing_is_a_broker_error() -> None:
    """The edge's exception is translated once, here."""

    async def scenario() -> None:
        bench = Bench()
        bench.protocol.error = ConnectionResetError("reset")
        (copy,) = bench.copies(1)
        with pytest.raises(BrokerError, match="reset"):
            await bench.publisher.publish([copy._replace(body=LARGE)])

    run(scenario())


def test_silence_ends_the_session_and_confirms_nothing() -> None:
    """Under a resource alarm a second try would make two letters: only the end of the connection settles it."""

    async def scenario() -> None:
        bench = Bench(confirm_timeout_seconds=0.01)
        with pytest.raises(BrokerError):
            await bench.publisher.publish(bench.copies(2))
        (silence,) = bench.silences
        assert "within 0.01 s" in silence

    run(scenario())


def test_publishing_nothing_waits_for_nothing() -> None:
    """No copy, no confirm: it would be silence."""

    async def scenario() -> None:
        bench = Bench()
        assert await asyncio.wait_for(bench.publisher.publish([]), 1) == []

    run(scenario())


def test_while_publishing_is_blocked_the_time_stands_still() -> None:
    """A resource alarm may last for hours: what waits for its end is confirmed then, and published once only."""

    async def scenario() -> None:
        bench = Bench(confirm_timeout_seconds=0.05)
        first, second = bench.copies(1), bench.copies(1)
        before = await bench.publish(first)
        bench.publisher.set_blocked("low on memory")
        during = await bench.publish(second)
        done, _ = await asyncio.wait([before, during], timeout=0.2)
        assert not done
        assert len(bench.protocol.written) == 1, "written while nobody reads it"
        bench.publisher.set_blocked(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        bench.publisher.on_frames([ack(2, multiple=True)])
        assert await before == await during == [None]
        assert bench.silences == []

    run(scenario())


def test_silence_after_a_block_is_silence() -> None:
    """The time for confirms begins anew when it ends."""

    async def scenario() -> None:
        bench = Bench(confirm_timeout_seconds=0.05)
        task = await bench.publish(bench.copies(1))
        bench.publisher.set_blocked("low on disk")
        bench.publisher.set_blocked(None)
        with pytest.raises(BrokerError):
            await task
        assert len(bench.silences) == 1

    run(scenario())


def test_a_connection_that_is_lost_while_it_is_blocked_fails_what_waits() -> None:
    """Nobody waits for the end of an alarm on a connection that is gone."""

    async def scenario() -> None:
        bench = Bench()
        bench.publisher.set_blocked("low on memory")
        task = await bench.publish(bench.copies(1))
        bench.publisher.fail_pending("connection lost: gone")
        with pytest.raises(BrokerError, match="gone"):
            await task

    run(scenario())


def test_a_token_of_somebody_elses_is_none() -> None:
    """A message that was passed on before has one; taken for ours, its return would be lost, and so would it."""

    async def scenario() -> None:
        bench = Bench()
        (copy,) = bench.copies(1)
        task = await bench.publish([copy._replace(token=b"")])
        bench.publisher.on_frames([returned(copy), ack(1)])
        assert await task == [UNROUTABLE]
        (first, other) = bench.copies(2)
        task = await bench.publish([first._replace(token=b"own", properties=other.properties), other])
        bench.publisher.on_frames([returned(other), ack(2), ack(3)])
        assert await task == [None, UNROUTABLE]

    run(scenario())


def test_what_no_queue_takes_is_told_apart_from_a_refusal() -> None:
    """The one may wait for its queue, the other for room."""
    unroutable, refused = answered(2, lambda held: [returned(held[0]), ack(1), nack(2)])
    assert isinstance(unroutable, Unroutable)
    assert isinstance(refused, str)
    assert not isinstance(refused, Unroutable)


def test_a_channel_that_is_closed_refuses_what_is_open_and_nothing_that_was_confirmed() -> None:
    """RabbitMQ closes it over an exchange that isn't there: those are answers, and no end of the session."""

    async def scenario() -> None:
        bench = Bench()
        task = await bench.publish(bench.copies(3))
        bench.publisher.on_frames([ack(1), Closed("NOT_FOUND")])
        assert await task == [None, "NOT_FOUND", "NOT_FOUND"]
        assert not bench.silences

    run(scenario())


@pytest.mark.parametrize("confirmed", [True, False])
@pytest.mark.parametrize("blocked", [True, False])
def test_a_connection_that_is_lost_while_the_socket_is_full_fails_what_is_being_written(
    confirmed: bool, blocked: bool
) -> None:
    """Also if all that was written is confirmed: nothing more is written, and nobody waits for what can't come."""

    async def scenario() -> None:
        bench = Bench()
        task, go_on = await bench.publish_until_full()
        if confirmed:
            bench.publisher.on_frames([ack(1)])
        if blocked:
            bench.publisher.set_blocked("low on memory")
        bench.publisher.fail_pending("connection lost: gone")
        go_on.set()
        with pytest.raises(BrokerError, match="gone"):
            await task
        assert len(bench.protocol.written) == 1
        assert [*bench.publisher._open, *bench.publisher._tokens] == []

    run(scenario())


def test_nothing_more_is_written_to_a_channel_that_was_closed_while_the_socket_was_full() -> None:
    """Frames on a channel that isn't open would cost the connection; what wasn't written is refused as well."""

    async def scenario() -> None:
        bench = Bench()
        task, go_on = await bench.publish_until_full()
        count = len(bench.protocol.written)
        bench.publisher.on_frames([Closed("NOT_FOUND")])
        go_on.set()
        assert await task == ["NOT_FOUND"] * 3
        assert len(bench.protocol.written) == count

    run(scenario())
