"""How a test reaches either side: what it opens, and in which time it runs."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.error
import urllib.request
import uuid
from typing import TYPE_CHECKING, Protocol

from sidecar.amqp.connection import ConnectOptions
from sidecar.amqp.publisher import ReconnectingPublisher as RealOutlet
from sidecar.amqp.session import SessionOptions, open_session
from sidecar.amqp.topology import Seen, Topology
from sidecar.core.results import bulk
from sidecar.elasticsearch.client import Connection, ElasticsearchClient
from sidecar.ports import MessagePublisher
from tests.fakes import clock
from tests.fakes.broker import Broker
from tests.fakes.elasticsearch import TARGET_FAILURES, Elasticsearch, Trouble, must_be_number
from tests.fakes.outlet import SimulatedOutlet
from tests.servers.amqp import Amqp

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sidecar.ports import Answer, BrokerSession, Receive

    Scenario = Callable[[], Coroutine[object, object, None]]

_REAL_SECONDS = 60.0
NOBODY = "amqp://127.0.0.1:1/"


async def _in_time(scenario: Scenario) -> None:
    async with asyncio.timeout(_REAL_SECONDS):
        await scenario()


class BrokerSide(Protocol):
    """A broker as the tests see it.

    Attributes:
        queue: a quorum queue of this test's own; it exists once a session was opened.
        delivery_limit: how often a message of it may come back; to be set before a session is opened.
    """

    queue: str
    delivery_limit: int | None

    def play(self, scenario: Scenario) -> None:
        """Run a scenario."""
        ...

    async def open(self, receive: Receive) -> BrokerSession:
        """Open a session that may consume from the queue."""
        ...

    async def fill(self) -> str:
        """Return the name of a queue that refuses every publish, because it is full."""
        ...

    async def delete(self) -> None:
        """Delete the queue, as somebody else does."""
        ...

    async def declare(self, *, expires_seconds: float | None = None) -> None:
        """Declare the queue, as somebody else does."""
        ...

    async def is_there(self) -> bool:
        """Whether the queue is there; looking doesn't renew its lease."""
        ...

    def outlet(self, *, absent: bool = False) -> ClosableOutlet:
        """Return what publishes to this broker, or to where nobody listens."""
        ...


class ClosableOutlet(MessagePublisher, Protocol):
    """An outlet that can be closed."""

    async def close(self) -> None:
        """Close its connection."""
        ...


class SimulatedBroker:
    """See `BrokerSide`."""

    def __init__(self) -> None:
        self.queue = "contract"
        self.delivery_limit = None
        self._broker = Broker(random.Random(0))
        self._seen = Seen()

    def play(self, scenario: Scenario) -> None:
        """Run a scenario in virtual time."""
        clock.run(scenario())

    async def open(self, receive: Receive) -> BrokerSession:
        """Open a simulated session."""
        session = await self._broker.connector([self.queue], seen=self._seen)(receive)
        self._broker.declare(self.queue).delivery_limit = self.delivery_limit
        return session

    async def fill(self) -> str:
        """Return the name of a queue that is full."""
        self._broker.declare("full").full = True
        return "full"

    async def delete(self) -> None:
        """Delete the queue."""
        self._broker.delete(self.queue)

    async def declare(self, *, expires_seconds: float | None = None) -> None:
        """Declare the queue."""
        self._broker.declare(self.queue)
        if expires_seconds is not None:
            self._broker.expire_after(self.queue, expires_seconds)

    async def is_there(self) -> bool:
        """Whether the queue is there."""
        return self.queue in self._broker.queues

    def outlet(self, *, absent: bool = False) -> ClosableOutlet:
        """Return a simulated outlet."""
        self._broker.down = absent
        return SimulatedOutlet(self._broker)


class RealBroker:
    """See `BrokerSide`.

    Args:
        url: of a RabbitMQ.
    """

    def __init__(self, url: str) -> None:
        self.queue = f"contract-{uuid.uuid4().hex[:12]}"
        self.delivery_limit = None
        self._url = url
        self._seen = Seen()

    def play(self, scenario: Scenario) -> None:
        """Run a scenario, with a limit of time."""
        asyncio.run(_in_time(scenario))

    async def open(self, receive: Receive) -> BrokerSession:
        """Open a real session."""
        limit = {"x-delivery-limit": self.delivery_limit} if self.delivery_limit is not None else {}
        return await self._open(Topology(queues=(self.queue,), queue_arguments=dict(limit)), receive)

    async def _open(self, topology: Topology, receive: Receive) -> BrokerSession:
        return await open_session((self._url,), SessionOptions(topology=topology, seen=self._seen), receive)

    async def fill(self) -> str:
        """Return the name of a queue that has no room at all."""
        name = f"{self.queue}-full"
        topology = Topology(
            queues=(name,),
            queue_type="classic",
            queue_arguments={"x-max-length-bytes": 0, "x-max-length": 0, "x-overflow": "reject-publish"},
        )
        session = await self._open(topology, lambda _: None)
        await session.close()
        return name

    async def delete(self) -> None:
        """Delete the queue by a connection of its own."""
        await asyncio.to_thread(self._delete)

    async def declare(self, *, expires_seconds: float | None = None) -> None:
        """Declare the queue by a connection of its own."""
        await asyncio.to_thread(self._declare, expires_seconds)

    def _declare(self, expires_seconds: float | None) -> None:
        expires = {} if expires_seconds is None else {"x-expires": int(expires_seconds * 1000)}
        with Amqp(self._url) as amqp:
            amqp.declare_queue(self.queue, {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000, **expires})

    async def is_there(self) -> bool:
        """Whether the queue is there."""
        return await asyncio.to_thread(self._is_there)

    def _is_there(self) -> bool:
        with Amqp(self._url) as amqp:
            return amqp.queue_state(self.queue) is not None

    def outlet(self, *, absent: bool = False) -> ClosableOutlet:
        """Return a real outlet."""
        return RealOutlet((NOBODY if absent else self._url,), Topology(publishes=True), ConnectOptions())

    def _delete(self) -> None:
        with Amqp(self._url) as amqp:
            amqp.delete_queue(self.queue)


