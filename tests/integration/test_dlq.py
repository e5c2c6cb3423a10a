"""`sidecar dlq` on real servers: looking wears nothing out, replaying loses nothing, purging asks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import EXIT_CONFIGURATION, cli
from sidecar.errors import ConfigError
from tests.integration.harness import QUORUM
from tests.integration.process import wait_until
from tests.integration.test_copies import BAD_BODY, HEADERS, field, table
from tests.servers import wire
from tests.servers.amqp import Amqp, Outgoing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.integration.harness import Harness
    from tests.servers.amqp import Received

SECONDS = 60.0
KINDS = {
    "limit of 20": {"x-queue-type": "quorum", "x-delivery-limit": 20},
    "the sidecar's own": QUORUM,
    "quorum without a limit": {"x-queue-type": "quorum"},
    "classic": {"x-queue-type": "classic"},
}
LOOKS = {"limit of 20": 100}
FEWER_LOOKS = 25
"""Of the others: still more than a limit bears where nobody has set one, which is 20."""
AT_WORST_TWICE = 200
"""Letters that may be in both places when a replay is killed."""
TOKEN = "sidecar-copy"
MEMORY = ["sidecar-copy", "sidecar-retry-count", "sidecar-exchange", "sidecar-routing-key", "sidecar-received-at"]


def environment(bench: Harness, **settings: str) -> dict[str, str]:
    """Return the process's environment with the test's settings and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    wanted = {"SIDECAR_AMQP_URL": bench.rabbitmq.amqp_url, "SIDECAR_AMQP_QUEUE": bench.queue, **settings}
    return {**inherited, **wanted}


def dlq(bench: Harness, *arguments: str, answer: str | None = None, **settings: str) -> Result:
    """Run the command in this process, which is quicker than another."""
    result = CliRunner().invoke(cli, ["dlq", *arguments], env=environment(bench, **settings), input=answer)
    assert isinstance(result.exception, SystemExit | ConfigError | None), result.output
    assert "Traceback" not in result.output
    return result


def told(bench: Harness, *arguments: str, status: int = 0, **settings: str) -> dict[str, Any]:
    """Run the command and return its JSON."""
    result = dlq(bench, *arguments, "--format", "json", **settings)
    assert result.exit_code == status, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def process(bench: Harness, *arguments: str) -> subprocess.Popen[str]:
    """Start the command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "sidecar", "dlq", *arguments],
        env=environment(bench),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def letter(
    number: int, queue: str, body: bytes | None = None, own: Sequence[tuple[bytes, bytes]] = (), **headers: Any
) -> Outgoing:
    """Return a dead letter as the sidecar publishes it."""
    values = {
        "reason": "rejected", "status": 400, "error_type": "document_parsing_exception", "attempts": 1,
        "failed_at": f"2026-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}.000Z", "queue": queue,
        "action": "index", "exchange": "events", "routing_key": "order.new", "index": "logs", "id": f"m{number}",
        "error_reason": "failed to parse", **headers,
    }  # fmt: skip
    fields = [field("sidecar-copy", str(number))]
    fields += [field(f"sidecar-{name.replace('_', '-')}", value) for name, value in values.items() if value is not None]
    properties = {"message_id": f"m{number}", "delivery_mode": 2, "headers": table([*own, *fields])}
    return Outgoing(b'{"number":%d}' % number if body is None else body, properties=properties)


def bury(bench: Harness, letters: Iterable[Outgoing], arguments: dict[str, Any] | None = None) -> None:
    """Put letters into the test's dead-letter queue."""
    bench.declare()
    bench.amqp.declare_queue(bench.dead, QUORUM if arguments is None else arguments)
    assert bench.amqp.publish(letters, routing_key=bench.dead).nacked == []


def consumers(bench: Harness) -> int:
    """Return how many consumers the dead-letter queue has."""
    state = bench.amqp.queue_state(bench.dead)
    assert state is not None
    return state.consumers


