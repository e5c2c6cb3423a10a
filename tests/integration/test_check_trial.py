"""`sidecar check` finds out whether what is absent can be created, and opens as much as `sidecar run` does."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_check import check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.harness import Harness


@pytest.fixture
def user(bench: Harness) -> Iterator[str]:
    """A user with all rights, whose limits a test may change."""
    name = f"u{secrets.token_hex(4)}"
    bench.rabbitmq.rabbitmqctl("add_user", name, "pw")
    bench.rabbitmq.rabbitmqctl("set_permissions", name, ".*", ".*", ".*")
    yield name
    bench.rabbitmq.rabbitmqctl("delete_user", name)


def as_user(bench: Harness, user: str) -> str:
    """Return the broker's URL with another login."""
    url: str = bench.rabbitmq.amqp_url
    return url.replace("guest:guest@", f"{user}:pw@")


def leftovers(bench: Harness) -> list[str]:
    """Return queues and exchanges of this test that are there."""
    listed = [
        bench.rabbitmq.rabbitmqctl(f"list_{kind}", "name", "--no-table-headers") for kind in ("queues", "exchanges")
    ]
    return [name for text in listed for name in text.split() if bench.queue in name]


@pytest.mark.parametrize(
    ("arguments", "kind", "word"),
    [
        ({"x-max-priority": 10}, "quorum", "x-max-priority"),
        ({"x-message-ttl": "10s"}, "classic", "x-message-ttl"),
        ({"x-overflow": "drop-all"}, "quorum", "x-overflow"),
        ({"x-max-length": -1}, "classic", "x-max-length"),
    ],
)
def test_a_queue_that_cannot_be_created_is_a_problem(
    bench: Harness, arguments: dict[str, object], kind: str, word: str
) -> None:
    """RabbitMQ is asked, with the very arguments; nothing of it stays."""
    told = check(bench, AMQP_QUEUE_ARGUMENTS=json.dumps(arguments), AMQP_QUEUE_TYPE=kind)
    (finding,) = told.about(f"queue '{bench.queue}'", "problem")
    assert "sidecar run can't create it" in finding["what"]
    assert word in finding["what"].partition("RabbitMQ refuses")[2]
    assert leftovers(bench) == []


@pytest.mark.parametrize("there", [True, False])
def test_arguments_of_a_consumer_that_rabbitmq_refuses_are_a_problem(bench: Harness, *, there: bool) -> None:
    """`sidecar run` would connect again and again; the real queue isn't consumed, and nothing of the trial stays."""
    if there:
        bench.declare()
    told = check(bench, AMQP_CONSUMER_ARGUMENTS='{"x-priority":"high"}')
    (finding,) = told.about(f"queue '{bench.queue}'", "problem")
    assert 'it can\'t be consumed with {"x-priority": "high"}' in finding["what"]
    assert f"for queue '{bench.queue}' in vhost" in finding["what"]
    assert finding["fix"] == "correct SIDECAR_AMQP_CONSUMER_ARGUMENTS"
    assert not check(bench, AMQP_CONSUMER_ARGUMENTS='{"x-priority":10}').about(f"queue '{bench.queue}'", "problem")
    assert leftovers(bench) == ([bench.queue] if there else [])


def test_a_queue_that_can_be_created_is_a_note_that_says_with_what(bench: Harness) -> None:
    """What a producer would have to declare as well, and what else it can do; nothing of the trial stays."""
    told = check(bench, AMQP_QUEUE_ARGUMENTS='{"x-max-length":1000}')
    (finding,) = told.about(f"queue '{bench.queue}'", "note")
    assert '"x-max-length": 1000' in finding["what"]
    assert "406" in finding["what"]
    assert "SIDECAR_AMQP_DECLARE=own" in finding["fix"]
    (finding,) = check(bench, AMQP_DECLARE="own").about(f"queue '{bench.queue}'", "warning")
    assert "waits until its producer declares it" in finding["what"]
    assert leftovers(bench) == []


