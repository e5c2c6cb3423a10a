"""Servers that tests break, one after the other, and what stands between them and the sidecar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.harness import FaultHarness
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def harness(breakable_broker: Any, breakable_cluster: Any, unique_name: str, tmp_path: Path) -> Iterator[FaultHarness]:
    """Return a queue and an index of the test's own, and proxies before both servers; those run again afterwards."""
    http, amqp = Proxy(breakable_cluster.url, http=True), Proxy(breakable_broker.amqp_url)
    harness = FaultHarness(breakable_broker, breakable_cluster, unique_name, tmp_path, http=http, amqp=amqp)
    yield harness
    for server in (breakable_broker, breakable_cluster):
        server.thaw()
        server.start()
    harness.close()
    http.close()
    amqp.close()