def ids(messages: Iterable[Received]) -> list[str]:
    return [str(message.message_id) for message in messages]


def header_bytes(message: Outgoing) -> bytes:
    """Return the entries of a message's header table."""
    headers = message.properties.get("headers", b"")
    assert isinstance(headers, bytes)
    return headers


def own_headers(message: Received) -> list[tuple[str | bytes, wire.FieldValue]]:
    """Return a message's headers without those by which its first delivery is remembered."""
    memory = {*MEMORY, "sidecar-id", "sidecar-replays"}
    return [entry for entry in wire.table_entries(message.header_bytes) if entry[0] not in memory]


# Looking -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_looks_lose_nothing_and_keep_the_order(bench: Harness, kind: str) -> None:
    """A quorum queue drops what was given back for the 21st time, and 3.10 gives back by nack in any order."""
    count = 300
    sent = [letter(number, bench.queue) for number in range(count)]
    bury(bench, sent, KINDS[kind])
    for look in range(LOOKS.get(kind, FEWER_LOOKS)):
        answer = told(bench, "list")
        assert answer["letters"] == count, look
        assert answer["groups"][0]["example"]["message_id"] == "m0", look
    left = bench.dead_letters()
    assert ids(left) == [f"m{number}" for number in range(count)]
    for before, after in zip(sent, left, strict=True):
        assert after.body == before.body
        # RabbitMQ sorts the headers of what it delivers again; the token is another after a renewal.
        headers = {name: value for name, value in after.headers.items() if name not in {"x-delivery-count", TOKEN}}
        assert headers == {
            name: value for name, value in wire.decode_table(header_bytes(before)).items() if name != TOKEN
        }


def test_showing_one_of_many_keeps_the_order_too(bench: Harness) -> None:
    """Only those before it are taken, with as many again on their way."""
    bury(bench, [letter(number, bench.queue) for number in range(1000)], KINDS["limit of 20"])
    for position in range(1, 1000, 40):
        assert told(bench, "show", str(position))["properties"]["message_id"] == f"m{position - 1}"
    assert ids(bench.dead_letters()) == [f"m{number}" for number in range(1000)]


def test_letters_are_grouped_with_counts_ages_and_an_example(bench: Harness) -> None:
    """By reason, error type and index; the largest group first."""
    letters = [letter(number, bench.queue, index="logs-1") for number in range(5)]
    letters += [letter(number, bench.queue, index="logs-2") for number in range(5, 8)]
    letters += [letter(8, bench.queue, reason="malformed", error_type="", status=0, index="")]
    bury(bench, letters)
    answer = told(bench, "list")
    assert (answer["queue"], answer["letters"]) == (bench.dead, 9)
    assert [(one["count"], one["reason"], one["error_type"], one["index"]) for one in answer["groups"]] == [
        (5, "rejected", "document_parsing_exception", "logs-1"),
        (3, "rejected", "document_parsing_exception", "logs-2"),
        (1, "malformed", "", ""),
    ]
    second = answer["groups"][1]
    assert (second["oldest"], second["newest"]) == ("2026-01-01T00:00:05.000Z", "2026-01-01T00:00:07.000Z")
    assert (second["example"]["message_id"], second["example"]["position"]) == ("m5", 6)
    text = dlq(bench, "list").stdout
    assert "9 dead letters" in text
    assert "2026-01-01 00:00:05" in text


def test_filters_choose_letters(bench: Harness) -> None:
    """Each of them, with patterns; several of one kind add up, several kinds narrow down."""
    letters = [letter(number, bench.queue, index=f"logs-{number % 2}", reason=f"r{number % 3}") for number in range(12)]
    letters.append(letter(12, bench.queue, error_type="other", id="document-7"))
    bury(bench, letters)

    def counted(*choice: str) -> int:
        count: int = told(bench, "list", *choice)["letters"]
        return count

    assert counted("--index", "logs-0") == 6
    assert counted("--reason", "r1", "--reason", "r2") == 8
    assert counted("--reason", "r1", "--index", "logs-1") == 2
    assert counted("--error-type", "o*") == 1
    assert counted("--id", "m1?") == 3
    assert counted("--id", "document-7") == 1
    assert counted("--id", "m") == 0


