"""Every setting reaches what it is for, and nothing else.

The commands build their parts from the settings. Here `run` and `check` build them over constructors that only record
what they are given, once without a setting and once with it: exactly the values in the setting's row may differ. So a
setting that is ignored, replaced by its default, converted to another unit or swapped with its neighbour is found.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from click.testing import CliRunner

from sidecar.cli import check, cli, dlq, forwarding, indexing, produce, run, wiring
from sidecar.cli import mappings as mappings_command
from sidecar.config import broker as broker_wiring
from sidecar.config.settings import PREFIX, Settings
from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.template import Template
from sidecar.core.far import ELASTICSEARCH as ELASTICSEARCH_NAMES
from sidecar.core.far import SINK as SINK_NAMES
from sidecar.elasticsearch import check as elastic_check
from sidecar.elasticsearch import templates as index_templates
from sidecar.errors import BrokerError
from sidecar.library import transforming
from sidecar.library.transforming import Hook
from sidecar.observability import http

if TYPE_CHECKING:
    import functools
    from pathlib import Path

    from sidecar.ports import OutboundMessage

ELASTICSEARCH = {"AMQP_QUEUE": "work", "INDEX": "logs"}
EXCHANGE = {**ELASTICSEARCH, "AMQP_EXCHANGE": "events"}
FORWARDING = {"AMQP_QUEUE": "work", "SINK": "amqp", "SINK_EXCHANGE": "next"}
TLS = {**ELASTICSEARCH, "AMQP_URL": "amqps://one/", "ELASTICSEARCH_URL": "https://one:9200"}


class Row(NamedTuple):
    """A setting, a value that isn't its default, and what it changes.

    Attributes:
        name: of the setting, without the prefix.
        text: the value in the environment.
        effects: the expected values of everything that it changes.
        given: the other settings.
    """

    name: str
    text: str
    effects: dict[str, object]
    given: dict[str, str] = ELASTICSEARCH


def planned(name: str, value: object, *, told: str | None = None) -> dict[str, object]:
    """Return the effect on the plan of the pipeline, which the status page may tell under the setting's name."""
    return {f"run.plan.{name}": value, **({f"run.told.{told}": value} if told else {})}


def broker(path: str, value: object) -> dict[str, object]:
    """Return the effect on how RabbitMQ is reached."""
    places = ("run.connecting.connect", "check.connect_options", "dlq.connect_options", "produce.connect_options")
    return {f"{place}.{path}": value for place in places}


def topology(name: str, value: object) -> dict[str, object]:
    """Return the effect on what is declared."""
    return {f"{place}.{name}": value for place in ("run.connecting.topology", "check.topology", "produce.topology")}


def cluster(path: str, value: object) -> dict[str, object]:
    """Return the effect on how Elasticsearch is reached."""
    return {f"{command}.elasticsearch.{path}": value for command in ("run", "check", "mappings")}


def encoder_config(name: str, value: object, *, told: str | None = None) -> dict[str, object]:
    """Return the effect on what becomes of messages: `run` has it in its plan, `check` judges it."""
    checked = {f"check.{place}.{name}": value for place in ("encoder_config", "traits.encoder_config")}
    return planned(f"encoder_config.{name}", value, told=told) | checked


def urls(path: str, value: object) -> dict[str, object]:
    """Return the effect on where commands connect to."""
    return {f"{command}.{path}": value for command in ("run", "check", "dlq", "produce")}


def sink_topology(name: str, value: object) -> dict[str, object]:
    """Return the effect on what is declared where messages are published to."""
    return {f"run.outlet.topology.{name}": value, "check.sink.topology." + name: value}


def tls(effect: Callable[[str, object], dict[str, object]], prefix: str, **files: str) -> dict[str, object]:
    """Return the effect of the first file for TLS: a context of its own, with nothing else in it."""
    names = ["ca_file", "cert_file", "key_file", *(["fingerprint"] if prefix.endswith("SEARCH") else [])]
    parts = {"prefix": prefix, **{name: files.get(name) for name in names}}
    # Where a context is, there was None before.
    return effect("tls", None) | {
        key: one for name, value in parts.items() for key, one in effect(f"tls.{name}", value).items()
    }


