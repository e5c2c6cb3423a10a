"""Every public name of the library does what it says, and nothing that another one says: values are all unlike."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import zlib
from typing import TYPE_CHECKING, Any

import pytest

import sidecar
from sidecar import (
    ACK,
    DEAD_LETTER,
    DELAY,
    DISCARD,
    REQUEUE,
    BatchConsumer,
    Consumer,
    ConsumerSettings,
    Message,
    Options,
    Outgoing,
    Publisher,
    Verdict,
    consume,
    dumps,
)
from sidecar import library as home
from sidecar.config.broker import connecting
from sidecar.core.stats.counters import Counters
from sidecar.errors import BrokerError, ConfigError
from sidecar.library.publishing import PublisherOptions, PublisherSettings
from sidecar.library.settings import load_settings
from tests.builders import ledger, long_string, message, properties, short_string
from tests.fakes import network
from tests.fakes.amqp_server import AmqpServer, each, withheld

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROPERTIES: dict[str, Any] = {
    "content_type": b"application/json",
    "content_encoding": b"identity",
    "correlation_id": b"correlated",
    "reply_to": b"answers",
    "message_id": b"id-1",
    "type": b"order",
    "app_id": b"shop",
    "priority": 3,
    "timestamp": 1_700_000_001,
}


class Nothing(BatchConsumer):
    """Acks."""

    async def process(self, batch: list[Message]) -> Verdict:
        assert batch
        return ACK


class Single(Consumer):
    """Acks."""

    async def process(self, message: Message) -> Verdict:
        assert message
        return ACK


def shown(body: bytes = b"{}", raw: bytes = b"\0\0", **delivery: Any) -> Message:
    """Return a message as code sees it."""
    max_bytes = delivery.pop("max_bytes", 1_000)
    one = message(
        7, of=ledger("orders", delivered=7), body=body, raw=raw, route=short_string(b"shop") + short_string(b"new")
    )
    for name, value in delivery.items():
        setattr(one, name, value)
    return Message(one, max_bytes)


# Names ---------------------------------------------------------------------------------------------------------------


def test_every_public_name_is_that_of_the_library() -> None:
    """By either import the same object."""
    for name in home.__all__:
        assert getattr(sidecar, name) is getattr(home, name)
    assert set(sidecar.__all__) == {*home.__all__, "__version__"}


# Messages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROPERTIES)
def test_each_property_is_shown_by_its_own_name(name: str) -> None:
    """With all of them set, and None with all others set."""
    expected = PROPERTIES[name].decode() if isinstance(PROPERTIES[name], bytes) else PROPERTIES[name]
    assert getattr(shown(raw=properties(**PROPERTIES)), name) == expected
    others = {other: value for other, value in PROPERTIES.items() if other != name}
    assert getattr(shown(raw=properties(**others)), name) is None


def test_a_message_shows_where_it_came_from() -> None:
    """The queue, and exchange and routing key of its first delivery, also when it comes back from the delay queue."""
    first = shown()
    assert (first.queue, first.exchange, first.routing_key, first.rounds) == ("orders", "shop", "new", 0)
    again = shown(
        raw=properties(
            [
                (b"sidecar-retry-count", b"I\0\0\0\2"),
                (b"sidecar-received-at", long_string(b"2024-01-01T00:00:00.000Z")),
                (b"sidecar-exchange", long_string(b"first-exchange")),
                (b"sidecar-routing-key", long_string(b"first-key")),
            ]
        )
    )
    assert (again.queue, again.exchange, again.routing_key) == ("orders", "first-exchange", "first-key")
    assert again.rounds == 2


@pytest.mark.parametrize("redelivered", [0, 1])
def test_a_message_shows_whether_it_was_delivered_before(redelivered: int) -> None:
    """As the broker says: its work may be done."""
    assert shown(redelivered=redelivered).redelivered is bool(redelivered)


def test_headers_are_decoded_and_the_last_of_a_name_counts() -> None:
    """Texts, numbers, and bytes that are no text; without headers there are none."""
    raw = properties([
        (b"a", long_string(b"one")), (b"n", b"I\xff\xff\xff\xfe"), (b"t", b"t\1"), (b"b", long_string(b"\xff")),
        (b"a", long_string(b"two")),
    ])  # fmt: skip
    assert shown(raw=raw).headers == {"a": "two", "n": -2, "t": True, "b": b"\xff"}
    assert shown().headers == {}
    assert shown(raw=raw).raw_properties == raw


@pytest.mark.parametrize(("encoding", "encode"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_the_body_as_it_came_and_its_content(encoding: bytes, encode: Callable[[bytes], bytes]) -> None:
    """`body` is never touched, `content()` is decompressed, `json()` is parsed; each up to the limit."""
    content = b'{"n": 1.50, "text": "\xc3\xbc"}'
    one = shown(encode(content), properties(content_encoding=encoding))
    assert (one.body, one.content()) == (encode(content), content)
    assert one.json() == {"n": 1.5, "text": "ü"}
    assert dumps(one.json()) == '{"n":1.50,"text":"ü"}'.encode()
    small = shown(encode(content), properties(content_encoding=encoding), max_bytes=len(content) - 1)
    with pytest.raises(ValueError, match="above"):
        small.content()
    assert shown(encode(content), properties(content_encoding=encoding), max_bytes=len(content)).content() == content


def test_a_body_that_can_not_be_read_is_told_without_quoting_it() -> None:
    """It is a `ValueError`, which a function may catch as such."""
    for one in (shown(b"secret"), shown(b"secret", properties(content_encoding=b"gzip"))):
        with pytest.raises(ValueError, match=r".") as caught:
            one.json()
        assert "secret" not in str(caught.value)
    assert repr(shown(b"secret")) == "<Message orders#7, 6 bytes>"


# Verdicts ------------------------------------------------------------------------------------------------------------


def test_verdicts_are_five_and_all_unlike() -> None:
    """Each of its own kind, without reasons and without a delay."""
    verdicts = {"ack": ACK, "dead-letter": DEAD_LETTER, "delay": DELAY, "requeue": REQUEUE, "discard": DISCARD}
    for kind, verdict in verdicts.items():
        assert (verdict.kind, verdict.reason, verdict.detail, verdict.seconds) == (kind, "", "", None)
        assert verdict == Verdict(kind)  # type: ignore[arg-type] # one of them
        told = verdict.because("why", "how")
        assert (told.kind, told.reason, told.detail) == (kind, "why", "how")
        assert verdict.because("why").detail == ""
    assert len(set(verdicts.values())) == 5


def test_a_delay_and_its_reason_keep_each_other() -> None:
    """In either order; the limits are valid themselves."""
    assert DELAY.after(2.5).because("a", "b") == DELAY.because("a", "b").after(2.5)
    assert DELAY.because("a", "b").after(2.5) == Verdict("delay", "a", "b", 2.5)
    assert (DELAY.after(0.001).seconds, DELAY.after(300.0).seconds) == (0.001, 300.0)
    for wrong in (0.0009, 300.1):
        with pytest.raises(ValueError, match="not valid"):
            DELAY.after(wrong)


# Settings ------------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[Any, str, Any]] = {
    "amqp_url": ("amqp://a:b@one/,amqp://two/", "amqp://a:b@one/,amqp://two/", ("amqp://a:b@one/", "amqp://two/")),
    "amqp_queue": (["q1", "q2"], "q1,q2", ("q1", "q2")),
    "amqp_declare": ("own", "own", (True, False)),
    "amqp_queue_type": ("classic", "classic", "classic"),
    "amqp_queue_arguments": ({"x-max-length": 9}, '{"x-max-length": 9}', {"x-max-length": 9}),
    "amqp_consumer_arguments": ({"x-priority": 4}, '{"x-priority": 4}', {"x-priority": 4}),
    "amqp_exchange": ("ex", "ex", "ex"),
    "amqp_exchange_type": ("topic", "topic", "topic"),
    "amqp_routing_keys": (["k1", "k2"], "k1,k2", ("k1", "k2")),
    "amqp_binding_arguments": ({"x-match": "any"}, '{"x-match": "any"}', {"x-match": "any"}),
    "amqp_prefetch": (777, "777", 777),
    "dead_letter_exchange": ("dead-ex", "dead-ex", "dead-ex"),
    "dead_letter_routing_key": ("dead-key", "dead-key", "dead-key"),
    "workers": (6, "6", 6),
    "batch_max_items": (31, "31", 31),
    "batch_max_bytes": (32_000, "32000", 32_000),
    "batch_max_age": ("330ms", "330ms", 0.33),
    "batch_key": ("{header.k}", "{header.k}", "{header.k}"),
    "batch_flush_when": ("{header.f|}", "{header.f|}", "{header.f|}"),
    "batch_complete_count": ("{header.c|}", "{header.c|}", "{header.c|}"),
    "memory_limit": ("35MiB", "35MiB", 35 << 20),
    "on_exception": (REQUEUE, "requeue", "requeue"),
    "on_missing_verdict": (DISCARD, "discard", "discard"),
    "on_reject": ("broker", "broker", "broker"),
    "reject_guard": (36, "36", 36),
    "delayed_retry_max_rounds": (37, "37", 37),
    "delayed_retry_delay": (38.5, "38.5", 38.5),
    "retry_delay_min": (0.39, "390ms", 0.39),
    "retry_delay_max": (40.5, "40.5s", 40.5),
    "shutdown_timeout": (41.5, "41.5", 41.5),
}
"""Each option: its value in code, its text in the environment, and what the consumer works with then."""
FILES = {"amqp_ca_file", "amqp_cert_file", "amqp_key_file"}


def effects(consumer: Any) -> dict[str, Any]:
    """Return what a consumer works with, by the name of the option that says it."""
    settings, plan, link = consumer.settings, consumer._config(), connecting(consumer.settings)
    topology, encoder_config = link.topology, plan.encoder_config
    return {
        "amqp_url": consumer._connect().args[0],
        "amqp_queue": topology.queues,
        "amqp_declare": (topology.declare, topology.declares_work),
        "amqp_queue_type": topology.queue_type,
        "amqp_queue_arguments": topology.queue_arguments,
        "amqp_consumer_arguments": link.consumer_arguments,
        "amqp_exchange": topology.exchange,
        "amqp_exchange_type": topology.exchange_type,
        "amqp_routing_keys": topology.routing_keys,
        "amqp_binding_arguments": topology.binding_arguments,
        "amqp_prefetch": plan.prefetch,
        "dead_letter_exchange": (topology.dead_letter_exchange, plan.dead_letter_exchange),
        "dead_letter_routing_key": (topology.dead_letter_routing_key, plan.dead_letter_routing_key),
        "workers": plan.bulk_concurrency,
        "batch_max_items": plan.batch_max_items,
        "batch_max_bytes": plan.batch_max_bytes,
        "batch_max_age": plan.batch_max_age_seconds,
        "batch_key": encoder_config.batch_key and encoder_config.batch_key.text,
        "batch_flush_when": encoder_config.batch_flush_when and encoder_config.batch_flush_when.text,
        "batch_complete_count": encoder_config.batch_complete_count and encoder_config.batch_complete_count.text,
        "memory_limit": (plan.memory_limit_bytes, encoder_config.max_bytes),
        "on_exception": settings.on_exception,
        "on_missing_verdict": settings.on_missing_verdict,
        "on_reject": plan.on_reject,
        "reject_guard": plan.reject_guard,
        "delayed_retry_max_rounds": plan.delayed_retry_max_rounds,
        "delayed_retry_delay": plan.delayed_retry_delay_seconds,
        "retry_delay_min": plan.retry_delay_min_seconds,
        "retry_delay_max": plan.retry_delay_max_seconds,
        "shutdown_timeout": settings.shutdown_timeout,
    }


def expected() -> dict[str, Any]:
    """Return what a consumer with all options works with."""
    twice = {"dead_letter_exchange", "dead_letter_routing_key", "memory_limit"}
    return {name: (value, value) if name in twice else value for name, (_, _, value) in OPTIONS.items()}


def test_every_option_in_code_has_its_own_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, with values that are all unlike; and the environment is not read without a prefix."""
    for name, (_, text, _) in OPTIONS.items():
        monkeypatch.setenv(f"SIDECAR_{name.upper()}", f"{text}9" if text.isdecimal() else text)
    assert effects(Nothing(**{name: value for name, (value, _, _) in OPTIONS.items()})) == expected()
    assert OPTIONS.keys() | FILES == set(Options.__annotations__)


