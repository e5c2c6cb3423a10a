"""The life of a private server, whichever it is: started, stopped, killed, frozen, closed."""

from __future__ import annotations

import signal
import subprocess
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from devstack import processes
from devstack.errors import StackError
from devstack.processes import ProcessGroup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

STOP_SECONDS = 60.0
TOOL_SECONDS = 60.0


class Server(ABC):
    """One server on free ports, in a folder of its own.

    Ports and data stay the same through `stop`, `kill`, `start` and `restart`; `close` ends it for good.
    Use it as a context manager, or call `start` and `close`.
    """

    _environment: Mapping[str, str]

    def __init__(self, kind: str, home: Path | None, start_seconds: float) -> None:
        """Choose a port; nothing is started yet.

        Args:
            kind: Its program, for the name of a new folder.
            home: Folder for data, configuration and log, kept by `close`; by default a new one that `close` removes.
            start_seconds: How long `start` waits for the server.
        """
        self._own_home = home is None
        self.home = processes.make_home(kind) if home is None else home
        self.port = processes.free_port()
        self.log = self.home / "console.log"
        self._start_seconds = start_seconds
        self._group: ProcessGroup | None = None
        self._pid_file = self.home / "node.pid"

    @property
    @abstractmethod
    def url(self) -> str:
        """URL for a client."""

    @property
    @abstractmethod
    def _title(self) -> str:
        """What it is called in messages."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Return the command that runs it in the foreground and writes its process id into `_pid_file`."""

    @abstractmethod
    def _ready(self) -> bool:
        """Tell whether it answers its clients."""

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """End the server for good."""
        self.close()

    def __repr__(self) -> str:
        """Name and state, for messages of failed tests."""
        return f"<{self._title} {'running' if self.running else 'stopped'}>"

    @property
    def running(self) -> bool:
        """Whether the server's processes are there (frozen ones are as well)."""
        return self._group is not None and self._group.running()

    @property
    def pid(self) -> int:
        """Process id of the virtual machine that the server is (its launcher is another process).

        Raises:
            StackError: the server isn't running.
        """
        pid = processes.read_pid(self._pid_file) if self.running else None
        if pid is None:
            message = f"{self._title} isn't running."
            raise StackError(message)
        return pid

    def start(self) -> Self:
        """Start the server and wait until it answers its clients; does nothing where it runs already.

        Raises:
            StackError: it ended or wasn't ready in time; the end of its log is quoted.
        """
        if self.running:
            return self
        processes.register(self)
        if self._own_home:
            processes.note(f"+{self.home}")
        self._start_helpers()
        self._pid_file.unlink(missing_ok=True)
        self._group = ProcessGroup(self._command(), environment=self._environment, folder=self.home, log=self.log)
        try:
            processes.wait_until(
                self._ready, seconds=self._start_seconds, group=self._group, name=self._title, log=self.log
            )
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """Stop the server in good order (SIGTERM); it is killed after a minute. Its data stay."""
        if self._group is not None:
            pids = self._pids()
            self._group.end(STOP_SECONDS)
            self._wait_gone(pids)

    def kill(self) -> None:
        """Kill the server at once (SIGKILL). Its data stay as they are."""
        if self._group is not None:
            pids = self._pids()
            self._group.kill()
            self._wait_gone(pids)

    def restart(self, *, graceful: bool = True) -> Self:
        """Stop or kill the server, and start it again on the same ports and data.

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
        """Kill the server with its helpers, and remove the home folder unless it was given."""
        self.kill()
        self._end_helpers()
        processes.forget(self)
        if self._own_home:
            processes.remove_home(self.home)

    def _start_helpers(self) -> None:  # noqa: B027 - most servers need none
        """Start what has to run before the server, where there is such a thing."""

    def _end_helpers(self) -> None:  # noqa: B027
        """End what `_start_helpers` started."""

    def _run(self, name: str, command: Sequence[str], *, text: str = "", timeout_seconds: float = TOOL_SECONDS) -> str:
        """Run a tool in the server's environment and return what it printed.

        Args:
            name: What it is called in messages.
            command: Program and arguments.
            text: What it reads.
            timeout_seconds: How long it may take.

        Raises:
            StackError: it failed or didn't end in time.
        """
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                cwd=self.home,
                input=text,
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message = f"{name} didn't end within {timeout_seconds:g} s."
            raise StackError(message) from error
        if done.returncode != 0:
            message = f"{name} failed: {(done.stderr or done.stdout).strip()}"
            raise StackError(message)
        return done.stdout

    def _pids(self) -> list[int]:
        """Return the processes whose end `stop` and `kill` wait for."""
        pid = processes.read_pid(self._pid_file)
        return [] if pid is None else [pid]

    def _wait_gone(self, pids: list[int]) -> None:
        """Wait until data and port are free for the next start."""
        self._group = None
        processes.wait_gone(pids, port=self.port, seconds=STOP_SECONDS, name=self._title)
        self._pid_file.unlink(missing_ok=True)