LOGIN = {**ELASTICSEARCH, "ELASTICSEARCH_USERNAME": "bob", "ELASTICSEARCH_PASSWORD": "before"}
INSTALLING = {**ELASTICSEARCH, "MAPPINGS_DIR": "templates", "MAPPINGS_APPLY": "true"}
AMQP_FILES, ELASTICSEARCH_FILES = "SIDECAR_AMQP", "SIDECAR_ELASTICSEARCH"
BULK = "_bulk?filter_path=errors,items.*.status,items.*.error,items.*.failure_store&include_source_on_error=false"

ROWS = [
    Row("AMQP_URL", "amqp://a:1/,amqp://b:2/", urls("urls", ("amqp://a:1/", "amqp://b:2/"))),
    Row(
        "AMQP_QUEUE", "other",
        topology("queues", ("other",)) | {
            "run.queues": ("other",), "run.started.queues": ["other"], "dlq.queue": "other.dead",
            "produce.routing_key": b"other",
        },
    ),
    Row("AMQP_DECLARE", "own", topology("declares_work", False)),
    Row("AMQP_DECLARE", "never", topology("declares_work", False) | topology("declare", False)),
    Row(
        "AMQP_DECLARE", "own",
        topology("declares_work", False) | sink_topology("declares_work", False), FORWARDING,
    ),
    Row(
        "AMQP_DECLARE", "never",
        topology("declares_work", False) | topology("declare", False)
        | sink_topology("declares_work", False) | sink_topology("declare", False), FORWARDING,
    ),
    Row("AMQP_QUEUE_TYPE", "classic", topology("queue_type", "classic")),
    Row("AMQP_QUEUE_ARGUMENTS", '{"x-max-length": 5}', topology("queue_arguments", {"x-max-length": 5})),
    Row(
        "AMQP_CONSUMER_ARGUMENTS", '{"x-priority": 7}',
        {f"{place}.consumer_arguments": {"x-priority": 7} for place in ("run.connecting", "check")},
    ),
    Row("AMQP_EXCHANGE", "events", topology("exchange", "events") | {"produce.exchange": b"events"}),
    Row("AMQP_EXCHANGE_TYPE", "topic", topology("exchange_type", "topic"), EXCHANGE),
    Row("AMQP_ROUTING_KEYS", "a,b", topology("routing_keys", ("a", "b")) | {"produce.routing_key": b"a"}, EXCHANGE),
    Row("AMQP_BINDING_ARGUMENTS", '{"k": 1}', topology("binding_arguments", {"k": 1}), EXCHANGE),
    Row(
        "AMQP_PREFETCH", "7001",
        planned("prefetch", 7001) | {"run.told.amqp_prefetch": 7001, "check.traits.prefetch": 7001},
    ),
    Row("AMQP_CA_FILE", "a.pem", tls(broker, AMQP_FILES, ca_file="a.pem"), TLS),
    Row(
        "AMQP_CERT_FILE", "b.pem",
        tls(broker, AMQP_FILES, cert_file="b.pem") | broker("client_certificate", True), TLS,
    ),
    Row("AMQP_KEY_FILE", "c.pem", broker("tls.key_file", "c.pem"), {**TLS, "AMQP_CERT_FILE": "b.pem"}),
    Row(
        "DEAD_LETTER_EXCHANGE", "graves",
        # `dlq` asks for --queue: nobody can know which queues the exchange leads to.
        topology("dead_letter_exchange", "graves") | planned("dead_letter_exchange", "graves")
        | dict.fromkeys(("dlq.queue", "dlq.urls"))
        | dict.fromkeys(f"dlq.connect_options.{name}" for name in ("tls", "client_certificate", "timeout_seconds")),
        {**ELASTICSEARCH, "DEAD_LETTER_ROUTING_KEY": "grave"},
    ),
    Row(
        "DEAD_LETTER_ROUTING_KEY", "grave",
        topology("dead_letter_routing_key", "grave") | planned("dead_letter_routing_key", "grave")
        | {"dlq.queue": "grave"},
    ),
    Row(
        "SINK_AMQP_URL", "amqp://c:3/,amqp://d:4/",
        {f"{place}.urls": ("amqp://c:3/", "amqp://d:4/") for place in ("run.outlet", "check.sink")}
        | {"check.connections": 2, "check.sink.named": "SIDECAR_SINK_AMQP_URL"},
        FORWARDING,
    ),
    Row(
        "SINK_EXCHANGE", "later",
        sink_topology("exchange", "later") | {
            "run.staging.exchange": b"later", "run.started.exchange": "later", "run.told.sink_exchange": "later",
        },
        FORWARDING,
    ),
    Row("SINK_EXCHANGE_TYPE", "headers", sink_topology("exchange_type", "headers"), FORWARDING),
    Row(
        "SINK_ROUTING_KEY", "key",
        planned("encoder_config.index", "key", told="sink_routing_key") | {
            "run.staging.routing_key": "key", "run.started.routing_key": "key", "check.sink.routing_key": "key",
            "check.traits.encoder_config.index": "key",
        },
        FORWARDING,
    ),
    Row("SINK_ENVELOPE", "json", {"run.staging.envelope": True, "run.told.sink_envelope": "json"}, FORWARDING),
    Row("ELASTICSEARCH_URL", "http://a:1,http://b:2", cluster("urls", ("http://a:1", "http://b:2"))),
    Row("ELASTICSEARCH_USERNAME", "eve", cluster("username", "eve"), LOGIN),
    Row("ELASTICSEARCH_PASSWORD", "after", cluster("password", "after"), LOGIN),
    Row("ELASTICSEARCH_API_KEY", "key", cluster("api_key", "key")),
    Row("ELASTICSEARCH_BEARER_TOKEN", "token", cluster("bearer_token", "token")),
    Row("ELASTICSEARCH_CLOUD_ID", "name:aG9zdCRpZA==", cluster("cloud_id", "name:aG9zdCRpZA==")),
    Row("ELASTICSEARCH_CA_FILE", "a.pem", tls(cluster, ELASTICSEARCH_FILES, ca_file="a.pem"), TLS),
    Row("ELASTICSEARCH_FINGERPRINT", "ab" * 32, tls(cluster, ELASTICSEARCH_FILES, fingerprint="ab" * 32), TLS),
    Row("ELASTICSEARCH_CERT_FILE", "b.pem", tls(cluster, ELASTICSEARCH_FILES, cert_file="b.pem"), TLS),
    Row(
        "ELASTICSEARCH_KEY_FILE", "c.pem", cluster("tls.key_file", "c.pem"), {**TLS, "ELASTICSEARCH_CERT_FILE": "b.pem"}
    ),
    Row(
        "INDEX", "{type}",
        encoder_config("index", "{type}", told="index") | {"run.started.index": "{type}", "run.bulk_path": f"/{BULK}"},
    ),
    Row("INDEX_ALLOW", "logs,l*", encoder_config("index_allow", ("logs", "l*"))),
    Row("ACTION", "create", encoder_config("action", "create", told="action")),
    Row("ID", "{type}", encoder_config("id", "{type}", told="id") | encoder_config("id_mode", "template")),
    Row("ID", "generated", encoder_config("id_mode", "generated", told="id")),
    Row("ID", "none", encoder_config("id_mode", "none", told="id")),
    Row("ROUTING", "{app_id}", encoder_config("routing", "{app_id}")),
    Row("PIPELINE", "{type}", encoder_config("pipeline", "{type}")),
    Row("VERSION", "{timestamp}", encoder_config("version", "{timestamp}")),
    Row(
        "VERSION_TYPE", "external_gte",
        encoder_config("version_type", "external_gte"), {**ELASTICSEARCH, "VERSION": "{timestamp}"},
    ),
    Row("FIELDS", '{"a": "{type}"}', encoder_config("fields", {"a": "{type}"})),
    Row("CONTENT", "text", encoder_config("content", "text")),
    Row("SPLIT", "lines", encoder_config("split", "lines")),
    Row("TRANSFORM", "changing:change", encoder_config("transform", "changed by changing:change")),
    Row(
        "BATCH_MAX_ITEMS", "900",
        planned("batch_max_items", 900, told="batch_max_items") | planned("prefetch", 5400)
        | {"run.told.amqp_prefetch": 5400, "check.traits.batch_max_items": 900, "check.traits.prefetch": 5400},
    ),
    Row(
        "BATCH_MAX_BYTES", "3KiB",
        planned("batch_max_bytes", 3072, told="batch_max_bytes") | {"check.traits.batch_max_bytes": 3072},
    ),
    Row("BATCH_MAX_AGE", "1500ms", {"run.plan.batch_max_age_seconds": 1.5, "run.told.batch_max_age": 1.5}),
    Row("BATCH_KEY", "{type}", encoder_config("batch_key", "{type}")),
    Row("BATCH_FLUSH_WHEN", "{app_id|}", encoder_config("batch_flush_when", "{app_id|}")),
    Row("BATCH_COMPLETE_COUNT", "{priority}", encoder_config("batch_complete_count", "{priority}")),
    *(
        Row(
            field.upper(), "{type}",
            planned(f"encoder_config.{field}", "{type}") | {f"check.traits.encoder_config.{field}": "{type}"},
            FORWARDING,
        )
        for field in ("batch_key", "batch_flush_when", "batch_complete_count")
    ),
    Row("BATCH_COALESCE", "merge", encoder_config("coalesce", "merge")),
    Row(
        "BULK_CONCURRENCY", "3",
        planned("bulk_concurrency", 3, told="bulk_concurrency") | planned("prefetch", 5000)
        | {"run.told.amqp_prefetch": 5000, "check.traits.bulk_concurrency": 3, "check.traits.prefetch": 5000},
    ),
    Row(
        "BULK_TIMEOUT", "7s",
        cluster("timeout_seconds", 7.0) | {"run.told.bulk_timeout": 7.0, "check.traits.bulk_timeout_seconds": 7.0},
    ),
    Row(
        "BULK_TIMEOUT", "7s",
        {"run.outlet.confirm_seconds": 7.0, "mappings.elasticsearch.timeout_seconds": 7.0}
        | {"run.told.bulk_timeout": 7.0, "check.traits.bulk_timeout_seconds": 7.0},
        FORWARDING,
    ),
    Row("BULK_COMPRESS", "true", cluster("compress", True)),
    Row(
        "MEMORY_LIMIT", "10MB",
        planned("memory_limit_bytes", 10_000_000) | encoder_config("max_bytes", 10_000_000)
        | {"run.told.memory_limit": 10_000_000, "check.traits.memory_limit_bytes": 10_000_000},
    ),
    Row("RETRY_MAX_ATTEMPTS", "6", planned("retry_max_attempts", 6, told="retry_max_attempts")),
    Row("RETRY_DELAY_MIN", "250ms", planned("retry_delay_min_seconds", 0.25)),
    Row("RETRY_DELAY_MAX", "2m", planned("retry_delay_max_seconds", 120.0)),
    Row("DELAYED_RETRY_MAX_ROUNDS", "9", planned("delayed_retry_max_rounds", 9, told="delayed_retry_max_rounds")),
    Row(
        "DELAYED_RETRY_DELAY", "40s",
        planned("delayed_retry_delay_seconds", 40.0) | {"check.delays": (40_000, 80_000, 160_000, 300_000)},
    ),
    Row(
        "ON_REJECT", "discard",
        planned("on_reject", "discard", told="on_reject")
        | {"check.on_reject": "discard", "check.traits.on_reject": "discard"},
    ),
    *(
        Row(name.upper(), word, planned(f"error_policy.{name}", word, told=name))
        for name, word in (
            ("on_conflict", "dead-letter"), ("on_index_missing", "hold"), ("on_index_blocked", "hold"),
            ("on_delay_refused", "dead-letter"), ("on_failure_store", "dead-letter"),
        )
    ),
    Row(
        "ON_UNROUTABLE", "delay",
        planned("error_policy.on_unroutable", "delay", told="on_unroutable") | {"check.sink.on_unroutable": "delay"},
        FORWARDING,
    ),
    Row("REJECT_GUARD", "17", planned("reject_guard", 17, told="reject_guard")),
    Row(
        "HOLD_MAX", "8m",
        planned("hold_max_seconds", 480.0) | {"run.told.hold_max": 480.0, "check.traits.hold_max_seconds": 480.0},
    ),
    Row("HTTP_ADDRESS", "127.0.0.1:1234", {"run.address": ("127.0.0.1", 1234)}),
    Row(
        "MAPPINGS_DIR", "others",
        {"run.installed": ["metrics"], "check.templates": ["metrics"], "mappings.templates": ["metrics"]}, INSTALLING,
    ),
    Row(
        "MAPPINGS_APPLY", "true",
        {"run.installed": ["logs"], "check.templates": ["logs"]}, {**ELASTICSEARCH, "MAPPINGS_DIR": "templates"},
    ),
    Row("LOG_LEVEL", "debug", {"run.log_level": "debug"}),
    Row("LOG_FORMAT", "json", {"run.log_format": "json"}),
    Row(
        "SHUTDOWN_TIMEOUT", "45s",
        {"run.shutdown_seconds": 45.0, "run.told.shutdown_timeout": 45.0}
        | {"check.traits.shutdown_timeout_seconds": 45.0},
    ),
]  # fmt: skip


