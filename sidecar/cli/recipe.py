"""From settings to what becomes of messages: apart from `wiring`, so that it loads no client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.encoding.document import MAX_DOCUMENT_BYTES
from sidecar.core.encoding.encoder import EncoderConfig, IdMode
from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.forward import ACTION, ForwardConfig
from sidecar.core.encoding.template import Template
from sidecar.core.results.policy import ErrorPolicy

if TYPE_CHECKING:
    from sidecar.config.settings import Settings


def encoder_config(settings: Settings) -> EncoderConfig:
    """Return what becomes of messages; the templates were checked with the settings."""
    if settings.sink == "amqp":
        return _of_passing_on(settings)
    max_bytes = min(MAX_DOCUMENT_BYTES, settings.memory_limit)
    hook = None
    if settings.transform is not None:
        from sidecar.library.transforming import load

        hook = load(settings.transform, max_bytes)
    modes: dict[str, IdMode] = {"auto": "auto", "generated": "generated", "none": "none"}
    return EncoderConfig(
        index=Template(settings.index),
        action=Template(settings.action),
        id_mode=modes.get(settings.id, "template"),
        id=None if settings.id in modes else Template(settings.id),
        routing=_template(settings.routing),
        pipeline=_template(settings.pipeline),
        version=_template(settings.version),
        version_type=settings.version_type,
        index_allow=settings.index_allow,
        content=settings.content,
        fields=Fields({name: Template(text) for name, text in settings.fields.items()}) if settings.fields else None,
        max_bytes=max_bytes,
        batch_key=_template(settings.batch_key),
        batch_flush_when=_template(settings.batch_flush_when),
        batch_complete_count=_template(settings.batch_complete_count),
        coalesce=settings.batch_coalesce,
        split=settings.split,
        transform=hook.transform if hook is not None else None,
        prepare=hook.prepare if hook is not None else None,
    )


def _template(text: str | None) -> Template | None:
    return Template(text) if text is not None else None


def _of_passing_on(settings: Settings) -> EncoderConfig:
    """Return what `SIDECAR_SINK=amqp` makes of messages: groups. The target is the routing key."""
    return EncoderConfig(
        index=Template(settings.sink_routing_key),
        action=Template(ACTION),
        id_mode="none",
        max_bytes=min(MAX_DOCUMENT_BYTES, settings.memory_limit),
        batch_key=_template(settings.batch_key),
        batch_flush_when=_template(settings.batch_flush_when),
        batch_complete_count=_template(settings.batch_complete_count),
    )


def forward_config(settings: Settings) -> ForwardConfig:
    """Return as what messages are passed on (``SIDECAR_SINK=amqp``)."""
    return ForwardConfig(
        exchange=settings.sink_exchange.encode(),
        routing_key=Template(settings.sink_routing_key),
        envelope=settings.sink_envelope == "json",
    )


def error_policy(settings: Settings) -> ErrorPolicy:
    """Return what users decide about verdicts."""
    return ErrorPolicy(
        on_conflict=settings.on_conflict,
        on_failure_store=settings.on_failure_store,
        on_index_missing=settings.on_index_missing,
        on_index_blocked=settings.on_index_blocked,
        on_unroutable=settings.on_unroutable,
        on_delay_refused=settings.on_delay_refused,
    )
