"""Whether anything is traced, by OpenTelemetry's own variables (``OTEL_*``), and where to.

Nothing of OpenTelemetry is imported here before somebody asks for traces: whoever doesn't pays nothing. What is wrong
with tracing is told and never stops a message, as OpenTelemetry's specification asks for.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

from sidecar import __version__
from sidecar.errors import TracingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from structlog.typing import FilteringBoundLogger

    from sidecar.core.encoding.encoder import EncoderConfig
    from sidecar.observability.spans import Spans

SERVICE_NAME = "sidecar"
PROTOCOL = "http/protobuf"
FLUSH_SECONDS = 2.0
"""How long the last spans may take to leave: the process is told to end, and tracing is the least of its duties."""
_QUIET_SECONDS = 60.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_LOGIN = re.compile(r"//[^/@\s]*@")


def exporters(environ: Mapping[str, str]) -> list[str]:
    """Return where traces go: the names in ``OTEL_TRACES_EXPORTER``, or ``otlp`` where only an endpoint is given."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    named = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not named and any(environ.get(name) for name in _ENDPOINTS):
        named = "otlp"
    return [name for name in dict.fromkeys(part.strip() for part in named.split(",")) if name not in {"", "none"}]


class Tracing:
    """Spans that are exported in the background.

    Attributes:
        spans: what the pipeline tells of its requests.
    """

    def __init__(self, provider: TracerProvider, spans: Spans) -> None:
        self.spans = spans
        self._provider = provider

    def close(self) -> None:
        """Export what is left, for two seconds at most: a collector may be away, and a thread can't be cut off."""
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)


def open_tracing(
    environ: Mapping[str, str], encoder_config: EncoderConfig, log: FilteringBoundLogger
) -> Tracing | None:
    """Begin to trace where the environment asks for it; return None where it doesn't, or it isn't possible.

    Args:
        environ: the same that OpenTelemetry's SDK reads by itself: sampler, limits, endpoint, headers, resource.
        encoder_config: of the messages, for what all requests have in common.
        log: told when traces are exported, and why not.
    """
    wanted = exporters(environ)
    if not wanted:
        return None
    try:
        tracing = _open(wanted, environ, encoder_config)
    except TracingError as error:
        log.warning("tracing.off", reason=str(error))
        return None
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(OtelLogBridge(log, environ))
    logger.propagate = False
    log.info("tracing.started", exporters=wanted)
    return tracing


def _open(wanted: list[str], environ: Mapping[str, str], encoder_config: EncoderConfig) -> Tracing:
    """Return the SDK, set up.

    Raises:
        TracingError: what is asked for isn't there.
    """
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from sidecar.observability.spans import MAX_LINKS, Spans

        processors = [BatchSpanProcessor(exporter) for exporter in _exporters(wanted, environ)]
    except ImportError as error:
        raise TracingError(
            f"OTEL_* asks for traces, and {error.name} isn't installed: install the extra `otel`"
            " (pip install 'rabbitmq-elasticsearch-sidecar[otel]'), or set OTEL_SDK_DISABLED=true"
        ) from error
    except ValueError as error:  # the SDK's own words on a variable; it may quote it
        raise TracingError(f"the variables OTEL_* can't be used: {_masked(str(error), environ)}") from error
    resource = Resource.create({"service.version": __version__})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE_NAME}))
    # At exit it would wait for a collector that is away; `Tracing.close` has a limit.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    limit = SpanLimits().max_links
    tracer = provider.get_tracer("sidecar", __version__)
    spans = Spans(
        tracer,
        index=encoder_config.path_index,
        action=encoder_config.constant_action,
        max_links=MAX_LINKS if limit is None else limit,
    )
    return Tracing(provider, spans)


def _exporters(wanted: list[str], environ: Mapping[str, str]) -> Iterator[SpanExporter]:
    for name in wanted:
        if name == "otlp":
            protocol = next((environ[one] for one in _PROTOCOLS if environ.get(one)), PROTOCOL)
            if protocol != PROTOCOL:
                raise TracingError(
                    f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; only {PROTOCOL} (port 4318) is spoken"
                )
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            yield OTLPSpanExporter()
        elif name == "console":
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            yield ConsoleSpanExporter()
        else:
            raise TracingError(f"OTEL_TRACES_EXPORTER: {name!r} isn't known; there are otlp, console and none")


class OtelLogBridge(logging.Handler):
    """What the SDK has to say goes to our log, as a line a minute and without the headers that log in.

    Args:
        log: where it is told.
        environ: holds what must not be told.
    """

    def __init__(self, log: FilteringBoundLogger, environ: Mapping[str, str]) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._environ = environ
        self._silent_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one record, from whichever thread it comes."""
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _QUIET_SECONDS
            self._log.warning("tracing.failed", reason=_masked(record.getMessage(), self._environ))


def _masked(text: str, environ: Mapping[str, str]) -> str:
    """Return a text without the values of the exporter's headers and the logins of URLs."""
    secrets = set()
    for name in _HEADERS:
        for pair in environ.get(name, "").split(","):
            value = pair.partition("=")[2].strip() or pair.strip()
            secrets |= {value, unquote(value), unquote(value).rpartition(" ")[2]}
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _LOGIN.sub("//", text)
