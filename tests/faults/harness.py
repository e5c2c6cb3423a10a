"""Where a fault happens: a bench behind proxies, a stream of numbered messages, and the judge of all these tests."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.integration.harness import Harness, message
from tests.integration.process import wait_until
from tests.servers.amqp import Amqp, AmqpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.faults.proxy import Proxy
    from tests.integration.process import SidecarProcess
    from tests.servers.amqp import Outgoing

DEADLINE_SECONDS = 180.0
OUTAGE_REQUESTS = 15
"""Fewer than these in an outage."""
RECOVERY_SECONDS = 15.0
"""After so long it works at full speed again."""
FULL_SPEED_SHARE = 0.5
"""Of the rate before the outage: beside other processes no rate is steady."""
_WINDOW_SECONDS = 1.0
_SAMPLE_SECONDS = 0.05
_CONFIRM_SECONDS = 5.0
_AGAIN_SECONDS = 0.2


def numbered(numbers: Iterable[int]) -> list[Outgoing]:
    """Return messages whose number is their id and their content."""
    return [message(b'{"at":%d}' % at, str(at)) for at in numbers]


class FaultHarness(Harness):
    """A bench whose sidecars reach both servers through proxies.

    Args:
        http: before Elasticsearch.
        amqp: before RabbitMQ.
    """

    def __init__(self, rabbitmq: Any, elasticsearch: Any, name: str, folder: Path, *, http: Proxy, amqp: Proxy) -> None:
        super().__init__(rabbitmq, elasticsearch, name, folder)
        self.http = http
        self.amqp_proxy = amqp
        self.published = 0

    def settings(self, **settings: str) -> dict[str, str]:
        """Return the environment of a sidecar that knows nothing but the proxies."""
        addresses = {
            "AMQP_URL": f"amqp://guest:guest@127.0.0.1:{self.amqp_proxy.port}/",
            "ELASTICSEARCH_URL": f"http://127.0.0.1:{self.http.port}",
        }
        return super().settings(**(addresses | settings))

    def publish_more(self, count: int) -> None:
        """Publish the next numbers."""
        self.publish(numbered(range(self.published, self.published + count)))
        self.published += count

    def sidecar(self, **settings: str) -> SidecarProcess:
        """Start a sidecar, and wait until it is past reading its settings."""
        sidecar = super().sidecar(**settings)
        sidecar.wait_for("sidecar.started")
        return sidecar

    def indexed(self) -> int:
        """Return how many writes the index has taken since its node started; needs no refresh."""
        stats = json.loads(self.es("GET", f"/{self.index_name}/_stats/indexing"))
        total: int = stats["_all"]["primaries"]["indexing"]["index_total"]
        return total

    def wait_indexed(self, goal: int, sidecar: SidecarProcess) -> None:
        """Wait until the index has taken so many documents."""
        wait_until(lambda: self.indexed() >= goal, DEADLINE_SECONDS, f"{goal} documents", sidecar.told)

    def wait_all_stored(self, sidecar: SidecarProcess) -> None:
        """Wait until every number that was published is a document, and nothing is unsettled."""
        wait_until(lambda: self.stored() >= self.published, DEADLINE_SECONDS, "all documents", sidecar.told)
        self.wait_empty(DEADLINE_SECONDS, sidecar)

    def judge(self, account: dict[str, Any], *, most_rewritten: int) -> None:
        """Every number is one document with its own content, nothing was dead-lettered, and little written twice.

        Args:
            account: of the sidecar, at its end.
            most_rewritten: documents whose request may have gone unanswered, so that it was sent again.
        """
        hits = {hit["_id"]: hit for hit in self.hits()}
        assert {document_id: hit["_source"] for document_id, hit in hits.items()} == {
            str(at): {"at": at} for at in range(self.published)
        }
        versions = Counter(hit["_version"] for hit in hits.values())
        rewritten = len(hits) - versions[1]
        print(f"{len(hits)} documents, {rewritten} of them written more than once")
        assert rewritten <= most_rewritten, versions
        assert account["dead_letter"] == 0
        assert self.dead_letters() == []
        assert self.count() == 0


class Rates:
    """Samples a count in a thread of its own, to tell how fast it grows.

    Args:
        count: what grows; where it can't be read there is no sample.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._samples: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rates", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            try:
                self._samples.append((time.monotonic(), self._count()))
            except (OSError, LookupError, http.client.HTTPException):
                continue  # it is away, or has only just come back

    def between(self, since: float, until: float) -> float:
        """Return how much a second was counted in a time, from the first change on."""
        seen = [(at, count) for at, count in self._samples if since <= at <= until]
        begin = max((sample for sample in seen if sample[1] == seen[0][1]), default=None)
        if begin is None or seen[-1][0] <= begin[0]:
            return 0.0
        return (seen[-1][1] - begin[1]) / (seen[-1][0] - begin[0])

    def reached(self, rate: float, since: float) -> float | None:
        """Return how long after a moment a second began in which so much was counted; None: never."""
        seen = [(at, count) for at, count in self._samples if at >= since]
        for position, (at, count) in enumerate(seen):
            for later_at, later in seen[position + 1 :]:
                if later_at - at > _WINDOW_SECONDS:
                    break
                if later - count >= rate * _WINDOW_SECONDS:
                    return at - since
        return None


class Stream(threading.Thread):
    """Publishes numbers in rounds, with confirms, through whatever happens to the broker.

    A round that wasn't confirmed is published again: its messages may come twice, and have ids.

    Args:
        url: of the broker.
        queues: the numbers go to these in turn, a round each.
        count: how many numbers.
        round_items: messages in a round.
        pause_seconds: between two rounds.
    """

    def __init__(self, url: str, queues: list[str], count: int, round_items: int, pause_seconds: float) -> None:
        super().__init__(name="stream", daemon=True)
        self.confirmed = 0
        self.again = 0
        self._url = url
        self._queues = queues
        self._count = count
        self._round_items = round_items
        self._pause_seconds = pause_seconds
        self._stop_asked = threading.Event()

    def run(self) -> None:
        client: Amqp | None = None
        while self.confirmed < self._count and not self._stop_asked.wait(self._pause_seconds):
            queue = self._queues[self.confirmed // self._round_items % len(self._queues)]
            numbers = range(self.confirmed, min(self._count, self.confirmed + self._round_items))
            try:
                client = client or Amqp(self._url, timeout_seconds=_CONFIRM_SECONDS)
                report = client.publish(numbered(numbers), routing_key=queue)
            except (AmqpError, OSError):
                self.again += 1
                if client is not None:
                    client.abort()
                    client = None
                self._stop_asked.wait(_AGAIN_SECONDS)
                continue
            if not (report.nacked or report.returned):
                self.confirmed = numbers.stop
        if client is not None:
            client.close()

    def stop(self) -> None:
        """Stop, all confirmed or not."""
        self._stop_asked.set()
        self.join()
