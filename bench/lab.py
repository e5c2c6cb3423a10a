"""The two real servers, a queue with messages in it, and an index to put them into."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from bench import gauges
from devstack import provision
from devstack.elasticsearch import Elasticsearch
from devstack.rabbitmq import RabbitMQ
from tests.servers.amqp import Amqp, Outgoing
from tests.servers.es import Elastic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.wire import Properties

BODY_BYTES = 420
ORDERS_PER_CUSTOMER = 100
_QUIET_CORES = 0.15
_QUIET_WINDOW_SECONDS = 0.4
_QUIET_AT_MOST_SECONDS = 15.0
# What is stored but not indexed costs Elasticsearch little: the less it takes, the more the pipeline shows.
_MAPPINGS = {"dynamic": False, "properties": {"id": {"type": "keyword"}, "n": {"type": "long"}}}


class Load(NamedTuple):
    """What is put into a queue.

    Attributes:
        count: messages.
        body_bytes: of JSON in each, 100 at least.
        headers: whether each has two headers, the first of which differs in value and length.
    """

    count: int
    body_bytes: int = BODY_BYTES
    headers: bool = False


def messages(load: Load) -> Iterator[Outgoing]:
    """Yield orders with an id, a content type and a time."""
    count, body_bytes, headers = load
    for number in range(count):
        document_id = f"order-{number:012d}"
        opening = f'{{"id":"{document_id}","n":{number},"customer":{{"id":"c{number % ORDERS_PER_CUSTOMER}"}},"text":"'
        text = "lorem ipsum dolor sit amet " * (body_bytes // 27 + 1)
        body = (opening + text[: max(0, body_bytes - len(opening) - 2)] + '"}').encode()
        properties: Properties = {
            "content_type": "application/json",
            "delivery_mode": 2,
            "message_id": document_id,
            "timestamp": 1_700_000_000,
        }
        if headers:
            properties["headers"] = {"tenant": f"t{number % ORDERS_PER_CUSTOMER}", "source": "bench"}
        yield Outgoing(body, properties=properties)


class Lab:
    """RabbitMQ and Elasticsearch as native processes of our own; use it as a context manager.

    Args:
        queue_type: ``quorum`` or ``classic``.
    """

    def __init__(self, queue_type: str = "quorum") -> None:
        provision.provision(print)
        self.rabbitmq = RabbitMQ()
        self.elasticsearch = Elasticsearch(java_options="-Xms1g -Xmx1g")
        self._queue_type = queue_type
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        """Start both."""
        try:
            self.rabbitmq.start()
            self.elasticsearch.start()
        except BaseException:
            self.__exit__()
            raise
        self.amqp = Amqp(self.rabbitmq.amqp_url)
        self.elastic = Elastic(self.elasticsearch.url)
        return self

    def __exit__(self, *_: object) -> None:
        """End both."""
        self.rabbitmq.close()
        self.elasticsearch.close()

    @property
    def how(self) -> str:
        """The servers in words."""
        version = self.rabbitmq.rabbitmqctl("version").strip()
        return f"RabbitMQ {version}, {self._queue_type} queue; Elasticsearch {self.elasticsearch.version}, one shard"

    def names(self) -> str:
        """Return a name that no queue and index of this run has had."""
        return f"bench-{next(self._numbers)}"

    def prepare(self, name: str, *, shards: int = 1) -> None:
        """Make a queue and an index of that name, both empty."""
        self.amqp.declare_queue(name, {"x-queue-type": self._queue_type})
        self.elastic.create_index(name, settings={"number_of_shards": shards}, mappings=_MAPPINGS)

    def fill(self, name: str, load: Load) -> None:
        """Put messages into the queue, every one of them confirmed."""
        # A connection of its own: one that idled through a long trial may be gone by its heartbeat.
        with Amqp(self.rabbitmq.amqp_url, timeout_seconds=120.0) as publisher:
            report = publisher.publish(messages(load), routing_key=name)
        if report.nacked or report.returned:
            raise RuntimeError(f"RabbitMQ refused {len(report.nacked) + len(report.returned)} messages")

    def quiet(self) -> None:
        """Wait until both servers have done what they still had to do for what was before."""
        deadline = time.monotonic() + _QUIET_AT_MOST_SECONDS
        while time.monotonic() < deadline:
            before = self.cpu_seconds()
            time.sleep(_QUIET_WINDOW_SECONDS)
            if sum(self.cpu_seconds()) - sum(before) < _QUIET_CORES * _QUIET_WINDOW_SECONDS:
                return

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the processor time that RabbitMQ and Elasticsearch have taken since they started."""
        return gauges.cpu_seconds(self.rabbitmq.pid), gauges.all_cpu_seconds(self.elasticsearch.pid)

    def consumers(self, name: str) -> int:
        """Return how many consume from the queue."""
        state = self.amqp.queue_state(name)
        return state.consumers if state is not None else 0

    def stored(self, name: str) -> int:
        """Return how many documents were written, without the refresh that counting them would take."""
        path = f"/{name}/_stats/indexing?filter_path=_all.primaries.indexing.index_total"
        found: int = self.elastic.call("GET", path)["_all"]["primaries"]["indexing"]["index_total"]
        return found

    def forget(self, name: str) -> None:
        """Remove queue and index."""
        self.amqp.delete_queue(name)
        self.elastic.delete_index(name)
