"""`sidecar run` from its start to its exit status: signals, what is closed in which order, and a start that fails.

The command runs in this process, with an AMQP server and an Elasticsearch in its own loop.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiormq.exceptions import AMQPError
from click.testing import CliRunner, Result
from pydantic import SecretStr

from sidecar import __version__
from sidecar.amqp import session
from sidecar.cli import cli, indexing, main, run
from sidecar.elasticsearch.client import ElasticsearchClient
from sidecar.errors import ConfigError
from sidecar.observability import http
from sidecar.pipeline.pipeline import Pipeline
from sidecar.sinks import amqp
from tests.builders import without_settings
from tests.fakes.amqp_server import AmqpServer
from tests.fakes.http_server import Act, HttpCluster, reply, running, stored
from tests.fakes.template_api import TemplateApi, error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from sidecar.config.settings import Settings
    from tests.fakes.http_server import Received

SECONDS = 5.0
"""What takes longer hangs."""
SINK = {"SINK": "amqp", "INDEX": "", "SINK_EXCHANGE": "", "SINK_ROUTING_KEY": "next"}
GIVEN = {
    "AMQP_QUEUE": "work", "INDEX": "logs", "HTTP_ADDRESS": "127.0.0.1:0", "LOG_FORMAT": "json", "BATCH_MAX_AGE": "10ms",
}  # fmt: skip
TEMPLATE = {"index_patterns": ["logs"]}
BULK = "/logs/_bulk"


class Life:
    """A run of the command.

    Attributes:
        broker: with the queues `work`, `work.dead` and `next`.
        cluster: Elasticsearch, one node.
        address: where the sidecar answers probes.
        left: what was open at either server when the command's work was over.
        closed: readiness when the client of Elasticsearch was closed.
        status: the exit status; None if the settings can't be used.
        problems: with the settings.
        log: what was logged.
    """

    def __init__(self) -> None:
        self.broker = AmqpServer()
        for name in ("work", "work.dead", "next"):
            self.broker.declare(name)
        self.cluster: HttpCluster
        self.address = ""
        self.left: list[str] = []
        self.closed: list[str] = []
        self.status: int | None = None
        self.problems: list[str] = []
        self.log: list[dict[str, Any]] = []

    @property
    def events(self) -> list[str]:
        """The names of all events."""
        return [line["event"] for line in self.log]

    async def ask(self, probe: str) -> tuple[int, dict[str, Any]]:
        """Ask a probe."""
        async with aiohttp.ClientSession() as client, client.get(f"http://{self.address}/{probe}") as answer:
            return answer.status, await answer.json()

    async def reason(self) -> str:
        """Return why it isn't ready; empty: it is."""
        return str((await self.ask("readyz"))[1].get("reason", ""))

    async def until_unready(self, reason: str) -> None:
        """Wait until a probe is told this reason."""
        while not self.address or await self.reason() != reason:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def until_asked(self, path: str) -> None:
        """Wait until Elasticsearch has got a whole request."""
        while not any(one.is_whole and one.path.startswith(path) for one in self.cluster.requests):  # noqa: ASYNC110
            await asyncio.sleep(0)

    @property
    def urls(self) -> dict[str, Any]:
        """The settings that lead to the servers."""
        return {"amqp_url": (SecretStr(self.broker.url),), "elasticsearch_url": (SecretStr(self.cluster.urls[0]),)}

    def note_left(self) -> None:
        """Note what is open."""
        self.left = self.broker.left_open()
        if self.cluster.open_connections:
            self.left.append(f"{self.cluster.open_connections} connections to Elasticsearch")

    def note(self, result: Result) -> None:
        """Note how the command ended."""
        self.log = [json.loads(line) for line in result.stderr.splitlines()]
        if isinstance(result.exception, ConfigError):
            self.problems = result.exception.problems
        elif result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        else:
            self.status = result.exit_code