def test_every_option_in_the_environment_has_its_own_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the prefix and the name in capitals."""
    for name, (_, text, _) in OPTIONS.items():
        monkeypatch.setenv(f"SHOP_{name.upper()}", text)
    assert effects(Nothing(prefix="SHOP_")) == expected()


def test_the_defaults_are_the_documented_ones() -> None:
    """Those of a consumer that is only told its queue."""
    assert effects(Nothing(amqp_queue="work")) == {
        "amqp_url": ("amqp://guest:guest@localhost:5672/",),
        "amqp_queue": ("work",),
        "amqp_declare": (True, True),
        "amqp_queue_type": "quorum",
        "amqp_queue_arguments": {},
        "amqp_consumer_arguments": {},
        "amqp_exchange": None,
        "amqp_exchange_type": "direct",
        "amqp_routing_keys": (),
        "amqp_binding_arguments": {},
        "amqp_prefetch": 3000,
        "dead_letter_exchange": ("", ""),
        "dead_letter_routing_key": (None, None),
        "workers": 1,
        "batch_max_items": 1000,
        "batch_max_bytes": 5 << 20,
        "batch_max_age": 1.0,
        "batch_key": None,
        "batch_flush_when": None,
        "batch_complete_count": None,
        "memory_limit": (64 << 20, 64 << 20),
        "on_exception": "delay",
        "on_missing_verdict": "delay",
        "on_reject": "dead-letter",
        "reject_guard": 1000,
        "delayed_retry_max_rounds": 3,
        "delayed_retry_delay": 10.0,
        "retry_delay_min": 0.5,
        "retry_delay_max": 30.0,
        "shutdown_timeout": 25.0,
    }
    assert Nothing(amqp_queue="work")._config().merges_batches is False


def test_the_prefetch_is_derived_up_to_what_the_protocol_takes() -> None:
    """Room for all batches in work, the next one, and one that waits for its acks."""
    assert Nothing(amqp_queue="work", batch_max_items=10, workers=5).settings.prefetch == 70
    assert Nothing(amqp_queue="work", batch_max_items=60_000).settings.prefetch == 65_535
    assert Single(amqp_queue="work", workers=4).settings.prefetch == 6
    for wrong, told in (({"amqp_prefetch": 65_536}, "at most 65535"), ({"amqp_prefetch": 999}, "can't fill a batch")):
        with pytest.raises(ConfigError, match=told):
            Nothing(amqp_queue="work", **wrong)  # type: ignore[arg-type]
    assert Nothing(amqp_queue="work", amqp_prefetch=1000).settings.prefetch == 1000


@pytest.mark.parametrize("name", ["on_exception", "on_missing_verdict"])
def test_a_default_verdict_is_never_an_ack(name: str) -> None:
    """What has no verdict must not be gone."""
    with pytest.raises(ConfigError, match=name):
        Nothing(amqp_queue="work", **{name: ACK})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_is_not_there_is_told(name: str, tmp_path: Path) -> None:
    """Each by its own name, for consumers and publishers."""
    path = str(tmp_path / "nowhere.pem")
    for make in (lambda: Nothing(amqp_queue="work", **{name: path})._connect(), lambda: Publisher(**{name: path})):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"(?i)file"):
            make()


def test_a_publisher_is_told_by_code_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same names; it needs no queue, and has no prefetch and no dead letters."""
    named = {name: OPTIONS[name] for name in PublisherOptions.__annotations__ if name in OPTIONS}
    by_code = Publisher(**{name: value for name, (value, _, _) in named.items()})  # type: ignore[arg-type]
    for name, (_, text, _) in named.items():
        monkeypatch.setenv(f"SHOP_{name.upper()}", text)
    by_environment = Publisher(prefix="SHOP_")
    assert by_code.settings == by_environment.settings
    topology = by_code._outlet._topology
    assert (topology.queues, topology.exchange, topology.exchange_type) == (("q1", "q2"), "ex", "topic")
    assert (topology.routing_keys, topology.binding_arguments) == (("k1", "k2"), {"x-match": "any"})
    assert (topology.queue_type, topology.queue_arguments) == ("classic", {"x-max-length": 9})
    assert by_code._outlet._urls == ("amqp://a:b@one/", "amqp://two/")
    assert Publisher().settings == load_settings(PublisherSettings, None, {})
    assert set(PublisherOptions.__annotations__) <= set(ConsumerSettings.model_fields)


