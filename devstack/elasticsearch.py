"""A private single-node Elasticsearch as plain processes."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import ssl
from typing import TYPE_CHECKING

from devstack import processes, provision
from devstack.processes import LOOPBACK
from devstack.server import Server

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

START_SECONDS = 180.0
JAVA_OPTIONS = "-Xms512m -Xmx512m"
# For short tests: without the optimizing compiler a node starts with half the processor time (11 s instead of 20), and
# is slower at full load.
QUICK_JAVA_OPTIONS = f"{JAVA_OPTIONS} -XX:TieredStopAtLevel=1"
# The launcher runs up to three short virtual machines before the node's own. The optimizing compiler costs them 3 s of
# processor time at each start and gains nothing.
_LAUNCHER_JAVA_OPTIONS = "-XX:TieredStopAtLevel=1"
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


class Elasticsearch(Server):
    """One node, without security unless a password is given."""

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
        super().__init__("elasticsearch", home, start_seconds)
        self.password = password
        self.config = self.home / "config"
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

    @property
    def version(self) -> str:
        """Version of the server, such as ``9.5.0``."""
        return self._install.version

    @property
    def url(self) -> str:
        """URL for a client, without credentials."""
        return f"{'https' if self._encrypted else 'http'}://{LOOPBACK}:{self.port}"

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
        return self._run(name, self._as_user(str(self._install.home / "bin" / name), *arguments), text=text)

    @property
    def _title(self) -> str:
        return f"Elasticsearch {self.version} on port {self.port}"

    def _command(self) -> Sequence[str]:
        return self._as_user(str(self._install.home / "bin" / "elasticsearch"), "-p", str(self._pid_file))

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
            "CLI_JAVA_OPTS": _LAUNCHER_JAVA_OPTIONS,
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

    def _ready(self) -> bool:
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


def _give_away(path: Path) -> None:
    """Hand a file to the user that the server runs as, where that is not us."""
    if os.geteuid() == 0:
        os.chown(path, _SERVER_UID, _SERVER_UID)
