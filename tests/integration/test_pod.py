"""What becomes of the sidecar in a pod, with processes in place of containers; and several replicas that keep order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.integration.harness import message
from tests.integration.http_client import ANY_PORT, Http
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.harness import Harness
    from tests.integration.process import SidecarProcess

SECONDS = 60.0
GRACE_SECONDS = 30.0
"""What is left of a pod's terminationGracePeriodSeconds when its own containers have ended."""
DOCUMENTS, ROUNDS = 20, 50


class PublisherConnection:
    """``sidecar produce`` without an end, as a pod's own container."""

    def __init__(self, bench: Harness, folder: Path) -> None:
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("SIDECAR_")}
        self._output = folder / "producer.log"
        with self._output.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", "produce", "--count", "0", "--rate", "2000"],
                env=inherited | bench.settings(),
                stdout=sink,
                stderr=subprocess.STDOUT,
            )

    def terminate(self) -> int:
        """Send SIGTERM, wait for the end, and return how many messages were confirmed."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(SECONDS) == 0, self._output.read_text()
        return int(self._output.read_text().split("Published ")[1].split(" ")[0].replace(",", ""))


def health(sidecar: SidecarProcess, probe: str) -> int:
    """Return the exit status of ``sidecar health``, run as a health check: in the sidecar's environment."""
    address = sidecar.wait_for("http.listening")["address"]
    command = [sys.executable, "-m", "sidecar", "health", "--probe", probe]
    environment = sidecar.environment | {"SIDECAR_HTTP_ADDRESS": address}
    return subprocess.run(command, env=environment, check=False, capture_output=True, timeout=SECONDS).returncode


def test_a_pods_life(bench: Harness, tmp_path: Path) -> None:
    """The sidecar is there first; the producer publishes to its end; then SIGTERM: nothing is lost, in good time.

    Every message that was confirmed to the producer is a document, or is in the queue again.
    """
    bench.anew = True
    sidecar = bench.sidecar(HTTP_ADDRESS=ANY_PORT, BULK_TIMEOUT="20s")
    assert health(sidecar, "livez") == 0
    sidecar.wait_for("amqp.consuming")
    assert health(sidecar, "readyz") == 0
    producer = PublisherConnection(bench, tmp_path)
    try:
        # In full swing when it ends: messages are in the queue, in a batch, and in flight.
        http = Http(sidecar)
        wait_until(lambda: http.metrics().total("messages_settled_total") >= 2000, SECONDS, "messages", sidecar.told)
        published = producer.terminate()
    finally:
        producer.process.kill()
        producer.process.wait()
    began = time.monotonic()
    account = sidecar.terminate(GRACE_SECONDS)
    print(f"{published} published; drained in {time.monotonic() - began:.2f} s: {account}")
    assert published >= 2000
    assert account["dead_letter"] == 0
    assert bench.stored() + bench.count() == published
    assert health(sidecar, "livez") == 1


def test_replicas_keep_the_order_of_each_document(bench: Harness) -> None:
    """By a consistent-hash exchange, as `deploy/kubernetes/overlays/ordered` does it: each queue has one sidecar.

    A second one on a queue gets nothing as long as the first is there, and goes on from where that ended.
    """
    bench.create_index({"round": {"type": "integer"}})

    def replica(number: int) -> SidecarProcess:
        return bench.sidecar(
            AMQP_QUEUE=f"{bench.queue}.{number}",
            AMQP_EXCHANGE=bench.queue,
            AMQP_EXCHANGE_TYPE="x-consistent-hash",
            AMQP_ROUTING_KEYS="1",
            AMQP_QUEUE_ARGUMENTS='{"x-single-active-consumer":true}',
            HTTP_ADDRESS=ANY_PORT,
            BATCH_MAX_AGE="50ms",  # twenty documents fill no batch: each waits for the round before
        )

    def publish(rounds: range) -> None:
        keys = [f"document-{key}" for key in range(DOCUMENTS)]
        messages = [replace(message(b'{"round":%d}' % at, key), routing_key=key) for at in rounds for key in keys]
        assert not bench.amqp.publish(messages, exchange=bench.queue).returned

    def settled(*sidecars: SidecarProcess) -> list[int]:
        return [int(Http(sidecar).metrics().total("messages_settled_total", verdict="ack")) for sidecar in sidecars]

    first, other = replica(0), replica(1)
    for sidecar in (first, other):  # who comes first is the active one
        sidecar.wait_for("amqp.consuming")
    standby = replica(0)
    half = ROUNDS // 2
    publish(range(half))
    wait_until(lambda: sum(settled(first, other)) == half * DOCUMENTS, SECONDS, "all stored", first.told)
    shares = settled(first, other, standby)
    assert min(shares[:2]) >= half
    assert shares[2] == 0
    assert {hit["_source"]["round"] for hit in bench.hits()} == {half - 1}
    first.terminate()
    publish(range(half, ROUNDS))
    wait_until(
        lambda: sum(settled(standby, other)) == ROUNDS * DOCUMENTS - shares[0], SECONDS, "all stored", standby.told
    )
    hits = bench.hits()
    assert {hit["_source"]["round"] for hit in hits} == {ROUNDS - 1}
    # Each round was applied, once: none was passed over, and so none came too late.
    assert [hit["_version"] for hit in hits] == [ROUNDS] * DOCUMENTS
    for sidecar in bench.sidecars:
        sidecar.kill()
    bench.amqp.delete_exchange(bench.queue)
    for number in (0, 1):
        bench.amqp.delete_queue(f"{bench.queue}.{number}")
        bench.amqp.delete_queue(f"{bench.queue}.{number}.dead")