# Publishing ----------------------------------------------------------------------------------------------------------


def test_an_outgoing_message_has_what_it_is_given() -> None:
    """Each property in its place, as bytes made by hand; it is always persistent."""
    short = {name: value for name, value in PROPERTIES.items() if isinstance(value, bytes)}
    outgoing = Outgoing(
        body=b"body", exchange="ex", routing_key="key", timestamp=1_700_000_001, headers={"a": "ü", "n": -7, "t": True},
        **{name: value.decode() for name, value in short.items()},
    )  # fmt: skip
    copy = outgoing.copy()
    assert (copy.exchange, copy.routing_key, copy.body, copy.delay) == (b"ex", b"key", b"body", None)
    decoded = shown(raw=copy.properties)
    assert {name: getattr(decoded, name) for name in (*short, "timestamp")} == {
        **{name: value.decode() for name, value in short.items()},
        "timestamp": 1_700_000_001,
    }
    assert decoded.headers == {"a": "ü", "n": -7, "t": True}
    assert decoded.headers["t"] is True  # which equals 1
    assert decoded.priority is None
    for name, value in short.items():
        alone = Outgoing(body=b"", **{name: value.decode()}).copy()
        assert alone.properties == properties(delivery_mode=2, **{name: value})
    assert Outgoing(body=b"").copy().properties == properties(delivery_mode=2)
    assert Outgoing(body=b"", timestamp=5).copy().properties == properties(delivery_mode=2, timestamp=5)


