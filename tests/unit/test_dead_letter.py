"""`core.dead_letters.dead_letter`, and the loops of `amqp.dead_letter_queue` over a box in memory, in virtual time."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.amqp.connection import ConnectOptions
from sidecar.amqp.dead_letter_queue import (
    MAX_REPLAY_PREFETCH,
    SCAN_PREFETCH,
    Replayer,
    ScanAction,
    ScanResult,
    _more,
    open_dead_letter_queue,
    scan,
)
from sidecar.core.dead_letters.dead_letter import (
    MAX_GROUPS,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterSummary,
    header_values,
    property_values,
    read,
    refreshed_properties,
    replay_obstacle,
    replay_properties,
)
from sidecar.core.encoding.template import TemplateContext
from sidecar.core.wire import properties as core
from sidecar.core.wire.republish import Failure as Rejected
from sidecar.core.wire.republish import dead_letter_headers, may_delay, republish_properties
from sidecar.core.wire.republish import delay_rounds as rounds_of
from sidecar.errors import BrokerError
from sidecar.ports import ACK_FLUSH_SECONDS
from tests.builders import ledger, long_string, message, properties, short_string
from tests.fakes import network
from tests.fakes.amqp_server import AmqpServer
from tests.fakes.clock import run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.core.ledger import Ledger
    from sidecar.core.message import Message
    from sidecar.ports import OutboundMessage

ROOM = 128 * 1024
FAILED_AT = 1_700_000_000.5


def dead(original: Message, *, document_id: bytes = b"o-7", room: int = ROOM, detail: str = "why") -> Message:
    """Return a message's dead letter, as the sidecar makes it."""
    rejected = Rejected(original, "rejected", detail, 400, "document_parsing_exception")
    added = dead_letter_headers(
        rejected, token=b"9", action="index", index="logs", document_id=document_id, failed_at=FAILED_AT
    )
    return message(1, original.body, raw=republish_properties(original.properties, added, room))


def back(letter: Message, user: str | None = "guest") -> bytes:
    """Return the properties with which a letter is replayed."""
    return replay_properties(letter, read(letter, 1), token=b"1", user=user)


def headers(raw: bytes) -> dict[bytes, object]:
    """Return the header fields of a property set."""
    return {name: core.decode(value) for name, value in core.fields(core.headers(raw))}


MEMORY = [b"sidecar-copy", b"sidecar-retry-count", b"sidecar-exchange", b"sidecar-routing-key", b"sidecar-replays"]


def headers_of_all(raw: bytes) -> list[bytes]:
    """Return the names of the header fields of a property set."""
    return [name for name, _ in core.fields(core.headers(raw))]


def test_a_letter_says_what_the_sidecar_wrote() -> None:
    """Every header, and the properties that name the message."""
    original = message(
        1, b"{}", of=ledger("orders"), raw=properties(message_id=b"m"), route=short_string(b"x") + b"\1k"
    )
    original.attempts = 3
    assert read(dead(original), 5) == DeadLetter(
        position=5, message_id="m", document_id="o-7", reason="rejected", status=400,
        error_type="document_parsing_exception", error_reason="why", action="index", index_name="logs", attempts=3,
        failed_at="2023-11-14T22:13:20.500Z", queue="orders", exchange="x", routing_key="k", replays=0, deliveries=0,
        cut="", size_bytes=2, expires=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [
        properties(),
        properties([(b"sidecar-status", long_string(b"400")), (b"sidecar-queue", b"V"), (b"x-death", b"t\1")]),
        properties([(b"x-death", b"A\0\0\0\0"), (b"sidecar-reason", long_string(b"\xff"))]),
        properties([(b"x-delivery-count", b"I\0\0\0\5")]) + b"too long",
        b"\x20\0\0\0\0\xff",
    ],
)
def test_whatever_lies_in_the_queue_can_be_read(raw: bytes) -> None:
    """Others write there too: what is absent, of another type or malformed is no letter's end."""
    letter = read(message(raw=raw), 1)
    assert (letter.status, letter.replays, letter.position) == (0, 0, 1)


