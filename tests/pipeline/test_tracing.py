"""Spans of requests, by the SDK's own exporter in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sidecar.observability.spans import Spans
from tests.builders import long_string, properties
from tests.fakes.elasticsearch import Failure, Refusal, Trouble, must_be_number
from tests.pipeline.simulated_pipeline import INDEX, QUEUE, SimulatedPipeline, play

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context

    from tests.fakes.elasticsearch import Request

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
MARK = b"Zebra7Quagga"


class Started(SpanProcessor):
    """Keeps the spans that began.

    Attributes:
        spans: in the order of their beginnings.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note a span."""
        self.spans.append(span)


class Traced(SimulatedPipeline):
    """A world whose requests are traced; in the end each span that began has ended, once.

    Attributes:
        exporter: holds the spans that ended.
    """

    def __init__(self, **plan: object) -> None:
        super().__init__(**plan)  # type: ignore[arg-type]
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.started = Started()
        provider.add_span_processor(self.started)
        self.tracing = Spans(provider.get_tracer("test"), index=INDEX, action="index", max_links=4)

    async def end(self) -> None:
        """Stop the sidecar; two spans a request, the second in the first, both ended."""
        await super().end()
        ended = self.exporter.get_finished_spans()
        begun = [span.context for span in self.started.spans]
        assert {span.span_id for span in begun} == {span.context.span_id for span in ended}
        assert len(begun) == len(ended) == 2 * self.expected.counts.sent
        for process, request in zip(self.started.spans[::2], self.started.spans[1::2], strict=True):
            assert (process.kind, process.parent) == (SpanKind.CONSUMER, None)
            assert (request.kind, request.parent) == (SpanKind.CLIENT, process.context)

    def spans(self, name: str) -> list[ReadableSpan]:
        """Return the spans of that name, in the order of their ends."""
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def pair(self) -> tuple[ReadableSpan, ReadableSpan]:
        """Return the spans of the first request."""
        return self.spans(f"process {QUEUE}")[0], self.spans(f"bulk {INDEX}")[0]


def publish(world: SimulatedPipeline, count: int, *, spans: int = 2) -> None:
    """Publish documents in so many producers' spans."""
    for number in range(count):
        parent = long_string(f"00-{TRACE}-{number % spans + 1:016x}-01".encode())
        raw = properties([(b"traceparent", parent)], message_id=b"%s-%d" % (MARK, number))
        world.broker.publish(QUEUE, b'{"n":%d,"text":"%s"}' % (number, MARK), raw)


def test_a_batch_is_two_spans_with_links_to_its_producers() -> None:
    """One by the conventions for messaging, in it one by those for databases; a trace of their own."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Traced)
        publish(world, 10)
        await world.start()
        await world.until_settled()
        process, request = world.pair()
        assert (process.kind, request.kind) == (SpanKind.CONSUMER, SpanKind.CLIENT)
        assert process.parent is None
        assert request.parent == process.context
        assert [link.context.span_id for link in process.links] == [1, 2]
        assert {f"{link.context.trace_id:032x}" for link in process.links} == {TRACE}
        assert process.attributes == {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": QUEUE,
            "messaging.batch.message_count": 10,
            "sidecar.batch.trigger": "count",
            "sidecar.batch.tries": 0,
            "sidecar.documents.success": 10,
        }
        assert request.attributes is not None
        assert dict(request.attributes) | {"http.request.body.size": 0} == {
            "db.system.name": "elasticsearch",
            "db.operation.name": "bulk",
            "db.operation.batch.size": 10,
            "db.collection.name": INDEX,
            "http.request.method": "POST",
            "http.request.body.size": 0,
            "http.response.status_code": 200,
            "db.response.status_code": "200",
        }
        assert process.status.status_code is StatusCode.UNSET
        assert process.start_time is not None
        assert request.start_time is not None
        assert process.start_time <= request.start_time

    play(Traced, scenario)


def test_a_span_begins_when_the_first_message_of_its_batch_came() -> None:
    """The time in the batch is to be seen beside that of the request."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Traced)
        publish(world, 1)
        await world.start()
        await world.until_settled()
        process, request = world.pair()
        assert process.start_time is not None
        assert request.start_time is not None
        assert request.start_time - process.start_time >= 1e9, "completed by its age, a second"
        assert process.attributes is not None
        assert process.attributes["sidecar.batch.trigger"] == "age"

    play(Traced, scenario)


