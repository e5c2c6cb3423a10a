"""Servers that tests break, one after the other, and what stands between them and the sidecar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import obtain
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene
from tests.servers.choose import own_broker, own_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="package")
def victim_broker() -> Iterator[Any]:
    """Return a RabbitMQ that tests may break, if they mend it."""
    server = obtain(own_broker)
    yield server
    server.close()


@pytest.fixture(scope="package")
def victim_cluster() -> Iterator[Any]:
    """Return an Elasticsearch that tests may break, if they mend it."""
    server = obtain(own_cluster)
    yield server
    server.close()


@pytest.fixture
def scene(victim_broker: Any, victim_cluster: Any, unique_name: str, tmp_path: Path) -> Iterator[Scene]:
    """Return a queue and an index of the test's own, and proxies before both servers; those run again afterwards."""
    http, amqp = Proxy(victim_cluster.url, http=True), Proxy(victim_broker.amqp_url)
    scene = Scene(victim_broker, victim_cluster, unique_name, tmp_path, http=http, amqp=amqp)
    yield scene
    for server in (victim_broker, victim_cluster):
        server.thaw()
        server.start()
    scene.close()
    http.close()
    amqp.close()
