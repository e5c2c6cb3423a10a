"""Several nodes of Elasticsearch, in virtual time: the product's own client above connections that break at any stage.

What the exceptions of a broken connection are is measured in `tests/unit/test_elastic_nodes.py`, on real sockets.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from unittest.mock import patch

import aiohttp
import pytest
from elastic_transport import ApiResponseMeta, BaseAsyncNode, ConnectionTimeout, HttpHeaders
from elastic_transport import ConnectionError as TransportConnectionError

from sidecar.elasticsearch import client as sink_module
from sidecar.elasticsearch.client import Connection, ElasticsearchClient
from sidecar.errors import SinkError
from sidecar.pipeline.pipeline import Pipeline
from sidecar.sinks.elasticsearch import ElasticsearchSink
from tests.builders import examples
from tests.fakes.elasticsearch import Trouble
from tests.pipeline.simulated_pipeline import SimulatedPipeline, play

if TYPE_CHECKING:
    from elastic_transport import NodeConfig
    from structlog.typing import FilteringBoundLogger

    from sidecar.ports import Answer

PORTS = (9201, 9202, 9203)
ROOT = b'{"name":"n","cluster_name":"c","version":{"number":"9.5.0"}}'
BREAKS = (Trouble.LOST_BEFORE, Trouble.LOST_AFTER, Trouble.HANGS_BEFORE, Trouble.HANGS_AFTER, Trouble.UNREADABLE)
SEEDS = range(examples(6))
_reached: ContextVar[list[int]] = ContextVar("reached")


class Response(NamedTuple):
    """As `elastic_transport` has it."""

    meta: ApiResponseMeta
    body: bytes


class OneRequestSink(ElasticsearchClient):
    """The product's client, watched: a bulk request reaches one node, or none because all of them refuse."""

    async def bulk(self, path: str, body: bytes, *, client: object = None) -> Answer:
        reached: list[int] = []
        _reached.set(reached)
        answered = False
        try:
            answer = await super().bulk(path, body)
            answered = True
        finally:
            assert len(reached) <= 1, f"one request reached {reached}"
            assert reached or not answered
        return answer


class NodesWorld(SimulatedPipeline):
    """A sidecar with three nodes, each of which may be away, before one Elasticsearch.

    Attributes:
        away: ports of nodes that refuse connections.
        served: bulk requests by port.
        open_nodes: nodes that aren't closed.
    """

    def __init__(self, seed: int, **options: Any) -> None:
        self.away: set[int] = set()
        self.served: Counter[int] = Counter()
        self.open_nodes = 0
        self.sinks: list[ElasticsearchClient] = []
        super().__init__(seed, **options)

    def _new_pipeline(self) -> Pipeline:
        urls = tuple(f"http://127.0.0.1:{port}" for port in PORTS)
        with patch.object(sink_module, "Node", self._node_class()), patch("random.shuffle", self.rng.shuffle):
            self.sinks.append(OneRequestSink(Connection(urls=urls, timeout_seconds=30.0)))
        # What a request takes is measured at the client, nodes that refuse included.
        self.elastic.__dict__.pop("bulk", None)
        self.expected.watch_elasticsearch(cast("Any", self.sinks[-1]))
        return Pipeline(
            self.plan,
            ElasticsearchSink(self.plan, self.sinks[-1]),
            rng=self.rng,
            log=cast("FilteringBoundLogger", self.log),
            wall_clock=self._wall_clock,
        )

    def _node_class(self) -> type[BaseAsyncNode]:
        world = self

        class Node(BaseAsyncNode):
            def __init__(self, config: NodeConfig) -> None:
                super().__init__(config)
                world.open_nodes += 1

            async def perform_request(self, *arguments: Any, **options: Any) -> Response:  # type: ignore[override]
                return await world.perform(self.config, *arguments, **options)

            async def close(self) -> None:  # type: ignore[override]
                world.open_nodes -= 1

        return Node

    async def perform(
        self, config: NodeConfig, method: str, path: str, body: bytes | None = None, **_: Any
    ) -> Response:
        """Do a request at a node, as `elastic_transport` does it by aiohttp."""
        await asyncio.sleep(self.rng.uniform(0.001, 0.01))
        if config.port in self.away:
            place = cast("Any", SimpleNamespace(host=config.host, port=config.port, ssl=True, is_ssl=False))
            raise TransportConnectionError("refused") from aiohttp.ClientConnectorError(place, OSError(111, "refused"))
        if method == "GET":
            return _response(config, 200, ROOT)
        _reached.get().append(config.port)
        self.served[config.port] += 1
        try:
            answer = await self.elastic.bulk(path, body or b"")
        except SinkError as error:
            if "timed out" in str(error):
                raise ConnectionTimeout("Connection timed out") from TimeoutError()
            raise TransportConnectionError("Server disconnected") from aiohttp.ServerDisconnectedError()
        return _response(config, answer.status, answer.body)

    @property
    def at_rest(self) -> bool:
        """Nobody looks after nodes that are away, either."""
        return super().at_rest and all(sink._returning is None or sink._returning.done() for sink in self.sinks)

    async def end(self) -> None:
        """Stop, and close the clients."""
        await super().end()
        for sink in self.sinks:
            await sink.close()
        assert self.open_nodes == 0