def test_an_outgoing_message_like_another_has_its_properties_byte_by_byte() -> None:
    """And those that were given are left out; route and body are its own."""
    raw = properties([(b"h", b"V")], message_id=b"theirs", delivery_mode=1)
    copy = Outgoing(body=b"mine", routing_key="key", message_id="mine", like=shown(b"theirs", raw)).copy()
    assert (copy.properties, copy.body, copy.routing_key) == (raw, b"mine", b"key")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        *[({name: "x" * 256}, f"{name} has 256 bytes") for name in ("exchange", "routing_key", "message_id", "app_id")],
        ({"type": "ü" * 128}, "type has 256 bytes"),
        ({"headers": {"x" * 256: 1}}, "a header's name has 256 bytes"),
        ({"timestamp": 1.5}, "whole number"),
        ({"timestamp": -1}, "whole number"),
        ({"timestamp": 1 << 64}, "whole number"),
    ],
)
def test_what_does_not_fit_into_a_property_is_refused(wrong: dict[str, Any], told: str) -> None:
    """Where it is made, before anything is sent; 255 bytes fit."""
    with pytest.raises(ValueError, match=told):
        Outgoing(body=b"", **wrong).copy()
    assert Outgoing(body=b"", routing_key="x" * 255, type="x" * 255).copy().routing_key == b"x" * 255
    assert short_string(b"x" * 255) in Outgoing(body=b"", type="x" * 255).copy().properties


