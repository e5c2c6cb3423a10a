"""Where an integration test stands: a queue, an index, sidecar processes, and ways to look at them from outside."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from tests.integration.process import SidecarProcess, wait_until
from tests.servers.amqp import Amqp, Outgoing, Received

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_PAGE = 5000
QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}


def message(body: bytes, message_id: str | None = None, **properties: Any) -> Outgoing:
    """Return a persistent JSON message."""
    values = {"content_type": "application/json", "delivery_mode": 2, **properties}
    if message_id is not None:
        values["message_id"] = message_id
    return Outgoing(body, properties=values)


def exactly(text: str | bytes) -> Any:
    """Parse JSON keeping how its numbers are spelt."""
    return json.loads(text, parse_int=lambda spelt: ("number", spelt), parse_float=lambda spelt: ("number", spelt))


_COUNT_MESSAGES = """
case rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<%s>>)) of
    {ok, Q} ->
        case amqqueue:get_type(Q) of
            rabbit_quorum_queue ->
                {ok, {_, Count}, _} = ra:leader_query(amqqueue:get_pid(Q), fun rabbit_fifo:query_messages_total/1),
                Count;
            _ ->
                [{messages, Count}] = rabbit_amqqueue:info(Q, [messages]),
                Count
        end;
    _ -> 0
end.
"""


class Harness:
    """A queue and an index of one test.

    Args:
        rabbitmq: the server, or anything else with `amqp_url` and `rabbitmqctl`.
        elasticsearch: the server, or anything else with `url`.
        name: of queue and index, unlike that of any other test.
        folder: for the logs of sidecars.

    Attributes:
        anew: whether sidecars are new interpreters even where forks would do; see `SidecarProcess`.
    """

    def __init__(self, rabbitmq: Any, elasticsearch: Any, name: str, folder: Path) -> None:
        self.rabbitmq = rabbitmq
        self.elasticsearch = elasticsearch
        self.queue = self.index_name = name
        self.dead = f"{name}.dead"
        self.folder = folder
        self.sidecars: list[SidecarProcess] = []
        self.anew = False
        self._client: Amqp | None = None

    # The sidecar -----------------------------------------------------------------------------------------------------

    def settings(self, **settings: str) -> dict[str, str]:
        """Return the environment of a sidecar for this test's queue and index."""
        base = {
            "AMQP_URL": self.rabbitmq.amqp_url,
            "AMQP_QUEUE": self.queue,
            "ELASTICSEARCH_URL": self.elasticsearch.url,
            "INDEX": self.index_name,
        }
        return {f"SIDECAR_{name}": value for name, value in (base | settings).items()}

    def sidecar(self, **settings: str) -> SidecarProcess:
        """Start a sidecar; it is killed at the end of the test if it is still there."""
        log = self.folder / f"sidecar-{len(self.sidecars) + 1}.log"
        sidecar = SidecarProcess(self.settings(**settings), log, anew=self.anew)
        self.sidecars.append(sidecar)
        return sidecar

    def close(self) -> None:
        """End what is left of the test."""
        for sidecar in self.sidecars:
            sidecar.kill()
        if self._client is not None:
            self._client.close()

    # RabbitMQ --------------------------------------------------------------------------------------------------------

    @property
    def amqp(self) -> Amqp:
        """A connection of the test's own."""
        if self._client is None:
            self._client = Amqp(self.rabbitmq.amqp_url)
        return self._client

    def reconnect(self) -> None:
        """Forget a connection that a test broke on purpose."""
        if self._client is not None:
            self._client.abort()
            self._client = None

    def declare(self, arguments: dict[str, Any] | None = None) -> None:
        """Declare the queue as the sidecar would."""
        self.amqp.declare_queue(self.queue, QUORUM if arguments is None else arguments)

    def publish(self, messages: Iterable[Outgoing]) -> None:
        """Publish to the queue and wait for every confirm."""
        published = self.amqp.publish(messages, routing_key=self.queue)
        assert not published.nacked
        assert not published.returned

    def count(self, queue: str | None = None) -> int:
        """Return how many messages of a queue are ready."""
        state = self.amqp.queue_state(queue or self.queue)
        return state.ready if state is not None else 0

    def held(self, queue: str | None = None) -> int:
        """Return how many messages a queue has, those on their way to a consumer included. Takes a second.

        Asked of the queue itself: what ``list_queues`` says of a quorum queue is up to five seconds old.
        """
        name = ",".join(map(str, (queue or self.queue).encode()))
        return int(self.rabbitmq.rabbitmqctl("eval", _COUNT_MESSAGES % name))

    def wait_empty(self, seconds: float, sidecar: SidecarProcess) -> None:
        """Wait until every message of the queue is settled."""
        wait_until(lambda: self.count() == 0, seconds, "an empty queue", sidecar.told)
        wait_until(lambda: self.held() == 0, seconds, "nothing unsettled", sidecar.told)

    def dead_letters(self) -> list[Received]:
        """Take all dead letters off their queue."""
        return self.amqp.drain(self.dead) if self.amqp.queue_state(self.dead) is not None else []

    # Elasticsearch ---------------------------------------------------------------------------------------------------

    def es(self, method: str, path: str, body: bytes | dict[str, Any] | None = None) -> bytes:
        """Send a request.

        Raises:
            urllib.error.HTTPError: the answer is not a success.
        """
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(
            f"{self.elasticsearch.url}{path}", data, {"content-type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def create_index(self, properties: dict[str, Any] | None = None, *, shards: int = 1) -> None:
        """Create the index with a mapping."""
        settings = {"number_of_shards": shards, "number_of_replicas": 0}
        self.es("PUT", f"/{self.index_name}", {"settings": settings, "mappings": {"properties": properties or {}}})

    def documents(self, *, exact: bool = False) -> dict[str, Any]:
        """Return the source of each document by id; with `exact` numbers keep their spelling."""
        return {hit["_id"]: hit["_source"] for hit in self.hits(exact=exact)}

    def hits(self, *, exact: bool = False) -> list[dict[str, Any]]:
        """Return all documents with their metadata."""
        parse = exactly if exact else json.loads
        self.es("POST", f"/{self.index_name}/_refresh")
        found: list[dict[str, Any]] = []
        query = {"size": _PAGE, "sort": ["_doc"], "version": True, "query": {"match_all": {}}}
        page = parse(self.es("POST", f"/{self.index_name}/_search?scroll=1m", query))
        while page["hits"]["hits"]:
            found += page["hits"]["hits"]
            page = parse(self.es("POST", "/_search/scroll", {"scroll": "1m", "scroll_id": page["_scroll_id"]}))
        self.es("DELETE", "/_search/scroll", {"scroll_id": page["_scroll_id"]})
        return found

    def stored(self) -> int:
        """Return how many documents a refresh makes visible now; 0 without an index."""
        try:
            self.es("POST", f"/{self.index_name}/_refresh")
            count: int = json.loads(self.es("GET", f"/{self.index_name}/_count"))["count"]
        except urllib.error.HTTPError:
            return 0
        return count

    def has_document(self, document_id: str) -> bool:
        """Whether a document is stored, refreshed or not."""
        try:
            self.es("HEAD", f"/{self.index_name}/_doc/{document_id}")
        except urllib.error.HTTPError:
            return False
        return True

    def write_pool(self) -> tuple[int, int]:
        """Return how many tasks of the write pool were done, and how many refused, since the start."""
        nodes = json.loads(self.es("GET", "/_nodes/stats/thread_pool"))["nodes"]
        (node,) = nodes.values()
        pool = node["thread_pool"]["write"]
        return pool["completed"], pool["rejected"]