def test_one_letter_is_shown_whole(bench: Harness) -> None:
    """Properties, headers in their order, and the body: as text, as JSON, or the bytes alone."""
    own = [field("k", "first"), field("k", "second"), field("deep", {"a": [1, None]})]
    bury(bench, [letter(0, bench.queue), letter(1, bench.queue, BAD_BODY, own)])
    answer = told(bench, "show", "2")
    assert answer["properties"] == {"message_id": "m1", "delivery_mode": 2}
    headers = [(header["name"], header["value"]) for header in answer["headers"]]
    assert headers[:3] == [("k", "first"), ("k", "second"), ("deep", {"a": [1, None]})]
    assert ("sidecar-status", 400) in headers
    assert "body_base64" in answer
    assert told(bench, "show", "--id", "m0")["body"] == '{"number":0}'
    assert dlq(bench, "show", "--id", "m1", "--body").stdout_bytes == BAD_BODY
    text = dlq(bench, "show", "2").stdout
    assert "sidecar-error-reason" in text
    assert "Body, 13 bytes" in text
    missing = dlq(bench, "show", "3")
    assert (missing.exit_code, "no letter at position 3" in missing.stderr) == (1, True)


def test_a_look_is_refused_while_another_consumer_takes_letters(bench: Harness) -> None:
    """They would share the letters, and neither would see all."""
    bury(bench, [letter(0, bench.queue)])
    with Amqp(bench.rabbitmq.amqp_url) as other:
        other.consume(bench.dead)
        result = dlq(bench, "list")
    assert result.exit_code == 1
    assert "other consumer" in result.stderr


def test_what_is_wrong_is_told_without_a_password(bench: Harness) -> None:
    """2 for settings and usage, 1 for a broker that isn't there or a queue that doesn't exist."""
    for arguments, settings, status, text in (
        (("list",), {"SIDECAR_AMQP_QUEUE": ""}, 2, "SIDECAR_AMQP_QUEUE is required"),
        (("list",), {"SIDECAR_AMQP_QUEUE": "a,b"}, 2, "choose by --queue one of a.dead, b.dead"),
        (("list",), {"SIDECAR_DEAD_LETTER_EXCHANGE": "x"}, 2, "name the queue by --queue"),
        (("show",), {}, 2, "say which letter"),
        (("list", "--queue", "nobody-knows"), {}, 1, "the queue 'nobody-knows' doesn't exist"),
        (("list",), {"SIDECAR_AMQP_URL": "amqp://guest:secret@127.0.0.1:1/"}, 1, "127.0.0.1:1"),
    ):
        result = dlq(bench, *arguments, **settings)  # type: ignore[arg-type]
        output, code = result.output, result.exit_code
        if isinstance(result.exception, ConfigError):  # told by `main`
            output, code = str(result.exception), EXIT_CONFIGURATION
        assert (code, text in output) == (status, True), output
        assert "secret" not in output


# Replaying -----------------------------------------------------------------------------------------------------------