def test_a_letter_of_rabbitmqs_own_tells_its_origin_by_x_death() -> None:
    """The latest entry stands first."""

    def entry(queue: bytes, reason: bytes) -> bytes:
        keys = long_string(b"key")
        fields = [
            (b"queue", long_string(queue)), (b"reason", long_string(reason)), (b"exchange", long_string(b"x")),
            (b"time", b"T" + struct.pack(">Q", 1_700_000_000)),
            (b"routing-keys", b"A" + len(keys).to_bytes(4, "big") + keys),
        ]  # fmt: skip
        content = core.table(fields)
        return b"F" + len(content).to_bytes(4, "big") + content

    deaths = entry(b"work", b"rejected") + entry(b"before", b"expired")
    letter = read(message(raw=properties([(b"x-death", b"A" + len(deaths).to_bytes(4, "big") + deaths)])), 1)
    assert (letter.queue, letter.reason, letter.exchange, letter.routing_key) == ("work", "rejected", "x", "key")
    assert letter.failed_at == "2023-11-14T22:13:20.000Z"
    assert replay_obstacle(letter, 3) is None


def test_headers_nested_without_end_are_no_ones_end() -> None:
    """A few bytes a level make more levels than Python likes; the letter is read, shown and replayed all the same."""
    deep = b"V"
    for _ in range(5_000):
        deep = b"A" + len(deep).to_bytes(4, "big") + deep
    fields = [(b"x-death", deep), (b"sidecar-reason", deep), (b"sidecar-queue", long_string(b"work"))]
    one = message(raw=properties(fields))
    assert read(one, 1).queue == "work"
    assert len(header_values(one)) == 3
    assert headers_of_all(back(one)) == [b"sidecar-original-x-death", *MEMORY]


# Choosing and grouping -----------------------------------------------------------------------------------------------


def some(position: int = 1, **values: Any) -> DeadLetter:
    """Return a letter."""
    one = message(raw=properties(message_id=b"m%d" % position))
    return read(dead(one), position)._replace(**values)


def test_a_choice_takes_what_fits_every_kind_and_any_of_one() -> None:
    """Patterns, in which capital letters count."""
    letter = some(reason="rejected", error_type="mapper", index_name="logs-1")
    assert DeadLetterFilter().matches(letter)
    assert DeadLetterFilter(reasons=("malformed", "rej*"), indices=("logs-?",)).matches(letter)
    assert DeadLetterFilter(ids=("m1",)).matches(letter)
    assert DeadLetterFilter(ids=("o-*",)).matches(letter)
    for other in (
        DeadLetterFilter(reasons=("REJECTED",)),
        DeadLetterFilter(error_types=("map",)),
        DeadLetterFilter(ids=("m",), reasons=("*",)),
    ):
        assert not other.matches(letter)


def test_groups_have_counts_and_ages_whatever_the_order() -> None:
    """Letters without a time count, and are neither oldest nor newest."""
    grouping = DeadLetterSummary()
    for position, moment in enumerate(("", "2026-01-02", "2026-01-01", "", "2026-01-03"), 1):
        grouping.add(some(position, failed_at=moment))
    grouping.add(some(6, reason="malformed", failed_at=""))
    first, second = grouping.groups()
    assert (first.count, first.oldest, first.newest, first.example.position) == (5, "2026-01-01", "2026-01-03", 1)
    assert (second.count, second.oldest, second.newest) == (1, "", "")
    assert grouping.count == 6


def test_groups_have_a_bound() -> None:
    """An index for each letter makes a group for each, up to so many."""
    grouping = DeadLetterSummary()
    one = some()
    for position in range(MAX_GROUPS + 50):
        grouping.add(one._replace(index_name=str(position)))
    assert len(grouping.groups()) == MAX_GROUPS + 1
    assert (grouping.groups()[0].example.reason, grouping.groups()[0].count) == ("(others)", 50)


# Back to the queue ---------------------------------------------------------------------------------------------------


def test_a_replayed_message_is_the_original_but_for_what_remembers() -> None:
    """Rejected and replayed, and again: no header piles up, and the count goes on."""
    own = [(b"k", long_string(b"\xff")), (b"k", b"t\x01"), (b"traceparent", long_string(b"00"))]
    original = message(
        1, b"{}", of=ledger("orders"), route=short_string(b"events") + short_string(b"new"),
        raw=properties(own, message_id=b"m", expiration=b"60000", delivery_mode=1, timestamp=1_700_000_000_123),
    )  # fmt: skip
    again = original
    for times in (1, 2, 3):
        raw = back(dead(again))
        again = message(1, b"{}", of=ledger("orders"), route=b"\0\6orders", raw=raw)
        assert list(core.fields(core.headers(raw)))[:3] == own
        memory = dict(list(headers(raw).items())[2:])
        assert memory == {
            b"sidecar-copy": "1", b"sidecar-retry-count": 0, b"sidecar-received-at": "2023-11-14T22:13:20.500Z",
            b"sidecar-exchange": "events", b"sidecar-routing-key": "new", b"sidecar-id": "o-7",
            b"sidecar-replays": times,
        }  # fmt: skip
        values, expected = core.split(raw), core.split(original.properties)
        del values["headers"], expected["headers"]
        assert values == expected
    context = TemplateContext(message(1, raw=raw, route=b"\0\6orders"), 1.0)
    assert (context.exchange, context.routing_key, context.received_at) == (b"events", b"new", FAILED_AT)


