"""`sidecar.observability.tracing` and `sidecar.observability.spans`: what is traced, and what asks for it."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.observability.spans import links
from sidecar.observability.tracing import PROTOCOL, OtelLogBridge, Tracing, exporters, open_tracing
from tests.builders import long_string, message, properties

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from sidecar.core.message import Message

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
RECIPE = EncoderConfig(index=Template("events"), action=Template("index"))
COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def _note(self, event: str, **details: object) -> None:
        self.events.append((event, details))

    info = warning = _note

    @property
    def bound(self) -> FilteringBoundLogger:
        return cast("FilteringBoundLogger", self)


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "orders"}, []),
        (COLLECTOR, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": " otlp, console,otlp"}, ["otlp", "console"]),
        (COLLECTOR | {"OTEL_TRACES_EXPORTER": "none"}, []),
        (COLLECTOR | {"OTEL_TRACES_EXPORTER": ""}, ["otlp"]),
        (COLLECTOR | {"OTEL_SDK_DISABLED": "True"}, []),
        (COLLECTOR | {"OTEL_SDK_DISABLED": "false"}, ["otlp"]),
    ],
)
def test_nothing_is_traced_unless_the_environment_asks_for_it(environ: dict[str, str], wanted: list[str]) -> None:
    """By the variables of OpenTelemetry's own specification."""
    assert exporters(environ) == wanted


