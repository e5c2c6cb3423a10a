"""Where the tests' servers come from: a URL in the environment, otherwise Docker, otherwise native processes.

Tests see a `Broker` or a `Cluster` and don't care. One that came by URL is somebody else's: it can be talked to, but
not stopped or frozen, so tests that do such things ask for a server of their own.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from devstack import compose, processes, provision
from devstack.elasticsearch import QUICK_JAVA_OPTIONS, Elasticsearch
from devstack.errors import StackError
from devstack.rabbitmq import RabbitMQ
from tests.servers.amqp import Amqp
from tests.servers.es import Elastic
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AMQP_URL_VARIABLE = "TEST_AMQP_URL"
ELASTICSEARCH_URL_VARIABLE = "TEST_ELASTICSEARCH_URL"
RABBITMQ_IMAGE = os.environ.get("TEST_RABBITMQ_IMAGE") or "rabbitmq:4-management"
ELASTICSEARCH_IMAGE = os.environ.get("TEST_ELASTICSEARCH_IMAGE") or f"elasticsearch:{provision.ELASTICSEARCH_VERSION}"
SHARED_PLUGINS = ("rabbitmq_consistent_hash_exchange",)
START_SECONDS = 180.0

_AMQP_PORT = 5672
_HTTP_PORT = 9200

Node = TypeVar("Node", RabbitMQ, Elasticsearch)


class Server(Protocol):
    """What every server can."""

    @property
    def url(self) -> str:
        """Where it listens."""

    @property
    def running(self) -> bool:
        """Whether its processes are there."""

    def stop(self) -> None:
        """Stop it in good order; its data stay."""

    def kill(self) -> None:
        """Kill it at once; its data stay."""

    def restart(self, *, graceful: bool = True) -> object:
        """End it and start it again on the same address and data."""

    def start(self) -> object:
        """Start it again."""

    def freeze(self) -> None:
        """Stop it where it is, connections open."""

    def thaw(self) -> None:
        """Let it go on."""

    def close(self) -> None:
        """End it for good."""


class Broker(Server, Protocol):
    """A RabbitMQ node."""

    @property
    def amqp_url(self) -> str:
        """URL for a client."""

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run rabbitmqctl and return what it printed."""


class Cluster(Server, Protocol):
    """An Elasticsearch node."""


class MissingServerError(Exception):
    """No way was found to get a server."""


class GivenServer:
    """A server by URL, which belongs to somebody else."""

    def __init__(self, url: str) -> None:
        """Remember where it listens."""
        self.url = url
        self.amqp_url = url
        self.running = True

    def rabbitmqctl(self, *_arguments: str) -> str:
        """Refuse."""
        raise self._refusal()

    def start(self) -> GivenServer:
        """Do nothing: it runs."""
        return self

    def stop(self) -> None:
        """Refuse."""
        raise self._refusal()

    def kill(self) -> None:
        """Refuse."""
        raise self._refusal()

    def restart(self, *, graceful: bool = True) -> GivenServer:
        """Refuse."""
        del graceful
        raise self._refusal()

    def freeze(self) -> None:
        """Refuse."""
        raise self._refusal()

    def thaw(self) -> None:
        """Refuse."""
        raise self._refusal()

    def close(self) -> None:
        """Do nothing: it is somebody else's."""

    def _refusal(self) -> MissingServerError:
        return MissingServerError(f"{self.url} was given by the environment: it is not for a test to stop or freeze.")


class DockerServer:
    """A server in a container, on a port of the host that stays the same through restarts."""

    def __init__(self, image: str, port: int, environment: Mapping[str, str], files: Mapping[str, str]) -> None:
        """Describe the container; files are those of the image that are replaced, path to text."""
        # Imported here: it is slow, and only of use where an engine answers.
        from testcontainers.core.container import DockerContainer

        self.port = processes.free_port()
        self._home = processes.make_home("docker")
        self.container: Any = DockerContainer(image).with_bind_ports(port, self.port)
        for name, value in environment.items():
            self.container = self.container.with_env(name, value)
        for number, (path, text) in enumerate(files.items()):
            local = self._home / str(number)
            local.write_text(text, encoding="utf-8")
            self.container = self.container.with_volume_mapping(str(local), path, "ro")
        self.running = False

    @property
    def url(self) -> str:
        """URL for a client."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start the container, or start it again, and wait until it answers."""
        wrapped = self.container.get_wrapped_container()
        if wrapped is None:
            processes.register(self)
            self.container.start()
        else:
            wrapped.start()
        self.running = True
        wait_for(self._answers, seconds=START_SECONDS, what=f"{self.container.image} answers", poll_seconds=0.25)
        return self

    def stop(self) -> None:
        """Stop the container; it keeps its data."""
        self.container.get_wrapped_container().stop(timeout=60)
        self.running = False

    def kill(self) -> None:
        """Kill the container; it keeps its data."""
        self.container.get_wrapped_container().kill()
        self.running = False

    def restart(self, *, graceful: bool = True) -> Self:
        """End the container and start it again."""
        if graceful:
            self.stop()
        else:
            self.kill()
        return self.start()

    def freeze(self) -> None:
        """Pause the container."""
        self.container.get_wrapped_container().pause()

    def thaw(self) -> None:
        """Let the container go on."""
        self.container.get_wrapped_container().unpause()

    def close(self) -> None:
        """Remove container and data."""
        processes.forget(self)
        self.container.stop()
        self.running = False
        processes.remove_home(self._home)

    def _answers(self) -> bool:
        raise NotImplementedError