# Recording -----------------------------------------------------------------------------------------------------------


def flat(value: object, path: str) -> dict[str, object]:
    """Return every value inside of an object, by its path."""
    if isinstance(value, Template):
        return {path: value.text}
    if isinstance(value, Fields):
        return {path: dict(zip(value.names, (template.text for template in value.templates), strict=True))}
    if dataclasses.is_dataclass(value):
        parts = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    elif isinstance(value, Built):
        parts = value.parts
    else:
        return {path: getattr(value, "__name__", value) if callable(value) else value}
    return {name: leaf for key, part in parts.items() for name, leaf in flat(part, f"{path}.{key}").items()}


class Built:
    """What a constructor was called with, by the names of its parameters."""

    def __init__(self, **parts: object) -> None:
        self.parts = parts


class Recorded:
    """Collects what a command builds."""

    def __init__(self, command: str) -> None:
        self.values: dict[str, object] = {}
        self._command = command

    def add(self, **parts: object) -> None:
        """Add parts, by the first word of their paths."""
        for name, part in parts.items():
            self.values |= flat(part, f"{self._command}.{name}")


class Sink:
    """Stands for what takes requests."""

    async def close(self) -> None:
        """Nothing is open."""


def record_run(monkeypatch: pytest.MonkeyPatch, found: Recorded) -> None:
    """Have `sidecar run` build recorders in place of its parts."""

    class App:
        def __init__(
            self, _: object, connect: functools.partial[object], *, shutdown_seconds: float, **__: Any
        ) -> None:
            urls, connecting = connect.args
            values = dataclasses.replace(connecting, seen=None)  # a memory, not a value
            found.add(urls=urls, connecting=values, shutdown_seconds=shutdown_seconds)

        def snapshot(self) -> None:
            """Nobody asks."""

        def note_startup(self, _: object) -> None:
            """Nothing takes long."""

        async def run(self, _: object) -> None:
            """End at once."""

    def pipeline(plan: object, *_: object, **__: object) -> None:
        found.add(plan=plan)

    async def serve(address: object, status: Any, _: object) -> tuple[Sink, str]:
        about = status._about
        found.add(address=address, queues=about.queues, told=Built(**about.settings))
        return Sink(), "here"

    def log(level: str, style: str) -> Any:
        found.add(log_level=level, log_format=style)
        return Log()

    class Log:
        def info(self, event: str, **values: object) -> None:
            if event == "sidecar.started":
                found.add(started=Built(**values))

    monkeypatch.setattr(run, "App", App)
    monkeypatch.setattr(run, "Pipeline", pipeline)
    monkeypatch.setattr(run, "configure", log)
    monkeypatch.setattr(run, "_tune_garbage_collection", lambda: None)
    monkeypatch.setattr(run, "_loop_factory", lambda: None)
    monkeypatch.setattr(http, "open_server", serve)


