"""Every name that RabbitMQ takes works everywhere, on a real broker: nothing about a name ends a process."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import cli
from sidecar.config.settings import join_list
from sidecar.errors import ConfigError
from tests.integration.harness import message
from tests.integration.process import run_sidecar, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.integration.harness import Harness

SECONDS = 60.0
NAMES = ["logs.*", "q1$node", "tasks;high", "a=b", "Aufträge", "a, b", "back\\slash"]
LONGEST = 255


@contextmanager
def removed(bench: Harness, queues: Iterable[str], exchanges: Iterable[str] = ()) -> Iterator[None]:
    """Remove queues and exchanges in the end."""
    try:
        yield
    finally:
        bench.reconnect()
        for queue in queues:
            bench.amqp.delete_queue(queue)
        for exchange in exchanges:
            bench.amqp.delete_exchange(exchange)


def unique(bench: Harness, text: str, size: int = 0) -> str:
    """Return a name with awkward text in it that no other test has, of so many bytes."""
    name = f"{text} {bench.queue}"
    return name + "ä" * ((size - len(name.encode())) // 2) + "x" * ((size - len(name.encode())) % 2)


def run(bench: Harness, *arguments: str, **settings: str) -> Result:
    """Run a command in this process."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("SIDECAR_")}
    result = CliRunner().invoke(cli, [*arguments], env=inherited | bench.settings(**settings))
    assert isinstance(result.exception, SystemExit | ConfigError | None), result.exception
    assert "Traceback" not in result.output
    return result


@pytest.mark.parametrize("text", NAMES)
def test_a_queue_may_have_any_legal_name(bench: Harness, text: str) -> None:
    """Produced to, checked, consumed, dead-lettered, looked at and replayed."""
    name = unique(bench, text)
    settings = {"AMQP_QUEUE": join_list([name]), "ACTION": "{header.action|index}", "ID": "{message_id}"}
    with removed(bench, [name, f"{name}.dead"]):
        produced = run(bench, "produce", "--count", "5", "--quiet", **settings)
        assert produced.exit_code == 0, produced.output
        bench.amqp.publish([message(b"no json", "bad")], routing_key=name)
        checked = run(bench, "check", "--format", "json", **settings)
        assert checked.exit_code == 0, checked.output
        sidecar = bench.sidecar(**settings)
        wait_until(
            lambda: bench.stored() == 5 and bench.count(f"{name}.dead") == 1, SECONDS, "5 documents", sidecar.told
        )
        account = sidecar.terminate()
        assert account["ack"] == 5
        assert account["dead_letter"] == 1
        for named in ([], ["--queue", f"{name}.dead"]):
            listed = run(bench, "dlq", "list", "--format", "json", *named, **settings)
            assert (listed.exit_code, json.loads(listed.stdout)["letters"]) == (0, 1), listed.output
        replayed = run(bench, "dlq", "replay", **settings)
        assert replayed.exit_code == 0, replayed.output
        assert bench.count(name) == 1


def test_exchanges_keys_and_dead_letters_may_have_the_longest_names(bench: Harness) -> None:
    """255 bytes in UTF-8; of the queue 242, for its delay queue's name is longer."""
    queue = unique(bench, "a=b;$*", 242)
    exchange, dead_exchange = (unique(bench, text, LONGEST) for text in ("Börse*", "tot$"))
    key, dead_key, dead = (unique(bench, text, LONGEST) for text in ("k;ey", "dead=key", "dead queue"))
    assert [len(name.encode()) for name in (exchange, dead_exchange, key, dead_key, dead)] == [LONGEST] * 5
    settings = {
        "AMQP_QUEUE": join_list([queue]),
        "AMQP_EXCHANGE": exchange,
        "AMQP_ROUTING_KEYS": join_list([key]),
        "DEAD_LETTER_EXCHANGE": dead_exchange,
        "DEAD_LETTER_ROUTING_KEY": dead_key,
    }
    with removed(bench, [queue, dead], [exchange, dead_exchange]):
        for missing in ("it doesn't exist", "dead-letter exchange"):
            assert missing in run(bench, "check", **settings).stdout
        bench.amqp.declare_exchange(dead_exchange, "direct")
        bench.amqp.declare_queue(dead, {})
        bench.amqp.bind(dead, dead_exchange, dead_key)
        sidecar = bench.sidecar(**settings)
        sidecar.wait_for("amqp.consuming")
        published = bench.amqp.publish(
            [message(b"{}", "good"), message(b"x", "bad")], exchange=exchange, routing_key=key
        )
        assert not published.returned
        wait_until(lambda: bench.stored() == 1 and bench.count(dead) == 1, SECONDS, "a document", sidecar.told)
        assert sidecar.terminate()["dead_letter"] == 1
        checked = run(bench, "check", **settings)
        assert checked.exit_code == 0, checked.output
        assert run(bench, "dlq", "list", "--queue", dead, **settings).exit_code == 0


@pytest.mark.parametrize("command", [["run"], ["check"], ["produce"], ["dlq", "list"]])
@pytest.mark.parametrize(("name", "says"), [("x" * 256, "256 bytes"), ("a\nb", "control character")])
def test_a_name_that_cannot_be_one_is_told(bench: Harness, command: list[str], name: str, says: str) -> None:
    """Exit status 2 and a sentence, from the process itself."""
    environment = {key: text for key, text in os.environ.items() if not key.startswith("SIDECAR_")}
    environment |= bench.settings(AMQP_QUEUE=name)
    done = run_sidecar(*command, environment=environment, seconds=60.0)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_several_queues_none_of_which_exists_may_be_one_name(bench: Harness) -> None:
    """The check says how to write a comma; with the comma escaped it finds the queue."""
    name = f"Shop.OrderCreated, Shop.{bench.queue}"
    with removed(bench, [name]):
        bench.amqp.declare_queue(name, {})
        findings = json.loads(run(bench, "check", "--format", "json", AMQP_QUEUE=name).stdout)["findings"]
        (warning,) = [finding for finding in findings if finding["where"] == "SIDECAR_AMQP_QUEUE"]
        assert (warning["severity"], r"\," in warning["fix"]) == ("warning", True)
        findings = json.loads(run(bench, "check", "--format", "json", AMQP_QUEUE=join_list([name])).stdout)["findings"]
        assert [finding for finding in findings if finding["where"] == "SIDECAR_AMQP_QUEUE"] == []
        assert not [
            finding
            for finding in findings
            if "exist; sidecar run" in finding["what"] and finding["where"] == f"queue {name!r}"
        ]