class DockerBroker(DockerServer):
    """RabbitMQ in a container."""

    def __init__(self, config: Mapping[str, object], advanced: str, plugins: Sequence[str]) -> None:
        """Describe the container."""
        # Its default user may log in from elsewhere than the container itself.
        lines = [f"{name} = {value}" for name, value in {"loopback_users": "none", **config}.items()]
        files = {"/etc/rabbitmq/conf.d/90-test.conf": "\n".join(lines) + "\n"}
        if advanced:
            files["/etc/rabbitmq/advanced.config"] = advanced
        if plugins:
            files["/etc/rabbitmq/enabled_plugins"] = f"[{','.join(plugins)}].\n"
        super().__init__(RABBITMQ_IMAGE, _AMQP_PORT, {}, files)

    @property
    def url(self) -> str:
        """URL for a client."""
        return f"amqp://guest:guest@{self.container.get_container_host_ip()}:{self.port}/"

    @property
    def amqp_url(self) -> str:
        """URL for a client."""
        return self.url

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run rabbitmqctl in the container."""
        status, output = self.container.exec(["rabbitmqctl", "-q", *arguments])
        text: str = output.decode(errors="replace")
        if status != 0:
            message = f"rabbitmqctl {' '.join(arguments)} failed: {text.strip()}"
            raise StackError(message)
        return text

    def _answers(self) -> bool:
        try:
            Amqp(self.url, timeout_seconds=5.0).close()
        except Exception:  # noqa: BLE001 - whatever is wrong, it isn't ready
            return False
        return True


class DockerCluster(DockerServer):
    """Elasticsearch in a container."""

    def __init__(self, settings: Mapping[str, object], password: str | None, files: Mapping[str, str]) -> None:
        """Describe the container; its image takes settings from the environment."""
        environment = {
            "discovery.type": "single-node",
            "xpack.security.enabled": "false" if password is None else "true",
            "cluster.routing.allocation.disk.threshold_enabled": "false",
            # Else a test's block of a full disk is lifted every 30 s (see devstack.elasticsearch).
            "cluster.info.update.interval": "24h",
            "ES_JAVA_OPTS": QUICK_JAVA_OPTIONS,
            **({} if password is None else {"ELASTIC_PASSWORD": password}),
            **{name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in settings.items()},
        }
        placed = {f"/usr/share/elasticsearch/config/{name}": text for name, text in files.items()}
        super().__init__(ELASTICSEARCH_IMAGE, _HTTP_PORT, environment, placed)
        self._password = password or ""

    @property
    def url(self) -> str:
        """URL for a client."""
        return f"http://{self.container.get_container_host_ip()}:{self.port}"

    def _answers(self) -> bool:
        user = "elastic" if self._password else ""
        with (
            contextlib.suppress(Exception),  # whatever is wrong, it isn't ready
            Elastic(self.url, username=user, password=self._password, timeout_seconds=5.0) as client,
        ):
            return client.send("GET", "/_cluster/health?wait_for_status=yellow&timeout=1s").status == 200
        return False


def shared_broker() -> Broker:
    """Return a started RabbitMQ that the whole session shares.

    Raises:
        MissingServerError: there is none to be had.
    """
    given = os.environ.get(AMQP_URL_VARIABLE)
    return GivenServer(given) if given else own_broker(plugins=SHARED_PLUGINS)


def shared_cluster() -> Cluster:
    """Return a started Elasticsearch that the whole session shares.

    Raises:
        MissingServerError: there is none to be had.
    """
    given = os.environ.get(ELASTICSEARCH_URL_VARIABLE)
    return GivenServer(given) if given else own_cluster()


def own_broker(
    config: Mapping[str, object] | None = None, *, advanced: str = "", plugins: Sequence[str] = ()
) -> Broker:
    """Return a started RabbitMQ for one test alone.

    Args:
        config: Lines of ``rabbitmq.conf``.
        advanced: Text of ``advanced.config``.
        plugins: Plug-ins to enable.

    Raises:
        MissingServerError: there is none to be had.
    """
    if compose.engine_answers():
        return DockerBroker(config or {}, advanced, plugins).start()
    if provision.find_rabbitmq() is None:
        message = f"no RabbitMQ: set {AMQP_URL_VARIABLE}, start Docker, or run 'make provision'"
        raise MissingServerError(message)
    return _started(RabbitMQ(config, advanced=advanced, plugins=plugins))


def own_cluster(
    settings: Mapping[str, object] | None = None,
    *,
    password: str | None = None,
    files: Mapping[str, str] | None = None,
) -> Cluster:
    """Return a started Elasticsearch for one test alone.

    Args:
        settings: Lines of ``elasticsearch.yml``.
        password: Turns security on; the password of the user ``elastic``.
        files: More files of the configuration folder, name to text (``roles.yml``).

    Raises:
        MissingServerError: there is none to be had.
    """
    if compose.engine_answers():
        return DockerCluster(settings or {}, password, files or {}).start()
    if provision.find_elasticsearch() is None:
        message = f"no Elasticsearch: set {ELASTICSEARCH_URL_VARIABLE}, start Docker, or run 'make provision'"
        raise MissingServerError(message)
    return _started(Elasticsearch(settings, password=password, files=files, java_options=QUICK_JAVA_OPTIONS))


def _started(node: Node) -> Node:
    """Start a node, or leave nothing of it."""
    try:
        node.start()
    except BaseException:
        node.close()
        raise
    return node