def record_sinks(monkeypatch: pytest.MonkeyPatch, found: Recorded) -> None:
    """Have `sidecar run` build recorders in place of either sink."""

    def sink(connection: object, *, bulk_path: str) -> Sink:
        found.add(elasticsearch=connection, bulk_path=bulk_path)
        return Sink()

    def outlet(urls: object, topology: object, connect_options: object, *, confirm_timeout_seconds: float) -> Sink:
        found.add(
            outlet=Built(
                urls=urls, topology=topology, connect_options=connect_options, confirm_seconds=confirm_timeout_seconds
            )
        )
        return Sink()

    def forward(plan: object, staging: object, outlet: object) -> None:
        assert isinstance(outlet, Sink)
        found.add(staging=staging)

    async def install(_: object, work: object, templates: list[index_templates.IndexTemplate]) -> list[object]:
        assert work is index_templates.apply
        found.add(installed=[template.name for template in templates])
        return []

    monkeypatch.setattr(indexing, "ElasticsearchClient", sink)
    monkeypatch.setattr(index_templates, "when_available", install)
    monkeypatch.setattr(forwarding, "ReconnectingPublisher", outlet)
    monkeypatch.setattr(forwarding, "AmqpSink", forward)


def record_check(monkeypatch: pytest.MonkeyPatch, found: Recorded) -> None:
    """Have `sidecar check` look at recorders in place of servers."""

    async def broker(
        urls: object, connect_options: object, topology: object, on_reject: str, **more: object
    ) -> list[object]:
        found.add(urls=urls, connect_options=connect_options, topology=topology, on_reject=on_reject, **more)
        return []

    async def sink(
        urls: object, connect_options: object, topology: object, routing_key: object, **more: object
    ) -> list[object]:
        found.add(
            sink=Built(urls=urls, connect_options=connect_options, topology=topology, routing_key=routing_key, **more)
        )
        return []

    async def cluster(
        connection: object, made: object, *, templates: list[index_templates.IndexTemplate]
    ) -> list[object]:
        found.add(elasticsearch=connection, encoder_config=made, templates=[template.name for template in templates])
        return []

    def traps(traits: object) -> list[object]:
        found.add(traits=traits)
        return []

    monkeypatch.setattr(check.amqp, "check", broker)
    monkeypatch.setattr(check.amqp, "check_sink", sink)
    monkeypatch.setattr(elastic_check, "check", cluster)
    monkeypatch.setattr(check, "traps", traps)


