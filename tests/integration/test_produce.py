"""`sidecar produce` as a process, against a real RabbitMQ."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import islice
from typing import TYPE_CHECKING

from sidecar.cli.samples import Samples
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from tests.integration.harness import Harness

SECONDS = 60.0


def start(bench: Harness, *options: str, **settings: str) -> subprocess.Popen[str]:
    """Start the command for the test's queue."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    wanted = {"SIDECAR_AMQP_URL": bench.rabbitmq.amqp_url, "SIDECAR_AMQP_QUEUE": bench.queue, **settings}
    return subprocess.Popen(
        [sys.executable, "-m", "sidecar", "produce", *options],
        env={**inherited, **{name: value for name, value in wanted.items() if value}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end; return exit status, standard output and standard error."""
    output, errors = process.communicate(timeout=SECONDS)
    return process.returncode, output, errors


def test_what_is_published_is_what_the_seed_says_byte_for_byte_and_in_order(bench: Harness) -> None:
    """Several chunks are under way at a time, and the queue has them in the order of their making all the same."""
    status, output, errors = ended(start(bench, "--count", "6000", "--bad-ratio", "0.05", "--seed", "11"))
    assert (status, errors) == (0, "")
    assert f"Published 6,000 messages (3.1 MB) to the queue '{bench.queue}', all confirmed" in output
    found = [(message.raw_properties, message.body) for message in bench.amqp.drain(bench.queue)]
    expected = [(sample.properties, sample.body) for sample in islice(Samples(11, bad_ratio=0.05), 6000)]
    assert found == expected


def test_the_queue_is_declared_as_run_does_it(bench: Harness) -> None:
    """Either may come first: neither is refused what the other declared."""
    assert ended(start(bench, "--count", "10", "--quiet"))[0] == 0
    bench.declare()
    assert bench.count() == 10
    assert bench.amqp.queue_state(bench.dead) is not None


def test_an_exchange_is_declared_bound_and_published_to(bench: Harness) -> None:
    """With the options as with the settings of the same meaning."""
    exchange = f"{bench.queue}.x"
    assert ended(start(bench, "--count", "7", "--exchange", exchange, "--routing-key", "new.order"))[0] == 0
    settings = {"SIDECAR_AMQP_EXCHANGE": exchange, "SIDECAR_AMQP_ROUTING_KEYS": "new.order,other"}
    assert ended(start(bench, "--count", "5", **settings))[0] == 0
    assert bench.count() == 12
    found = {(message.exchange, message.routing_key) for message in bench.amqp.drain(bench.queue)}
    assert found == {(exchange, "new.order")}
    bench.amqp.delete_exchange(exchange)


def test_a_route_that_leads_nowhere_is_told_and_fails(bench: Harness) -> None:
    """Nothing counts as confirmed that came back unroutable, although RabbitMQ confirms that as well."""
    bench.declare()
    bench.amqp.declare_queue(bench.dead)
    exchange = f"{bench.queue}.nobody"
    bench.amqp.declare_exchange(exchange, "direct")
    status, output, errors = ended(start(bench, "--exchange", exchange, SIDECAR_AMQP_DECLARE="never"))
    assert status == 1
    assert ", 0 confirmed," in output
    assert "nothing is bound there (unroutable: 312 NO_ROUTE)" in errors
    bench.amqp.delete_exchange(exchange)


def test_a_full_queue_refuses_and_is_told(bench: Harness) -> None:
    """What the broker refused is counted apart, and the exit status says that not all is there."""
    bench.amqp.declare_queue(
        bench.queue, {"x-queue-type": "classic", "x-max-length": 100, "x-overflow": "reject-publish"}
    )
    status, output, _ = ended(start(bench, "--count", "1000", "--quiet"))
    assert status == 1
    assert "RabbitMQ refused" in output
    confirmed = int(output.split(" confirmed")[0].rsplit(" ", 1)[1].replace(",", ""))
    assert confirmed == bench.count() < 1000


def test_a_rate_is_kept(bench: Harness) -> None:
    """Evenly: not all at once and then a pause."""
    process = start(bench, "--count", "300", "--rate", "150")
    wait_until(lambda: bench.count() > 0, SECONDS, "the first message")
    assert bench.count() < 100
    status, output, _ = ended(process)
    assert status == 0
    assert float(output.split(" in ")[1].split(" s: ")[0]) >= 1.9


def test_asked_to_stop_it_waits_for_its_confirms(bench: Harness) -> None:
    """Without a count that is how it ends: successfully, with everything accounted for."""
    for number in (signal.SIGTERM, signal.SIGINT):
        before = bench.count()
        process = start(bench, "--count", "0", "--rate", "500")
        wait_until(lambda before=before: bench.count() > before, SECONDS, "the first message")  # type: ignore[misc]
        process.send_signal(number)
        status, output, _ = ended(process)
        assert status == 0, output
        published = int(output.split("Published ")[1].split(" ")[0].replace(",", ""))
        assert bench.count() - before == published


def test_stopped_before_its_count_it_says_so_and_fails(bench: Harness) -> None:
    """A script that waits for so many messages must not go on."""
    process = start(bench, "--count", "10000", "--rate", "100")
    wait_until(lambda: bench.count() > 0, SECONDS, "the first message")
    process.terminate()
    status, _, errors = ended(process)
    assert status == 1
    assert "stopped before all 10,000 were published" in errors


def test_a_lost_connection_ends_it_with_the_reason(bench: Harness) -> None:
    """What is confirmed until then is told; the exit status is that of a failure."""
    process = start(bench, "--count", "0", "--rate", "500")
    wait_until(lambda: bench.count() > 0, SECONDS, "the first message")
    bench.rabbitmq.rabbitmqctl("close_all_connections", "a test")
    status, output, errors = ended(process)
    bench.reconnect()
    assert status == 1
    assert "Published" in output
    assert "Traceback" not in errors
    assert f"publishing to the queue '{bench.queue}' ended: " in errors


def test_what_is_missing_or_wrong_is_told_without_a_traceback(bench: Harness) -> None:
    """2 for settings and usage, 1 for a broker that isn't there; no password in any of it."""
    status, _, errors = ended(start(bench, SIDECAR_AMQP_QUEUE=""))
    assert (status, errors) == (2, "sidecar: SIDECAR_AMQP_QUEUE is required\n")
    status, _, errors = ended(start(bench, "--routing-key", "a"))
    assert status == 2
    assert "--routing-key needs an exchange" in errors
    status, output, errors = ended(start(bench, SIDECAR_AMQP_URL="amqp://guest:secret@127.0.0.1:1/"))
    assert (status, output) == (1, "")
    assert "can't publish to the queue" in errors
    assert "secret" not in errors
    assert "Traceback" not in errors
