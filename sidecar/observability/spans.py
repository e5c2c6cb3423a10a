"""OpenTelemetry's spans: two for each bulk request, told by its messages and its answer. The one module that knows it.

``process <queue>`` is the batch, by the conventions for messaging: it begins when its first message came, and has links
to the spans of the producers. ``bulk <index>`` is the request within it, by those for databases. Neither holds text of
a document, an id, or an index that comes from a message.
Source: opentelemetry.io/docs/specs/semconv, messaging/rabbitmq and database/elasticsearch.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sidecar.core.results import bulk
from sidecar.core.results.policy import OUTCOMES, classify_item
from sidecar.core.wire.properties import PropertiesError, header
from sidecar.errors import SinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import AttributeValue

    from sidecar.core.message import Message
    from sidecar.core.scheduling.batcher import Batch
    from sidecar.ports import Answer

MAX_LINKS = 128
"""Links of a span where OTEL_LINK_COUNT_LIMIT (or OTEL_SPAN_LINK_COUNT_LIMIT) says nothing else."""
_OK = 200
_UNTROUBLED = frozenset({"success", "noop", "conflict", "failure_store"})
_LENGTH = 55
_FIELD = b"\x0btraceparentS\x00\x00\x00" + bytes([_LENGTH])
"""A header as W3C has it: name, type, and the length that all have: ``00-<trace>-<span>-<flags>``."""
_SAMPLED = b"13579bdf"
_PROPAGATOR = TraceContextTextMapPropagator()


class _Pair(NamedTuple):
    """The spans of a request."""

    process: Span
    bulk: Span


class Spans:
    """The port `sidecar.ports.Tracing` over OpenTelemetry.

    Args:
        tracer: makes the spans.
        index: the target of all requests, where it doesn't come from messages.
        action: of all documents, likewise.
        max_links: how many links a span has at most; further producers of the batch are left out.
    """

    def __init__(self, tracer: Tracer, *, index: str | None, action: str | None, max_links: int = MAX_LINKS) -> None:
        self._tracer = tracer
        self._index = index
        self._action = action or ""
        self._max_links = max_links

    @contextmanager
    def request(self, batch: Batch, size_bytes: int) -> Iterator[Callable[[Answer], None]]:
        """Span a request; what is yielded is to be told its answer, and an exception is one that didn't come."""
        spans = self._begin(batch, size_bytes)
        try:
            yield partial(self._answered, spans, batch.messages)
        except SinkError as error:
            _fail(spans, "unanswered", str(error))
            raise
        except BaseException as error:
            _fail(spans, type(error).__qualname__, "")
            raise
        finally:
            spans.bulk.end()
            spans.process.end()

    def _begin(self, batch: Batch, size_bytes: int) -> _Pair:
        messages = batch.messages
        waited_seconds = max(0.0, asyncio.get_running_loop().time() - batch.opened_at)
        queues = {message.ledger.queue for message in messages}
        attributes: dict[str, AttributeValue] = {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.batch.message_count": len(messages),
            "sidecar.batch.trigger": batch.trigger or "",
            "sidecar.batch.tries": batch.tries,
        }
        name = "process"
        if len(queues) == 1:
            (queue,) = queues
            name, attributes["messaging.destination.name"] = f"process {queue}", queue
        process = self._tracer.start_span(
            name,
            Context(),  # a trace of its own: a batch has many producers, and none of them is its parent
            SpanKind.CONSUMER,
            attributes,
            links(messages, self._max_links),
            time.time_ns() - int(waited_seconds * 1e9),
        )
        return _Pair(process, self._begin_bulk(process, len(messages), size_bytes))

    def _begin_bulk(self, process: Span, items: int, size_bytes: int) -> Span:
        attributes: dict[str, AttributeValue] = {
            "db.system.name": "elasticsearch",
            "db.operation.name": "bulk",
            "http.request.method": "POST",
            "http.request.body.size": size_bytes,
        }
        if items > 1:  # by the conventions one alone is no batch
            attributes["db.operation.batch.size"] = items
        if self._index is not None:
            attributes["db.collection.name"] = self._index
        name = f"bulk {self._index}" if self._index is not None else "bulk"
        return self._tracer.start_span(name, set_span_in_context(process), SpanKind.CLIENT, attributes)

    def _answered(self, spans: _Pair, messages: list[Message], answer: Answer) -> None:
        """Note what became of the documents, and an error where any of them wasn't taken."""
        if not spans.process.is_recording():
            return
        spans.bulk.set_attribute("http.response.status_code", answer.status)
        spans.bulk.set_attribute("db.response.status_code", str(answer.status))
        outcomes, errors = self._outcomes(messages, answer)
        if outcomes is None:
            fault = bulk.fault(answer.status, answer.body)
            _fail(spans, fault.error_type or str(answer.status), f"the request was answered with {answer.status}")
            return
        for outcome, count in outcomes.items():
            spans.process.set_attribute(f"sidecar.documents.{outcome}", count)
        if errors:
            ((error_type, _),) = errors.most_common(1)
            _fail(spans, error_type, f"{errors.total()} of {len(messages)} documents were not taken")

    def _outcomes(self, messages: list[Message], answer: Answer) -> tuple[Counter[str] | None, Counter[str]]:
        """Return the documents by outcome (as in the metrics) and those that weren't taken by type of error."""
        if answer.status == _OK and bulk.all_stored(answer.body, len(messages)):
            return Counter({"success": len(messages)}), Counter()
        results = bulk.results(answer.body, len(messages)) if answer.status == _OK else None
        if results is None:
            return None, Counter()
        outcomes: Counter[str] = Counter()
        errors: Counter[str] = Counter()
        for message, result in zip(messages, results, strict=True):
            outcome = OUTCOMES.get(classify_item(result, message.action or self._action).result_class, "")
            if result.status in bulk.STORED_STATUSES:
                outcome = "failure_store" if result.failure_store else "success"
            outcomes[outcome] += 1
            if outcome not in _UNTROUBLED:
                errors[result.error_type or str(result.status)] += 1
        return outcomes, errors