def test_a_replay_goes_back_to_the_queue_it_came_from(bench: Harness) -> None:
    """Each to its own, in order; what the sidecar added is gone, what remembers the first delivery stays."""
    other = f"{bench.queue}.other"
    bench.amqp.declare_queue(other, QUORUM)
    bury(bench, [letter(number, (bench.queue, other)[number % 2], own=[field("k", number)]) for number in range(10)])
    answer = told(bench, "replay")
    assert (answer["replayed"], answer["queues"]) == (10, {bench.queue: 5, other: 5})
    assert bench.count(bench.dead) == 0
    found = bench.amqp.drain(bench.queue)
    assert ids(found) == ["m0", "m2", "m4", "m6", "m8"]
    assert ids(bench.amqp.drain(other)) == ["m1", "m3", "m5", "m7", "m9"]
    headers = found[1].headers
    assert own_headers(found[1]) == [("k", 2)]
    assert headers["sidecar-replays"] == 1
    assert headers["sidecar-retry-count"] == 0
    assert (headers["sidecar-exchange"], headers["sidecar-routing-key"]) == ("events", "order.new")
    assert (headers["sidecar-received-at"], headers["sidecar-id"]) == ("2026-01-01T00:00:02.000Z", "m2")


def test_limit_filters_and_dry_run(bench: Harness) -> None:
    """What is not meant stays, in its order; a dry run changes nothing at all."""
    bury(bench, [letter(number, bench.queue, reason=f"r{number % 2}") for number in range(20)], KINDS["limit of 20"])
    answer = told(bench, "replay", "--reason", "r1", "--limit", "3", "--dry-run")
    assert (answer["would_replay"], answer["replayed"], answer["queues"]) == (3, 0, {bench.queue: 3})
    assert (bench.count(), bench.count(bench.dead)) == (0, 20)
    answer = told(bench, "replay", "--reason", "r1", "--limit", "3")
    assert answer["replayed"] == 3
    assert ids(bench.amqp.drain(bench.queue)) == ["m1", "m3", "m5"]
    assert ids(bench.dead_letters()) == [f"m{number}" for number in range(20) if number not in {1, 3, 5}]


def test_a_message_that_keeps_coming_back_is_skipped(bench: Harness) -> None:
    """It is counted in the message, across being rejected again: here by a real sidecar, whose index refuses it."""
    bench.es("PUT", f"/{bench.index_name}", {"mappings": {"properties": {"number": {"type": "date"}}}})
    bury(bench, [letter(0, bench.queue, b'{"number":"x"}', [field("k", "v")])])
    sidecar = bench.sidecar(BATCH_MAX_AGE="50ms")
    for times in (1, 2, 3):
        assert told(bench, "replay")["replayed"] == 1
        wait_until(lambda: bench.count(bench.dead) == 1, SECONDS, f"letter {times}", sidecar.told)
    answer = told(bench, "replay")
    assert (answer["replayed"], answer["skipped"][0]["count"]) == (0, 1)
    assert "replayed 3 times" in answer["skipped"][0]["why"]
    assert told(bench, "replay", "--max-replays", "4")["replayed"] == 1
    wait_until(lambda: bench.count(bench.dead) == 1, SECONDS, "the last letter", sidecar.told)
    sidecar.terminate()
    (last,) = bench.dead_letters()
    assert (last.headers["sidecar-replays"], last.headers["k"]) == (4, "v")
    assert (last.headers["sidecar-exchange"], last.headers["sidecar-routing-key"]) == ("events", "order.new")
    names = [name for name, _ in wire.table_entries(last.header_bytes)]
    assert len(names) == len(set(names)), names


def test_what_has_nowhere_to_go_stays_and_fails_the_command(bench: Harness) -> None:
    """A queue that is gone costs the others nothing, though they are on their way together."""
    gone = f"{bench.queue}.gone"
    bury(bench, [letter(number, (bench.queue, gone, "")[number % 3]) for number in range(30)])
    answer = told(bench, "replay", status=1)
    assert answer["replayed"] == 10
    assert [(one["queue"], one["count"]) for one in answer["refused"]] == [(gone, 10)]
    assert "unroutable" in answer["refused"][0]["why"]
    assert [one["count"] for one in answer["skipped"]] == [10]
    assert ids(bench.amqp.drain(bench.queue)) == [f"m{number}" for number in range(0, 30, 3)]
    assert ids(bench.dead_letters()) == [f"m{number}" for number in range(30) if number % 3]