def record_others(monkeypatch: pytest.MonkeyPatch, found: dict[str, Recorded]) -> None:
    """Have the commands that only need one of the servers build recorders in place of connections."""

    class PublisherConnection(Sink):
        async def publish(self, copies: list[OutboundMessage]) -> list[None]:
            found["produce"].add(exchange=copies[0].exchange, routing_key=copies[0].routing_key)
            return [None] * len(copies)

    async def open_publisher_connection(urls: object, topology: object, connect_options: object) -> PublisherConnection:
        found["produce"].add(urls=urls, topology=topology, connect_options=connect_options)
        return PublisherConnection()

    async def open_dead_letter_queue(urls: object, queue: str, connect_options: object) -> Any:
        found["dlq"].add(urls=urls, queue=queue, connect_options=connect_options)
        raise BrokerError("that is all")

    def sink(connection: object) -> Sink:
        found["mappings"].add(elasticsearch=connection)
        return Sink()

    async def when_available(_: object, work: object, templates: list[index_templates.IndexTemplate]) -> list[object]:
        assert work is index_templates.compare
        found["mappings"].add(templates=[template.name for template in templates])
        return []

    monkeypatch.setattr(produce, "open_publisher_connection", open_publisher_connection)
    monkeypatch.setattr(dlq, "open_dead_letter_queue", open_dead_letter_queue)
    monkeypatch.setattr(mappings_command, "ElasticsearchClient", sink)
    monkeypatch.setattr(index_templates, "when_available", when_available)


