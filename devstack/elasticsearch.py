"""A private single-node Elasticsearch as plain processes."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
from typing import TYPE_CHECKING, Self

from devstack import processes, provision
from devstack.errors import StackError
from devstack.processes import LOOPBACK, ProcessGroup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

START_SECONDS = 180.0
STOP_SECONDS = 60.0
TOOL_SECONDS = 60.0
JAVA_OPTIONS = "-Xms512m -Xmx512m"
# For short tests: without the optimizing compiler a node starts with half the processor time (11 s instead of 20), and
# is slower at full load.
QUICK_JAVA_OPTIONS = f"{JAVA_OPTIONS} -XX:TieredStopAtLevel=1"
USERNAME = "elastic"

# Nobody's: it needs no entry in /etc/passwd, and files of an ended test belong to no real user.
_SERVER_UID = 61_999
_OK = 200
_UNAUTHORIZED = 401

_DEFAULT_SETTINGS: dict[str, object] = {
    "discovery.type": "single-node",
    "network.host": LOOPBACK,
    "xpack.security.enabled": False,
    # A nearly full disk of a developer's machine is no reason to refuse test data.
    "cluster.routing.allocation.disk.threshold_enabled": False,
    # Each time a node learns how full its disk is, and thresholds are off, it lifts the blocks of a full disk, which
    # tests set by hand. By default that is every 30 s.
    "cluster.info.update.interval": "24h",
}

# Garbage collection logs of up to 2 GB a node are of no use here.
_JVM_OPTIONS = "-Xlog:disable\n-Xlog:all=warning:stderr:utctime,level,tags\n-XX:-HeapDumpOnOutOfMemoryError\n"


class Elasticsearch:
    """One node on free ports, in a folder of its own, without security unless a password is given.

    Port and data stay the same through `stop`, `kill`, `start` and `restart`; `close` ends it for good.
    Use it as a context manager, or call `start` and `close`.
    """

    def __init__(
        self,
        settings: Mapping[str, object] | None = None,
        *,
        java_options: str = JAVA_OPTIONS,
        password: str | None = None,
        files: Mapping[str, str | bytes] | None = None,
        home: Path | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """Choose ports and write the configuration; nothing is started yet.

        Args:
            settings: Lines of ``elasticsearch.yml``, name to value (``{"thread_pool.write.size": 1}``).
            java_options: ``ES_JAVA_OPTS``.
            password: Turns security on; the password of the user ``elastic``.
            files: More files of the configuration folder, name to content (``roles.yml``, certificates).
            home: Folder for data, configuration and log, kept by `close`; by default a new one that `close` removes.
            start_seconds: How long `start` waits for the node.

        Raises:
            StackError: Elasticsearch or a JDK for it isn't there.
        """
        self._install = provision.require_elasticsearch()
        self._own_home = home is None
        self.home = processes.make_home("elasticsearch") if home is None else home
        self.port = processes.free_port()
        self.password = password
        self.log = self.home / "console.log"
        self.config = self.home / "config"
        self._start_seconds = start_seconds
        self._group: ProcessGroup | None = None
        self._pid_file = self.home / "node.pid"
        self._settings = {
            **_DEFAULT_SETTINGS,
            **({} if password is None else {"xpack.security.enabled": True}),
            **(settings or {}),
            "http.port": self.port,
            "transport.port": processes.free_port(),
            "path.data": str(self.home / "data"),
            "path.logs": str(self.home / "logs"),
        }
        self._environment = self._make_environment(java_options)
        self._write_configuration(files or {})

    def __enter__(self) -> Self:
        """Start the node."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """End the node for good."""
        self.close()

    def __repr__(self) -> str:
        """URL and state, for messages of failed tests."""
        return f"<Elasticsearch {self.url} {'running' if self.running else 'stopped'}>"

    @property
    def version(self) -> str:
        """Version of the server, such as ``9.5.0``."""
        return self._install.version

    @property
    def url(self) -> str:
        """URL for a client, without credentials."""
        return f"{'https' if self._encrypted else 'http'}://{LOOPBACK}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the node's processes are there (frozen ones are as well)."""
        return self._group is not None and self._group.running()

    @property
    def pid(self) -> int:
        """Process id of the server's virtual machine (its launcher is another process).

        Raises:
            StackError: the node isn't running.
        """
        pid = processes.read_pid(self._pid_file) if self.running else None
        if pid is None:
            message = f"Elasticsearch on port {self.port} isn't running."
            raise StackError(message)
        return pid

    def start(self) -> Self:
        """Start the node and wait until its cluster is at least yellow; does nothing where it runs already.

        Raises:
            StackError: it ended or wasn't ready in time; the end of its log is quoted.
        """
        if self.running:
            return self
        processes.register(self)
        if self._own_home:
            processes.note(f"+{self.home}")
        self._pid_file.unlink(missing_ok=True)
        self._group = ProcessGroup(
            self._as_user(str(self._install.home / "bin" / "elasticsearch"), "-p", str(self._pid_file)),
            environment=self._environment,
            folder=self.home,
            log=self.log,
        )
        try:
            processes.wait_until(
                self._healthy,
                seconds=self._start_seconds,
                group=self._group,
                name=f"Elasticsearch {self.version}",
                log=self.log,
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
        """Kill the node, and remove the home folder unless it was given."""
        self.kill()
        processes.forget(self)
        if self._own_home:
            processes.remove_home(self.home)

    def write_config(self, name: str, content: str | bytes) -> None:
        """Replace a file of the configuration folder (the server watches ``users`` and ``roles.yml``)."""
        path = self.config / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)
        fresh.chmod(0o600)
        _give_away(fresh)
        fresh.replace(path)

    def tool(self, name: str, *arguments: str, text: str = "") -> str:
        """Run a command of the distribution's ``bin`` on this node's configuration, and return what it printed.

        Raises:
            StackError: it failed or didn't end in time.
        """
        command = self._as_user(str(self._install.home / "bin" / name), *arguments)
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                cwd=self.home,
                input=text,
                capture_output=True,
                text=True,
                timeout=TOOL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message = f"{name} didn't end within {TOOL_SECONDS:g} s."
            raise StackError(message) from error
        if done.returncode != 0:
            message = f"{name} failed: {(done.stderr or done.stdout).strip()}"
            raise StackError(message)
        return done.stdout

    @property
    def _encrypted(self) -> bool:
        return str(self._settings.get("xpack.security.http.ssl.enabled", False)).lower() == "true"

    def _make_environment(self, java_options: str) -> dict[str, str]:
        """Return an environment that leads the scripts to this node's folders and to the JDK that was found."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ES_", "CLI_JAVA", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS"))
        }
        return {
            **inherited,
            "HOME": str(self.home),
            "ES_JAVA_HOME": str(self._install.java_home),
            "ES_JAVA_OPTS": java_options,
            "ES_PATH_CONF": str(self.config),
            "ES_TMPDIR": str(self.home / "tmp"),
        }

    def _write_configuration(self, files: Mapping[str, str | bytes]) -> None:
        """Write the node's files and hand them to the user that it runs as."""
        shutil.copytree(self._install.home / "config", self.config, dirs_exist_ok=True)
        for folder in ("data", "logs", "tmp", "config/jvm.options.d"):
            (self.home / folder).mkdir(exist_ok=True)
        # JSON is YAML, and spells every value without surprises.
        lines = [f"{json.dumps(name)}: {json.dumps(value)}\n" for name, value in self._settings.items()]
        (self.config / "elasticsearch.yml").write_text("".join(lines), encoding="utf-8")
        (self.config / "jvm.options.d" / "devstack.options").write_text(_JVM_OPTIONS, encoding="ascii")
        for path in [self.home, *self.home.rglob("*")]:
            _give_away(path)
        for name, content in files.items():
            self.write_config(name, content)
        if self.password is not None and not (self.config / "elasticsearch.keystore").exists():
            # -f makes the keystore as well: one start of a virtual machine instead of two.
            self.tool("elasticsearch-keystore", "add", "-f", "-x", "bootstrap.password", text=self.password)

    def _as_user(self, *command: str) -> Sequence[str]:
        """Return a command as the server's user would run it: it refuses to run as root."""
        if os.geteuid() != 0:
            return command
        user = str(_SERVER_UID)
        return ("setpriv", "--reuid", user, "--regid", user, "--clear-groups", *command)

    def _healthy(self) -> bool:
        """Tell whether the node answers and has all primary shards."""
        # Never ``GET /``: the distribution without modules doesn't have it.
        path = "/_cluster/health?wait_for_status=yellow&timeout=1s"
        try:
            connection = self._connection()
            try:
                connection.request("GET", path, headers=self._headers())
                status = connection.getresponse().status
            finally:
                connection.close()
        except (OSError, http.client.HTTPException):
            return False
        # Other users may have been configured than the one whose password we know.
        return status == _OK or (status == _UNAUTHORIZED and self.password is None)

    def _connection(self) -> http.client.HTTPConnection:
        if self._encrypted:
            # The probe carries a password of this test to a port of this machine: who answers doesn't matter.
            context = ssl._create_unverified_context()  # noqa: SLF001
            return http.client.HTTPSConnection(LOOPBACK, self.port, timeout=5.0, context=context)
        return http.client.HTTPConnection(LOOPBACK, self.port, timeout=5.0)

    def _headers(self) -> dict[str, str]:
        if self.password is None:
            return {}
        credentials = base64.b64encode(f"{USERNAME}:{self.password}".encode()).decode("ascii")
        return {"Authorization": f"Basic {credentials}"}

    def _pids(self) -> list[int]:
        """Return the processes whose end `stop` and `kill` wait for."""
        pid = processes.read_pid(self._pid_file)
        return [] if pid is None else [pid]

    def _wait_gone(self, pids: list[int]) -> None:
        """Wait until data and port are free for the next start."""
        self._group = None
        processes.wait_gone(pids, port=self.port, seconds=STOP_SECONDS, name=f"Elasticsearch on port {self.port}")
        self._pid_file.unlink(missing_ok=True)


def _give_away(path: Path) -> None:
    """Hand a file to the user that the server runs as, where that is not us."""
    if os.geteuid() == 0:
        os.chown(path, _SERVER_UID, _SERVER_UID)
