"""The sidecar as a child process, the way users run it: an environment, a log, SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devstack import processes

if TYPE_CHECKING:
    from collections.abc import Mapping

REPOSITORY = Path(__file__).resolve().parent.parent
STOP_SECONDS = 30.0
_LOG_LINES = 10
OF_ITS_OWN = {"SIDECAR_LOG_FORMAT": "json", "SIDECAR_HTTP_ADDRESS": "127.0.0.1:0"}  # a port that nobody else has


class Sidecar:
    """``sidecar run`` in a process group of its own, so that Ctrl-C of the terminal reaches only the demo.

    Args:
        settings: its ``SIDECAR_*``; nothing else of ours gets in, nor a ``.env`` of the folder that we are in.
        folder: where it runs, and where its log is.
    """

    def __init__(self, settings: Mapping[str, str], folder: Path) -> None:
        self.log = folder / "sidecar.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
        paths = [str(REPOSITORY), *filter(None, [inherited.get("PYTHONPATH")])]
        processes.watch_exit()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", "run"],
                env={**inherited, "PYTHONPATH": os.pathsep.join(paths), **OF_ITS_OWN, **settings},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        processes.note(f"+{self.pid}")

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return self._process.poll() is None

    def stop(self) -> int:
        """Ask it to end (SIGTERM), wait, and return its exit status; it is killed after half a minute."""
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode
        processes.note(f"-{self.pid}")
        return status

    def kill(self) -> None:
        """End it at once, if it is still there."""
        self._process.kill()
        self._process.wait()
        processes.note(f"-{self.pid}")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of a name in its log."""
        events = []
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a traceback
            if isinstance(event, dict) and event.get("event") == name:
                events.append(event)
        return events

    def log_tail(self) -> str:
        """Return the end of its log."""
        return processes.log_tail(self.log, _LOG_LINES)
