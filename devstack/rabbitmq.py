"""A private RabbitMQ node as plain processes, with an Erlang port mapper (epmd) of its own."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING

from devstack import processes, provision
from devstack.processes import LOOPBACK, ProcessGroup
from devstack.server import TOOL_SECONDS, Server

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

START_SECONDS = 120.0

_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = 1


class RabbitMQ(Server):
    """One node; guest/guest on the virtual host ``/``. Its name stays the same as its port does."""

    def __init__(
        self,
        config: Mapping[str, object] | None = None,
        *,
        advanced: str = "",
        plugins: Sequence[str] = (),
        home: Path | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """Choose ports and write the configuration; nothing is started yet.

        Args:
            config: Lines of ``rabbitmq.conf``, name to value (``{"consumer_timeout": 5000}``).
            advanced: Text of ``advanced.config``, an Erlang term with its full stop, for what has no line there.
            plugins: Names of plug-ins to enable (``rabbitmq_management``).
            home: Folder for data, configuration and log, kept by `close`; by default a new one that `close` removes.
            start_seconds: How long `start` waits for the node.

        Raises:
            StackError: RabbitMQ isn't installed.
        """
        self._tools = provision.require_rabbitmq()
        super().__init__("rabbitmq", home, start_seconds)
        self.name = f"rabbit-{self.port}@localhost"
        self._epmd_port = processes.free_port()
        self._epmd: ProcessGroup | None = None
        self._environment = self._make_environment(processes.free_port())
        self._write_configuration(config or {}, advanced, plugins)

    @property
    def amqp_url(self) -> str:
        """URL for an AMQP client."""
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}/"

    @property
    def url(self) -> str:
        """The same as `amqp_url`."""
        return self.amqp_url

    def rabbitmqctl(self, *arguments: str, timeout_seconds: float = TOOL_SECONDS) -> str:
        """Run ``rabbitmqctl`` on this node and return what it printed. Takes about a second.

        Raises:
            StackError: it failed or didn't end in time.
        """
        command = [str(self._tools.control), "-q", "-n", self.name, *arguments]
        return self._run(f"rabbitmqctl {' '.join(arguments)}", command, timeout_seconds=timeout_seconds)

    @property
    def _title(self) -> str:
        return f"RabbitMQ {self.name}"

    def _command(self) -> Sequence[str]:
        return [str(self._tools.server)]

    def _make_environment(self, distribution_port: int) -> dict[str, str]:
        """Return an environment in which server and rabbitmqctl meet each other, and no other node of this machine."""
        # Variables of the machine's own broker would lead the scripts to its data.
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))
        }
        return {
            **inherited,
            "HOME": str(self.home),  # the Erlang cookie lies there
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.home / "data"),
            "RABBITMQ_LOG_BASE": str(self.home / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self._pid_file),
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.home / "rabbitmq-env.conf"),
        }

    def _write_configuration(self, config: Mapping[str, object], advanced: str, plugins: Sequence[str]) -> None:
        """Write the node's files; the cookie too, or server and rabbitmqctl would race to make one."""
        for folder in ("data", "log"):
            (self.home / folder).mkdir(exist_ok=True)
        lines = [f"{name} = {_conf_value(value)}\n" for name, value in config.items()]
        (self.home / "rabbitmq.conf").write_text("".join(lines), encoding="utf-8")
        (self.home / "advanced.config").write_text(advanced or "[].\n", encoding="utf-8")
        (self.home / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n", encoding="utf-8")
        (self.home / "rabbitmq-env.conf").touch()
        cookie = self.home / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(16), encoding="ascii")
            cookie.chmod(0o400)

    def _start_helpers(self) -> None:
        """Start epmd in the foreground: the one that a node starts by itself goes to the background and stays."""
        if self._epmd is None or not self._epmd.running():
            self._epmd = ProcessGroup(
                [str(self._tools.epmd), "-port", str(self._epmd_port), "-address", LOOPBACK],
                environment=self._environment,
                folder=self.home,
                log=self.home / "epmd.log",
            )
            processes.wait_until(
                lambda: processes.port_accepts(self._epmd_port),
                seconds=self._start_seconds,
                group=self._epmd,
                name="Erlang's port mapper (epmd)",
                log=self.home / "epmd.log",
            )

    def _end_helpers(self) -> None:
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd = None

    def _ready(self) -> bool:
        """Tell whether the node answers a protocol header with ``connection.start``."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1.0) as connection:
                connection.sendall(_PROTOCOL_HEADER)
                return connection.recv(1)[:1] == bytes([_METHOD_FRAME])
        except OSError:
            return False


def _conf_value(value: object) -> str:
    """Return a value as ``rabbitmq.conf`` spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