@pytest.mark.parametrize("rounds", [1, 3, 1_000])
def test_a_replayed_message_has_all_its_rounds_before_it_again(rounds: int) -> None:
    """However many its letter had used up; what it remembers of its first delivery stays."""
    memory = [
        (b"sidecar-exchange", long_string(b"events")), (b"sidecar-routing-key", long_string(b"new")),
        (b"sidecar-received-at", long_string(b"2023-01-02T03:04:05.000Z")),
    ]  # fmt: skip
    tired = message(raw=properties([*memory, (b"sidecar-retry-count", core.number_value(rounds))], message_id=b"m"))
    assert rounds_of(tired) == rounds
    again = message(raw=back(dead(tired)))
    assert rounds_of(again) == 0
    assert may_delay(again, versioned=True, max_rounds=1)
    assert {name: headers(again.properties)[name] for name, _ in memory} == {
        name: core.decode(value) for name, value in memory
    }


def test_the_user_id_comes_back_only_when_it_is_ours() -> None:
    """RabbitMQ closes the channel over another's."""
    letter = dead(message(raw=properties(user_id=b"shop")))
    assert core.short(back(letter, "shop"), "user_id") == b"shop"
    for user in ("guest", None):
        assert core.short(back(letter, user), "user_id") is None
        assert headers(back(letter, user))[b"sidecar-original-user_id"] == "shop"


@pytest.mark.parametrize("name", [b"CC", b"BCC", b"x-death", b"x-first-death-queue", b"x-delivery-count"])
def test_what_would_lead_it_astray_stays_aside(name: bytes) -> None:
    """It would go elsewhere again, or be dropped as if it went in a circle."""
    raw = back(dead(message(raw=properties([(name, long_string(b"v"))]))))
    assert name not in headers(raw)
    assert headers(raw)[b"sidecar-original-" + name] == "v"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"expiration", long_string(b"soon")),
        (b"expiration", long_string(b"99999999999")),
        (b"expiration", b"t\1"),
        (b"delivery_mode", b"l" + struct.pack(">q", 300)),
    ],
)
def test_what_no_original_can_have_had_is_not_made_a_property(name: bytes, value: bytes) -> None:
    """RabbitMQ would close the channel over an expiration that is none."""
    field = (b"sidecar-original-" + name, value)
    raw = back(message(raw=properties([field, (b"sidecar-queue", long_string(b"work"))])))
    assert field in list(core.fields(core.headers(raw)))
    assert core.split(raw).get(name.decode(), b"\2") == b"\2"


def test_a_letter_of_rabbitmqs_own_is_replayed_without_harm() -> None:
    """Nothing was moved aside when it became one: another's user_id would close the channel, CC send it elsewhere."""
    death = (b"x-death", b"A\0\0\0\0")
    fields = [(b"CC", b"V"), death, (b"k", b"V"), (b"x-delivery-count", b"I\0\0\0\1")]
    raw = back(message(raw=properties(fields, user_id=b"eve", delivery_mode=1, message_id=b"m")))
    assert set(core.split(raw)) == {"headers", "delivery_mode", "message_id"}
    assert core.number(raw, "delivery_mode") == 1
    moved = [b"sidecar-original-CC", b"sidecar-original-x-death", b"k", b"sidecar-original-user_id"]
    assert headers_of_all(raw) == [*moved, *MEMORY]


def test_what_does_not_fit_into_a_frame_stays() -> None:
    """RabbitMQ would close the connection over it."""
    box = FakeBox(2)
    box.properties_limit = 10
    replay = Replayer(box)
    sifted = run(scan(box, judged(lambda _: ScanAction.TAKE), replay.act))
    assert (sifted.done, sifted.refused, box.published) == (0, 2, [])
    assert "frame" in next(iter(replay.refusals))[1]