AWKWARD: dict[str, dict[str, Any]] = {
    **{name: {"headers": table(fields)} for name, fields in HEADERS.items()},
    "properties": {
        "content_type": "application/x-\xe9", "content_encoding": b"\xff\xfe", "priority": 9, "correlation_id": "c",
        "reply_to": "elsewhere", "timestamp": 1_700_000_000_123, "type": "t", "app_id": b"a\xff", "delivery_mode": 1,
    },
    "mortal": {"expiration": "600000"},
    "signed": {"user_id": "guest"},
}  # fmt: skip


def test_awkward_messages_come_back_as_they_were(bench: Harness) -> None:
    """Rejected by a real sidecar and replayed: every property, header and byte of the body is that of the original."""
    sent = {
        name: Outgoing(BAD_BODY, properties={"delivery_mode": 2, **values, "message_id": name})
        for name, values in AWKWARD.items()
    }
    bench.declare()
    sidecar = bench.sidecar()
    bench.publish(sent.values())
    wait_until(lambda: bench.count(bench.dead) == len(sent), SECONDS, "the letters", sidecar.told)
    sidecar.terminate()
    answer = told(bench, "replay")
    assert (answer["replayed"], answer["expiring"]) == (len(sent), 1)
    found = {str(one.message_id): one for one in bench.amqp.drain(bench.queue)}
    assert list(found) == list(sent)
    for name, original in sent.items():
        one, properties = found[name], dict(original.properties)
        properties.pop("headers", None)
        expected = header_bytes(original)
        assert one.properties.values == properties, name
        assert one.body == BAD_BODY
        assert one.header_bytes.startswith(expected), name
        assert own_headers(one) == wire.table_entries(expected), name


def test_what_would_lead_astray_stays_aside(bench: Harness) -> None:
    """Another's user_id, CC and the history of dead-lettering: the message arrives once, and where it belongs."""
    elsewhere = f"{bench.queue}.elsewhere"
    bench.amqp.declare_queue(elsewhere, QUORUM)
    death = [{"count": 1, "reason": "expired", "queue": bench.queue, "exchange": "", "routing-keys": [bench.queue]}]
    own = [
        field("sidecar-original-CC", [elsewhere]), field("sidecar-original-x-death", death),
        field("sidecar-original-user_id", "somebody"), field("k", "v"),
    ]  # fmt: skip
    bury(bench, [letter(0, bench.queue, own=own)])
    assert told(bench, "replay")["replayed"] == 1
    (found,) = bench.amqp.drain(bench.queue)
    assert bench.count(elsewhere) == 0
    assert "user_id" not in found.properties.values
    expected = wire.table_entries(table(own))
    assert own_headers(found) == expected


