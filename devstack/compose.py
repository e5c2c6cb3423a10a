"""The same two servers by Docker Compose, where an engine answers."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Self

from devstack import processes
from devstack.errors import StackError

FOLDER = Path(__file__).resolve().parent.parent / "deploy"
FILES = (FOLDER / "compose.yaml", FOLDER / "compose.plain.yaml")
# Asked for by name wherever one is needed: here nobody has to log in.
NO_PASSWORDS = dict.fromkeys(("ELASTIC_PASSWORD", "SIDECAR_PASSWORD", "KIBANA_PASSWORD", "RABBITMQ_PASSWORD"), "none")
ENGINE_SECONDS = 5.0
COMMAND_SECONDS = 1800.0


@functools.cache
def engine_answers() -> bool:
    """Tell whether a Docker engine answers, not merely whether its client is installed. Asked once."""
    return _succeeds("docker", "info", "--format", "{{.ServerVersion}}")


@functools.cache
def available() -> bool:
    """Tell whether Docker Compose can be used: an engine and the plug-in."""
    return engine_answers() and _succeeds("docker", "compose", "version")


class ComposedServers:
    """RabbitMQ and Elasticsearch of ``deploy/``, without passwords, under a project name and on ports of their own."""

    def __init__(self) -> None:
        """Choose name and ports; nothing is started yet."""
        amqp_port, elasticsearch_port = processes.free_port(), processes.free_port()
        self.amqp_url = f"amqp://guest:guest@{processes.LOOPBACK}:{amqp_port}/"
        self.elasticsearch_url = f"http://{processes.LOOPBACK}:{elasticsearch_port}"
        self._project = f"sidecar-{amqp_port}"
        self._ports = {
            "AMQP_PORT": str(amqp_port),
            "MANAGEMENT_PORT": str(processes.free_port()),
            "ELASTICSEARCH_PORT": str(elasticsearch_port),
        }

    def start(self) -> Self:
        """Start both and wait until they are healthy.

        Raises:
            StackError: one of them didn't start; what Compose said is quoted.
        """
        processes.register(self)
        self._compose("up", "--detach", "--wait", "rabbitmq", "elasticsearch")
        return self

    def close(self) -> None:
        """Remove both and their data.

        Raises:
            StackError: Compose failed.
        """
        processes.forget(self)
        self._compose("down", "--volumes", "--timeout", "1")

    def __enter__(self) -> Self:
        """Start both."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Remove both."""
        self.close()

    def _compose(self, *arguments: str) -> None:
        files = [argument for file in FILES for argument in ("--file", str(file))]
        command = ["docker", "compose", *files, "--project-name", self._project, *arguments]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **NO_PASSWORDS, **self._ports},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            message = f"docker compose {arguments[0]} can't be run: {error}"
            raise StackError(message) from error
        if done.returncode != 0:
            message = f"docker compose {arguments[0]} failed: {done.stderr.strip()}"
            raise StackError(message)


def _succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=ENGINE_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
