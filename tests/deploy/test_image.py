"""`deploy/Dockerfile`: by its linter, and by what nobody but its reader sees."""

from __future__ import annotations

import json
import re
import subprocess

from tests.deploy.tools import DEPLOY, REPOSITORY, SECONDS, program

TEXT = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
    if line.strip()
]
STAGES = [index for index, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM"]
RUN = "\n".join(rest for name, rest in INSTRUCTIONS if name == "RUN")
FINAL = dict(INSTRUCTIONS[STAGES[-1] :])


def test_the_linter_has_nothing_to_say() -> None:
    """hadolint, with all of its rules."""
    done = subprocess.run(
        [program("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_it_runs_as_a_number_without_a_shell() -> None:
    """Kubernetes sees that it isn't root; SIGTERM gets to the sidecar itself; it answers for its own health."""
    assert len(STAGES) == 2
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", FINAL["USER"])
    assert json.loads(FINAL["ENTRYPOINT"]) == ["sidecar"]
    assert json.loads(FINAL["CMD"]) == ["run"]
    assert json.loads(FINAL["HEALTHCHECK"].partition(" CMD ")[2]) == ["sidecar", "health"]
    assert "RUN" not in FINAL


def test_it_says_what_it_is() -> None:
    """The labels that tools ask for."""
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', FINAL["LABEL"]))
    assert labels.keys() == {"title", "description", "licenses", "version", "revision"}


def test_it_is_built_with_what_the_tests_are_run_with() -> None:
    """Pins of the build backend are in two files."""

    def pins(name: str) -> set[str]:
        text = (REPOSITORY / "requirements" / name).read_text(encoding="utf-8")
        return set(re.findall(r"^[\w.-]+==\S+", text, re.MULTILINE))

    assert pins("build.txt") <= pins("test.txt")


def test_packages_are_pinned_and_all_that_is_copied_is_in_the_context() -> None:
    """By their hashes, the build backend too; what .dockerignore leaves out can't be copied."""
    fetching = re.findall(r"\bpip (?:--python \S+ )?((?:install|wheel) .*?)(?= &&|$)", RUN, re.MULTILINE)
    assert [command.partition("--requirement ")[2].strip() for command in fetching] == [
        "requirements/run.txt",
        "requirements/build.txt",
        "",
        "",
    ]
    for command in fetching[:2]:
        assert "--require-hashes" in command
    # Ours, from what is in the image: no dependency is looked for, and no backend.
    assert {"--no-build-isolation", "--no-deps"} <= set(fetching[2].split())
    assert {"--no-index", "--no-deps"} <= set(fetching[3].split())
    allowed = {
        line.removeprefix("!")
        for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for name, rest in INSTRUCTIONS
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied <= allowed
    assert all((REPOSITORY / source).exists() for source in copied)