def test_what_rabbitmq_itself_dead_lettered_goes_back_too(bench: Harness) -> None:
    """With ``SIDECAR_ON_REJECT=broker`` no header of ours tells where it came from, but x-death does."""
    arguments = {**QUORUM, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": bench.dead}
    bench.amqp.declare_queue(bench.queue, arguments)
    bench.amqp.declare_queue(bench.dead, QUORUM)
    bench.publish([Outgoing(b"{}", properties={"message_id": "m"})])
    assert bench.amqp.get(bench.queue, ack=False) is not None
    bench.amqp.nack(0, multiple=True, requeue=False)
    wait_until(lambda: bench.count(bench.dead) == 1, SECONDS, "the letter")
    group = told(bench, "list")["groups"][0]
    assert group["reason"] == "rejected"
    assert group["oldest"]
    assert told(bench, "replay")["queues"] == {bench.queue: 1}
    assert ids(bench.amqp.drain(bench.queue)) == ["m"]


def test_templates_resolve_as_at_the_first_delivery(bench: Harness) -> None:
    """Exchange, routing key and time of a replayed message are those of the message that was rejected."""
    index = bench.index_name
    bury(bench, [letter(0, bench.queue, b'{"a":1}')])
    bench.declare()
    sidecar = bench.sidecar(INDEX=f"{index}-{{exchange}}-{{routing_key}}-{{now:%Y.%m.%d}}", BATCH_MAX_AGE="50ms")
    assert told(bench, "replay")["replayed"] == 1
    bench.wait_empty(SECONDS, sidecar)
    assert sidecar.terminate()["ack"] == 1
    assert json.loads(bench.es("GET", f"/{index}-events-order.new-2026.01.01/_doc/m0"))["_source"] == {"a": 1}


@pytest.mark.full
def test_twenty_thousand_letters_are_replayed_by_two_commands_of_which_the_first_is_killed(bench: Harness) -> None:
    """Rejected by a mapping, which is mended then: every one of them is stored in the end, once, and none is left."""
    count = 20_000
    bench.create_index({"number": {"type": "ip"}})
    bench.declare()
    bench.publish(
        Outgoing(b'{"number":"%d"}' % number, properties={"message_id": f"m{number}", "delivery_mode": 2})
        for number in range(1_000_000, 1_000_000 + count)
    )
    sidecar = bench.sidecar(REJECT_GUARD="0")
    wait_until(lambda: bench.count(bench.dead) == count, SECONDS, "the letters", sidecar.told)
    bench.es("DELETE", f"/{bench.index_name}")
    bench.create_index({"number": {"type": "long"}})
    began = time.monotonic()
    first = process(bench, "replay", "--rate", "5000")
    wait_until(lambda: bench.stored() > count // 4, SECONDS, "some of them", sidecar.told)
    first.kill()
    first.communicate()
    wait_until(lambda: consumers(bench) == 0, SECONDS, "RabbitMQ to notice")
    left = bench.count(bench.dead)
    assert 0 < left < count
    second = process(bench, "replay", "--format", "json")
    output, errors = second.communicate(timeout=SECONDS)
    print(f"{left} were left; all replayed in {time.monotonic() - began:.1f} s")
    assert second.returncode == 0, errors
    assert json.loads(output)["replayed"] == left
    bench.wait_empty(SECONDS, sidecar)
    account = sidecar.terminate()
    assert account["dead_letter"] == count
    assert count <= account["ack"] <= count + AT_WORST_TWICE
    assert set(bench.documents()) == {f"m{number}" for number in range(1_000_000, 1_000_000 + count)}
    assert bench.count(bench.dead) == 0


def test_killed_in_the_middle_it_loses_nothing(bench: Harness) -> None:
    """At worst the last ones are in both places, and their ids make one document of them."""
    count = 3000
    bench.create_index()
    bury(bench, [letter(number, bench.queue) for number in range(count)])
    replaying = process(bench, "replay", "--rate", "2000")
    wait_until(lambda: bench.count() > count // 4, SECONDS, "some of them")
    replaying.kill()
    replaying.communicate()
    wait_until(lambda: consumers(bench) == 0, SECONDS, "RabbitMQ to notice")
    left, published = bench.count(bench.dead), bench.count()
    assert 0 < left < count
    assert published < count
    print(f"published and not acked: {left + published - count}")
    assert told(bench, "replay")["replayed"] == left
    sidecar = bench.sidecar(BATCH_MAX_AGE="50ms")
    bench.wait_empty(SECONDS, sidecar)
    assert sidecar.terminate()["ack"] == published + left
    assert set(bench.documents()) == {f"m{number}" for number in range(count)}


def test_a_lost_connection_ends_it_with_the_reason_and_the_count(bench: Harness) -> None:
    """No traceback; what was not acked is there again."""
    count = 2000
    bury(bench, [letter(number, bench.queue) for number in range(count)])
    replaying = process(bench, "replay", "--rate", "100")
    wait_until(lambda: bench.count() > 0, SECONDS, "the first")
    bench.rabbitmq.rabbitmqctl("close_all_connections", "a test")
    output, errors = replaying.communicate(timeout=SECONDS)
    bench.reconnect()
    assert (replaying.returncode, output, "Traceback" in errors) == (1, "", False)
    assert "letters were replayed" in errors
    found = {*ids(bench.amqp.drain(bench.queue)), *ids(bench.dead_letters())}
    assert found == {f"m{number}" for number in range(count)}


def test_stopped_in_the_middle_it_settles_what_it_published(bench: Harness) -> None:
    """On SIGTERM nothing is in both places."""
    count = 2000
    bury(bench, [letter(number, bench.queue) for number in range(count)])
    replaying = process(bench, "replay", "--rate", "500", "--format", "json")
    wait_until(lambda: bench.count() > 0, SECONDS, "the first")
    replaying.terminate()
    output, errors = replaying.communicate(timeout=SECONDS)
    assert (replaying.returncode, "stopped before the end" in errors) == (1, True)
    document = json.loads(output)
    assert document["stopped"]
    moved = ids(bench.amqp.drain(bench.queue))
    assert moved == [f"m{number}" for number in range(document["replayed"])]
    assert ids(bench.dead_letters()) == [f"m{number}" for number in range(document["replayed"], count)]


# Purging -------------------------------------------------------------------------------------------------------------


def test_purging_asks_first(bench: Harness) -> None:
    """With the count; a no removes nothing, and neither does silence."""
    bury(bench, [letter(number, bench.queue) for number in range(7)])
    for answer in ("n\n", ""):
        result = dlq(bench, "purge", answer=answer)
        assert result.exit_code == 1
        assert f"Remove 7 letters from {bench.dead} for good?" in result.stderr
    assert bench.count(bench.dead) == 7
    result = dlq(bench, "purge", answer="y\n")
    assert (result.exit_code, "Removed 7 letters" in result.stdout) == (0, True)
    assert bench.count(bench.dead) == 0


def test_purging_by_a_filter_leaves_the_others_in_their_order(bench: Harness) -> None:
    """With ``--yes`` nobody is asked."""
    letters = [letter(number, bench.queue, reason=f"r{number % 2}") for number in range(100)]
    bury(bench, letters, KINDS["limit of 20"])
    assert told(bench, "purge", "--reason", "r0", "--yes") == {"queue": bench.dead, "purged": 50}
    assert ids(bench.dead_letters()) == [f"m{number}" for number in range(1, 100, 2)]


# Memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_hundred_thousand_letters_are_listed_in_little_memory(bench: Harness) -> None:
    """200 MB of bodies go by; more letters than one consumer may hold are looked at and given back in order."""
    count, size = 100_000, 2000
    program = (
        "import resource, sys; from sidecar.cli import cli; cli(['dlq', *sys.argv[1:]], standalone_mode=False);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )

    def listed() -> tuple[int, int]:
        ended = subprocess.run(
            [sys.executable, "-c", program, "list", "--format", "json"],
            env=environment(bench),
            capture_output=True,
            text=True,
            check=True,
        )
        peak = re.findall(r"^(\d+)$", ended.stderr, re.MULTILINE)[-1]
        return json.loads(ended.stdout)["letters"], int(peak) // 1024

    bury(bench, [])
    none, base_megabytes = listed()
    assert bench.amqp.publish(
        (letter(number, bench.queue, b"x" * size) for number in range(count)), routing_key=bench.dead
    )
    found, peak_megabytes = listed()
    print(f"memory: {base_megabytes} MB without letters, {peak_megabytes} MB with {count:,} of {size} bytes")
    assert (none, found) == (0, count)
    assert peak_megabytes < base_megabytes + 60
    wait_until(lambda: bench.count(bench.dead) == count, SECONDS, "all of them back")
    assert ids(bench.dead_letters()) == [f"m{number}" for number in range(count)]
