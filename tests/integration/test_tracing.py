"""Traces of a sidecar that is set up as anyone would, received as a collector receives them."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.integration.harness import message
from tests.integration.http_client import ANY_PORT, Http
from tests.integration.process import wait_until
from tests.integration.test_secrets import MARK

if TYPE_CHECKING:
    import pytest

    from tests.integration.harness import Harness

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
KEY = "collector-Xyzzy"
SECONDS = 30.0


class Collector:
    """Takes traces by OTLP over HTTP, as protobuf."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.keys: set[str | None] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                assert self.headers["content-type"] == "application/x-protobuf"
                collector.keys.add(self.headers.get("x-api-key"))
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def spans(self, name: str) -> list[Span]:
        """Return the spans of that name that came so far."""
        scopes = [scope for request in self.requests for part in request.resource_spans for scope in part.scope_spans]
        return [span for scope in scopes for span in scope.spans if span.name == name]

    def resource(self) -> dict[str, str]:
        return {one.key: one.value.string_value for one in self.requests[0].resource_spans[0].resource.attributes}


def values(span: Span) -> dict[str, str | int]:
    """Return a span's attributes."""
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_spans_of_batches_reach_a_collector_with_links_and_outcomes(
    bench: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By OTEL_* alone; the last ones when the sidecar ends, and nothing of a document in any of them."""
    bench.create_index({"n": {"type": "long"}})
    bench.declare()
    parents = [f"00-{TRACE}-{span:016x}-01" for span in (1, 2)]
    bodies = [
        b'{"n":%d,"text":"%s"}' % (at, MARK.encode()) if at else b'{"n":"%s"}' % MARK.encode() for at in range(50)
    ]
    bench.publish(message(body, f"id-{at}", headers={"traceparent": parents[at % 2]}) for at, body in enumerate(bodies))
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-api-key={KEY}")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        sidecar = bench.sidecar(BATCH_MAX_ITEMS="50", HTTP_ADDRESS=ANY_PORT)
        assert sidecar.wait_for("tracing.started")["exporters"] == ["otlp"]
        Http(sidecar).wait_for_all(50, SECONDS, sidecar)
        sidecar.terminate()
        (process,) = collector.spans(f"process {bench.queue}")
        (request,) = collector.spans(f"bulk {bench.index_name}")
        assert {(link.trace_id.hex(), int(link.span_id.hex(), 16)) for link in process.links} == {
            (TRACE, 1),
            (TRACE, 2),
        }
        assert request.parent_span_id == process.span_id
        assert (process.kind, request.kind) == (Span.SPAN_KIND_CONSUMER, Span.SPAN_KIND_CLIENT)
        assert process.status.code == Status.STATUS_CODE_ERROR
        told = values(process)
        assert (told["sidecar.documents.success"], told["sidecar.documents.failed_client"]) == (49, 1)
        assert told["error.type"] == "document_parsing_exception"
        assert values(request)["db.collection.name"] == bench.index_name
        assert collector.resource() | {"service.name": "sidecar", "deployment.environment.name": "test"} == (
            collector.resource()
        )
        assert collector.keys == {KEY}
        assert MARK.encode() not in b"".join(one.SerializeToString() for one in collector.requests)


def test_a_collector_that_is_away_costs_no_message_and_no_time(bench: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning a minute, JSON like all others and without the key; and the end isn't held up by it."""
    bench.create_index({"n": {"type": "long"}})
    bench.declare()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:pw-Xyzzy@127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-api-key={KEY}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    sidecar = bench.sidecar(HTTP_ADDRESS=ANY_PORT)
    bench.publish(message(b'{"n":%d}' % at, f"id-{at}") for at in range(5_000))
    Http(sidecar).wait_for_all(5_000, SECONDS, sidecar)
    wait_until(lambda: bool(sidecar.events("tracing.failed")), SECONDS, "a complaint", sidecar.told)
    assert sidecar.terminate(10.0)["ack"] == 5_000
    assert len(sidecar.events("tracing.failed")) == 1
    text = sidecar.log.read_text()
    assert KEY not in text
    assert "pw-Xyzzy" not in text
