"""What is released: wheel and sdist, and the sidecar as it is installed from the wheel."""

from __future__ import annotations

import email
import json
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from sidecar import __version__
from sidecar.cli import COMMANDS
from tests.deploy.tools import REPOSITORY, SECONDS, needed, output

LOADING = "from sidecar.cli import COMMANDS, cli; print(*(cli.get_command(None, name).name for name in COMMANDS))"
NAME = f"rabbitmq_elasticsearch_sidecar-{__version__}"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both, without the network."""
    needed("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    output(sys.executable, "-m", "hatchling", "build", "-d", str(folder))
    return folder


def test_the_changelog_has_a_place_for_what_comes() -> None:
    """In the manner of Keep a Changelog."""
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text


def test_the_wheel_holds_the_product_and_nothing_else(dist: Path) -> None:
    """Its data files are in it (the status page), its licence is, tests and demo aren't."""
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
        metadata = email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    assert {name.split("/")[0] for name in names} == {"sidecar", f"{NAME}.dist-info"}
    in_repository = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "sidecar").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("sidecar/")} == in_repository
    assert f"{NAME}.dist-info/licenses/LICENSE" in names
    assert metadata["Version"] == __version__


def test_the_sdist_builds_the_same(dist: Path) -> None:
    """It has what the build takes, the changelog, and no more."""
    with tarfile.open(dist / f"{NAME}.tar.gz") as sdist:
        names = {name.removeprefix(f"{NAME}/").split("/")[0] for name in sdist.getnames()}
    assert {"sidecar", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "PKG-INFO"} <= names
    assert not names & {"tests", "demo", "devstack", "bench", "deploy", "docs"}


def test_the_installed_wheel_works(dist: Path, tmp_path: Path) -> None:
    """In an environment of its own, away from the repository: every command loads, a message is explained.

    What it depends on is that of this environment; its versions are another test's business.
    """
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = str(home / "bin" / "python")
    (site,) = (home / "lib").glob("python*/site-packages")
    wheel = str(dist / f"{NAME}-py3-none-any.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
        timeout=SECONDS,
    )
    # After the wheel, and without what this environment has in editable form.
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "libraries.pth").write_text(f"import sys; sys.path.append({libraries!r})\n")
    where = output(python, "-c", "import sidecar, sys; print(sidecar.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(home)
    script = str(home / "bin" / "sidecar")
    assert output(script, "--version", folder=tmp_path) == f"sidecar, version {__version__}\n"
    loaded = output(python, "-c", LOADING, folder=tmp_path)
    assert loaded.split() == list(COMMANDS)
    told = subprocess.run(
        [script, "explain", "--format", "json"],
        cwd=tmp_path,
        env={"SIDECAR_AMQP_QUEUE": "orders", "SIDECAR_INDEX": "events", "PATH": "/usr/bin:/bin"},
        input='{"n":1}',
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)
    page = output(python, "-c", "from sidecar.observability.http import page; print(len(page()))", folder=tmp_path)
    assert int(page) > 1000
