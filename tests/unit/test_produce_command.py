"""`sidecar produce` as a user sees it, over a producer in memory; its rate and window in virtual time."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import cli, produce
from sidecar.cli.produce import CHUNK_BYTES, CHUNK_MESSAGES, WINDOW_CHUNKS, PublishStats, Route, Sender
from sidecar.cli.samples import Samples
from sidecar.config.settings import PREFIX
from sidecar.core.wire.properties import short
from sidecar.errors import BrokerError
from tests.builders import without_settings
from tests.fakes.clock import run

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.ports import OutboundMessage

UNROUTABLE = "unroutable: 312 NO_ROUTE"
MANY = 20 * CHUNK_MESSAGES


class Broker:
    """A producer whose broker answers by number of the message, and may die.

    Attributes:
        copies: all that were published.
        refusals: why the message of that number is refused.
        dies_at: the number of the message at which the connection is lost.
        stops_at: the number of messages at which the process gets SIGTERM.
        closed: how often the connection was closed.
    """

    def __init__(self) -> None:
        self.copies: list[OutboundMessage] = []
        self.chunks: list[tuple[float, int]] = []
        self.refusals: dict[int, str] = {}
        self.dies_at: int | None = None
        self.stops_at: int | None = None
        self.unreachable = ""
        self.closed = 0
        self.unconfirmed = self.max_unconfirmed = 0
        self.confirm_seconds = 0.0

    async def open(self, *_: object) -> Broker:
        """Connect."""
        if self.unreachable:
            raise BrokerError(self.unreachable)
        return self

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Answer a chunk."""
        first = len(self.copies)
        self.copies += copies
        self.chunks.append((asyncio.get_running_loop().time(), len(copies)))
        if len(self.copies) == self.stops_at:
            signal.raise_signal(signal.SIGTERM)
        self.unconfirmed += len(copies)
        self.max_unconfirmed = max(self.max_unconfirmed, self.unconfirmed)
        if self.confirm_seconds:
            await asyncio.sleep(self.confirm_seconds)
        self.unconfirmed -= len(copies)
        if self.dies_at is not None and self.dies_at < len(self.copies):
            raise BrokerError("the connection was lost")
        return [self.refusals.get(first + at) for at in range(len(copies))]

    async def close(self) -> None:
        """Close the connection."""
        self.closed += 1


class Called(Protocol):
    """Runs the command in an environment of nothing but what is given."""

    def __call__(self, *arguments: str, **settings: str) -> Result:
        """Run it."""
        ...


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()
    monkeypatch.setattr(produce, "open_publisher_connection", made.open)
    return made


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Called:
    monkeypatch.chdir(tmp_path)
    nothing = without_settings()

    def call(*arguments: str, **settings: str) -> Result:
        environment = {PREFIX + name: text for name, text in {"AMQP_QUEUE": "work,other", **settings}.items()}
        return CliRunner().invoke(cli, ["produce", *arguments], env=nothing | environment)

    return call


def ids(copies: list[OutboundMessage]) -> list[bytes | None]:
    """Return the `message_id` of each message."""
    return [short(copy.properties, "message_id") for copy in copies]