def test_without_a_word_of_it_nothing_is_imported() -> None:
    """Neither SDK nor exporter (the Elasticsearch client imports the API by itself, where it is installed)."""
    code = (
        "import sys; import sidecar.cli.indexing as run; from sidecar.core.encoding.encoder import EncoderConfig;"
        "from sidecar.core.encoding.template import Template;"
        "config = EncoderConfig(index=Template('events'), action=Template('index'));"
        "assert run.open_tracing({'OTEL_SDK_DISABLED': 'true', 'OTEL_TRACES_EXPORTER': 'otlp'}, config, None) is None;"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter',"
        " 'sidecar.observability.spans'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("environ", "hint"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "there are otlp, console and none"),
        (COLLECTOR | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "only http/protobuf (port 4318) is spoken"),
    ],
)
def test_what_cannot_be_had_is_told_and_stops_nothing(environ: dict[str, str], hint: str) -> None:
    """A warning with the mend: messages are worth more than traces of them."""
    log = Log()
    assert open_tracing(environ, RECIPE, log.bound) is None
    ((event, details),) = log.events
    assert event == "tracing.off"
    assert hint in str(details["reason"])


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http.trace_exporter"])
def test_a_missing_extra_is_told_with_its_name(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sidecar goes on: where a platform sets OTEL_* for every pod, that must not keep one from starting."""
    monkeypatch.setitem(sys.modules, missing, None)
    for name in [name for name in sys.modules if name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    log = Log()
    assert open_tracing(COLLECTOR, RECIPE, log.bound) is None
    ((event, details),) = log.events
    assert event == "tracing.off"
    assert "rabbitmq-elasticsearch-sidecar[otel]" in str(details["reason"])


def test_what_the_sdk_complains_of_is_one_line_without_its_headers() -> None:
    """They hold the key to the collector; and a collector that is away fails every few seconds."""
    log = Log()
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic%20c2VjcmV0,api-key=hunter2"}
    complaints = OtelLogBridge(log.bound, environ)
    text = "Header format invalid: authorization=Basic%%20c2VjcmV0,api-key=hunter2 at http://me:pw@host/ c2VjcmV0 (%s)"
    for _ in range(3):
        complaints.emit(logging.LogRecord("opentelemetry", logging.ERROR, "", 0, text, ("x",), None))
    ((event, details),) = log.events
    assert event == "tracing.failed"
    for secret in ("hunter2", "c2VjcmV0", "me:pw"):
        assert secret not in str(details)
    assert "Header format invalid" in str(details["reason"])


@pytest.mark.parametrize(("general", "of_traces", "works"), [("grpc", PROTOCOL, True), (PROTOCOL, "grpc", False)])
def test_what_is_said_of_traces_counts_for_more_than_what_is_said_of_all(
    general: str, of_traces: str, works: bool
) -> None:
    """As OpenTelemetry's specification has it."""
    log = Log()
    protocols = {"OTEL_EXPORTER_OTLP_PROTOCOL": general, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": of_traces}
    tracing = open_tracing(COLLECTOR | protocols, RECIPE, log.bound)
    assert (tracing is not None) == works
    assert [event for event, _ in log.events] == ["tracing.started" if works else "tracing.off"]
    if tracing is not None:
        tracing.close()


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
def test_headers_of_either_variable_are_not_told(variable: str) -> None:
    """A secret is replaced as a whole, also where another one is the beginning of it."""
    log = Log()
    secret = "hunter2" + "x" * 100
    environ = {variable: f"a=hunter2,b={secret}"}
    OtelLogBridge(log.bound, environ).emit(logging.LogRecord("x", logging.ERROR, "", 0, f"no: {secret}.", (), None))
    assert log.events == [("tracing.failed", {"reason": "no: ***."})]


def test_the_sdk_is_heard_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line a minute, each with what was said then."""
    now = [1_000.0]
    monkeypatch.setattr("sidecar.observability.tracing.time.monotonic", lambda: now[0])
    log = Log()
    complaints = OtelLogBridge(log.bound, {})
    for seconds in (0.0, 59.0, 1.5, 30.0):
        now[0] += seconds
        complaints.emit(logging.LogRecord("x", logging.ERROR, "", 0, f"at {now[0]:g}", (), None))
    assert [details["reason"] for _, details in log.events] == ["at 1000", "at 1060.5"]


def test_the_end_waits_for_no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last spans have a limit; the thread that can't be cut off keeps no process alive."""
    monkeypatch.setattr("sidecar.observability.tracing.FLUSH_SECONDS", 0.05)
    begun, released = threading.Event(), threading.Event()

    class Stuck:
        def shutdown(self) -> None:
            begun.set()
            released.wait(30.0)

    before, others = time.monotonic(), set(threading.enumerate())
    Tracing(cast("Any", Stuck()), cast("Any", None)).close()
    assert begun.is_set()
    assert time.monotonic() - before < 10.0
    assert [thread.daemon for thread in threading.enumerate() if thread not in others] == [True]
    released.set()


# Links ---------------------------------------------------------------------------------------------------------------


def traced(span: int, *, sampled: bool = True, state: str | None = None, value: bytes | None = None) -> Message:
    """Return a message that was published in a span."""
    parent = long_string(f"00-{TRACE}-{span:016x}-{sampled:02x}".encode()) if value is None else value
    headers = [(b"other", long_string(b"x")), (b"traceparent", parent)]
    if state is not None:
        headers.append((b"tracestate", long_string(state.encode())))
    return message(raw=properties(headers, message_id=b"m"))


def spans(found: list[Message], most: int = 128) -> list[int]:
    return [link.context.span_id for link in links(found, most)]


def test_a_batch_is_linked_to_the_spans_of_its_producers() -> None:
    """Each once: a producer may publish many messages within one span. Messages without one don't matter."""
    found = [message(), traced(1), traced(2), traced(1), message(raw=properties([(b"x", long_string(b"y"))]))]
    (first, second) = links(found, 128)
    assert [first.context.span_id, second.context.span_id] == [1, 2]
    assert f"{first.context.trace_id:032x}" == TRACE
    assert first.context.is_remote
    (link,) = links([traced(3, state="vendor=1")], 128)
    assert link.context.trace_state.get("vendor") == "1"


def test_links_are_bounded_and_lead_only_to_what_is_recorded() -> None:
    """The first so many producers; of a span that wasn't sampled there is nothing to be seen."""
    assert spans([traced(at) for at in range(1, 500)], most=4) == [1, 2, 3, 4]
    assert spans([traced(1, sampled=False), traced(2)], most=1) == [2]
    assert spans([traced(1)], most=0) == []


@pytest.mark.parametrize(
    "value",
    [
        long_string(b""),
        long_string(b"00-0-0-01"),
        long_string(b"00-" + b"0" * 32 + b"-0000000000000001-01"),
        long_string(b"\xff\xfe"),
        long_string(b"no" * 500),
        long_string(b"\xff" * 54 + b"1"),
        long_string(b"x" * 55),
        b"l" + bytes(8),
        b"V",
    ],
)
def test_a_header_that_is_none_of_w3c_links_to_nothing(value: bytes) -> None:
    """Whatever a publisher wrote there; the others' links are made all the same."""
    assert spans([traced(1, value=value), traced(2)]) == [2]


def test_properties_that_are_cut_short_link_to_nothing() -> None:
    """Encoder tells of them; here they only must not raise."""
    whole = traced(1).properties
    for end in range(2, len(whole)):
        links([message(raw=whole[:end])], 128)


def test_what_only_looks_like_the_header_is_none() -> None:
    """A text may hold anything; and a table isn't parsed for what was seen already."""
    parent = f"00-{TRACE}-{7:016x}-01".encode()
    quoted = b"\x0btraceparent" + long_string(parent)
    assert links([message(raw=properties([(b"note", long_string(quoted))]))], 128) == []
    assert (
        links([message(raw=properties([(b"note", long_string(quoted)), (b"traceparent", long_string(b"x"))]))], 128)
        == []
    )


@pytest.mark.parametrize(
    "state",
    [
        long_string(b"\xff\xfe"),
        long_string(b"=,=,,x" * 1000),
        b"F" + (3).to_bytes(4, "big") + b"\xff\xff\xff",
        b"l" + bytes(8),
        b"V",
    ],
)
def test_a_tracestate_that_is_none_costs_no_link(state: bytes) -> None:
    """And ends nothing: what a publisher writes there is his own affair."""
    parent = long_string(f"00-{TRACE}-{7:016x}-01".encode())
    assert spans([message(raw=properties([(b"tracestate", state), (b"traceparent", parent)]))]) == [7]


def test_a_header_as_deep_as_it_gets_ends_nothing() -> None:
    """Nested beyond what Python recurses."""
    state = b"A" + bytes(4)
    for _ in range(5000):
        state = b"A" + len(state).to_bytes(4, "big") + state
    parent = long_string(f"00-{TRACE}-{7:016x}-01".encode())
    assert spans([message(raw=properties([(b"tracestate", state), (b"traceparent", parent)]))]) == [7]
