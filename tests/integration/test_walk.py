"""The walk of docs/operations.md, command for command: from a red page to an empty dead-letter queue."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.docs.settings_table import README
from tests.integration.http_client import ANY_PORT, Http
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.harness import Harness

REPOSITORY = README.parent
SECONDS = 60.0
LOOKS = ("curl -s localhost", "curl -s 'localhost", "sidecar dlq list")
"""Commands that only look: they may be asked again, until what they show has come about."""


_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[ T][\d:.]+Z?|(?<=\[)\d+:\d+(?=\])|\d+\.\d+")
"""Times, places in a document, and prices: which order is refused first is chance."""


class Step(NamedTuple):
    """A command of the walk, and the lines that it is said to answer; ``…`` stands for anything."""

    command: str
    answer: list[str]

    def matches(self, output: str) -> bool:
        """Whether the lines are in `output`, in their order, whatever the time, the width and the order that failed."""
        pattern = ".*?".join(f"^{_line(line)}$" for line in self.answer if line != "…")
        return re.search(pattern, _even(output), re.MULTILINE | re.DOTALL) is not None


def _even(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.splitlines())
    text = "\n".join(re.sub("─+", "─", line) for line in lines if line)
    return _MOMENT.sub("0", text)


def _line(line: str) -> str:
    return re.escape(_even(line)).replace("…", "[^\n]*")


def walk() -> Iterator[Step]:
    """Yield the steps."""
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    text = text.partition("<!-- walk -->")[2].partition("<!-- /walk -->")[0]
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *answer = part.splitlines()
            yield Step(command, answer)


class Shell:
    """Runs what the walk says, on the servers of the test.

    Args:
        environment: the sidecar's.
        places: what stands in the place of the addresses in the text.
    """

    def __init__(self, environment: dict[str, str], places: dict[str, str]) -> None:
        self._environment = environment | {"COLUMNS": "200"}
        self._places = places

    def run(self, command: str) -> str:
        """Return what a command writes."""
        program, *arguments = shlex.split(command)
        if program == "curl":
            return self._curl(arguments)
        assert program == "sidecar"
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", *arguments],
            env=self._environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.stdout

    def _curl(self, arguments: list[str]) -> str:
        """Do what curl does, which not every machine has."""
        assert arguments[0] == "-s"
        method = arguments[2] if arguments[1] == "-X" else "GET"
        url = arguments[-1]
        for place, address in self._places.items():
            url = url.replace(place, address)
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()


def agreed_template() -> dict[str, Any]:
    """Return the template of an index, not of a data stream, for the same events."""
    template: dict[str, Any] = json.loads((REPOSITORY / "mappings" / "events.json").read_text(encoding="utf-8"))
    return {name: value for name, value in template.items() if name not in {"data_stream", "composed_of"}}


def wrong_template() -> dict[str, Any]:
    """Return the template that somebody made of it."""
    template = agreed_template()
    template["template"]["mappings"]["properties"]["amount"] = {"properties": {"value": {"type": "double"}}}
    return template


def test_a_new_operator_finds_from_red_to_green(bench: Harness, tmp_path: Path) -> None:
    """With nothing but the docs; and what they show is what is seen."""
    bench.queue, bench.dead, bench.index_name = "orders", "orders.dead", "events"
    bench.es("PUT", "/_index_template/events", wrong_template())
    mappings = tmp_path / "mappings"
    mappings.mkdir()
    (mappings / "events.json").write_text(json.dumps(agreed_template()))
    sidecar = bench.sidecar(HTTP_ADDRESS=ANY_PORT, MAPPINGS_DIR=str(mappings))
    try:
        http = Http(sidecar)
        shell = Shell(
            {name: value for name, value in sidecar.environment.items() if name != "SIDECAR_HTTP_ADDRESS"},
            {"localhost:9180": http.url, "localhost:9200": bench.elasticsearch.url},
        )
        sidecar.wait_for("amqp.consuming")
        shell.run("sidecar produce --count 3000 --seed 7")
        steps = list(walk())
        assert len(steps) >= 10
        for step in steps:
            outputs: list[str] = []

            def follow(step: Step = step, outputs: list[str] = outputs) -> bool:
                outputs.append(shell.run(step.command))
                if not step.command.startswith(LOOKS):
                    assert step.matches(outputs[-1]), f"{step.command}\n{outputs[-1]}"
                return step.matches(outputs[-1])

            wait_until(follow, SECONDS, step.command, lambda: f"it says {outputs[-1]}")  # noqa: B023 - called at once
            print(f"$ {step.command}\n{outputs[-1]}")
        account = sidecar.terminate()
        assert (account["dead_letter"], account["ack"]) == (1_000, 3_000)
        assert account["received"] - account["requeue"] == 4_000
        assert not bench.dead_letters()
    finally:
        for path in ("/_index_template/events", "/events"):
            with suppress(urllib.error.HTTPError):  # a walk that went wrong may have left none
                bench.es("DELETE", path)
        for queue in (bench.queue, bench.dead):
            bench.amqp.delete_queue(queue)
