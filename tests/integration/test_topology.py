"""What the sidecar declares on a real broker, what it leaves as it is, and what it does with several queues."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import QUORUM, message
from tests.integration.process import wait_until
from tests.servers.amqp import ChannelClosedError, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.harness import Harness
    from tests.integration.process import SidecarProcess

pytestmark = pytest.mark.full  # a sidecar for each case

DEADLINE_SECONDS = 60.0
_PRECONDITION_FAILED = 406


def ids(messages: list[Any]) -> set[str]:
    return {str(one.message_id) for one in messages}


def send(bench: Harness, exchange: str, messages: list[Outgoing]) -> set[str]:
    """Publish to an exchange; return the ids of those that it routed nowhere."""
    published = bench.amqp.publish(messages, exchange=exchange)
    assert not published.nacked
    return ids(published.returned)


def wait_stored(bench: Harness, wanted: set[str], sidecar: SidecarProcess) -> None:
    wait_until(lambda: bench.stored() >= len(wanted), DEADLINE_SECONDS, "documents", sidecar.told)
    account = sidecar.terminate()
    assert account["ack"] == account["received"] == len(wanted)
    assert set(bench.documents()) == wanted


ROUTED = [
    # type, binding keys, routing keys that reach the queue, and others that don't
    ("direct", "red,green", ["red", "green"], ["blue", "", "red.green"]),
    (
        "topic",
        "orders.*.eu,audit.#",
        ["orders.new.eu", "audit", "audit.a.b"],
        ["orders.eu", "orders.new.us", "x.audit"],
    ),
    ("fanout", "", ["", "anything", "a.b"], []),
    ("direct", "", ["<queue>"], ["other"]),
]


@pytest.mark.parametrize(("kind", "keys", "reaching", "others"), ROUTED)
def test_an_exchange_is_created_and_bound_by_each_key(
    bench: Harness, kind: str, keys: str, reaching: list[str], others: list[str]
) -> None:
    """What the keys say arrives and is stored; what they don't say reaches no queue. No key: the queue's name."""
    exchange = f"{bench.queue}.x"
    sidecar = bench.sidecar(AMQP_EXCHANGE=exchange, AMQP_EXCHANGE_TYPE=kind, AMQP_ROUTING_KEYS=keys)
    sidecar.wait_for("amqp.connected")
    routing_keys = [key.replace("<queue>", bench.queue) for key in (*reaching, *others)]
    messages = [Outgoing(b"{}", key, properties={"message_id": f"m{at}"}) for at, key in enumerate(routing_keys)]
    unrouted = send(bench, exchange, messages)
    assert unrouted == {f"m{at}" for at in range(len(reaching), len(messages))}
    wait_stored(bench, {f"m{at}" for at in range(len(reaching))}, sidecar)
    bench.amqp.declare_exchange(exchange, kind)  # durable, and of that type: otherwise the broker refuses


@pytest.mark.parametrize(
    ("match", "reaching", "others"),
    [
        ("all", [{"colour": "red", "size": 5}, {"colour": "red", "size": 5, "more": 1}], [{"colour": "red"}, {}]),
        ("any", [{"colour": "red"}, {"size": 5}, {"colour": "blue", "size": 5}], [{"colour": "blue"}, {}]),
    ],
)
def test_a_headers_exchange_is_bound_by_arguments(
    bench: Harness, match: str, reaching: list[dict[str, Any]], others: list[dict[str, Any]]
) -> None:
    """``x-match`` and the headers of SIDECAR_AMQP_BINDING_ARGUMENTS, texts as texts and numbers as numbers."""
    exchange = f"{bench.queue}.x"
    arguments = json.dumps({"x-match": match, "colour": "red", "size": 5})
    sidecar = bench.sidecar(AMQP_EXCHANGE=exchange, AMQP_EXCHANGE_TYPE="headers", AMQP_BINDING_ARGUMENTS=arguments)
    sidecar.wait_for("amqp.connected")
    every = [*reaching, *others]
    messages = [Outgoing(b"{}", "", properties={"message_id": f"m{at}", "headers": h}) for at, h in enumerate(every)]
    assert send(bench, exchange, messages) == {f"m{at}" for at in range(len(reaching), len(every))}
    wait_stored(bench, {f"m{at}" for at in range(len(reaching))}, sidecar)


def test_an_existing_exchange_is_left_as_it_is(bench: Harness) -> None:
    """Of another type or not durable: it is bound to, and nothing fails."""
    exchange = f"{bench.queue}.x"
    bench.amqp.declare_exchange(exchange, "fanout", durable=False)
    sidecar = bench.sidecar(AMQP_EXCHANGE=exchange, AMQP_EXCHANGE_TYPE="topic", AMQP_ROUTING_KEYS="never.used")
    sidecar.wait_for("amqp.connected")
    assert send(bench, exchange, [message(b"{}", "m")]) == set()
    wait_stored(bench, {"m"}, sidecar)
    bench.amqp.declare_exchange(exchange, "fanout", durable=False)


def test_an_exchange_of_a_plug_in(
    make_bench: Callable[[Any, Any], Harness], rabbitmq_factory: Callable[..., Any], elasticsearch: Any
) -> None:
    """Consistent hashing spreads messages over several queues; each is stored once, from whichever it came."""
    bench = make_bench(rabbitmq_factory(plugins=["rabbitmq_consistent_hash_exchange"]), elasticsearch)
    exchange = f"{bench.queue}.x"
    queues = [bench.queue, f"{bench.queue}-2", f"{bench.queue}-3"]
    settings = {
        "AMQP_QUEUE": ",".join(queues), "AMQP_EXCHANGE": exchange, "AMQP_EXCHANGE_TYPE": "x-consistent-hash",
        "AMQP_ROUTING_KEYS": "10",
    }  # fmt: skip
    first = bench.sidecar(**settings)
    first.wait_for("amqp.connected")
    first.terminate()
    messages = [Outgoing(b"{}", f"key-{at}", properties={"message_id": f"m{at}"}) for at in range(900)]
    assert send(bench, exchange, messages) == set()
    shares = [bench.count(queue) for queue in queues]
    assert sum(shares) == len(messages)
    assert min(shares) > 0
    wait_stored(bench, ids_of(messages), bench.sidecar(**settings))


def ids_of(messages: list[Outgoing]) -> set[str]:
    return {str(one.properties["message_id"]) for one in messages}


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({}, QUORUM),
        ({"AMQP_QUEUE_TYPE": "classic"}, {"x-queue-type": "classic"}),
        (
            {"AMQP_QUEUE_ARGUMENTS": '{"x-max-length": 5000, "x-overflow": "reject-publish", "x-delivery-limit": 7}'},
            {**QUORUM, "x-max-length": 5000, "x-overflow": "reject-publish", "x-delivery-limit": 7},
        ),
        (
            {"AMQP_QUEUE_TYPE": "classic", "AMQP_QUEUE_ARGUMENTS": '{"x-max-priority": 5}'},
            {"x-queue-type": "classic", "x-max-priority": 5},
        ),
    ],
)
def test_a_queue_is_created_with_its_arguments(
    bench: Harness, settings: dict[str, str], arguments: dict[str, Any]
) -> None:
    """The work queue as configured; the dead-letter queue is a quorum queue always, without them."""
    sidecar = bench.sidecar(**settings)
    sidecar.wait_for("amqp.connected")
    sidecar.terminate()
    bench.amqp.declare_queue(bench.queue, arguments)  # the broker refuses where anything differs
    bench.amqp.declare_queue(bench.dead, QUORUM)
    with pytest.raises(ChannelClosedError) as refused:
        bench.amqp.declare_queue(bench.queue, {**arguments, "x-expires": 99_000_000})
    assert refused.value.code == _PRECONDITION_FAILED


@pytest.mark.parametrize("arguments", [{}, {"x-max-length": 100}, {**QUORUM, "x-delivery-limit": 3}])
def test_an_existing_queue_is_left_as_it_is(bench: Harness, arguments: dict[str, Any]) -> None:
    """Under ``missing`` its arguments are nobody's business: it is consumed, and so are its dead letters' queue."""
    bench.amqp.declare_queue(bench.queue, arguments)
    bench.amqp.declare_queue(bench.dead, {"x-max-length": 1000})
    bench.publish([message(b"{}", "good"), message(b"[]", "bad")])
    sidecar = bench.sidecar(AMQP_QUEUE_ARGUMENTS='{"x-max-length": 7}')
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert (account["ack"], account["dead_letter"]) == (1, 1)
    bench.amqp.declare_queue(bench.queue, arguments)
    bench.amqp.declare_queue(bench.dead, {"x-max-length": 1000})
    assert ids(bench.dead_letters()) == {"bad"}


def test_never_waits_for_a_missing_queue_and_says_which(bench: Harness) -> None:
    """Nothing is created. Once all is there, it begins by itself: first the queue, then that of its dead letters."""
    sidecar = bench.sidecar(AMQP_DECLARE="never", LOG_LEVEL="debug")
    for missing, arguments in ((bench.queue, QUORUM), (bench.dead, {})):
        wait_until(lambda name=missing: names(sidecar, name), DEADLINE_SECONDS, f"{missing} is missed", sidecar.told)
        assert bench.amqp.queue_state(missing) is None
        assert sidecar.process.poll() is None
        assert sidecar.events("amqp.connected") == []
        bench.amqp.declare_queue(missing, arguments)
    sidecar.wait_for("amqp.connected")
    bench.publish([message(b"{}", "m")])
    wait_stored(bench, {"m"}, sidecar)


def names(sidecar: SidecarProcess, queue: str) -> bool:
    return any(f"'{queue}' doesn't exist" in event["reason"] for event in sidecar.events("amqp.unreachable"))


def test_never_creates_neither_exchange_nor_binding(bench: Harness) -> None:
    """Everything must exist; an exchange is only for binding, which is somebody else's job then."""
    exchange = f"{bench.queue}.x"
    bench.declare()
    bench.amqp.declare_queue(bench.dead, QUORUM)
    bench.amqp.declare_exchange(exchange, "fanout")
    sidecar = bench.sidecar(AMQP_DECLARE="never", AMQP_EXCHANGE=exchange)
    sidecar.wait_for("amqp.connected")
    assert send(bench, exchange, [message(b"{}", "m")]) == {"m"}
    sidecar.terminate()