def test_a_letters_own_deliveries_are_not_the_messages() -> None:
    """RabbitMQ's count of our looks is no header of the original."""
    letter = dead(message())
    counted = message(
        raw=properties([*core.fields(core.headers(letter.properties)), (b"x-delivery-count", b"I\0\0\0\7")])
    )
    assert read(counted, 1).deliveries == 7
    assert b"x-delivery-count" not in headers(back(counted))


def test_what_is_not_to_be_replayed_says_why() -> None:
    """No origin, too often, or not the original any more."""
    assert replay_obstacle(some(), 3) is None
    assert replay_obstacle(some(cut="sidecar-error-reason, sidecar-index"), 3) is None
    for values, why in (
        ({"queue": ""}, "which queue"),
        ({"queue": "x" * 256}, "no queue's name"),
        ({"replays": 3}, "3 times"),
        ({"cut": "sidecar-error-reason, big"}, "big"),
        ({"cut": "sidecar-error-reason, " + "sidecar-index, " * 20}, "more of it was cut"),
    ):
        assert why in (replay_obstacle(some(**values), 3) or ""), values


def test_a_letter_whose_headers_were_cut_is_known_by_it() -> None:
    """As the sidecar cuts: its own reason first, then the longest of the message's."""
    big = [(b"big", long_string(b"x" * 3000))]
    fits = dead(message(of=ledger("work"), raw=properties()), detail="y" * 900, room=650)
    assert read(fits, 1).cut == "sidecar-error-reason"
    assert replay_obstacle(read(fits, 1), 3) is None
    assert "big" in str(replay_obstacle(read(dead(message(of=ledger("work"), raw=properties(big)), room=2000), 1), 3))


def test_a_renewed_letter_keeps_every_byte_but_token_and_count() -> None:
    """What was looked at often goes to the tail of its own queue as if it had just come."""
    letter = dead(message(raw=properties([(b"k", long_string(b"\xff"))], message_id=b"m")))
    fields = list(core.fields(core.headers(letter.properties)))
    looked_at = message(
        raw=properties([*fields, (b"x-delivery-count", b"I\0\0\0\7")], message_id=b"m", delivery_mode=2)
    )
    raw = refreshed_properties(looked_at, token=b"77", limit_bytes=ROOM)
    expected = [(name, long_string(b"77") if name == b"sidecar-copy" else value) for name, value in fields]
    assert list(core.fields(core.headers(raw))) == expected
    values = core.split(raw)
    assert (values["message_id"], values["delivery_mode"]) == (b"\1m", b"\2")


def test_a_renewed_letter_of_rabbitmqs_own_arrives() -> None:
    """It never was a copy of ours, so what would keep it away moves aside now."""
    raw = refreshed_properties(message(raw=properties([(b"CC", b"V")], user_id=b"eve")), token=b"1", limit_bytes=ROOM)
    assert set(headers(raw)) == {b"sidecar-copy", b"sidecar-original-CC", b"sidecar-original-user_id"}
    assert set(core.split(raw)) == {"headers", "delivery_mode"}


def test_a_renewed_letter_still_tells_where_it_came_from() -> None:
    """What came round by the delay queue loses RabbitMQ's trace when it is copied; the queue is told apart then."""
    content = core.table([(b"queue", long_string(b"work")), (b"reason", long_string(b"rejected"))])
    death = b"F" + len(content).to_bytes(4, "big") + content
    deaths = (b"x-death", b"A" + len(death).to_bytes(4, "big") + death)
    for more in ([], [(b"sidecar-retry-count", core.number_value(1))]):
        raw = refreshed_properties(message(raw=properties([deaths, *more])), token=b"1", limit_bytes=ROOM)
        assert read(message(raw=raw), 1).queue == "work"


def test_a_letter_is_told_in_full() -> None:
    """Properties by name, headers in order with repeated names, bytes that are no text made readable."""
    deep = core.table([(b"a", b"x\0\0\0\1\xff")])
    one = message(
        raw=properties(
            [(b"k", b"V"), (b"k", b"F" + len(deep).to_bytes(4, "big") + deep)], app_id=b"\xff", priority=3, timestamp=7
        )
    )
    assert property_values(one) == {"priority": 3, "timestamp": 7, "app_id": "\\xff"}
    assert header_values(one) == [("k", None), ("k", {"a": "\\xff"})]


# The loops -----------------------------------------------------------------------------------------------------------