def links(messages: list[Message], most: int) -> list[Link]:
    """Return links to the spans in which messages were published, each once, those of the first messages first.

    Only to spans that are recorded somewhere: of a span that wasn't sampled there is nothing to be seen.

    Args:
        messages: with the header ``traceparent``, some of them.
        most: how many links there may be.
    """
    found: list[Link] = []
    seen: set[bytes] = set()
    for message in messages:
        if len(seen) >= most:
            break
        properties = message.properties
        at = properties.find(_FIELD)  # a search in C for the many that have none, or the same as the one before
        if at < 0:
            continue
        parent = properties[at + len(_FIELD) : at + len(_FIELD) + _LENGTH]
        if parent in seen or parent[-1:] not in _SAMPLED:
            continue
        seen.add(parent)
        context = _context(properties, parent)
        if context is not None:
            found.append(Link(context))
    return found


def _context(properties: bytes, parent: bytes) -> SpanContext | None:
    """Return the span that a message's headers name, if they do, and it is `parent`."""
    try:
        raw, state = header(properties, b"traceparent"), header(properties, b"tracestate")
    except PropertiesError:
        return None
    if raw is None or not raw.endswith(parent):  # what was found lies in the text of something else
        return None
    texts = {"traceparent": parent.decode(errors="replace")}
    if state is not None and state.startswith(b"S"):  # anything else would be another's, however deep it goes
        texts["tracestate"] = state[5:].decode(errors="replace")
    context = get_current_span(_PROPAGATOR.extract(texts, Context())).get_span_context()
    return context if context.is_valid and context.trace_flags.sampled else None


def _fail(spans: _Pair, error_type: str, description: str) -> None:
    for span in spans:
        span.set_attribute("error.type", error_type)
        span.set_status(StatusCode.ERROR, description or None)
