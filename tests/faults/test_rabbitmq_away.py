"""RabbitMQ is killed, restarted and cut off while messages flow: each is a document in the end, and none is buried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.harness import DEADLINE_SECONDS, Stream, numbered
from tests.integration.harness import QUORUM, message
from tests.integration.http_client import ANY_PORT, Http
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from tests.faults.harness import FaultHarness
    from tests.integration.process import SidecarProcess

CLASSIC: dict[str, Any] = {"x-queue-type": "classic"}
TYPES = {"quorum": QUORUM, "classic": CLASSIC}
SIZES = [
    # Queues of both types at once: starting a broker takes longer than all the rest.
    pytest.param(("quorum", "classic"), 10_000, id="short"),
    pytest.param(("quorum",), 100_000, id="long-quorum", marks=pytest.mark.full),
    pytest.param(("classic",), 100_000, id="long-classic", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("types", "count"), SIZES)
def test_rabbitmq_killed_twice_and_cut_off_in_one_run(
    harness: FaultHarness, types: tuple[str, ...], count: int
) -> None:
    """Killed, connections closed, killed again: every confirmed message is one document, and all that came adds up."""
    harness.create_index({"at": {"type": "long"}})
    queues = {f"{harness.queue}-{kind}": TYPES[kind] for kind in types}
    for name, arguments in queues.items():
        harness.amqp.declare_queue(name, arguments)
    harness.reconnect()
    # So many that there is something on its way whatever happens, and all of it is over in a minute.
    stream = Stream(harness.rabbitmq.amqp_url, list(queues), count, round_items=100, pause_seconds=0.1 * 10_000 / count)
    sidecar = harness.sidecar(AMQP_QUEUE=",".join(queues), BATCH_MAX_ITEMS="100", BATCH_MAX_AGE="200ms")
    sidecar.wait_for("amqp.consuming")
    stream.start()
    try:
        faults = [
            ("killed", lambda: harness.rabbitmq.restart(graceful=False)),
            ("closed", lambda: harness.rabbitmq.rabbitmqctl("close_all_connections", "test")),
            ("killed again", lambda: harness.rabbitmq.restart(graceful=False)),
            ("cut", harness.amqp_proxy.drop),
        ]
        for number, (name, fault) in enumerate(faults, start=1):
            goal = number * count // (len(faults) + 1)
            wait_until(lambda goal=goal: stream.confirmed >= goal, DEADLINE_SECONDS, f"messages until {name}")
            fault()
            _wait_for(sidecar, "amqp.consuming", number + 1)
        wait_until(lambda: stream.confirmed == count, DEADLINE_SECONDS, "the whole stream", sidecar.told)
    finally:
        stream.stop()
    for name in queues:
        wait_until(lambda name=name: harness.count(name) == 0, DEADLINE_SECONDS, f"{name} empty", sidecar.told)
        wait_until(lambda name=name: harness.held(name) == 0, DEADLINE_SECONDS, f"{name} settled", sidecar.told)
    account = sidecar.terminate()
    print(f"{len(faults)} faults, {stream.again} rounds published again; {account}")
    assert harness.documents() == {str(at): {"at": at} for at in range(count)}
    assert account["dead_letter"] == 0
    assert all(
        harness.amqp.queue_state(f"{name}.dead") is None or harness.count(f"{name}.dead") == 0 for name in queues
    )
    assert account["ack"] + account["stale"] + account["requeue"] == account["received"] >= count
    assert len(sidecar.events("amqp.lost")) == len(faults)
    assert sidecar.events("elasticsearch.held") == []


def test_rabbitmq_killed_as_soon_as_copies_are_in_queues_that_were_just_created(harness: FaultHarness) -> None:
    """A confirm isn't believed before the queue is safe: RabbitMQ forgets what is in one that is a second old."""
    count = 100
    harness.create_index({"at": {"type": "long"}})
    harness.es("PUT", f"/{harness.index_name}/_settings", {"index.blocks.write": True})
    harness.declare()
    harness.publish([message(b"no json %d" % at, f"bad-{at}") for at in range(count)] + numbered(range(count)))
    sidecar = harness.sidecar(HTTP_ADDRESS=ANY_PORT, BATCH_MAX_AGE="100ms", DELAYED_RETRY_DELAY="3s")
    Http(sidecar).wait_for_all(2 * count, DEADLINE_SECONDS, sidecar)
    harness.rabbitmq.restart(graceful=False)
    harness.reconnect()
    harness.es("PUT", f"/{harness.index_name}/_settings", {"index.blocks.write": None})
    wait_until(lambda: harness.stored() == count, DEADLINE_SECONDS, "what was delayed", sidecar.told)
    account = sidecar.terminate()
    print(account)
    assert {letter.message_id for letter in harness.dead_letters()} == {f"bad-{at}" for at in range(count)}
    assert account["delay"] >= count


def test_a_queue_that_is_not_durable_is_an_error_after_a_restart_of_rabbitmq(harness: FaultHarness) -> None:
    """It was deleted with its messages: the sidecar says so, creates nothing, and continues once it is declared."""
    harness.amqp.declare_queue(harness.queue, CLASSIC, durable=False)
    sidecar = harness.sidecar(HTTP_ADDRESS=ANY_PORT)
    sidecar.wait_for("amqp.consuming")
    harness.rabbitmq.restart()
    harness.reconnect()
    told = sidecar.wait_for("amqp.queue_gone", DEADLINE_SECONDS)
    assert harness.queue in str(told)
    ready = Http(sidecar).get("/readyz")
    assert (ready.status, ready.json["reason"]) == (503, "queue-gone")
    assert harness.amqp.queue_state(harness.queue) is None
    harness.amqp.declare_queue(harness.queue, CLASSIC, durable=False)
    harness.publish(numbered([1]))
    wait_until(lambda: harness.stored() == 1, DEADLINE_SECONDS, "the queue that was declared again", sidecar.told)
    sidecar.terminate()


def _wait_for(sidecar: SidecarProcess, name: str, times: int) -> None:
    wait_until(lambda: len(sidecar.events(name)) >= times, DEADLINE_SECONDS, f"{name} {times} times", sidecar.told)
