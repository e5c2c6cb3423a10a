"""What both nodes share: free ports, folders that other users can enter, process groups, waiting, clean-up.

Nothing outlives the Python process that started it: `close_all` runs at exit and on SIGTERM and SIGHUP, and a small
second process (`reaper`) does the same for a parent that was killed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from devstack.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

LOOPBACK = "127.0.0.1"
REAPER_SECONDS = 10.0
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 80

_FIRST_PORT = 20_000
_PORT_ATTEMPTS = 200
_DEFAULT_EPHEMERAL_START = 32_768
_ENTER_BY_OTHERS = 0o001


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody listens on.

    It lies below the ephemeral range. A port of that range could be taken by any outgoing connection while its server
    is down for a restart, and a client that keeps trying to connect to it would some day connect to itself.

    Raises:
        StackError: no free port was found.
    """
    generator = random.SystemRandom()
    last = max(_FIRST_PORT + 1000, _ephemeral_start() - 1)
    for _ in range(_PORT_ATTEMPTS):
        port = generator.randint(_FIRST_PORT, last)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    message = f"No free TCP port between {_FIRST_PORT} and {last}: end some of the servers that listen there."
    raise StackError(message)


def _ephemeral_start() -> int:
    """Return the first port that the kernel hands to outgoing connections."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return _DEFAULT_EPHEMERAL_START


def port_accepts(port: int, *, host: str = LOOPBACK, timeout_seconds: float = 1.0) -> bool:
    """Tell whether something accepts connections on a port."""
    try:
        with socket.create_connection((host, port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def others_can_enter(folder: Path) -> bool:
    """Tell whether users other than the owner can pass through a folder and all that it lies in.

    The servers refuse to run as root, so where we are root they run as somebody else, who can't enter
    a folder of mode 0700, as root's home and pytest's temporary folders are.
    """
    path = folder.resolve()
    return all(part.stat().st_mode & _ENTER_BY_OTHERS for part in [path, *path.parents])


def home_base() -> Path:
    """Return the folder in which server homes are made: one that any user can enter."""
    for candidate in (Path("/var/tmp"), Path(tempfile.gettempdir())):
        if candidate.is_dir() and os.access(candidate, os.W_OK) and others_can_enter(candidate):
            return candidate
    return Path(tempfile.gettempdir())


def make_home(name: str) -> Path:
    """Make an empty folder for a server, enterable by other users (0755)."""
    home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=home_base()))
    home.chmod(0o755)
    return home


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """Return the last lines of a log, indented, for an error message."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "    (no log)"
    tail = text.splitlines()[-lines:] or ["(empty log)"]
    return "\n".join(f"    {line}" for line in tail)


def process_lives(pid: int) -> bool:
    """Tell whether a process exists and is not merely waiting to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # The state follows the name, which is in brackets and may hold anything.
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return Path("/proc/self").exists() is False  # without /proc the signal is all that there is to go by
    return state not in "ZX"


class Node(Protocol):
    """What the clean-up needs of a server."""

    def close(self) -> None:
        """End the server and remove what it left, if that was its own."""


class ProcessGroup:
    """A command with all that it starts, in a process group of its own.

    The group keeps a Ctrl-C of the terminal away from the server (the parent decides when it ends) and lets one call
    reach the launcher as well as the virtual machine behind it.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path) -> None:
        """Start the command in a folder, its output appended to a log.

        Raises:
            StackError: the command can't be started.
        """
        self._log = log
        watch_exit()
        with log.open("ab") as output:
            try:
                self._process = subprocess.Popen(
                    list(command),
                    env=dict(environment),
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                message = f"{command[0]} can't be started: {error}"
                raise StackError(message) from error
        note(f"+{self.pid}")

    @property
    def pid(self) -> int:
        """Process id of the first process, which is also the id of the group."""
        return self._process.pid

    def running(self) -> bool:
        """Tell whether the first process is still there."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of the group; one that is gone is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self, timeout_seconds: float) -> bool:
        """Ask the group to end and wait; kill what is left after that time. True if it ended by itself."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        self.kill()
        return True

    def kill(self) -> None:
        """Kill every process of the group and collect the first one."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        note(f"-{self.pid}")


def wait_until(ready: Callable[[], bool], *, seconds: float, group: ProcessGroup, name: str, log: Path) -> None:
    """Poll until a server is ready.

    Raises:
        StackError: the server ended, or wasn't ready in time; the end of its log is quoted.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if not group.running():
            message = f"{name} ended while it started. The end of its log, {log}:\n{log_tail(log)}"
            raise StackError(message)
        if time.monotonic() > deadline:
            message = f"{name} wasn't ready within {seconds:g} s. The end of its log, {log}:\n{log_tail(log)}"
            raise StackError(message)
        time.sleep(POLL_SECONDS)


def wait_gone(pids: Sequence[int], *, port: int, seconds: float, name: str) -> None:
    """Poll until processes are gone and nothing listens on their port any more.

    Raises:
        StackError: something is still there after that time.
    """
    deadline = time.monotonic() + seconds
    while any(process_lives(pid) for pid in pids) or port_accepts(port):
        if time.monotonic() > deadline:
            message = f"{name} (port {port}) is still there {seconds:g} s after it was ended."
            raise StackError(message)
        time.sleep(POLL_SECONDS)


def read_pid(path: Path) -> int | None:
    """Return the process id that a server wrote into a file, or None if it didn't."""
    try:
        return int(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None


_nodes: dict[int, Node] = {}
_reaper: list[subprocess.Popen[str]] = []
_owners: list[int] = []
_lock = threading.RLock()


def register(node: Node) -> None:
    """Have a server closed at the exit of this process, should nobody do it before."""
    with _lock:
        watch_exit()
        _nodes[id(node)] = node


def forget(node: Node) -> None:
    """Take a closed server off the list."""
    with _lock:
        _nodes.pop(id(node), None)


def close_all() -> None:
    """Close every server that is still open, the youngest first."""
    with _lock:
        # A forked child runs exit handlers as well, and the servers are not its own.
        nodes = list(_nodes.values())[::-1] if os.getpid() in _owners else []
    for node in nodes:
        with contextlib.suppress(Exception):  # the others are to be closed all the same
            node.close()


def _leave_nothing() -> None:
    """Close every server, then the reaper, which has nothing left to do."""
    close_all()
    with _lock:
        reapers = [_reaper.pop() for _ in range(len(_reaper))] if os.getpid() in _owners else []
    for reaper in reapers:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            reaper.communicate(timeout=REAPER_SECONDS)  # closes its input


def remove_home(home: Path) -> None:
    """Remove the folder of a server, which may still be writing its last line."""
    shutil.rmtree(home, ignore_errors=True)
    note(f"-{home}")


def note(text: str) -> None:
    """Tell the reaper what was started (``+``) or ended (``-``)."""
    with _lock:
        for reaper in _reaper:
            if reaper.stdin is not None:
                with contextlib.suppress(OSError, ValueError):
                    reaper.stdin.write(text + "\n")
                    reaper.stdin.flush()


def watch_exit() -> None:
    """Install the clean-up, once: exit handler, SIGTERM and SIGHUP, and the reaper for everything else."""
    with _lock:
        if _reaper:
            return
        _owners.append(os.getpid())
        _reaper.append(
            subprocess.Popen(
                [sys.executable, "-S", "-E", str(Path(__file__).with_name("reaper.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
                cwd="/",
            )
        )
    atexit.register(_leave_nothing)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Someone else's handler knows better what to do, and our exit handler follows it.
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    """Turn a signal into an orderly exit, so that exit handlers run."""
    raise SystemExit(128 + number)