def test_several_queues_fill_one_batch_and_each_is_settled_on_its_own_channel(bench: Harness) -> None:
    """A batch takes from all of them; tags that are the same in each are acked where they belong."""
    queues = [bench.queue, f"{bench.queue}-2", f"{bench.queue}-3"]
    bench.create_index({"at": {"type": "long"}})
    bad = {queue: {f"{queue}-bad-{at}" for at in range(3 + position)} for position, queue in enumerate(queues)}
    good = set()
    for position, queue in enumerate(queues):
        bench.amqp.declare_queue(queue, QUORUM)
        count = 100 + 50 * position  # 100 + 150 + 200, and 12 bad ones
        messages = [message(b'{"at":%d}' % at, f"{queue}-{at}") for at in range(count)]
        good |= ids_of(messages)
        for at, document_id in enumerate(sorted(bad[queue])):
            messages.insert(7 * at, message(b'{"at":"word"}', document_id))
        assert not bench.amqp.publish(messages, routing_key=queue).returned
    sidecar = bench.sidecar(AMQP_QUEUE=",".join(queues), BATCH_MAX_ITEMS="462", BATCH_MAX_AGE="20s")
    assert sidecar.wait_for("amqp.connected")["queues"] == queues
    wait_until(lambda: not any(map(bench.count, queues)), DEADLINE_SECONDS, "deliveries", sidecar.told)
    wait_until(lambda: not any(map(bench.held, queues)), DEADLINE_SECONDS, "nothing unsettled", sidecar.told)
    account = sidecar.terminate()
    assert account["batches"] == {"count": 1}
    assert (account["ack"], account["dead_letter"]) == (len(good), 12)
    assert set(bench.documents()) == good
    assert sidecar.events("amqp.lost") == []
    for queue in queues:
        letters = bench.amqp.drain(f"{queue}.dead")
        assert ids(letters) == bad[queue]
        assert {letter.headers["sidecar-queue"] for letter in letters} == {queue}


