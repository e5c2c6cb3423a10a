"""Who declares the queue: the sidecar or its producer (``SIDECAR_AMQP_DECLARE=own``), and what they must agree on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devstack import processes
from tests.integration.harness import message
from tests.integration.http_client import page
from tests.integration.process import wait_until
from tests.servers.amqp import ChannelClosedError

if TYPE_CHECKING:
    from tests.integration.harness import Harness

SECONDS = 60.0
PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"


@pytest.mark.parametrize("arguments", [{}, {"x-queue-type": "quorum"}], ids=["classic", "quorum without a limit"])
def test_with_own_the_producers_declaration_counts(bench: Harness, arguments: dict[str, Any]) -> None:
    """The sidecar comes first, waits and says for what; the producer declares as ever; then messages flow."""
    port = processes.free_port()
    exchange = f"{bench.queue}.x"
    sidecar = bench.sidecar(AMQP_DECLARE="own", AMQP_EXCHANGE=exchange, HTTP_ADDRESS=f"127.0.0.1:{port}")
    expected = f"the queue '{bench.queue}' doesn't exist yet: with SIDECAR_AMQP_DECLARE=own the sidecar waits until "
    assert expected in sidecar.wait_for("amqp.unreachable")["reason"]
    wait_until(lambda: expected in page(port, "/readyz")[1], SECONDS, "a /readyz that says why", sidecar.told)
    assert page(port, "/readyz")[0] == 503
    assert bench.amqp.queue_state(bench.queue) is None
    bench.amqp.declare_queue(bench.queue, arguments)
    bench.publish([message(b'{"n":1}', "good"), message(b"[]", "bad")])
    bench.wait_empty(SECONDS, sidecar)
    account = sidecar.terminate()
    assert (account["ack"], account["dead_letter"]) == (1, 1)
    assert len(bench.dead_letters()) == 1
    bench.amqp.declare_queue(bench.queue, arguments)  # the producer comes again
    with pytest.raises(ChannelClosedError, match="404"):
        bench.amqp.bind(bench.queue, exchange)
    bench.reconnect()


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_what_the_docs_tell_producers_to_declare_is_what_the_sidecar_declares(bench: Harness, kind: str) -> None:
    """For both types, in both languages: RabbitMQ takes it beside what is there."""
    sidecar = bench.sidecar(AMQP_QUEUE_TYPE=kind)
    sidecar.wait_for("amqp.connected")
    sidecar.terminate()
    lines = PAGE.read_text().split("### What producers declare")[1].split("### Besides")[0].splitlines()
    calls = [
        lines[at + 1] for at, line in enumerate(lines) if f"SIDECAR_AMQP_QUEUE_TYPE={kind}" in line and line[0] in "#/"
    ]
    assert len(calls) == 2
    for call in calls:
        found = re.search(r"\{(\"x-[^}]*)\}", call)
        arguments = eval(f"{{{found[1]}}}") if found else {}
        bench.amqp.declare_queue(bench.queue, arguments)
    bench.reconnect()
