"""Ends what its parent started, should the parent die without doing so itself.

A process of its own, started once by `processes`, which imports nothing of this package. It reads lines from its
standard input: ``+GROUP`` and ``-GROUP`` for a process group that was started and ended, ``+/folder`` and ``-/folder``
for a temporary folder. When the input ends, the parent is gone, in whatever way (an exit handler would not run after
SIGKILL): groups that are left are killed, folders that are left are removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys


def main() -> None:
    """Follow the parent's notes until it is gone, then clean up."""
    # Ctrl-C and a closed terminal are for the parent, which then closes our input.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    left: dict[str, None] = {}
    for line in sys.stdin:
        note = line.rstrip("\n")
        if note.startswith("+"):
            left[note[1:]] = None
        else:
            left.pop(note[1:], None)
    for entry in [entry for entry in left if not entry.startswith("/")]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(int(entry), signal.SIGKILL)
    for entry in [entry for entry in left if entry.startswith("/")]:
        shutil.rmtree(entry, ignore_errors=True)


if __name__ == "__main__":
    main()
