"""What the benchmarks need and the project doesn't: an environment with the peers in it, and Bento.

Both are made once, under ``.bench`` (git-ignored).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from bench.programs import PEERS, REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = REPOSITORY / ".bench"
REQUIREMENTS = REPOSITORY / "requirements" / "bench.txt"
BENTO = "github.com/warpstreamlabs/bento@v1.10.0"
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--requirement")


class ToolError(Exception):
    """Something can't be made; the text says what, and what to do."""


def python(base: str = sys.executable) -> str:
    """Return an interpreter that has what the sidecar runs with (uvloop as well) and what the peers need.

    Args:
        base: the interpreter that it is made of; aio-pika-batch takes part from Python 3.12 on.

    Raises:
        ToolError: it can't be made.
    """
    version = _output(base, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])")
    folder = FOLDER / f"python-{version}"
    made = folder / ".complete"
    interpreter = str(folder / "bin" / "python")
    if not made.exists() or made.read_text(encoding="utf-8") != REQUIREMENTS.read_text(encoding="utf-8"):
        print(f"making {folder.relative_to(REPOSITORY)} for Python {version}")
        _output(base, "-m", "venv", "--clear", str(folder))
        _output(interpreter, *_PIP, str(REQUIREMENTS))
        made.write_text(REQUIREMENTS.read_text(encoding="utf-8"), encoding="utf-8")
    return interpreter


def describe(interpreter: str) -> str:
    """Return an interpreter in words."""
    return _output(interpreter, "-c", "import platform as p; print(p.python_implementation(), p.python_version())")


def bento() -> Path | None:
    """Return Bento, built where Go is there; None where it isn't.

    Raises:
        ToolError: it can't be built.
    """
    folder = FOLDER / "bento"
    binary = folder / "bento"
    if not binary.exists():
        go = shutil.which("go")
        if go is None:
            return None
        print("building Bento; that takes some minutes, once")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(PEERS / "bento" / "main.go", folder)
        for command in (
            ("mod", "init", "bench"),
            ("get", BENTO),
            ("mod", "tidy"),
            ("build", "-trimpath", "-o", "bento", "."),
        ):
            if command[1] != "init" or not (folder / "go.mod").exists():
                _output(go, *command, folder=folder)
    return binary


def _output(*command: str, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ToolError(f"{command[0]} can't be run: {error.strerror}") from error
    if done.returncode:
        raise ToolError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout.strip()