class Live:
    """Runs the command while a scenario is played."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._run, self._open_server, self._close_sink = run._run, http.open_server, ElasticsearchClient.close
        self._life: Life

    def __call__(
        self,
        scenario: Callable[[Life], Awaitable[None]],
        handler: Callable[[Received], Act | bytes] = stored,
        *,
        traces: bool = False,
        **settings: str,
    ) -> Life:
        """Run it to its end.

        Args:
            scenario: what happens meanwhile.
            handler: answers for Elasticsearch.
            traces: Elasticsearch's node is the collector of spans as well.
            settings: besides those that it can't do without.
        """
        life = self._life = Life()

        async def within(given: Settings, log: Any) -> None:
            async with life.broker, running(1, handler) as life.cluster:
                if traces:
                    self._patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", life.cluster.urls[0])
                playing = asyncio.ensure_future(scenario(life))
                try:
                    async with asyncio.timeout(SECONDS):
                        await self._run(given.model_copy(update=life.urls), log)
                        await playing
                finally:
                    if playing.done():
                        playing.result()  # an assertion in it is the cause of all else
                    playing.cancel()
                    life.note_left()

        self._patch.setattr(run, "_run", within)
        self._patch.setattr(http, "open_server", self._listen)
        live = self

        async def close(sink: ElasticsearchClient) -> None:
            life.closed.append(await life.reason() if life.address else "")
            await live._close_sink(sink)

        self._patch.setattr(ElasticsearchClient, "close", close)
        environment = {f"SIDECAR_{name}": text for name, text in {**GIVEN, **settings}.items()}
        life.note(CliRunner().invoke(cli, ["run"], env=without_settings() | environment))
        return life

    async def _listen(self, *arguments: Any) -> Any:
        server, self._life.address = await self._open_server(*arguments)
        return server, self._life.address


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Live]:
    """Return what runs the command, without its pauses, and takes back what it does to this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(indexing, "_MAPPINGS_PAUSE_SECONDS", 0.01)
    for module in (session, amqp):  # it waits until a queue that just appeared is safe
        monkeypatch.setattr(module, "QUEUE_DURABLE_AFTER_SECONDS", 0.0)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    of_tracing = logging.getLogger("opentelemetry")
    monkeypatch.setattr(of_tracing, "handlers", [])
    monkeypatch.setattr(of_tracing, "propagate", True)
    thresholds = gc.get_threshold()
    yield Live(monkeypatch)
    gc.unfreeze()
    gc.set_threshold(*thresholds)


async def stop(_: Life) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def nothing(_: Life) -> None:
    """It ends by itself."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(live: Live, number: int) -> None:
    """It drains, closes every connection, and exits with 0; each stage is logged once."""

    async def scenario(life: Life) -> None:
        for at in range(3):
            life.broker.publish("work", b'{"n":%d}' % at)
        await life.broker.until(lambda: len(life.broker.acked) == 3)
        os.kill(os.getpid(), number)

    life = live(scenario)
    assert (life.status, life.left) == (0, [])
    assert life.events == [
        "sidecar.started", "http.listening", "amqp.connected", "amqp.consuming",
        "sidecar.draining", "sidecar.stopped",
    ]  # fmt: skip
    assert (life.log[0]["version"], life.log[-1]["ack"]) == (__version__, 3)


def test_an_exchange_as_the_sink_is_closed_as_well(live: Live) -> None:
    """Elasticsearch isn't asked for anything then."""

    async def scenario(life: Life) -> None:
        life.broker.publish("work", b"{}")
        await life.broker.until(lambda: life.broker.acked)
        await stop(life)

    life = live(scenario, **SINK)
    assert (life.status, life.left, life.cluster.requests) == (0, [], [])
    assert [one.body for one in life.broker.queues["next"].ready] == [b"{}"]


