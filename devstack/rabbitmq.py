"""A private RabbitMQ node as plain processes, with an Erlang port mapper (epmd) of its own."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Self

from devstack import processes, provision
from devstack.errors import StackError
from devstack.processes import LOOPBACK, ProcessGroup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

START_SECONDS = 120.0
STOP_SECONDS = 60.0
CONTROL_SECONDS = 60.0

_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = 1


class RabbitMQ:
    """One node on free ports, in a folder of its own; guest/guest on the virtual host ``/``.

    Port, node name and data stay the same through `stop`, `kill`, `start` and `restart`; `close` ends it for good.
    Use it as a context manager, or call `start` and `close`.
    """

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
        self._own_home = home is None
        self.home = processes.make_home("rabbitmq") if home is None else home
        self.port = processes.free_port()
        self.name = f"rabbit-{self.port}@localhost"
        self.log = self.home / "console.log"
        self._start_seconds = start_seconds
        self._epmd_port = processes.free_port()
        self._epmd: ProcessGroup | None = None
        self._group: ProcessGroup | None = None
        self._pid_file = self.home / "node.pid"
        self._environment = self._make_environment(processes.free_port())
        self._write_configuration(config or {}, advanced, plugins)

    def __enter__(self) -> Self:
        """Start the node."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """End the node for good."""
        self.close()

    def __repr__(self) -> str:
        """Name, port and state, for messages of failed tests."""
        return f"<RabbitMQ {self.name} {'running' if self.running else 'stopped'}>"

    @property
    def amqp_url(self) -> str:
        """URL for an AMQP client."""
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}/"

    @property
    def url(self) -> str:
        """The same as `amqp_url`."""
        return self.amqp_url

    @property
    def running(self) -> bool:
        """Whether the node's processes are there (frozen ones are as well)."""
        return self._group is not None and self._group.running()

    @property
    def pid(self) -> int:
        """Process id of the Erlang virtual machine.

        Raises:
            StackError: the node isn't running.
        """
        pid = processes.read_pid(self._pid_file) if self.running else None
        if pid is None:
            message = f"{self.name} isn't running."
            raise StackError(message)
        return pid

    def start(self) -> Self:
        """Start the node and wait until it greets AMQP clients; does nothing where it runs already.

        Raises:
            StackError: it ended or wasn't ready in time; the end of its log is quoted.
        """
        if self.running:
            return self
        processes.register(self)
        if self._own_home:
            processes.note(f"+{self.home}")
        self._start_port_mapper()
        self._pid_file.unlink(missing_ok=True)
        self._group = ProcessGroup(
            [str(self._tools.server)], environment=self._environment, folder=self.home, log=self.log
        )
        try:
            processes.wait_until(
                self._greets, seconds=self._start_seconds, group=self._group, name=f"RabbitMQ {self.name}", log=self.log
            )
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """Stop the node in good order (SIGTERM); it is killed after a minute. Its data stay."""
        if self._group is not None:
            pids = self._pids()
            self._group.end(STOP_SECONDS)
            self._wait_gone(pids)

    def kill(self) -> None:
        """Kill the node at once (SIGKILL). Its data stay as they are."""
        if self._group is not None:
            pids = self._pids()
            self._group.kill()
            self._wait_gone(pids)

    def restart(self, *, graceful: bool = True) -> Self:
        """Stop or kill the node, and start it again on the same port and data.

        Raises:
            StackError: as for `start`.
        """
        if graceful:
            self.stop()
        else:
            self.kill()
        return self.start()

    def freeze(self) -> None:
        """Stop the processes where they are (SIGSTOP): connections stay open, nothing is answered."""
        if self._group is not None:
            self._group.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let frozen processes go on (SIGCONT)."""
        if self._group is not None:
            self._group.signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill node and port mapper, and remove the home folder unless it was given."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd = None
        processes.forget(self)
        if self._own_home:
            processes.remove_home(self.home)

    def rabbitmqctl(self, *arguments: str, timeout_seconds: float = CONTROL_SECONDS) -> str:
        """Run ``rabbitmqctl`` on this node and return what it printed. Takes about a second.

        Raises:
            StackError: it failed or didn't answer in time.
        """
        command = [str(self._tools.control), "-q", "-n", self.name, *arguments]
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message = f"rabbitmqctl {' '.join(arguments)} didn't answer within {timeout_seconds:g} s."
            raise StackError(message) from error
        if done.returncode != 0:
            message = f"rabbitmqctl {' '.join(arguments)} failed: {(done.stderr or done.stdout).strip()}"
            raise StackError(message)
        return done.stdout

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

    def _start_port_mapper(self) -> None:
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

    def _greets(self) -> bool:
        """Tell whether the node answers a protocol header with ``connection.start``."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1.0) as connection:
                connection.sendall(_PROTOCOL_HEADER)
                return connection.recv(1)[:1] == bytes([_METHOD_FRAME])
        except OSError:
            return False

    def _pids(self) -> list[int]:
        """Return the processes whose end `stop` and `kill` wait for."""
        pid = processes.read_pid(self._pid_file)
        return [] if pid is None else [pid]

    def _wait_gone(self, pids: list[int]) -> None:
        """Wait until data and port are free for the next start."""
        self._group = None
        processes.wait_gone(pids, port=self.port, seconds=STOP_SECONDS, name=f"RabbitMQ {self.name}")
        self._pid_file.unlink(missing_ok=True)


def _conf_value(value: object) -> str:
    """Return a value as ``rabbitmq.conf`` spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