def test_links_are_bounded() -> None:
    """A batch may have a thousand producers."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Traced)
        publish(world, 10, spans=10)
        await world.start()
        await world.until_settled()
        assert len(world.pair()[0].links) == 4

    play(Traced, scenario)


def test_documents_that_are_not_taken_are_an_error_with_their_counts() -> None:
    """By the words of the metrics, with the type of the most frequent error and nothing that Elasticsearch quotes."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Traced)
        world.elastic.reject = lambda document, _: (
            Failure(400, "document_parsing_exception", f"failed: '{document['text']}'")
            if document["n"] in {1, 2}
            else None
        )
        publish(world, 10)
        await world.start()
        await world.until_settled()
        for span in world.pair():
            assert span.attributes is not None
            assert span.attributes["error.type"] == "document_parsing_exception"
            assert span.status.status_code is StatusCode.ERROR
            assert span.status.description == "2 of 10 documents were not taken"
        attributes = world.pair()[0].attributes or {}
        assert attributes["sidecar.documents.success"] == 8
        assert attributes["sidecar.documents.failed_client"] == 2
        outcomes = {key: count for (_, key), count in world.pipeline.counters.documents.items()}
        assert outcomes == {"success": 8, "failed_client": 2}

    play(Traced, scenario)


def once(trouble: Trouble | Refusal) -> Callable[[Request], Trouble | Refusal | None]:
    """Return a script of trouble with the first request."""
    left = [trouble]
    return lambda _: left.pop() if left else None


@pytest.mark.parametrize(
    ("trouble", "error_type", "status"),
    [
        (Trouble.REFUSED, "unanswered", None),
        (Refusal(429, "es_rejected_execution_exception", "no room"), "es_rejected_execution_exception", 429),
        (Refusal(413, "", ""), "413", 413),
    ],
)
def test_a_request_that_fails_as_a_whole_is_an_error(
    trouble: Trouble | Refusal, error_type: str, status: int | None
) -> None:
    """And the one that takes its place is a span of its own."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Traced)
        world.elastic.trouble = once(trouble)
        publish(world, 10)
        await world.start()
        await world.until_settled()
        for span in world.pair():
            attributes = span.attributes or {}
            assert attributes["error.type"] == error_type
            assert span.status.status_code is StatusCode.ERROR
        assert (world.pair()[1].attributes or {}).get("http.response.status_code") == status
        later = world.spans(f"process {QUEUE}")[1:]
        assert sum((span.attributes or {})["sidecar.documents.success"] for span in later) == 10  # type: ignore[misc]
        assert all(span.status.status_code is StatusCode.UNSET for span in later)

    play(Traced, scenario)


def test_a_request_that_is_cut_off_ends_its_spans() -> None:
    """At the end of the shutdown time nobody waits for the answer any more."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Traced)
        world.elastic.trouble = lambda _: Trouble.HANGS_BEFORE  # for longer than the end may take
        publish(world, 10)
        await world.start()
        await world.until(lambda: world.elastic.in_flight)
        await world.stop()
        assert (world.pair()[0].attributes or {})["error.type"] == "CancelledError"

    play(Traced, scenario)


def test_neither_text_nor_ids_are_in_a_span() -> None:
    """Whoever may see traces may not see documents."""

    async def scenario(world: SimulatedPipeline) -> None:
        assert isinstance(world, Traced)
        world.elastic.reject = must_be_number("text")
        publish(world, 20)
        world.broker.publish(QUEUE, MARK, properties(message_id=MARK))
        await world.start()
        await world.until_settled()
        told = " ".join(span.to_json() for span in world.exporter.get_finished_spans())
        assert "document_parsing_exception" in told
        assert MARK.decode() not in told

    play(Traced, scenario)
