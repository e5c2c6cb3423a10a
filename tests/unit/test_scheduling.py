"""Which worker runs which test: those with servers on a few workers, each test once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("xdist")

from xdist.remote import Producer

from tests.scheduling import SERVER_WORKERS, WITH_SERVERS, Lanes

WORKERS = SERVER_WORKERS + 2
WITH = [f"tests/integration/test_{file}.py::test_{at}" for file in range(8) for at in range(3)]
APART = [f"tests/faults/test_one.py::test_{at}" for at in range(9)]
WITHOUT = [f"tests/unit/test_{file}.py::test_{at}[a::b]" for file in range(9) for at in range(3)]


class Worker:
    """What the scheduler needs of a worker; it runs what it was sent when it is told to."""

    def __init__(self, number: int) -> None:
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.shutting_down = False
        self.waiting: list[int] = []
        self.done: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.waiting += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def begin(tests: list[str]) -> tuple[Any, list[Any]]:
    """Return a scheduler that has begun, and its workers."""
    config: Any = SimpleNamespace(
        getvalue=lambda name: ["popen"] * WORKERS, option=SimpleNamespace(loadscopereorder=False)
    )
    scheduler = Lanes(config, Producer("test", enabled=False))
    workers: list[Any] = [Worker(number) for number in range(WORKERS)]
    for worker in workers:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, tests)
    scheduler.schedule()
    return scheduler, workers


def play(scheduler: Any, workers: list[Any]) -> None:
    """Have the workers run in turn, a test each, until nothing is left."""
    while any(worker.waiting for worker in workers):
        for worker in workers:
            if worker.waiting:
                worker.done.append(worker.waiting.pop(0))
                scheduler.mark_test_complete(worker, worker.done[-1])


def test_servers_are_started_on_few_workers_and_each_test_is_run_once() -> None:
    """The others have the rest from the start; who is through with the servers helps them."""
    tests = WITH + APART + WITHOUT
    scheduler, workers = begin(tests)
    play(scheduler, workers)
    assert sorted(at for worker in workers for at in worker.done) == list(range(len(tests)))
    for number, worker in enumerate(workers):
        names = [tests[at] for at in worker.done]
        kinds = [name.startswith(WITH_SERVERS) for name in names]
        assert kinds == sorted(kinds, reverse=True), names
        assert any(kinds) == (number < SERVER_WORKERS), names
    for file in {name.partition("::")[0] for name in WITH + WITHOUT}:
        assert sum(any(tests[at].startswith(file) for at in worker.done) for worker in workers) == 1, file
    assert sum(any(tests[at] in APART for at in worker.done) for worker in workers) > 1


@pytest.mark.parametrize("tests", [WITH, WITHOUT], ids=["with servers", "without"])
def test_with_tests_of_one_kind_all_are_run(tests: list[str]) -> None:
    """Where all need servers, the workers that have none go home."""
    scheduler, workers = begin(tests)
    play(scheduler, workers)
    assert sorted(at for worker in workers for at in worker.done) == list(range(len(tests)))
    used = {number for number, worker in enumerate(workers) if worker.done}
    assert used == set(range(SERVER_WORKERS if tests is WITH else WORKERS))


def test_a_worker_that_broke_has_a_successor() -> None:
    """What it hadn't run is run by others; its lane is free for the one that comes instead."""
    tests = WITH + WITHOUT
    scheduler, workers = begin(tests)
    broken = workers.pop(0)
    crashed = scheduler.remove_node(broken)
    assert crashed == tests[broken.waiting[0]]
    successor: Any = Worker(WORKERS)
    scheduler.add_node(successor)
    scheduler.add_node_collection(successor, tests)
    scheduler.schedule()
    workers.append(successor)
    play(scheduler, workers)
    assert {at for worker in workers for at in worker.done} == set(range(len(tests)))
    assert any(tests[at].startswith(WITH_SERVERS) for at in successor.done)
