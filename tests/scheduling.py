"""Which worker runs which test, where several run side by side (``pytest -n``).

A worker that gets a test with real servers starts a RabbitMQ and an Elasticsearch of its own, and then mostly waits for
them. The other tests need nothing but a processor. So a few workers run all tests with servers, and the rest run the
other tests meanwhile, at a lower priority: a test that waits for a server isn't late because of them.

Tests of a file stay together, since they share fixtures. Those of `ALONE` share none: each goes where there is time.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from xdist.scheduler import LoadFileScheduling

from tests.conftest import SERVER_FOLDERS

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

WITH_SERVERS = tuple(f"tests/{folder}/" for folder in SERVER_FOLDERS)
SERVER_WORKERS = 4
ALONE = ("tests/faults/", "tests/integration/test_vanishing_queues.py", "tests/simulation/")
LOWER_PRIORITY = 10


class Lanes(LoadFileScheduling):  # type: ignore[misc, unused-ignore]
    """Files in the order of collection: those with servers on the first workers, the others everywhere."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        self._with_servers: list[WorkerController] = []

    def add_node(self, node: WorkerController) -> None:
        """Give a worker its lane; one that replaces a broken one gets the lane of that."""
        super().add_node(node)
        if len(self._with_servers) < SERVER_WORKERS:
            self._with_servers.append(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Free the lane of a worker that is gone."""
        if node in self._with_servers:
            self._with_servers.remove(node)
        item: str | None = super().remove_node(node)
        return item

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(ALONE):
            return nodeid
        scope: str = super()._split_scope(nodeid)
        return scope

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Give a worker the next file of its lane; send it home if there is none."""
        scope = self._next_scope(here=node in self._with_servers)
        if scope is None:
            node.shutdown()
            return
        self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)

    def _next_scope(self, *, here: bool) -> str | None:
        """Return the next file: with servers first `here`, without them elsewhere."""
        without = (scope for scope in self.workqueue if not scope.startswith(WITH_SERVERS))
        if not here:
            return next(without, None)
        return next((scope for scope in self.workqueue if scope.startswith(WITH_SERVERS)), next(without, None))


@functools.cache
def step_back() -> None:
    """Lower the priority of this worker, for good: it has no tests with servers, or none any more."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.nice(LOWER_PRIORITY)