def test_what_is_not_stored_goes_back_to_the_queue_that_it_came_from(bench: Harness) -> None:
    """The drain gives back by channel: the dead letters of one queue have no route, and the other is done."""
    queues = [bench.queue, f"{bench.queue}-2"]
    exchange = f"{bench.queue}.dlx"
    bench.amqp.declare_exchange(exchange)
    for queue in queues:
        bench.amqp.declare_queue(queue, QUORUM)
    bad = [message(b"[]", f"bad-{at}") for at in range(20)]
    good = [message(b"{}", f"good-{at}") for at in range(200)]
    bench.amqp.publish(bad, routing_key=queues[0])
    bench.amqp.publish(good, routing_key=queues[1])
    sidecar = bench.sidecar(AMQP_QUEUE=",".join(queues), DEAD_LETTER_EXCHANGE=exchange, SHUTDOWN_TIMEOUT="10s")
    sidecar.wait_for("dead_letters.held")
    wait_until(lambda: bench.held(queues[1]) == 0, DEADLINE_SECONDS, "the good ones", sidecar.told)
    account = sidecar.terminate()
    assert (account["ack"], account["requeue"]) == (len(good), len(bad))
    wait_until(lambda: bench.count(queues[0]) == len(bad), DEADLINE_SECONDS, "the bad ones are back")
    assert bench.count(queues[1]) == 0
    assert [str(one.message_id) for one in bench.amqp.drain(queues[0])] == [f"bad-{at}" for at in range(20)]