def expected(seed: int, count: int, **options: Any) -> list[tuple[bytes, bytes]]:
    """Return properties and bodies of the samples of a seed."""
    return [(one.properties, one.body) for one in islice(Samples(seed, **options), count)]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), {}),
        (("--size", "777"), {"size_bytes": 777}),
        (("--bad-ratio", "0.4"), {"bad_ratio": 0.4}),
        (("--keys", "3"), {"keys": 3}),
        (("--no-ids",), {"with_ids": False}),
    ],
)
def test_what_is_published_are_the_samples_that_the_options_ask_for(
    broker: Broker, called: Called, arguments: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Byte for byte, in order, as many as were asked for and no more."""
    result = called("--count", "60", "--seed", "5", *arguments)
    assert result.exit_code == 0, result.output
    assert [(copy.properties, copy.body) for copy in broker.copies] == expected(5, 60, **options)
    assert "Published 60 messages" in result.stdout
    assert "all confirmed" in result.stdout
    assert "Seed: 5 (--seed 5 publishes the same again)." in result.stdout
    assert broker.closed == 1


def test_without_a_seed_chance_decides_and_the_seed_is_told(broker: Broker, called: Called) -> None:
    """So that the same messages can be published again."""
    seeds = [re.findall(r"--seed (\d+)", called("--count", "2").stdout)[0] for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert [(copy.properties, copy.body) for copy in broker.copies[2:]] == expected(int(seeds[1]), 2)


@pytest.mark.parametrize(
    ("arguments", "settings", "route", "told"),
    [
        ((), {}, (b"", b"work"), "to the queue 'work',"),
        (("--queue", "third"), {}, (b"", b"third"), "to the queue 'third',"),
        ((), {"AMQP_EXCHANGE": "e"}, (b"e", b"work"), "to the exchange 'e' with the routing key 'work',"),
        (("--exchange", "x"), {"AMQP_EXCHANGE": "e"}, (b"x", b"work"), "exchange 'x' with the routing key 'work'"),
        ((), {"AMQP_EXCHANGE": "e", "AMQP_ROUTING_KEYS": "k,l"}, (b"e", b"k"), "with the routing key 'k'"),
        (("--exchange", "x", "--routing-key", "z"), {}, (b"x", b"z"), "exchange 'x' with the routing key 'z'"),
        (
            ("--routing-key", "z", "--queue", "q"),
            {"AMQP_EXCHANGE": "e", "AMQP_ROUTING_KEYS": "k"},
            (b"e", b"z"),
            "exchange 'e' with the routing key 'z'",
        ),
    ],
)
def test_options_and_settings_say_where_messages_go(
    broker: Broker, called: Called, arguments: tuple[str, ...], settings: dict[str, str], route: Any, told: str
) -> None:
    """An option wins over its setting; without an exchange the first queue is the target."""
    result = called("--count", "3", *arguments, **settings)
    assert result.exit_code == 0, result.output
    assert {(copy.exchange, copy.routing_key) for copy in broker.copies} == {route}
    assert told in result.stdout


def test_a_routing_key_needs_an_exchange_and_names_have_a_limit(broker: Broker, called: Called) -> None:
    """Both are configuration errors, and nothing is published."""
    result = called("--routing-key", "k")
    assert (result.exit_code, "--routing-key needs an exchange" in result.stderr) == (2, True)
    assert called("--exchange", "x", "--routing-key", "k" * 256).exit_code != 0
    assert called("--exchange", "x", "--routing-key", "k" * 255, "--count", "1").exit_code == 0
    assert len(broker.copies) == 1


def test_a_refused_message_fails_the_command_and_is_counted(broker: Broker, called: Called) -> None:
    """By its reason; the others are published all the same, and the one in the middle is not confirmed."""
    broker.refusals = {1: "the queue is full", 3: "the queue is full"}
    result = called("--count", "5")
    assert result.exit_code == 1
    assert "Published 5 messages" in result.stdout
    assert "3 confirmed" in result.stdout
    assert "RabbitMQ refused 2: the queue is full." in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("count", "refused", "status"),
    [
        (0, None, 0),
        (0, 0, 1),
        (0, CHUNK_MESSAGES, 1),
        (MANY, None, 1),
        (MANY, 0, 1),
    ],
)
def test_a_stopped_command_succeeds_only_if_all_that_was_asked_for_is_there(
    broker: Broker, called: Called, count: int, refused: int | None, status: int
) -> None:
    """Whoever drives it believes the exit status: without an end what was published counts, otherwise all of it."""
    broker.stops_at = 2 * CHUNK_MESSAGES
    broker.refusals = {refused: "the queue is full"} if refused is not None else {}
    result = called("--count", str(count))
    assert 2 * CHUNK_MESSAGES <= len(broker.copies) < MANY
    assert result.exit_code == status, result.output
    assert ("RabbitMQ refused 1" in result.stdout) == (refused is not None)
    assert ("stopped before all" in result.stderr) == (count > 0)


def test_a_route_that_leads_nowhere_ends_it(broker: Broker, called: Called) -> None:
    """Everything goes the same way; the first chunk's figures are told."""
    broker.refusals = {7: UNROUTABLE}
    result = called("--count", "2000")
    assert result.exit_code == 1
    assert f"sidecar: publishing to the queue 'work' ended: nothing is bound there ({UNROUTABLE})" in result.stderr
    assert len(broker.copies) < 2000
    assert f"Published {len(broker.copies):,} messages" in result.stdout
    assert broker.closed == 1


def test_a_lost_connection_ends_it_with_the_reason_and_the_figures(broker: Broker, called: Called) -> None:
    """What was confirmed before is told; the exit status says that it failed."""
    broker.dies_at = CHUNK_MESSAGES + 10
    result = called("--count", str(3 * CHUNK_MESSAGES))
    assert result.exit_code == 1
    assert "ended: the connection was lost" in result.stderr
    assert f"{CHUNK_MESSAGES:,} confirmed" in result.stdout
    assert "Traceback" not in result.output


def test_a_broker_that_cannot_be_reached_is_told_in_one_line(broker: Broker, called: Called) -> None:
    """Nothing was published, so there are no figures."""
    broker.unreachable = "nobody is there"
    result = called("--count", "1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "sidecar: can't publish to the queue 'work': nobody is there\n"


@pytest.mark.parametrize("arguments", [("--bad-ratio", "1.1"), ("--size", "0"), ("--count", "-1"), ("--rate", "-1")])
def test_values_beyond_their_limits_are_usage_errors(
    broker: Broker, called: Called, arguments: tuple[str, ...]
) -> None:
    """Before anything is connected."""
    assert called(*arguments).exit_code == 2
    assert broker.copies == []


def test_quiet_says_nothing_on_the_way(broker: Broker, called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise there is a line every few seconds."""
    monkeypatch.setattr(produce, "_LINE_SECONDS", 0.0)
    assert "5 of 5 confirmed" in called("--count", "5").stderr
    assert called("--count", "5", "--quiet").stderr == ""


# The sender ----------------------------------------------------------------------------------------------------------


def sent(
    broker: Broker, count: int, *, rate: float = 0.0, size: int = 300, stop_at: float | None = None
) -> PublishStats:
    """Publish samples in virtual time; return the figures."""
    tally = PublishStats()

    async def sending() -> None:
        stop = asyncio.Event()
        if stop_at is not None:
            asyncio.get_running_loop().call_later(stop_at, stop.set)
        sender = Sender(broker, Route("", "work"), rate=rate, tally=tally)
        await sender.send(islice(iter(Samples(1, size_bytes=size)), count), stop)

    run(sending())
    return tally


@pytest.mark.parametrize("rate", [1.0, 30.0, 90.0, 20_000.0])
def test_a_rate_is_never_exceeded_and_kept(rate: float) -> None:
    """At no moment more were published than the rate and one chunk allow; the last comes at its time."""
    broker = Broker()
    tally = sent(broker, 120 if rate < 1000 else 5000, rate=rate)
    published = 0
    for moment, count in broker.chunks:
        assert moment == pytest.approx(published / rate)
        published += count
    assert (tally.published, tally.confirmed) == (published, published)
    largest = max(count for _, count in broker.chunks)
    assert largest == min(CHUNK_MESSAGES, max(1, int(rate / 20)))


def test_what_is_unconfirmed_has_a_bound() -> None:
    """In messages and in bytes, but a broker that is slow to confirm is still kept busy."""
    slow = Broker()
    slow.confirm_seconds = 1.0
    sent(slow, 3 * WINDOW_CHUNKS * CHUNK_MESSAGES)
    assert slow.max_unconfirmed == WINDOW_CHUNKS * CHUNK_MESSAGES
    large = Broker()
    tally = sent(large, 25, size=CHUNK_BYTES // 3)
    assert Counter(count for _, count in large.chunks) == {4: 6, 1: 1}
    assert tally.body_bytes == 25 * (CHUNK_BYTES // 3)


def test_a_stop_waits_for_all_confirms() -> None:
    """What was published by then is answered; nothing more is published."""
    broker = Broker()
    broker.confirm_seconds = 0.5
    tally = sent(broker, 1000, rate=10.0, stop_at=3.25)
    assert tally.published == tally.confirmed == len(broker.copies) == 33