def test_an_exchange_and_bindings_that_cannot_be_created_are_problems(bench: Harness) -> None:
    """A type that there is not, and arguments of a binding that the type refuses; real exchanges get no binding."""
    exchange = f"{bench.queue}.x"
    (finding,) = check(bench, AMQP_EXCHANGE=exchange, AMQP_EXCHANGE_TYPE="x-unheard-of").about(exchange, "problem")
    assert "can't create it with the type 'x-unheard-of'" in finding["what"]
    bad = {"AMQP_EXCHANGE_TYPE": "headers", "AMQP_BINDING_ARGUMENTS": '{"x-match":"some"}'}
    (finding,) = check(bench, AMQP_EXCHANGE=exchange, **bad).about(exchange, "problem")
    assert "can't be bound to it" in finding["what"]
    assert "x-match" in finding["what"]
    (finding,) = check(bench, AMQP_EXCHANGE="amq.headers", **bad).about("amq.headers", "problem")
    assert "can't be bound to it" in finding["what"]
    sink = {"SINK": "amqp", "INDEX": "", "ID": "", "ELASTICSEARCH_URL": "", "SINK_ROUTING_KEY": "k"}
    told = check(bench, **sink, SINK_EXCHANGE=exchange, SINK_EXCHANGE_TYPE="x-unheard-of")
    assert "can't create it" in told.about("SIDECAR_SINK_EXCHANGE", "problem")[0]["what"]
    assert leftovers(bench) == []


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("AMQP_QUEUE", "queue 'amq.mine'"),
        ("AMQP_EXCHANGE", "exchange 'amq.mine'"),
        ("DEAD_LETTER_ROUTING_KEY", "dead-letter queue 'amq.mine'"),
    ],
)
def test_a_name_that_rabbitmq_reserves_is_a_problem(bench: Harness, setting: str, where: str) -> None:
    """Nobody may create it, and `sidecar run` wouldn't start; no right of the user's is to blame."""
    told = check(bench, **{setting: "amq.mine"})
    (finding,) = told.about(where, "problem")
    assert "reserves names that begin with amq." in finding["what"]
    assert f"set SIDECAR_{setting} to another name" in finding["fix"]
    assert not [one for one in told.findings if "lacks" in one["what"]]


def test_a_dead_letter_queue_that_cannot_be_created_is_a_problem(bench: Harness) -> None:
    """For its arguments are the sidecar's own, that is a limit: here one of queues in the virtual host."""
    vhost = f"v{secrets.token_hex(4)}"
    bench.rabbitmq.rabbitmqctl("add_vhost", vhost)
    try:
        bench.rabbitmq.rabbitmqctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
        bench.rabbitmq.rabbitmqctl("set_vhost_limits", "-p", vhost, '{"max-queues":0}')
        told = check(bench, AMQP_URL=bench.rabbitmq.amqp_url.rstrip("/") + f"/{vhost}")
        problems = told.about("queue '", "problem")
        assert len(problems) == 2
        assert all("limit" in finding["what"] for finding in problems)
    finally:
        bench.rabbitmq.rabbitmqctl("delete_vhost", vhost)


@pytest.mark.parametrize(
    ("limits", "queues"), [('{"max-connections":1}', 1), ('{"max-channels":3}', 2)], ids=["connections", "channels"]
)
def test_limits_that_run_would_meet_are_problems(bench: Harness, user: str, limits: str, queues: int) -> None:
    """As many connections and channels are opened at once as `run` has open; one less than it needs is too few."""
    bench.rabbitmq.rabbitmqctl("set_user_limits", user, limits)
    names = ",".join(f"{bench.queue}{at}" for at in range(queues))
    told = check(bench, AMQP_URL=as_user(bench, user), AMQP_QUEUE=names)
    (finding,) = told.about("sidecar run opens 2 connections", "problem")
    assert "limit" in finding["what"]
    enough = limits.replace("1}", "2}").replace("3}", "4}")
    bench.rabbitmq.rabbitmqctl("set_user_limits", user, enough)
    assert check(bench, AMQP_URL=as_user(bench, user), AMQP_QUEUE=names).about("sidecar run opens") == []


def test_who_may_create_only_the_sidecars_own_queues_can_try_them(bench: Harness, user: str) -> None:
    """With the patterns of docs/deployment.md; a user who may not try gets a note, and no problem."""
    pattern = f"^{bench.queue}(\\.dead|\\.delay\\.[0-9]+)?$"
    bench.rabbitmq.rabbitmqctl("set_permissions", user, pattern, "^amq\\.default$", pattern)
    told = check(bench, AMQP_URL=as_user(bench, user), AMQP_QUEUE_ARGUMENTS='{"x-max-priority":10}')
    assert "can't create it" in told.about(f"queue '{bench.queue}'", "problem")[0]["what"]
    pattern = f"^{bench.queue}(\\.dead)?$"
    bench.rabbitmq.rabbitmqctl("set_permissions", user, pattern, "^amq\\.default$", pattern)
    told = check(bench, AMQP_URL=as_user(bench, user))
    assert told.about("is unknown", "note")[0]["where"] == f"queue '{bench.queue}'"


def test_old_bindings_are_told_since_they_cannot_be_seen(bench: Harness) -> None:
    """Whoever changed SIDECAR_AMQP_ROUTING_KEYS learns how to see and remove them."""
    told = check(bench, AMQP_EXCHANGE="amq.topic", AMQP_EXCHANGE_TYPE="topic", AMQP_ROUTING_KEYS="new.#")
    (finding,) = told.about("bindings of earlier SIDECAR_AMQP_ROUTING_KEYS stay", "note")
    assert "rabbitmqctl list_bindings" in finding["fix"]