def _response(config: NodeConfig, status: int, body: bytes) -> Response:
    headers = HttpHeaders({"content-type": "application/json", "x-elastic-product": "Elasticsearch"})
    return Response(
        ApiResponseMeta(status=status, http_version="1.1", headers=headers, duration=0.0, node=config), body
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_a_day_with_nodes_that_come_and_go_and_requests_that_break(seed: int) -> None:
    """Nothing is lost, no request is sent to two nodes, order is kept, and all nodes work again in the end."""

    async def scenario(world: NodesWorld) -> None:
        world.elastic.trouble = lambda _: world.rng.choice(BREAKS) if world.rng.random() < 0.15 else None
        await world.start()
        for round_ in range(20):
            world.publish_many(15, with_ids=round_ % 3 > 0, start=round_ * 15)
            for port in PORTS:
                (world.away.add if world.rng.random() < 0.35 else world.away.discard)(port)
            await asyncio.sleep(world.rng.uniform(0.0, 6.0))
        world.away.clear()
        world.elastic.trouble = lambda _: None
        await world.until_settled(900.0)
        world.judge(redelivered=True)
        assert not world.dead_letters
        await asyncio.sleep(10.0)  # at most so long until a node is looked at again
        assert not world.sinks[-1]._pool.away
        world.served.clear()
        for more in range(30):
            world.publish_many(5, start=10_000 + more * 5)
            await world.until_settled()
        assert set(world.served) == set(PORTS)
        assert max(world.served.values()) - min(world.served.values()) <= 1, "each has its share"
        world.judge(redelivered=True)

    play(lambda: NodesWorld(seed), cast("Any", scenario))


@pytest.mark.parametrize("port", PORTS)
def test_one_node_that_is_away_is_noticed_by_nobody(port: int) -> None:
    """No request goes unanswered, nothing is held, and nothing is sent twice."""

    async def scenario(world: NodesWorld) -> None:
        world.away.add(port)
        world.publish_many(200)
        await world.start()
        await world.until_settled()
        world.judge()
        assert not world.log.named("elasticsearch.held")
        assert world.pipeline.counters.requests["unanswered"] == 0
        assert set(world.served) == set(PORTS) - {port}

    play(lambda: NodesWorld(1), cast("Any", scenario))


def test_a_node_that_is_away_is_looked_at_less_and_less_often() -> None:
    """After half a second first, then after twice as long each time, at most five seconds apart, until it is back."""
    looks: list[float] = []

    async def scenario(world: NodesWorld) -> None:
        world.away.add(PORTS[0])
        world.publish_many(50)
        await world.start()
        await world.until_settled()
        sink = world.sinks[-1]
        look = sink._ping

        async def watched(node: Any) -> None:
            looks.append(asyncio.get_running_loop().time())
            await look(node)

        sink._ping = watched  # type: ignore[method-assign]
        await asyncio.sleep(60.0)
        world.away.clear()
        await asyncio.sleep(6.0)
        assert not sink._pool.away
        count = len(looks)
        await asyncio.sleep(60.0)
        assert len(looks) == count, "nobody is looked at any more"

    play(lambda: NodesWorld(1), cast("Any", scenario))
    pauses = [round(later - earlier, 1) for earlier, later in itertools.pairwise(looks)]
    assert pauses[:4] == [1.0, 2.0, 4.0, 5.0]
    assert set(pauses[4:]) == {5.0}
