"""What a process has taken so far, as the kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 11, 12  # places after the name in brackets; proc_pid_stat(5)


class Memory(NamedTuple):
    """Resident memory of a process, in bytes: now, and at its peak."""

    now_bytes: int
    peak_bytes: int


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process's threads, user and system, to the nanosecond.

    That of threads that have ended is not in it: of programs that keep theirs.

    Raises:
        OSError: there is no such process.
    """
    schedules = [path.read_text(encoding="ascii").split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(fields[0]) for fields in schedules) / 1e9 if schedules else all_cpu_seconds(pid)


def all_cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, ended threads as well, to the hundredth of a second.

    Raises:
        OSError: there is no such process.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS


def memory(pid: int) -> Memory:
    """Return the resident memory of a process.

    Raises:
        OSError: there is no such process.
    """
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    kibibytes = {
        name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if name[:2] == "Vm"
    }
    return Memory(kibibytes["VmRSS"] * 1024, kibibytes["VmHWM"] * 1024)


def machine() -> str:
    """Return the machine in words."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{len(models) or os.cpu_count()} of {models[0] if models else os.uname().machine}"
