"""The dashboard and the alerts in a real Prometheus that scrapes a real sidecar."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from devstack.processes import ProcessGroup, free_port
from devstack.provision import find_prometheus
from tests.dashboards import RULES, expressions, shown
from tests.integration.harness import message
from tests.integration.http_client import ANY_PORT, Http
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from devstack.provision import PrometheusTools
    from tests.integration.harness import Harness

SECONDS = 60.0
STARTING = 503
MAY_BE_EMPTY = ("sidecar_retries_total", "sidecar_splits_total", " unless ")
"""What has no series before it happened, and what is shown only when the version changes."""


@pytest.fixture(scope="module")
def tools() -> PrometheusTools:
    found = find_prometheus()
    if found is None:
        pytest.skip("Prometheus isn't there: make provision gets it where it may (Debian: apt-get install prometheus)")
    return found


class Prometheus:
    """A Prometheus that scrapes one sidecar every second, with our alerts."""

    def __init__(self, tools: PrometheusTools, folder: Path, target: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        config = folder / "prometheus.yaml"
        config.write_text(
            json.dumps(  # which is YAML too
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(RULES)],
                    "scrape_configs": [{"job_name": "sidecar", "static_configs": [{"targets": [target]}]}],
                }
            )
        )
        command = [str(tools.server), f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        command.append(f"--web.listen-address={self.url.removeprefix('http://')}")
        self._process = ProcessGroup(command, environment=os.environ, folder=folder, log=folder / "prometheus.log")

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API.

        Raises:
            OSError: it isn't there yet.
        """
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == STARTING:
                raise
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression now."""
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def is_up(self) -> bool:
        assert self._process.running(), "it ended by itself"
        try:
            return bool(self.query("sidecar_build_info"))
        except OSError:
            return False

    def close(self) -> None:
        self._process.end(10.0)


@pytest.fixture
def watch(tools: PrometheusTools, tmp_path: Path) -> Iterator[Callable[[str], Prometheus]]:
    """Return a function that starts a Prometheus for an address, and waits for its first scrape."""
    made: list[Prometheus] = []

    def start(target: str) -> Prometheus:
        made.append(Prometheus(tools, tmp_path, target))
        wait_until(made[-1].is_up, SECONDS, "a scrape", lambda: (tmp_path / "prometheus.log").read_text()[-2000:])
        return made[-1]

    yield start
    for prometheus in made:
        prometheus.close()


@pytest.mark.parametrize("arguments", [("check", "rules", "rules.yaml"), ("test", "rules", "rules.test.yaml")])
def test_the_alerts_are_well_formed_and_fire_for_what_they_are_there_for(
    tools: PrometheusTools, arguments: tuple[str, ...]
) -> None:
    """By `promtool`: what is normal wakes nobody, and each cause has its own alert."""
    done = subprocess.run([tools.tool, *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_expression_works_on_what_a_sidecar_tells(bench: Harness, watch: Callable[[str], Prometheus]) -> None:
    """None is refused, every panel shows something, and an alert fires for what happens."""
    bench.create_index({"n": {"type": "long"}})
    bench.declare()
    sidecar = bench.sidecar(HTTP_ADDRESS=ANY_PORT, BATCH_MAX_ITEMS="100")
    http = Http(sidecar)
    prometheus = watch(http.url.removeprefix("http://"))
    stamp = int(time.time())

    def publish(name: str, *, bad: bool) -> None:
        value = b'"no"' if bad else b"1"
        bench.publish(message(b'{"n":%s}' % value, f"{name}-{at}", timestamp=stamp) for at in range(600))

    publish("good", bad=False)
    http.wait_for_all(600, SECONDS, sidecar)
    wait_until(
        lambda: bool(prometheus.query('sidecar_messages_settled_total{verdict="ack"} >= 600')),
        SECONDS,
        "a scrape of it",
    )
    publish("bad", bad=True)
    wait_until(lambda: "SidecarDeadLettersMany" in prometheus.firing(), SECONDS, "the alert", sidecar.told)
    assert prometheus.firing() == {"SidecarDeadLettersMany"}
    answers = {expression: prometheus.query(expression) for expression in expressions()}
    empty = [one for one in shown() if not answers[one] and not any(name in one for name in MAY_BE_EMPTY)]
    assert not empty
    (gap,) = prometheus.query(next(one for one in shown() if " - sum(sidecar_messages_settled_total" in one))
    assert float(gap["value"][1]) == 0
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    sidecar.terminate()