class SinkSide(Protocol):
    """An Elasticsearch as the tests see it.

    Attributes:
        index: of this test's own; its field ``n`` is a ``long``.
    """

    index: str

    def play(self, scenario: Scenario) -> None:
        """Run a scenario."""
        ...

    async def bulk(self, body: bytes) -> Answer:
        """Send a request about `index` through the port."""
        ...

    async def absent(self, body: bytes) -> Answer:
        """Send a request to where nobody listens."""
        ...

    def max_content_bytes(self) -> int:
        """Return how long a body may be."""
        ...

    def document(self, document_id: str) -> object:
        """Return a document's source, parsed, or None."""
        ...

    def refusing(self, why: str) -> str:
        """Return the name of an index that takes nothing: ``blocked``, ``closed`` or ``missing``."""
        ...

    async def unavailable(self, *, absent: bool) -> str | None:
        """Look at the server, or at where nobody listens."""
        ...


class SimulatedSink:
    """See `SinkSide`."""

    def __init__(self) -> None:
        self.index = "contract"
        self._elastic = Elasticsearch(random.Random(0), max_content_bytes=1_000_000)
        self._elastic.reject = must_be_number("n")

    def play(self, scenario: Scenario) -> None:
        """Run a scenario in virtual time."""
        clock.run(scenario())

    async def bulk(self, body: bytes) -> Answer:
        """Send a request to the simulated Elasticsearch."""
        return await self._elastic.bulk(bulk.path(self.index), body)

    async def absent(self, body: bytes) -> Answer:
        """Send a request while connections are refused."""
        self._elastic.trouble = lambda _: Trouble.REFUSED
        return await self.bulk(body)

    def max_content_bytes(self) -> int:
        """Return the limit of this instance."""
        return self._elastic.max_content_bytes

    def document(self, document_id: str) -> object:
        """Return a document's source, parsed."""
        source = self._elastic.documents.get((self.index, document_id))
        return json.loads(source) if source is not None else None

    def refusing(self, why: str) -> str:
        """Have items about one index fail."""
        name = f"{self.index}-{why}"
        self._elastic.item_fault = lambda item: TARGET_FAILURES[why] if item.index == name else None
        return name

    async def unavailable(self, *, absent: bool) -> str | None:
        """Look, while connections are refused or not."""
        self._elastic.down = absent
        return await self._elastic.check()


class RealSink:
    """See `SinkSide`.

    Args:
        url: of an Elasticsearch without security.
    """

    def __init__(self, url: str) -> None:
        self.index = f"contract-{uuid.uuid4().hex[:12]}"
        self._url = url.rstrip("/")
        mapping = {
            "settings": {"number_of_shards": 1, "number_of_replicas": 0},
            "mappings": {"properties": {"n": {"type": "long"}}},
        }
        self._ask("PUT", f"/{self.index}", mapping)

    def _ask(self, method: str, path: str, body: object = None) -> object:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=_REAL_SECONDS) as answer:
            return json.load(answer)

    def play(self, scenario: Scenario) -> None:
        """Run a scenario, with a limit of time."""
        asyncio.run(_in_time(scenario))

    async def bulk(self, body: bytes) -> Answer:
        """Send a request to the real Elasticsearch."""
        return await self._bulk(self._url, body)

    async def _bulk(self, url: str, body: bytes) -> Answer:
        sink = ElasticsearchClient(Connection(urls=(url,), timeout_seconds=30.0))
        try:
            return await sink.bulk(bulk.path(self.index), body)
        finally:
            await sink.close()

    async def absent(self, body: bytes) -> Answer:
        """Send a request to a port on which nobody listens."""
        return await self._bulk("http://127.0.0.1:1", body)

    def max_content_bytes(self) -> int:
        """Return the limit that the node says it has."""
        nodes = self._ask("GET", "/_nodes/http?filter_path=nodes.*.http.max_content_length_in_bytes")
        assert isinstance(nodes, dict)
        (node,) = nodes["nodes"].values()
        return int(node["http"]["max_content_length_in_bytes"])

    def document(self, document_id: str) -> object:
        """Return a document's source, parsed."""
        try:
            found = self._ask("GET", f"/{self.index}/_doc/{document_id}")
        except urllib.error.HTTPError:
            return None
        assert isinstance(found, dict)
        return found["_source"]

    def refusing(self, why: str) -> str:
        """Block or close an index; a missing one needs nothing."""
        name = f"{self.index}-{why}"
        if why != "missing":
            self._ask("PUT", f"/{name}", {"settings": {"number_of_shards": 1, "number_of_replicas": 0}})
            self._ask(*{"blocked": ("PUT", f"/{name}/_block/write"), "closed": ("POST", f"/{name}/_close")}[why])
        return name

    async def unavailable(self, *, absent: bool) -> str | None:
        """Look at the real Elasticsearch, or at a port on which nobody listens."""
        url = "http://127.0.0.1:1" if absent else self._url
        sink = ElasticsearchClient(Connection(urls=(url,), timeout_seconds=30.0))
        try:
            return await sink.check()
        finally:
            await sink.close()
