"""The sidecar as a process of its own, the way users run it: an environment, a log, signals."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.builders import THOROUGHNESS
from tests.integration.forking import Fork, Forks

if TYPE_CHECKING:
    from collections.abc import Callable

START_SECONDS = 30.0


def wait_until(condition: Callable[[], bool], seconds: float, what: str, tell: Callable[[], str] = str) -> None:
    """Wait until `condition` holds.

    Raises:
        AssertionError: it didn't within `seconds`; says `what` was waited for, and what `tell` says.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s. {tell()}"
        time.sleep(0.02)


@functools.cache
def _forks() -> Forks:
    """Return the process that forks; one for all tests of this process."""
    return Forks()


def run_sidecar(*arguments: str, environment: dict[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run ``sidecar`` with arguments to its end: as `subprocess.run` would, without the time for its imports."""
    if THOROUGHNESS > 1 or not _forks().suit(environment):
        line = [sys.executable, "-m", "sidecar", *arguments]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=seconds)
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        fork = _forks().start(arguments, environment, output, errors)
        try:
            status = fork.wait(seconds)
        finally:
            fork.kill()
        return subprocess.CompletedProcess(arguments, status, output.read_text(), errors.read_text())


class SidecarProcess:
    """``sidecar run`` as a process of its own.

    Args:
        environment: the settings; nothing else of the parent's ``SIDECAR_*`` gets in.
        log: where its standard error goes.
        anew: start an interpreter, as users do, rather than fork one that has imported everything. Where
            ``TEST_THOROUGHNESS`` asks for more than the quick run, that is always so.
    """

    def __init__(self, environment: dict[str, str], log: Path, *, anew: bool = False) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
        self.environment = inherited | {"SIDECAR_LOG_FORMAT": "json", "SIDECAR_HTTP_ADDRESS": ""} | environment
        self.log = log
        self.process: subprocess.Popen[bytes] | Fork
        if anew or THOROUGHNESS > 1 or not _forks().suit(self.environment):
            with log.open("ab") as sink:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "sidecar", "run"], env=self.environment, stdout=sink, stderr=sink
                )
        else:
            self.process = _forks().start(["run"], self.environment, log, log)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the log's events, all or those called `name`; lines that are no events fail the test."""
        lines = self.log.read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if name is None or event["event"] == name]

    def wait_for(self, name: str, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Wait for an event and return its latest."""
        wait_until(lambda: bool(self.events(name)) or self.process.poll() is not None, seconds, name, self.told)
        events = self.events(name)
        assert events, f"ended without {name}: {self.told()}"
        return events[-1]

    @staticmethod
    def moment(event: dict[str, Any]) -> float:
        """Return when an event was, by the monotonic clock, in seconds."""
        ago = time.time() - datetime.fromisoformat(event["timestamp"]).timestamp()
        return time.monotonic() - ago

    def told(self) -> str:
        """Return the end of the log."""
        return "".join(self.log.read_text().splitlines(keepends=True)[-15:])

    def terminate(self, seconds: float = 30.0) -> dict[str, Any]:
        """Send SIGTERM, wait for the end, and return the final account."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(seconds) == 0, self.told()
        account = self.events("sidecar.stopped")[-1]
        settled = sum(account[name] for name in ("ack", "delay", "requeue", "dead_letter", "discard", "stale"))
        assert account["received"] == settled + account["in_flight"], account
        assert account["in_flight"] == 0, account
        return account

    def kill(self) -> None:
        """Kill it as the kernel would; does nothing where it has ended."""
        self.process.kill()
        self.process.wait()