class FakeBox:
    """Delivers letters as RabbitMQ does: as many as may be unsettled, in order.

    Attributes:
        widened: how many more each consumer was for.
        most_unsettled: at once, beyond those that a test left.
    """

    def __init__(self, letters: int, *, chunk: int = 50, ready: int | None = None) -> None:
        self.ready = letters if ready is None else ready
        self.ledger: Ledger = ledger("work.dead")
        self.widened: list[int] = []
        self.acked: list[int] = []
        self.published: list[tuple[float, OutboundMessage]] = []
        self.refusals: dict[bytes, str] = {}
        self.lost = ""
        self.user = "guest"
        self.properties_limit = ROOM
        self._chunk = chunk
        self._letters = letters

    async def add_consumer(self, letters: int) -> None:
        """Have so many more letters delivered."""
        self.widened.append(letters)

    async def receive(self) -> list[Message]:
        """Return the next letters."""
        room = sum(self.widened) - self.ledger.outstanding
        first = self.ledger.next_tag
        count = min(self._letters - first + 1, room, self._chunk)
        if count <= 0:
            assert room > 0, "nothing may be delivered any more: this would wait for ever"
            return []
        self.ledger.next_tag += count
        self.ledger.open_new()
        original = dead(message(raw=properties(message_id=b"m")))
        return [message(first + at, of=self.ledger, raw=original.properties) for at in range(count)]

    def require_open(self) -> None:
        """Raise if the connection is lost."""
        if self.lost:
            raise BrokerError(self.lost)

    async def give_back(self) -> None:
        """Nothing is on its way."""

    def acknowledge(self, messages: list[Message]) -> None:
        """Ack letters."""
        self.ledger.mark_stored(messages)
        self.acked += [one.tag for one in messages]
        self.ledger.take_acks(individually=True)

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Confirm all but those that are to be refused."""
        self.published += [(asyncio.get_running_loop().time(), copy) for copy in copies]
        return [self.refusals.get(copy.body) for copy in copies]


def judged(rule: Callable[[int], ScanAction]) -> Callable[[DeadLetter, Message], ScanAction]:
    """Return a judge that looks at positions only."""
    return lambda letter, _: rule(letter.position)


async def _accept(part: Sequence[Any]) -> list[str | None]:
    return [None] * len(part)


def test_every_letter_is_seen_once_and_what_is_passed_over_never_ends_the_deliveries() -> None:
    """However few may be unsettled at first: when all of them are passed over, more are asked for."""
    box = FakeBox(4_000)
    sifted = run(scan(box, judged(lambda at: ScanAction.TAKE if at % 3 == 0 else ScanAction.KEEP), _accept, window=200))
    assert sifted == ScanResult(seen=4_000, done=1_333)
    assert box.acked == list(range(3, 4_001, 3))
    assert box.widened[:4] == [200, 200, 400, 800]
    assert box.ledger.outstanding == 4_000 - 1_333


def test_consumers_stay_so_few_that_they_give_back_in_order() -> None:
    """RabbitMQ 3.10 gives back the letters of more than 32 consumers in an order of its own."""
    left, steps = 0, []
    while len(steps) < 32:
        steps.append(_more(200, left, len(steps)))
        left += steps[-1]
    assert max(steps[:24]) == MAX_REPLAY_PREFETCH
    assert set(steps[24:]) == {SCAN_PREFETCH}
    assert left > 600_000


@pytest.mark.parametrize("worn", [1, 60, 120])
def test_a_scan_tells_the_most_deliveries_of_any_dead_letter(worn: int) -> None:
    """Wherever it stands: RabbitMQ drops the most worn one first."""

    class Worn(FakeBox):
        async def receive(self) -> list[Message]:
            chunk = await super().receive()
            count = [(one, 14 if one.tag == worn else 2) for one in chunk]
            return [
                message(one.tag, of=self.ledger, raw=properties([(b"x-delivery-count", core.number_value(number))]))
                for one, number in count
            ]

    assert run(scan(Worn(120), judged(lambda _: ScanAction.KEEP))).deliveries == 14


def test_only_what_was_there_at_the_beginning_is_looked_at() -> None:
    """A replayed message that comes back at once is not replayed again by the same command."""
    box = FakeBox(1000, ready=120)
    sifted = run(scan(box, judged(lambda _: ScanAction.TAKE), _accept))
    assert (sifted.seen, sifted.done) == (120, 120)


def test_the_end_comes_when_somebody_else_took_the_rest() -> None:
    """And it is known how many those were."""
    sifted = run(scan(FakeBox(70, ready=100), judged(lambda _: ScanAction.TAKE), _accept))
    assert (sifted.seen, sifted.done, sifted.missing) == (70, 70, 30)


def test_what_was_refused_is_not_acked() -> None:
    """Nor what wasn't tried any more."""
    box = FakeBox(10)

    async def act(part: list[tuple[DeadLetter, Message]]) -> list[str | None]:
        return [None, "full", None]

    sifted = run(scan(box, judged(lambda _: ScanAction.TAKE), act))
    assert (sifted.done, sifted.refused, box.acked) == (2, 1, [1, 3])


