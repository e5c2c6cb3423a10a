"""Fixtures for all tests: real servers, started by the first test that asks for one, and unique names."""

from __future__ import annotations

import logging
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.builders import THOROUGHNESS
from tests.drawing import FURTHER_RUNS, PublishStats, is_property, seeded, tally_of
from tests.servers.amqp import Amqp
from tests.servers.es import Elastic
from tests.servers.provider import (
    Broker,
    Cluster,
    GivenServer,
    MissingServerError,
    own_broker,
    own_cluster,
    shared_broker,
    shared_cluster,
)
from tests.servers.waiting import run_coroutine

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

# Properties run the same way each time, without a deadline on shared machines. With ``TEST_THOROUGHNESS=20`` they look
# at so many times the examples, and at other ones each time.
settings.register_profile(
    "sidecar",
    deadline=None,
    derandomize=THOROUGHNESS == 1,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("sidecar")

SERVER_FOLDERS = ("integration", "contract", "faults")
BREAKABLE = frozenset({"breakable_broker", "breakable_cluster"})
LONG = (
    "test_vanishing_queues", "test_promise", "test_undelayed", "test_check_trial", "test_dlq", "test_copies",
    "test_secrets", "test_broker", "test_coalesce", "test_verdicts", "test_table", "test_chain", "test_rounds",
    "test_rights", "test_logins", "test_operate", "test_queue_properties",
)  # fmt: skip
"""Files with servers that take longest: begun late, one of them would still run when all others are through."""
_HERE = Path(__file__).parent
_COMPLAINTS = ("was never retrieved", "was destroyed but it is pending", "Unclosed")
"""What asyncio and aiohttp log of what was left behind."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test under the folders that need servers, but for the simulated side of a contract, and sort them.

    First those that break the session's servers: a server that is killed when others have left hundreds of queues and
    indices there takes long to come back. Then the long ones.
    """
    for item in items:
        in_folder = item.path.is_relative_to(_HERE) and item.path.relative_to(_HERE).parts[0] in SERVER_FOLDERS
        if in_folder and not _is_simulated(item):
            item.add_marker(pytest.mark.server)
            # A server that is killed leaves connections behind, whose ends nobody in a library waits for.
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
    items.sort(key=_turn)


def _is_simulated(item: pytest.Item) -> bool:
    """Whether a test looks at the simulated side of a contract (tests/contract)."""
    callspec = getattr(item, "callspec", None)
    return callspec is not None and any(value == "simulated" for value in callspec.params.values())


def _turn(item: pytest.Item) -> int:
    """Return 0 for a test that breaks servers, then one that uses them, by how long its file takes, then any other."""
    if not BREAKABLE.isdisjoint(getattr(item, "fixturenames", ())):
        return 0
    if item.get_closest_marker("server") is None:
        return len(LONG) + 2
    return 1 + (LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have `tests.scheduling` say which worker runs what."""
    if config.getvalue("dist") != "loadfile":
        return None
    # Imported here: without xdist all tests can be run as well, one after the other.
    from tests.scheduling import Lanes

    return Lanes(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let tests with servers go first."""
    if os.environ.get("PYTEST_XDIST_WORKER") and item.get_closest_marker("server") is None:
        from tests.scheduling import step_back

        step_back()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a property whose strategies don't draw the classes of examples that it names."""
    if not is_property(item):
        return (yield)
    before, tally = PublishStats.current, tally_of(item)
    PublishStats.current = tally
    try:
        yield
        for number in range(FURTHER_RUNS if tally.expected else 0):
            if tally.fault() is None:
                break
            with seeded(item, number):
                item.runtest()
    finally:
        PublishStats.current = before
    fault = tally.fault()
    if fault is not None:
        pytest.fail(f"{item.name} {fault}", pytrace=False)


@pytest.fixture(autouse=True)
def all_was_awaited(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test without servers that leaves a task pending, or an exception unseen."""
    if request.node.get_closest_marker("server") is not None:
        yield
        return
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert not [message for message in said if any(complaint in message for complaint in _COMPLAINTS)]


def obtain(start: Callable[[], Any]) -> Any:
    """Start a server; without one a test is skipped on a laptop, and fails where CI must have it."""
    try:
        return start()
    except MissingServerError as error:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Broker]:
    """One RabbitMQ for the session. Tests that configure one use `rabbitmq_factory`; see also `breakable_broker`."""
    broker: Broker = obtain(shared_broker)
    yield broker
    broker.close()


@pytest.fixture(scope="session")
def elasticsearch() -> Iterator[Cluster]:
    """One Elasticsearch for the session. Tests that configure one use `elasticsearch_factory`."""
    cluster: Cluster = obtain(shared_cluster)
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def breakable_broker(rabbitmq: Broker) -> Iterator[Broker]:
    """A RabbitMQ that tests stop, kill and freeze, and leave running: the session's, unless that is somebody else's."""
    if not isinstance(rabbitmq, GivenServer):
        yield rabbitmq
        return
    broker: Broker = obtain(own_broker)
    yield broker
    broker.close()


@pytest.fixture(scope="session")
def breakable_cluster(elasticsearch: Cluster) -> Iterator[Cluster]:
    """An Elasticsearch of the same kind."""
    if not isinstance(elasticsearch, GivenServer):
        yield elasticsearch
        return
    cluster: Cluster = obtain(own_cluster)
    yield cluster
    cluster.close()


@pytest.fixture
def rabbitmq_factory() -> Iterator[Callable[..., Broker]]:
    """Starts brokers of the test's own; arguments of `own_broker`. They are closed after the test."""
    made: list[Broker] = []

    def make(*arguments: Any, **options: Any) -> Broker:
        broker: Broker = obtain(lambda: own_broker(*arguments, **options))
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def elasticsearch_factory() -> Iterator[Callable[..., Cluster]]:
    """Starts clusters of the test's own; arguments of `own_cluster`. They are closed after the test."""
    made: list[Cluster] = []

    def make(*arguments: Any, **options: Any) -> Cluster:
        cluster: Cluster = obtain(lambda: own_cluster(*arguments, **options))
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def amqp(rabbitmq: Broker) -> Iterator[Amqp]:
    """A client connected to the session's RabbitMQ."""
    with Amqp(rabbitmq.amqp_url) as client:
        yield client


@pytest.fixture
def elastic(elasticsearch: Cluster) -> Iterator[Elastic]:
    """A client for the session's Elasticsearch."""
    with Elastic(elasticsearch.url) as client:
        yield client


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> str:
    """A name for queues and indices that nobody else uses: lower case letters, digits and hyphens."""
    stem = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60]
    return f"{stem}-{secrets.token_hex(4)}"


@pytest.fixture
def queue_name(request: pytest.FixtureRequest, unique_name: str) -> Iterator[str]:
    """A unique queue name; the queue, its delay queues and its dead letters are removed after the test."""
    yield unique_name
    if "rabbitmq" in request.fixturenames:
        broker: Broker = request.getfixturevalue("rabbitmq")
        with Amqp(broker.amqp_url) as client:
            for suffix in ("", ".dead"):
                client.delete_queue(unique_name + suffix)


@pytest.fixture
def index_name(request: pytest.FixtureRequest, unique_name: str) -> Iterator[str]:
    """A unique index name; the index and those whose names it begins are removed after the test."""
    yield unique_name
    if "elasticsearch" in request.fixturenames:
        cluster: Cluster = request.getfixturevalue("elasticsearch")
        with Elastic(cluster.url) as client:
            names = client.call("GET", f"/_cat/indices/{unique_name}*?format=json&h=index&expand_wildcards=all")
            for entry in names:
                client.delete_index(entry["index"])


@pytest.fixture
def run() -> Callable[..., Any]:
    """Runs a coroutine on a fresh plain asyncio loop, with a time limit (`seconds`, 60 by default)."""

    def call(coroutine: Coroutine[object, object, Any], *, seconds: float = 60.0) -> Any:
        return run_coroutine(coroutine, seconds=seconds)

    return call
