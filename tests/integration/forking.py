"""The command line without the wait for its imports: forks of a process that has imported all that it needs.

The imports take 0.8 s of a processor, more than all that a sidecar does in most tests, and those start hundreds.

`Forks` starts that process (this module, as a program) and asks it for a fork by a line of JSON. It answers with lines:
``PID`` for a fork that was made, ``PID STATUS`` for one that has ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS = ("run", "indexing", "forwarding", "check", "dlq", "mappings", "produce")
_START_SECONDS = 60.0
_LOOKED_AT_BY_THE_INTERPRETER = ("PYTHON", "LD_", "LC_", "LANG")


class Fork:
    """A child of `Forks`, with what the tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, forks: Forks) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forks = forks

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        if self.returncode is None:
            self.returncode = self._forks.ended(self.pid, 0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status.

        Raises:
            subprocess.TimeoutExpired: it didn't end in time.
        """
        if self.returncode is None:
            self.returncode = self._forks.ended(self.pid, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("sidecar", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; does nothing where it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """The process that forks, and what it has told of its children. Any thread may ask."""

    def __init__(self) -> None:
        self._home = Path.cwd()
        self._environment = _for_the_interpreter(dict(os.environ))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._asking = threading.Lock()
        self._told = threading.Condition()
        self._made: list[int] = []
        self._ended: dict[int, int] = {}
        threading.Thread(target=self._listen, name="forks", daemon=True).start()

    def suit(self, environment: dict[str, str]) -> bool:
        """Tell whether a fork is what a new process would be: the interpreter has read some things already."""
        return Path.cwd() == self._home and _for_the_interpreter(environment) == self._environment

    def start(self, arguments: Sequence[str], environment: dict[str, str], output: Path, errors: Path) -> Fork:
        """Start ``sidecar`` with arguments; what it writes is appended to files."""
        assert self._process.stdin is not None
        for path in (output, errors):
            path.touch()
        asked = {"arguments": arguments, "environment": environment, "output": str(output), "errors": str(errors)}
        with self._asking:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            with self._told:
                assert self._told.wait_for(lambda: self._made, _START_SECONDS), "the process that forks doesn't answer"
                return Fork(self._made.pop(), self)

    def ended(self, pid: int, timeout: float | None) -> int | None:
        """Return the exit status of a child, None if it still runs after that time."""
        with self._told:
            self._told.wait_for(lambda: pid in self._ended, timeout)
            return self._ended.get(pid)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            pid, _, status = line.partition(" ")
            with self._told:
                if status:
                    self._ended[int(pid)] = os.waitstatus_to_exitcode(int(status))
                else:
                    self._made.append(int(pid))
                self._told.notify_all()


def _for_the_interpreter(environment: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in environment.items() if name.startswith(_LOOKED_AT_BY_THE_INTERPRETER)}


# The process that forks ----------------------------------------------------------------------------------------------


def _serve() -> bool:
    """Fork for each line; True in a child, False when nobody asks any more."""
    signal.signal(signal.SIGCHLD, _tell_ends)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line))
            return True
        os.write(1, b"%d\n" % pid)
    return False


def _tell_ends(*_: Any) -> None:
    """Collect children and tell how they ended."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            os.write(1, b"%d %d\n" % ended)


def _become(asked: dict[str, Any]) -> None:
    """Make of this process what a new one would be."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(asked[name], os.O_WRONLY | os.O_APPEND) for name in ("output", "errors")]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["sidecar", *asked["arguments"]]


if __name__ == "__main__":
    from sidecar.cli import main

    for command in _COMMANDS:
        importlib.import_module(f"sidecar.cli.{command}")
    with contextlib.suppress(ImportError):
        importlib.import_module("uvloop")
    if _serve():
        main()