def test_a_stop_ends_it_and_the_rest_goes_back() -> None:
    """Nobody waits for the whole queue."""
    box = FakeBox(10_000)
    sifted = run(scan(box, judged(lambda at: ScanAction.STOP if at == 60 else ScanAction.TAKE), _accept, at_once=10))
    assert (sifted.seen, sifted.done) == (60, 59)

    async def stopped() -> ScanResult:
        stop = asyncio.Event()

        async def act(part: Sequence[Any]) -> list[str | None]:
            stop.set()
            return [None] * len(part)

        return await scan(FakeBox(1000), judged(lambda _: ScanAction.TAKE), act, at_once=10, stop=stop)

    sifted = run(stopped())
    assert (sifted.done, sifted.stopped) == (10, True)


@pytest.mark.parametrize("rate", [1.0, 7.0, 100.0, 1000.0])
def test_a_rate_is_kept_to_the_letter(rate: float) -> None:
    """At no moment more were published than the rate allows, and none later than it must."""
    box = FakeBox(300)

    async def replaying() -> Replayer:
        replay = Replayer(box, rate=rate)
        await scan(box, judged(lambda _: ScanAction.TAKE), replay.act, at_once=replay.at_once)
        return replay

    replay = run(replaying())
    assert replay.queues == {"work": 300}
    for number, (moment, _) in enumerate(box.published):
        assert moment == pytest.approx(number // replay.at_once * replay.at_once / rate)
    assert len({copy.token for _, copy in box.published}) == 300


def test_nothing_more_is_published_once_the_letters_are_requeued() -> None:
    """The connection that they came by is lost between two parts: the others would be in both places."""
    box, acted = FakeBox(10), list[int]()

    async def act(part: list[tuple[DeadLetter, Message]]) -> list[str | None]:
        acted.append(len(part))
        box.lost = "connection lost" if len(acted) == 2 else ""
        return [None] * len(part)

    with pytest.raises(BrokerError, match="connection lost"):
        run(scan(box, judged(lambda _: ScanAction.TAKE), act, at_once=2))
    assert acted == [2, 2]


def test_each_answer_belongs_to_its_own_letter() -> None:
    """Of a part whose first and middle letters can't be published, the broker answers for the others only."""
    box = FakeBox(0)
    box.properties_limit = 2000
    box.refusals = {b"3": "full"}
    pairs = []
    for number in range(5):
        big = [(b"big", long_string(b"x" * 3000))] if number in {0, 2} else []
        letter = message(number + 1, b"%d" % number, raw=properties([*big, (b"sidecar-queue", long_string(b"work"))]))
        pairs.append((read(letter, number + 1), letter))
    replay = Replayer(box)
    answers = run(replay.act(pairs))
    assert [answer if answer is None else answer[-5:] for answer in answers] == ["frame", None, "frame", "full", None]
    assert replay.queues == {"work": 2}
    assert sorted(replay.refusals.values()) == [1, 2]


def test_acks_have_time_to_arrive_before_the_channel_is_closed() -> None:
    """RabbitMQ requeues letters whose acks it has not applied yet when the channel ends."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            clock, moments = asyncio.get_running_loop().time, dict[str, float]()
            for name in ("basic.ack", "channel.close"):
                server.on(name, lambda _, method: moments.update({method.name: clock()}), after=True, times=None)
            server.declare("work.dead")
            server.declare("work")
            server.publish("work.dead", b"{}", properties([(b"sidecar-queue", long_string(b"work"))]))
            box = await open_dead_letter_queue((server.url,), "work.dead", ConnectOptions())
            replay = Replayer(box)
            await scan(box, judged(lambda _: ScanAction.TAKE), replay.act)
            assert moments["channel.close"] - moments["basic.ack"] >= ACK_FLUSH_SECONDS - 0.01
            await box.close()
            assert (len(server.acked), server.left_open()) == (1, [])

    network.run(scenario())
