"""The sidecar as a process of its own, the way users run it: an environment, a log, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


class SidecarProcess:
    """``sidecar run`` as a child process.

    Args:
        environment: the settings; nothing else of the parent's ``SIDECAR_*`` gets in.
        log: where its standard error goes.
    """

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
        self.environment = inherited | {"SIDECAR_LOG_FORMAT": "json", "SIDECAR_HTTP_ADDRESS": ""} | environment
        self.log = log
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", "run"], env=self.environment, stdout=sink, stderr=sink
            )

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
