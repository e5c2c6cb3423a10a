"""What a scrape of ``/metrics`` takes off the throughput: ``python -m bench.scrape``.

At full load the sidecar uses one processor, so what a scrape takes of that is what messages don't get. The server is
the product's own, with the account of a busy sidecar (five queues, all that ever happens); it is asked over HTTP as
Prometheus asks, and the CPU time of its thread is measured. Where a scrape a second takes 1 % or more, the exit status
is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import platform
import statistics
import sys
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from sidecar.core.stats.counters import SETTLED, Counters
from sidecar.observability.http import open_server
from sidecar.observability.metrics import REQUEST_OUTCOMES, TRIGGERS, Metrics
from sidecar.observability.status import StaticInfo, Status
from tests.builders import state

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.stats.snapshot import Snapshot

BOUND_PERCENT = 1.0
SCRAPES = 200
ROUNDS = 7
QUEUES = tuple(f"queue-{number}" for number in range(5))
ACTIONS = ("index", "create", "update", "upsert", "delete")
OUTCOMES = ("success", "noop", "conflict", "failed_client", "failed_server", "too_many", "failure_store")
ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


def busy() -> Counters:
    """Return an account in which everything happened that can."""
    account = Counters()
    for at, queue in enumerate(QUEUES):
        account.received[queue] += 12_345_678 * (at + 1)
        for verdict in SETTLED:
            account.settle(queue, verdict, 1_234_567)
    for action in ACTIONS:
        for outcome in OUTCOMES:
            account.documents[action, outcome] += 7_654_321
    for at, trigger in enumerate(TRIGGERS):
        account.complete(trigger, 10**at % 5_000, 10**at)
    account.requests.update(dict.fromkeys(REQUEST_OUTCOMES, 54_321))
    account.retries.update(throttled=1, failed=2, unanswered=3, delayed=4)
    account.splits.update(too_large=1, refused=2, unanswered=3)
    for histogram in (account.bulk_seconds, account.queue_wait_seconds, account.end_to_end_seconds):
        for at in range(300):
            histogram.observe(0.003 * 1.05**at)
    return account


def at_work(account: Counters) -> Snapshot:
    """Return the state of a sidecar at full load."""
    return state(account, queues=QUEUES, in_flight=5_000, in_flight_bytes=5_000_000, bulk_in_flight=3)


class Serving:
    """The server, in a thread of its own."""

    def __init__(self) -> None:
        self.address: Future[str] = Future()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        account = busy()
        metrics = Metrics(lambda: at_work(account))
        status = Status(lambda: at_work(account), StaticInfo(QUEUES, {}), clock=time.monotonic, wall_clock=time.time)
        _, address = self._loop.run_until_complete(open_server(("127.0.0.1", 0), status, metrics))
        self.address.set_result(address)
        self._loop.run_forever()

    def cpu_seconds(self) -> float:
        """Return the processor time that its thread has taken."""
        answer: Future[float] = Future()
        self._loop.call_soon_threadsafe(lambda: answer.set_result(time.thread_time()))
        return answer.result(10)


def cost(serving: Serving, scrape: Callable[[], int], scrapes: int) -> float:
    """Return the CPU seconds that one scrape takes of the sidecar."""
    before = serving.cpu_seconds()
    for _ in range(scrapes):
        scrape()
    return (serving.cpu_seconds() - before) / scrapes


def main() -> int:
    """Measure and print; return the exit status."""
    options = argparse.ArgumentParser(prog="python -m bench.scrape", description=__doc__)
    options.add_argument("--scrapes", type=int, default=SCRAPES)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--bound", type=float, default=BOUND_PERCENT, help="percent, for a scrape a second")
    chosen = options.parse_args()
    serving = Serving()
    connection = http.client.HTTPConnection(serving.address.result(10), timeout=10)

    def scrape() -> int:
        connection.request("GET", "/metrics", headers={"accept": ACCEPT})
        answer = connection.getresponse()
        size = len(answer.read())
        if answer.status != http.HTTPStatus.OK:
            raise AssertionError(f"the scrape was answered with {answer.status}")
        return size

    size = scrape()
    found = [cost(serving, scrape, chosen.scrapes) for _ in range(chosen.rounds)]
    least, median = min(found), statistics.median(found)
    # A second of one processor is 1000 ms, so so many ms a second are a tenth of so many percent.
    percent = least * 100
    verdict = "within" if percent < chosen.bound else "ABOVE"
    print(f"{platform.python_implementation()} {platform.python_version()} on {platform.machine()}: ", end="")
    print(f"{chosen.rounds} rounds of {chosen.scrapes} scrapes of {size:,} bytes")
    print(f"  a scrape takes {least * 1000:.2f} ms of CPU (least), {median * 1000:.2f} ms (median)")
    print(f"  a scrape a second takes {percent:.2f} % of the throughput at full load: {verdict} {chosen.bound:g} %")
    return int(percent >= chosen.bound)


if __name__ == "__main__":
    sys.exit(main())