def test_probes_are_answered_until_all_else_is_closed(live: Live) -> None:
    """Who looks at readiness is told that the sidecar drains, while it waits for Elasticsearch and afterwards."""

    async def scenario(life: Life) -> None:
        life.broker.publish("work", b"{}")
        await life.until_asked(BULK)
        assert await life.reason() == ""
        await stop(life)
        await life.until_unready("draining")
        assert (await life.ask("livez"))[0] == 200
        assert life.closed == []
        life.cluster.released.set()

    life = live(scenario, lambda request: Act(answer=stored(request), waits=request.path.startswith(BULK)))
    assert (life.status, life.left, life.closed) == (0, [], ["draining"])
    assert life.log[-1]["ack"] == 1
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", int(life.address.rpartition(":")[2])))


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(live: Live, monkeypatch: pytest.MonkeyPatch, second: int) -> None:
    """With status 1 and no clean-up, which could hang; whichever signals they are."""
    exits: list[tuple[int, bool]] = []

    async def scenario(life: Life) -> None:
        def leave(status: int) -> None:
            exits.append((status, life.cluster.released.is_set()))
            life.cluster.released.set()

        monkeypatch.setattr(os, "_exit", leave)
        life.broker.publish("work", b"{}")
        await life.until_asked(BULK)
        await stop(life)
        await life.until_unready("draining")
        assert exits == []
        os.kill(os.getpid(), second)

    live(scenario, lambda request: Act(answer=stored(request), waits=request.path.startswith(BULK)))
    assert exits == [(1, False)]


def test_without_an_address_nothing_listens(live: Live) -> None:
    """Everything else is the same."""

    async def scenario(life: Life) -> None:
        life.broker.publish("work", b"{}")
        await life.broker.until(lambda: life.broker.acked)
        await stop(life)

    life = live(scenario, HTTP_ADDRESS="")
    assert (life.status, life.left, life.address) == (0, [], "")
    assert "http.listening" not in life.events


@pytest.mark.parametrize("settings", [{}, SINK], ids=["elasticsearch", "amqp"])
@pytest.mark.parametrize("traces", [False, True])
def test_spans_leave_before_the_end(live: Live, settings: dict[str, str], traces: bool) -> None:
    """To the collector in the environment; they are made of bulk requests, so an exchange as the sink says it has none.

    Without a collector nothing is said of it.
    """
    spans: list[str] = []

    def handler(request: Received) -> bytes:
        if request.path == "/v1/traces":
            spans.append(request.method)
            return reply(b"")
        return stored(request)

    async def scenario(life: Life) -> None:
        life.broker.publish("work", b"{}")
        await life.broker.until(lambda: life.broker.acked)
        assert spans == []
        await stop(life)

    life = live(scenario, handler, traces=traces, **settings)
    assert (life.status, life.left) == (0, [])
    assert spans == (["POST"] if traces and not settings else [])
    told = [event for event in life.events if event.startswith("tracing.")]
    assert told == ([] if not traces else ["tracing.off"] if settings else ["tracing.started"])


