"""What ``sidecar check`` finds: findings as values, and those that settings alone give away."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from sidecar.core.encoding.document import METADATA
from sidecar.core.encoding.forward import ACTION

if TYPE_CHECKING:
    from sidecar.core.encoding.encoder import EncoderConfig

Severity = Literal["problem", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note")
"""From what keeps the sidecar from working, over what may cost somebody dearly, to what is good to know."""

CONSUMER_TIMEOUT_SECONDS = 1800.0
"""RabbitMQ's default; nothing tells a client what is set."""
_TEMPLATE_TOKEN = re.compile(r"\{\{|\}\}|\{[^}]*\}")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that isn't as it should be.

    Attributes:
        severity: only a problem makes the check fail.
        where: the server, queue, index or setting.
        what: is wrong, in a sentence without secrets.
        fix: what to do about it.
    """

    severity: Severity
    where: str
    what: str
    fix: str

    def as_dict(self) -> dict[str, str]:
        """Return it for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the traps between settings depend on; the meaning of each is that of the setting of its name."""

    encoder_config: EncoderConfig
    prefetch: int
    batch_max_items: int
    bulk_concurrency: int
    bulk_timeout_seconds: float
    shutdown_timeout_seconds: float
    on_reject: str = "dead-letter"
    hold_max_seconds: float = 300.0
    memory_limit_bytes: int = 64 * 1024 * 1024
    batch_max_bytes: int = 5 * 1024 * 1024


def by_severity(findings: list[Finding]) -> list[Finding]:
    """Return the findings, the worst first, each once."""
    return sorted(dict.fromkeys(findings), key=lambda finding: SEVERITIES.index(finding.severity))


def traps(traits: Traits) -> list[Finding]:
    """Return what settings do to each other that somebody would not expect."""
    every = [*_prefetch(traits), *_shutdown(traits), *_hold(traits), *_memory(traits), *_discarded(traits)]
    if traits.encoder_config.constant_action == ACTION:  # what else there is, is about documents
        return every
    return [
        *every,
        *_identity(traits.encoder_config),
        *_midnight(traits.encoder_config),
        *_metadata(traits.encoder_config),
        *_versions(traits.encoder_config),
        *_coalesce(traits.encoder_config),
    ]


def _prefetch(traits: Traits) -> list[Finding]:
    wanted = traits.batch_max_items * (traits.bulk_concurrency + 1)
    if traits.prefetch >= wanted:
        return []
    at_once = traits.prefetch // traits.batch_max_items
    needed = f"{traits.batch_max_items} x (concurrency {traits.bulk_concurrency} + 1) = {wanted}"
    what = (
        f"the prefetch of {traits.prefetch} is room for {at_once} full batches of {traits.batch_max_items}; "
        f"{traits.bulk_concurrency} requests in flight and the batch that fills meanwhile take {needed}"
    )
    fix = "raise SIDECAR_AMQP_PREFETCH (at most 65,535), or lower SIDECAR_BATCH_MAX_ITEMS or SIDECAR_BULK_CONCURRENCY"
    return [Finding("warning", "SIDECAR_AMQP_PREFETCH", what, fix)]


def _shutdown(traits: Traits) -> list[Finding]:
    drain, request = traits.shutdown_timeout_seconds, traits.bulk_timeout_seconds
    if drain >= request:
        return []
    what = (
        f"the drain ends after {drain:g} s, but a request may take {request:g} s (SIDECAR_BULK_TIMEOUT): one that is "
        "cut off may have been stored, and its messages come again"
    )
    fix = (
        f"set SIDECAR_SHUTDOWN_TIMEOUT above {request:g}s (and the grace period of the pod above that), or "
        f"SIDECAR_BULK_TIMEOUT below {drain:g}s; with ids from the message it costs nothing but a second store"
    )
    return [Finding("warning", "SIDECAR_SHUTDOWN_TIMEOUT", what, fix)]


def _hold(traits: Traits) -> list[Finding]:
    if traits.hold_max_seconds < CONSUMER_TIMEOUT_SECONDS:
        return []
    what = (
        f"messages are held for {traits.hold_max_seconds:g} s in an outage; RabbitMQ closes the channel of a consumer "
        f"that leaves one unsettled for longer than its consumer_timeout, {CONSUMER_TIMEOUT_SECONDS:g} s by default"
    )
    fix = f"set SIDECAR_HOLD_MAX well below {CONSUMER_TIMEOUT_SECONDS:g}s, or raise the broker's consumer_timeout"
    return [Finding("warning", "SIDECAR_HOLD_MAX", what, fix)]


def _memory(traits: Traits) -> list[Finding]:
    requests = traits.bulk_concurrency + 1
    wanted = traits.batch_max_bytes * requests
    if traits.memory_limit_bytes >= wanted:
        return []
    what = (
        f"{traits.memory_limit_bytes:,} bytes are no room for {traits.bulk_concurrency} requests of "
        f"{traits.batch_max_bytes:,} bytes (SIDECAR_BATCH_MAX_BYTES) in flight and the batch that fills meanwhile: "
        f"{requests} x {traits.batch_max_bytes:,} = {wanted:,}"
    )
    fix = "raise SIDECAR_MEMORY_LIMIT, or lower SIDECAR_BATCH_MAX_BYTES or SIDECAR_BULK_CONCURRENCY"
    return [Finding("note", "SIDECAR_MEMORY_LIMIT", what, fix)]


def _identity(encoder_config: EncoderConfig) -> list[Finding]:
    whose = {
        "auto": "a message without the property message_id",
        "none": "a message",
        "generated": "a message that is delivered again (its id was made here, and is another then)",
    }.get(encoder_config.id_mode)
    if whose is None or encoder_config.constant_action in {"update", "upsert", "delete"}:
        return []
    what = f"{whose} is stored twice when it is redelivered after it was stored: nothing in it tells that it was"
    fix = "publish with message_id, or set SIDECAR_ID to a template over what identifies a message"
    if encoder_config.id_mode == "auto":
        fix = f"have every publisher set message_id; otherwise {fix.partition(', or ')[2]}"
    return [Finding("note", f"SIDECAR_ID={encoder_config.id_mode}", what, fix)]


def _midnight(encoder_config: EncoderConfig) -> list[Finding]:
    if "now" not in encoder_config.index.fields or encoder_config.id_mode not in {"auto", "template"}:
        return []
    what = (
        "the index's name depends on {now}: a message that is redelivered after the name has changed (at midnight, "
        "say) is stored in another index again, in spite of its id"
    )
    fix = "use {timestamp} or a field of the body in place of {now}"
    return [Finding("warning", "SIDECAR_INDEX", what, fix)]


def _metadata(encoder_config: EncoderConfig) -> list[Finding]:
    read = {field for template in encoder_config.templates for field in template.fields}
    names = sorted(field for field in read if field.startswith("body.") and field.split(".")[1] in METADATA)
    if not names or encoder_config.content == "text" or encoder_config.constant_action == "delete":
        return []
    refused = "a field that Elasticsearch refuses inside a document"
    what = f"it reads {refused}: every message that has it is rejected"
    fix = "publish it under another name, or have SIDECAR_TRANSFORM move it to one"
    return [Finding("warning" if encoder_config.constant_action is None else "problem", f"{{{names[0]}}}", what, fix)]


def _versions(encoder_config: EncoderConfig) -> list[Finding]:
    if encoder_config.version is None:
        return []
    found = []
    if encoder_config.constant_action is None:
        what = "a version goes with index and delete; messages whose action is create, update or upsert are rejected"
        fix = "make sure that SIDECAR_ACTION never gives one of these, or unset SIDECAR_VERSION"
        found.append(Finding("warning", "SIDECAR_VERSION", what, fix))
    elif encoder_config.constant_action == "create":
        what = "create takes no version: every message is rejected"
        found.append(Finding("problem", "SIDECAR_VERSION", what, "set SIDECAR_ACTION=index, or unset SIDECAR_VERSION"))
    if encoder_config.id_mode == "generated":
        what = "a version orders the writes of one document, and SIDECAR_ID=generated gives each message its own"
        fix = "set SIDECAR_ID to what identifies the document, or unset SIDECAR_VERSION"
        found.append(Finding("warning", "SIDECAR_VERSION", what, fix))
    return found


def _discarded(traits: Traits) -> list[Finding]:
    if traits.on_reject != "discard":
        return []
    what = "messages that Elasticsearch refuses are gone: they are counted and logged, and kept nowhere"
    return [Finding("note", "SIDECAR_ON_REJECT", what, "set SIDECAR_ON_REJECT=dead-letter to keep them")]


def _coalesce(encoder_config: EncoderConfig) -> list[Finding]:
    if encoder_config.coalesce == "none" or encoder_config.id_mode not in {"none", "generated"}:
        return []
    id_mode = encoder_config.id_mode
    what = f"operations on one document are folded, and SIDECAR_ID={id_mode} gives each message one of its own"
    fix = "set SIDECAR_ID to what identifies the document, or unset SIDECAR_BATCH_COALESCE"
    return [Finding("warning", "SIDECAR_BATCH_COALESCE", what, fix)]


def names_pattern(template: str) -> str:
    """Return what names a template gives, as a pattern with ``*`` in place of every field."""
    plain = {"{{": "{", "}}": "}"}
    pattern = _TEMPLATE_TOKEN.sub(lambda match: plain.get(match.group(), "*"), template)
    return re.sub(r"\*+", "*", pattern)


def on_data_stream(encoder_config: EncoderConfig, where: str, *, is_certain: bool = True) -> list[Finding]:
    """Return what goes wrong where documents go to a data stream.

    Args:
        encoder_config: what becomes of messages.
        where: says which one it is.
        is_certain: it is a data stream, or will be; otherwise only some of the names that are possible.
    """
    severity: Severity = "problem" if is_certain else "warning"
    found = []
    action = encoder_config.constant_action
    if action is None:
        what = "a data stream takes nothing but create; messages for which SIDECAR_ACTION gives another are rejected"
        found.append(Finding("warning", where, what, "set SIDECAR_ACTION=create"))
    elif action != "create":
        what = f"a data stream takes nothing but create; with SIDECAR_ACTION={action} every document is refused (400)"
        found.append(Finding(severity, where, what, "set SIDECAR_ACTION=create, or write to an index or alias"))
    if encoder_config.routing is not None:
        what = "a data stream refuses a routing, unless its template says allow_custom_routing"
        found.append(Finding("warning", where, what, "unset SIDECAR_ROUTING, or allow it in the template"))
    if encoder_config.id_mode in {"auto", "template"}:
        what = (
            "ids are unique within one backing index only: after a rollover a message that is delivered again is "
            "stored a second time"
        )
        fix = "keep the time between delivery and rollover long, or write to an index or alias where once is a must"
        found.append(Finding("warning", where, what, fix))
    if encoder_config.fields is None or "@timestamp" not in encoder_config.fields.names:
        what = "a data stream refuses documents without @timestamp (400)"
        fix = 'nothing needs to be done, if every body has it; otherwise set SIDECAR_FIELDS={"@timestamp":"{now}"}'
        found.append(Finding("note", where, what, fix))
    return found


def on_time_series(encoder_config: EncoderConfig, where: str) -> list[Finding]:
    """Return what goes wrong if documents go to an index whose ``index.mode`` is ``time_series``.

    Args:
        encoder_config: what becomes of messages.
        where: says which one it is.
    """
    found = []
    if encoder_config.id_mode != "none":
        whose = "of messages with message_id" if encoder_config.id_mode == "auto" else "of all messages"
        what = f"a time series index makes its own ids from dimensions and time: documents {whose} are refused (400)"
        found.append(Finding("problem", where, what, "set SIDECAR_ID=none"))
    if encoder_config.routing is not None:
        what = "a time series index refuses a routing: every document is refused (400)"
        found.append(Finding("problem", where, what, "unset SIDECAR_ROUTING"))
    if encoder_config.constant_action in {"update", "upsert"}:
        what = f"a time series index refuses SIDECAR_ACTION={encoder_config.constant_action}"
        found.append(Finding("problem", where, what, "set SIDECAR_ACTION=create, or write to another index"))
    return found
