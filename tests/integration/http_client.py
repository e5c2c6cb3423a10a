"""What an operator looks at: the sidecar's HTTP, asked from outside."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.process import wait_until

if TYPE_CHECKING:
    from tests.integration.process import SidecarProcess

ANY_PORT = "127.0.0.1:0"
SETTLED = ("ack", "delay", "requeue", "dead_letter", "discard", "stale")


def page(port: int, path: str) -> tuple[int, str]:
    """Return status and text of a page of a sidecar; 0 if nobody answers, for one that may not listen yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


class Answered(NamedTuple):
    """An answer, whatever its status."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Http:
    """The HTTP side of a running sidecar; it was started with the address `ANY_PORT`."""

    def __init__(self, sidecar: SidecarProcess) -> None:
        self.url = f"http://{sidecar.wait_for('http.listening')['address']}"

    def get(self, path: str, method: str = "GET") -> Answered:
        """Ask.

        Raises:
            OSError: nobody answers.
        """
        request = urllib.request.Request(self.url + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return Answered(answer.status, answer.read(), dict(answer.headers))
        except urllib.error.HTTPError as error:
            return Answered(error.code, error.read(), dict(error.headers))

    def wait_for_all(self, received: int, seconds: float, sidecar: SidecarProcess) -> None:
        """Wait until so many messages came, and all of them are settled."""

        def settled() -> bool:
            scrape = self.metrics()
            return scrape.total("messages_received_total") >= received and not scrape.total("messages_in_flight")

        wait_until(settled, seconds, f"{received} messages settled", sidecar.told)

    def metrics(self) -> Scrape:
        """Scrape."""
        return Scrape(self.get("/metrics").body.decode())


class Scrape:
    """The metrics of one moment."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == f"sidecar_{name}" and labels.items() <= sample.labels.items()
        )

    def discrepancy(self) -> float:
        """Return by how much the account doesn't add up."""
        settled = sum(self.total("messages_settled_total", verdict=verdict) for verdict in SETTLED)
        return self.total("messages_received_total") - settled - self.total("messages_in_flight")
