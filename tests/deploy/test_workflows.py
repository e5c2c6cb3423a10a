"""The workflows of GitHub Actions, by their schema, by a linter for their security, and by what they have to do."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import Any

import pytest

from tests.deploy.tools import REPOSITORY, SECONDS, assert_fits, load, program, schema

FOLDER = REPOSITORY / ".github"
WORKFLOWS = sorted((FOLDER / "workflows").glob("*.yaml"))
WRITING = {
    ("release", "image", "packages"),
    ("release", "image", "id-token"),
    ("release", "image", "attestations"),
    ("release", "release", "contents"),
}
"""Every right to write that any job has."""


def by_name(path: Any) -> pytest.MarkDecorator | str:
    name: str = path.stem
    return name


@pytest.mark.parametrize("path", WORKFLOWS, ids=by_name)
def test_it_fits_the_schema(path: Any) -> None:
    """That of GitHub; YAML takes `on` for a truth value."""
    workflow = {"on" if name is True else name: value for name, value in load(path).items()}
    assert_fits(workflow, schema("vendor.github-workflows"))


def test_dependabot_fits_its_schema() -> None:
    """It keeps the pins fresh."""
    assert_fits(load(FOLDER / "dependabot.yaml"), schema("vendor.dependabot"))


def test_the_linter_has_nothing_to_say() -> None:
    """zizmor, without the network: injected text, kept credentials, rights, what isn't pinned."""
    command = [program("zizmor"), "--offline", "--no-progress", "--format", "plain", str(FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=by_name)
def test_jobs_may_no_more_than_they_do_and_actions_are_pinned(path: Any) -> None:
    """No right for all jobs; each job's own; an end in time; every action by the commit of a release."""
    workflow = load(path)
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        writing = {(path.stem, name, right) for right, access in job["permissions"].items() if access == "write"}
        assert writing <= WRITING
        assert job["timeout-minutes"] <= 45
    used = re.findall(r"uses: (\S+)(.*)", path.read_text(encoding="utf-8"))
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_what_is_tested_is_what_is_promised() -> None:
    """Every Python from the oldest that is supported, both lines of both servers."""
    jobs = load(FOLDER / "workflows" / "ci.yaml")["jobs"]
    required = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    pythons = jobs["unit"]["strategy"]["matrix"]["python"]
    assert pythons[0] == required.removeprefix(">=")
    assert pythons == ["3.11", "3.12", "3.13", "3.14"]
    servers = jobs["integration"]["strategy"]["matrix"]
    assert {version.split(".")[0] for version in servers["rabbitmq"]} == {"3", "4"}
    assert {version.split(".")[0] for version in servers["elasticsearch"]} == {"8", "9"}
    # Each command of make that a workflow runs is there.
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for path in WORKFLOWS:
        for targets in re.findall(r"(?:run: |^ +)make ([a-z -]+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert all(f"\n{target}:" in makefile for target in targets.split())