def test_each_clock_is_the_right_one(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dates are those of the wall clock; how long something takes isn't, for that clock can be set."""
    ticks = iter(range(1_000, 1_000_000))
    clocks = SimpleNamespace(time=lambda: 1_700_000_000.0, monotonic=lambda: next(ticks))
    monkeypatch.setattr(run, "time", clocks)

    async def scenario(life: Life) -> None:
        life.broker.publish("work", b"{}")
        await life.broker.until(lambda: life.broker.acked)
        told = (await life.ask("status"))[1]
        assert (told["now"], told["uptime_seconds"] > 0) == (1_700_000_000.0, True)
        await stop(life)

    life = live(scenario, INDEX="logs-{now:%Y}")
    assert b'"_index":"logs-2023"' in life.cluster.requests[-1].body


# The start -----------------------------------------------------------------------------------------------------------


def folder_of_templates(path: Path) -> str:
    """Return a folder with a template."""
    (path / "logs.json").write_text(json.dumps(TEMPLATE))
    return str(path)


def test_nothing_is_consumed_before_the_templates_are_there(live: Live, tmp_path: Path) -> None:
    """Documents would make mappings of their own. Probes are told why it takes long, and that is over then."""
    api = TemplateApi()
    is_away = True

    def handler(request: Received) -> bytes:
        return reply(b"{}", 503) if is_away and request.path != "/" else api(request)

    async def scenario(life: Life) -> None:
        nonlocal is_away
        life.broker.publish("work", b"{}")
        await life.until_unready("waiting-for-elasticsearch")
        assert (await life.ask("startupz"))[0] == 503
        assert life.broker.connections == []
        is_away = False
        await life.broker.until(lambda: life.broker.acked)
        assert await life.reason() == ""
        await stop(life)

    life = live(scenario, handler, MAPPINGS_APPLY="true", MAPPINGS_DIR=folder_of_templates(tmp_path))
    assert (life.status, life.left) == (0, [])
    assert life.events.index("mappings.applied") < life.events.index("amqp.connected")
    asked = [one.path.partition("?")[0] for one in life.cluster.requests]
    assert asked.index("/_index_template/logs") < asked.index(BULK)


def test_who_is_told_to_stop_during_the_start_stops(live: Live, tmp_path: Path) -> None:
    """Nothing was consumed, so RabbitMQ isn't even connected to."""

    async def scenario(life: Life) -> None:
        await life.until_unready("waiting-for-elasticsearch")
        await stop(life)

    settings = {"MAPPINGS_APPLY": "true", "MAPPINGS_DIR": folder_of_templates(tmp_path)}
    life = live(scenario, lambda _: reply(b"{}", 503), **settings)
    assert (life.status, life.left, life.broker.connections) == (0, [], [])
    assert life.events[-2:] == ["sidecar.draining", "sidecar.stopped"]


def test_a_template_that_is_refused_is_a_failed_start(live: Live, tmp_path: Path) -> None:
    """Exit status 1, the reason in the log without a traceback, and nothing consumed or left open."""
    api = TemplateApi()
    api.refusals["PUT", "logs"] = error(400, "illegal_argument_exception", "no such thing")

    life = live(nothing, api, MAPPINGS_APPLY="true", MAPPINGS_DIR=folder_of_templates(tmp_path))
    assert (life.status, life.left, life.closed, life.broker.connections) == (1, [], ["not-connected"], [])
    assert life.events == ["sidecar.started", "http.listening", "mappings.refused"]
    assert "no such thing" in life.log[-1]["reason"]
    assert life.log[-1]["level"] == "error"
    assert "exception" not in life.log[-1]


def test_an_address_that_is_taken_is_a_wrong_setting(live: Live) -> None:
    """The sink that is there by then is closed, and nothing was consumed."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        life = live(nothing, HTTP_ADDRESS=f"127.0.0.1:{taken.getsockname()[1]}")
    assert ["SIDECAR_HTTP_ADDRESS" in problem for problem in life.problems] == [True]
    assert (life.log, life.left, life.closed, life.broker.connections) == ([], [], [""], [])


def test_a_file_for_rabbitmq_that_cannot_be_used_leaves_nothing_open(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that was made before the setting was found to be wrong is closed as well."""
    (tmp_path / "empty.pem").touch()
    made: list[ElasticsearchClient] = []
    original = ElasticsearchClient.__init__

    def make(sink: ElasticsearchClient, *arguments: Any, **options: Any) -> None:
        made.append(sink)
        original(sink, *arguments, **options)

    monkeypatch.setattr(ElasticsearchClient, "__init__", make)
    life = live(nothing, AMQP_CA_FILE="empty.pem", AMQP_URL="amqps://127.0.0.1/")
    assert ["SIDECAR_AMQP_CA_FILE" in problem for problem in life.problems] == [True]
    assert len(life.closed) == len(made)


def test_a_fault_of_ours_is_logged_with_its_traceback(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 1, and everything is closed all the same."""

    async def broken(_: Pipeline) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Pipeline, "run", broken)
    life = live(nothing)
    assert (life.status, life.left, len(life.closed)) == (1, [], 1)
    assert life.events[-1] == "sidecar.failed"
    assert "in broken" in life.log[-1]["exception"]
    assert "RuntimeError: a fault" in life.log[-1]["exception"]


BROKEN = {
    "raises": "raise RuntimeError('no table')\n",
    "is no Python": "def change(:\n",
    "ends": "raise SystemExit(3)\n",
    "has no such function": "",
    "has something else": "change = 7\n",
}


@pytest.mark.parametrize("code", BROKEN.values(), ids=BROKEN)
def test_a_module_that_cannot_be_used_is_a_wrong_setting(live: Live, tmp_path: Path, code: str) -> None:
    """Nothing is opened before it is found."""
    (tmp_path / "of_the_user.py").write_text(code)
    sys.modules.pop("of_the_user", None)
    life = live(nothing, TRANSFORM="of_the_user:change")
    assert ["SIDECAR_TRANSFORM: of_the_user:change" in problem for problem in life.problems] == [True]
    assert (life.closed, life.broker.connections, life.cluster.requests) == ([], [], [])


def test_a_function_that_fails_costs_its_message_alone(live: Live, tmp_path: Path) -> None:
    """The sidecar goes on, and its exit status says nothing of it."""
    (tmp_path / "of_the_user.py").write_text("def change(message):\n    return {'n': 1 / int(message.body)}\n")
    sys.modules.pop("of_the_user", None)

    async def scenario(life: Life) -> None:
        for body in (b"1", b"0", b"2"):
            life.broker.publish("work", body)
        await life.broker.until(lambda: len(life.broker.acked) == 3)
        await stop(life)

    life = live(scenario, TRANSFORM="of_the_user:change", CONTENT="text")
    assert (life.status, life.left) == (0, [])
    assert (life.log[-1]["ack"], life.log[-1]["dead_letter"]) == (2, 1)
    assert [one.body for one in life.broker.queues["work.dead"].ready] == [b"0"]


@pytest.mark.parametrize(("settings", "status"), [({"SIDECAR_INDEX": "{nothing}"}, 2), ({"SIDECAR_ACTION": "eat"}, 2)])
def test_wrong_settings_are_told_and_the_status_is_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: dict[str, str], status: int
) -> None:
    """A sentence each on standard error; `sidecar` alone is `sidecar run`."""
    for name in without_settings():
        monkeypatch.delenv(name)
    for name, text in {"SIDECAR_AMQP_QUEUE": "work", "SIDECAR_INDEX": "logs", **settings}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(sys, "argv", ["sidecar"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    told = capsys.readouterr()
    assert told.out == ""
    assert [line.partition(":")[0] for line in told.err.splitlines()] == ["sidecar"]


# The loop ------------------------------------------------------------------------------------------------------------


def test_cycles_are_looked_for_seldom_once_it_consumes(live: Live) -> None:
    """What is there at the start is never looked through again."""
    seen: list[tuple[int, bool]] = []

    async def scenario(life: Life) -> None:
        await life.broker.until(life.broker.consumers)
        seen.append((gc.get_threshold()[0], gc.get_freeze_count() > 10_000))
        await stop(life)

    live(scenario)
    assert seen == [(50_000, True)]


def test_what_is_left_of_a_connection_is_told_by_nobody(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    """Of errors of AMQP that no task awaits nothing is told; of all others asyncio tells as ever."""

    async def scenario(life: Life) -> None:
        loop = asyncio.get_running_loop()
        for fault in (AMQPError("left over"), ValueError("of somebody")):
            loop.call_exception_handler({"message": "never retrieved by the test", "exception": fault})
        await stop(life)

    live(scenario)
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["of somebody"]


def test_uvloop_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the loop of asyncio."""
    monkeypatch.setitem(sys.modules, "uvloop", SimpleNamespace(new_event_loop="its loop"))
    assert run._loop_factory() == "its loop"
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run._loop_factory() is None
