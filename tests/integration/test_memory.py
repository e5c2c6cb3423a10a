"""Memory has a bound in bytes, whatever is in the queue and however long Elasticsearch is away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.harness import message
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.harness import Harness
    from tests.servers.amqp import Outgoing

MIB = 1 << 20
BEYOND_IMPORTS_BYTES = 160 * MIB
DEADLINE_SECONDS = 300.0
SETTINGS = {"MEMORY_LIMIT": "64MiB", "BATCH_MAX_AGE": "200ms"}


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def imports_bytes() -> int:
    """Return what the interpreter takes with everything imported that `run` imports, and nothing done."""
    code = "import sidecar.cli.run, sidecar.cli.indexing, uvloop; print(open('/proc/self/status').read())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in told.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def documents(count: int, size: int) -> Iterator[Outgoing]:
    """Yield large documents, each with an id."""
    filling = b"x" * size
    for number in range(count):
        yield message(b'{"n":%d,"text":"%s"}' % (number, filling), f"id-{number}")


def create_plain_index(bench: Harness) -> None:
    """Create an index that keeps documents without looking into them: it is not Elasticsearch that is measured."""
    body = {"settings": {"number_of_replicas": 0}, "mappings": {"enabled": False}}
    bench.es("PUT", f"/{bench.index_name}", body)


@pytest.mark.parametrize("count", [40, pytest.param(128, marks=pytest.mark.full)])
def test_messages_of_8_mib_fit_into_the_bound(bench: Harness, imports_bytes: int, count: int) -> None:
    """Under a limit of 64 MiB, at the default prefetch: what a batch of small messages takes, and no more."""
    bench.anew = True  # what is resident in a fork isn't what is in a process of its own
    create_plain_index(bench)
    bench.declare()
    bench.publish(documents(count, 8 * MIB - 100))
    sidecar = bench.sidecar(**SETTINGS)
    # Not by the queue's counts: those of a busy quorum queue lag behind.
    wait_until(lambda: bench.stored() == count, DEADLINE_SECONDS, "all stored", sidecar.told)
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    peak = peak_bytes(sidecar.process.pid)
    account = sidecar.terminate()
    print(f"{count} messages of 8 MiB: imports {imports_bytes / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB")
    assert peak <= imports_bytes + BEYOND_IMPORTS_BYTES
    assert (account["ack"], bench.stored()) == (count, count)
    assert sidecar.events("amqp.lost") == []


@pytest.mark.parametrize(("count", "seconds"), [(60, 15.0), pytest.param(200, 60.0, marks=pytest.mark.full)])
def test_a_frozen_elasticsearch_costs_neither_memory_nor_the_connection(
    breakable: Harness, imports_bytes: int, count: int, seconds: float, pause: Callable[[float], None]
) -> None:
    """Messages of 4 MB at the default prefetch while nothing is answered, for longer than the broker bears a pause."""
    bench = breakable
    bench.anew = True  # what is resident in a fork isn't what is in a process of its own
    create_plain_index(bench)
    bench.declare()
    sidecar = bench.sidecar(**SETTINGS)
    bench.publish([message(b'{"n":-1}', "first")])
    wait_until(lambda: bench.has_document("first"), DEADLINE_SECONDS, "the first document", sidecar.told)
    bench.elasticsearch.freeze()
    bench.publish(documents(count, 4_000_000))
    sidecar.wait_for("amqp.paused", DEADLINE_SECONDS)
    pause(seconds - 10.0)
    bench.elasticsearch.thaw()
    wait_until(lambda: bench.stored() == count + 1, DEADLINE_SECONDS, "all stored", sidecar.told)
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    peak = peak_bytes(sidecar.process.pid)
    account = sidecar.terminate()
    print(f"{count} messages of 4 MB: imports {imports_bytes / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB")
    assert peak <= imports_bytes + BEYOND_IMPORTS_BYTES
    assert bench.stored() == count + 1
    assert account["dead_letter"] == 0
    assert sidecar.events("amqp.lost") == []


@pytest.fixture
def pause() -> Callable[[float], None]:
    """Return what lets an outage last: time is what it is about, not what it waits for."""
    import time

    return time.sleep