LINES = {
    "run": ["run"],
    "check": ["check"],
    "dlq": ["dlq", "list"],
    "produce": ["produce", "--count", "1", "--seed", "1", "--quiet"],
    "mappings": ["mappings", "diff"],
}
Build = Callable[[Mapping[str, str]], dict[str, object]]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Build:
    """Return what builds the parts of all commands in an environment of nothing but what is given."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.pem", "b.pem", "c.pem"):
        (tmp_path / name).touch()
    (tmp_path / "changing.py").write_text("def change(message):\n    return None\n")
    for folder, name in (("mappings", "own"), ("templates", "logs"), ("others", "metrics")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.json").write_text('{"index_patterns": ["logs"]}')
    names = [name for name in os.environ if name.upper().startswith((PREFIX, "OTEL_")) or "PROXY" in name.upper()]
    nothing: dict[str, str | None] = dict.fromkeys(names)

    def load(reference: str, _: int) -> Hook:
        def transform(_: object) -> list[Any]:
            return []

        transform.__name__ = f"changed by {reference}"
        return Hook(transform, None)

    def built(given: Mapping[str, str]) -> dict[str, object]:
        found = {command: Recorded(command) for command in LINES}
        environment = nothing | {PREFIX + name: text for name, text in given.items()}
        for command, line in LINES.items():
            with monkeypatch.context() as patched:
                for module in (broker_wiring, wiring):
                    patched.setattr(module, "client_context", Built)
                patched.setattr(transforming, "load", load)
                if command == "run":
                    record_run(patched, found[command])
                    record_sinks(patched, found[command])
                elif command == "check":
                    record_check(patched, found[command])
                else:
                    record_others(patched, found)
                result = CliRunner().invoke(cli, line, env=environment)
            # A dead-letter exchange leaves `dlq` without the name of a queue.
            assert result.exit_code == (0 if command != "dlq" else 1 if found[command].values else 2), result.output
        return {path: value for one in found.values() for path, value in one.values.items()}

    return built


def changed(before: dict[str, object], after: dict[str, object]) -> dict[str, object]:
    """Return what differs, with its new value; None if it is gone."""
    nothing = object()
    paths = before.keys() | after.keys()
    return {path: after.get(path) for path in paths if before.get(path, nothing) != after.get(path, nothing)}


_built: dict[tuple[tuple[str, str], ...], dict[str, object]] = {}


def test_every_setting_has_a_row() -> None:
    """A new one without a row fails here."""
    assert {row.name.lower() for row in ROWS} | {"sink"} == set(Settings.model_fields)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}={row.text[:20]}")
def test_a_setting_changes_what_it_is_for_and_nothing_else(build: Build, row: Row) -> None:
    """In each command that uses it, with the value in the unit that is wanted there."""
    base = tuple(row.given.items())
    if base not in _built:
        _built[base] = build(row.given)
    assert changed(_built[base], build({**row.given, row.name: row.text})) == row.effects


def test_the_sink_decides_which_parts_are_built(build: Build) -> None:
    """Each side has its own client, its own names for events, and its own finding of what is wrong with it."""
    elasticsearch, amqp = build(ELASTICSEARCH), build(FORWARDING)
    parts = [{".".join(path.split(".")[:2]) for path in one} for one in (elasticsearch, amqp)]
    assert parts[0] - parts[1] == {
        "run.elasticsearch",
        "run.bulk_path",
        "check.elasticsearch",
        "check.encoder_config",
        "check.templates",
    }
    assert parts[1] - parts[0] == {"run.outlet", "run.staging", "check.sink"}
    names = ("run.plan.merges_batches", "run.plan.far", "check.connections", "check.sink.named", "run.told.sink")
    assert [elasticsearch.get(name) for name in names] == [True, ELASTICSEARCH_NAMES, 2, None, None]
    assert [amqp.get(name) for name in names] == [False, SINK_NAMES, 3, "SIDECAR_AMQP_URL", "amqp"]
    assert amqp["run.outlet.urls"] == amqp["check.sink.urls"] == amqp["run.urls"]
    assert (amqp["run.staging.exchange"], amqp["run.outlet.topology.publishes"]) == (b"next", True)