def test_publishing_is_confirmed_message_by_message() -> None:
    """What the broker refuses is told in its place, declared is what was named, and the end closes the connection."""

    async def main() -> None:
        async with AmqpServer() as server:
            full = server.declare("full")
            full.full = True
            publisher = Publisher(amqp_url=server.url, amqp_exchange="ex", amqp_queue="work", amqp_routing_keys=["key"])
            assert not server.connections
            async with publisher as entered:
                assert entered is publisher
                assert len(server.connections) == 1
                sent = [
                    Outgoing(body=b"0", exchange="ex", routing_key="key"),
                    Outgoing(body=b"1", routing_key="full"),
                    Outgoing(body=b"2", routing_key="work"),
                ]
                refusals = await publisher.publish(sent)
                assert [refusal is None for refusal in refusals] == [True, False, True]
                assert "basic.nack" in str(refusals[1])
                (refusal,) = await publisher.publish([Outgoing(body=b"", routing_key="nowhere")])
                assert "NO_ROUTE" in str(refusal)
                assert [one.body for one in server.queues["work"].ready] == [b"0", b"2"]
                assert all(one.mandatory for one in server.published)
                server.confirms = withheld
                before = len(server.published)
                lost = asyncio.create_task(publisher.publish(sent[:1]))
                await server.until(lambda: len(server.published) > before)
                server.kill()
                with pytest.raises(BrokerError):
                    await lost
                server.confirms = each
                assert await publisher.publish(sent[2:]) == [None]
            assert len(server.methods("connection.close")) == 1

    network.run(main())


# A whole life on a server --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_next_one_is_the_usual_one(number: signal.Signals) -> None:
    """`consume` finishes what is in work and returns; nothing of its handlers of signals stays behind."""
    before = signal.getsignal(number)
    handled: list[object] = []
    done: list[bytes] = []

    async def process(batch: list[Message]) -> Verdict:
        os.kill(os.getpid(), number)
        while signal.getsignal(number) is not before and asyncio.get_running_loop()._signal_handlers:  # type: ignore[attr-defined] # noqa: ASYNC110
            await asyncio.sleep(0.001)
        handled.append(dict(asyncio.get_running_loop()._signal_handlers))  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)
        done.extend(message.body for message in batch)
        return ACK

    async def main() -> None:
        async with AmqpServer() as server:
            server.declare("work")
            server.declare("work.dead")
            server.publish("work", b"0")
            await asyncio.wait_for(consume(process, amqp_url=server.url, amqp_queue="work", batch_max_items=1), 10.0)
            assert [one.body for one in server.acked] == [b"0"]
            assert not server.queues["work"].ready

    asyncio.run(main())
    assert (done, handled) == ([b"0"], [{}])


def test_counts_are_those_of_the_run() -> None:
    """By the names of the verdicts; received is the sum of all others."""
    assert set(Counters().summary()) == {
        "received", "ack", "delay", "requeue", "dead_letter", "discard", "stale", "in_flight",
    }  # fmt: skip
    assert Nothing(amqp_queue="work").counts() == {}
