"""What every integration test stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.conftest import obtain
from tests.integration.harness import Harness
from tests.integration.proxy import Proxy
from tests.servers.provider import own_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Servers(NamedTuple):
    """A pair of servers that a test may stop, kill and freeze, and leaves running."""

    rabbitmq: Any
    elasticsearch: Any


@pytest.fixture
def make_bench(unique_name: str, tmp_path: Path) -> Iterator[Callable[[Any, Any], Harness]]:
    """Return a function that makes a bench on given servers; its processes are ended after the test."""
    made: list[Harness] = []

    def make(rabbitmq: Any, elasticsearch: Any) -> Harness:
        made.append(Harness(rabbitmq, elasticsearch, unique_name, tmp_path))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[[Any, Any], Harness], rabbitmq: Any, elasticsearch: Any) -> Harness:
    """Return a queue and an index of the test's own on the shared servers."""
    return make_bench(rabbitmq, elasticsearch)


@pytest.fixture(scope="session")
def cramped() -> Iterator[Any]:
    """Return an Elasticsearch with a write pool of one thread and a queue of one."""
    settings = {"thread_pool.write.size": 1, "thread_pool.write.queue_size": 1}
    server = obtain(lambda: own_cluster(settings))
    yield server
    server.close()


@pytest.fixture
def breakable_servers(breakable_broker: Any, breakable_cluster: Any) -> Iterator[Servers]:
    """Return servers that the test may break; afterwards they run again, on the same data."""
    servers = Servers(breakable_broker, breakable_cluster)
    yield servers
    for server in servers:
        server.thaw()
        server.start()


@pytest.fixture
def breakable(make_bench: Callable[[Any, Any], Harness], breakable_servers: Servers) -> Harness:
    """Return a bench on servers that the test may break."""
    return make_bench(*breakable_servers)


@pytest.fixture
def make_proxy() -> Iterator[Callable[[str], Proxy]]:
    """Return a function that puts a proxy before a URL; it is closed after the test."""
    made: list[Proxy] = []

    def make(url: str) -> Proxy:
        made.append(Proxy(url))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()
