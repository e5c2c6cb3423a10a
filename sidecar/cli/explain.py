"""``sidecar explain``: what `run` would send of a message, byte for byte, and what would be done about an answer.

The same parts do it as in `run`: the composer, the syntax of ``_bulk``, the table of verdicts. Nothing is reached. With
``SIDECAR_SINK=amqp`` it is what would be published.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn, cast

import click
import orjson

from sidecar.cli import EXIT_FAILED
from sidecar.cli.recipe import encoder_config, error_policy, forward_config
from sidecar.config.settings import PREFIX, Settings, join_list, load, read_raw
from sidecar.core.dead_letters.dead_letter import header_values, property_values
from sidecar.core.encoding import exact_json
from sidecar.core.encoding.correlation import whole_number
from sidecar.core.encoding.document import has_metadata, metadata_name
from sidecar.core.encoding.encoder import BulkEncoder, Rejection
from sidecar.core.encoding.forward import ForwardEncoder, ForwardProperties
from sidecar.core.ledger import Ledger
from sidecar.core.message import Message
from sidecar.core.results import bulk, policy
from sidecar.core.results.policy import Disposition, RequestOutcome, ResultClass
from sidecar.core.wire import properties
from sidecar.core.wire.names import dead_letter_queue
from sidecar.core.wire.republish import delay_seconds, may_be_own_write, may_delay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sidecar.core.encoding.encoder import EncoderConfig
    from sidecar.core.encoding.forward import ForwardConfig
    from sidecar.core.results.policy import Rule

QUEUE_SETTING = f"{PREFIX}AMQP_QUEUE"
_NO_QUEUE = "<queue>"  # stands where no name matters
_HEADERS = "headers"
_MAX_SHORT_STRING = 255
_CREATED = 201

COURSES = {
    RequestOutcome.OUTCOME_UNKNOWN: (
        "whether it was applied is unknown: a hold, and the same items again after a pause; nothing counts"
    ),
    RequestOutcome.THROTTLED: "the same items again after a pause, and slower",
    RequestOutcome.SPLIT_SIZE: "split in two, and the size is learned; one item alone is rejected as too-large",
    RequestOutcome.BISECT: "halved until the item at fault is alone; it is rejected once another request has succeeded",
    RequestOutcome.HOLD: "nobody's message is at fault, but the configuration or a right: a hold, with probes",
}


class Outcome(NamedTuple):
    """What would be done with a message.

    Attributes:
        name: for scripts.
        told: for people.
    """

    name: str
    told: str


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = []
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", context, parameter)
        pairs.append((name, text))
    return pairs


def _property_options(function: Callable[..., None]) -> Callable[..., None]:
    for name in ("timestamp", "content_type", "app_id", "type", "correlation_id", "message_id"):
        text = f"The property {name}" + (
            " (seconds since 1970, or milli-, micro- or nanoseconds)." if name == "timestamp" else "."
        )
        function = click.option(f"--{name.replace('_', '-')}", f"property_{name}", help=text)(function)
    return function


@click.command("explain")
@click.argument("file", metavar="[FILE|-]", type=click.File("rb"), default="-")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", callback=_pairs, help="A header, as text.")
@click.option("--routing-key", help="That it was published with.  [default: the queue's name, without an exchange]")
@click.option("--exchange", default="", help="That it was published to.  [default: the default exchange]")
@click.option("--queue", help=f"That it lies in.  [default: the first of {QUEUE_SETTING}]")
@_property_options
@click.option(
    "--property", "more", multiple=True, metavar="NAME=VALUE", callback=_pairs, help="Any property: priority=5, …"
)
@click.option("--redelivered", is_flag=True, help="The broker delivered it before.")
@click.option("--status", type=click.IntRange(100, 599), help="Elasticsearch's status of its item: what then?")
@click.option("--error-type", default="", help="Elasticsearch's error type of its item.")
@click.option("--error-reason", default="", help="Elasticsearch's reason.")
@click.option("--failure-store", is_flag=True, help="It went to a failure store (status 201): what then?")
@click.option("--request", "whole", is_flag=True, help="Status and error are the answer to the whole request.")
@click.option("--format", "style", default="plain", show_default=True, type=click.Choice(["plain", "json"]))
def command(
    *,
    file: BinaryIO,
    headers: list[tuple[str, str]],
    routing_key: str | None,
    exchange: str,
    queue: str | None,
    more: list[tuple[str, str]],
    redelivered: bool,
    status: int | None,
    error_type: str,
    error_reason: str,
    failure_store: bool,
    whole: bool,
    style: str,
    **shortcuts: str | None,
) -> None:
    """Show the bulk lines that `run` would send of a message, and what would be done about an answer.

    With SIDECAR_SINK=amqp: where it would be published, with which properties, and which body.
    The body is read from FILE or standard input, the settings from the environment. Exit status: 1 where the message
    would be rejected before any request.
    """
    result = _result(status, error_type, error_reason, failure_store=failure_store, whole=whole)
    settings = _settings(queue)
    made = encoder_config(settings)
    of_queue = {"queue"} if routing_key is not None or exchange else {"queue", "routing_key"}
    if queue is None and not _knows_queue() and (wanted := of_queue & _fields(made)):
        raise click.UsageError(f"the settings ask for {', '.join(sorted(wanted))}: give --queue or {QUEUE_SETTING}")
    message = _message(
        queue or settings.amqp_queue[0],
        (exchange, routing_key),
        _properties(_merged(shortcuts, more), headers),
        file.read(),
        redelivered=redelivered,
    )
    passes_on = settings.sink == "amqp"
    if passes_on and result is not None:
        raise click.UsageError("--status is Elasticsearch's, and SIDECAR_SINK=amqp publishes to RabbitMQ")
    accepted, rejections = _stage(made, message, settings) if passes_on else _compose(made, message)
    if rejections:
        _tell_reject(rejections[0], settings, style)
    message = accepted[-1]  # of several documents in it the last: what completes a group does so with that
    group = _group(message) if made.correlates else {}
    if made.correlates and message.correlation.is_signal:
        _tell_signal(group, style)
        return
    if passes_on:
        _tell_staged(message, forward_config(settings), group, style)
        return
    answer: dict[str, object] = {}
    if result is not None:
        answer = _course(result) if whole else _verdict(message, result, made, settings)
        answer = {"request" if whole else "verdict": answer}
    refused = next(filter(None, map(_refused, accepted)), "")
    if refused:
        answer["warning"] = refused
    _tell_request(bulk.path(made.path_index), bulk.body(accepted), (group, answer), message, style)


def _result(
    status: int | None, error_type: str, error_reason: str, *, failure_store: bool, whole: bool
) -> bulk.Result | None:
    """Return the answer from the options; None without one."""
    if failure_store:
        if status is not None or whole:
            raise click.UsageError("--failure-store is an answer of its own; leave --status and --request out")
        return bulk.Result(_CREATED, error_type, error_reason, failure_store=True)
    if status is not None:
        return bulk.Result(status, error_type, error_reason)
    if error_type or error_reason or whole:
        raise click.UsageError("--error-type, --error-reason and --request say more about a --status, which is missing")
    return None


def _settings(queue: str | None) -> Settings:
    """Return the settings; the queue need not be among them, for nothing is consumed here."""
    environment = dict(os.environ)
    if not _knows_queue():
        environment[QUEUE_SETTING] = join_list((queue or _NO_QUEUE,))
    return load(environment)


def _knows_queue() -> bool:
    found = read_raw(os.environ)
    return bool({"amqp_queue"} & (found.texts.keys() | found.files.keys()))


def _fields(made: EncoderConfig) -> set[str]:
    return {field for template in made.templates for field in template.fields}


# The message ---------------------------------------------------------------------------------------------------------


def _merged(shortcuts: Mapping[str, str | None], more: list[tuple[str, str]]) -> dict[str, str]:
    pairs = [(name.removeprefix("property_"), text) for name, text in shortcuts.items() if text is not None]
    merged: dict[str, str] = {}
    for name, text in (*pairs, *more):
        if name not in properties.FIELDS or name == _HEADERS:
            known = ", ".join(field for field in properties.FIELDS if field != _HEADERS)
            raise click.UsageError(f"{name!r} is no property; there are {known}, and --header for headers")
        if name in merged:
            raise click.UsageError(f"the property {name} is given twice")
        merged[name] = text
    return merged


def _properties(values: Mapping[str, str], headers: Iterable[tuple[str, str]]) -> bytes:
    """Return a property set as it comes off the wire."""
    raw = {name: _property(name, text) for name, text in values.items()}
    fields = [(_short(name, "a header's name"), properties.text_value(os.fsencode(text))) for name, text in headers]
    return properties.join_with_headers(raw, fields) if fields else properties.join(raw)


def _property(name: str, text: str) -> bytes:
    _, width = properties.FIELDS[name]
    if not width:
        data = _short(text, name)
        return bytes([len(data)]) + data
    largest = (1 << 8 * width) - 1
    number = whole_number(os.fsencode(text), largest)
    if number is None:
        raise click.UsageError(f"{name} must be a whole number from 0 to {largest}")
    return number.to_bytes(width, "big")


def _short(text: str, what: str) -> bytes:
    data = os.fsencode(text)  # whatever bytes the shell gave
    if len(data) > _MAX_SHORT_STRING:
        raise click.UsageError(f"{what} has {len(data)} bytes; AMQP takes {_MAX_SHORT_STRING}")
    return data


def _message(
    queue: str, route: tuple[str, str | None], raw_properties: bytes, body: bytes, *, redelivered: bool
) -> Message:
    exchange, routing_key = route
    if routing_key is None:
        routing_key = "" if exchange else queue
    names = (_short(exchange, "the exchange"), _short(routing_key, "the routing key"))
    raw_route = b"".join(bytes([len(name)]) + name for name in names)
    return Message(Ledger(queue, 1), 1, int(redelivered), raw_route, raw_properties, body, len(body))


def _group(message: Message) -> dict[str, object]:
    """Return what a message says of its group, for programs."""
    correlation = message.correlation
    told = {
        "key": correlation.key.decode(),
        "complete_count": correlation.expected_items or None,
        "completes": correlation.completes,
    }
    return {"group": told}


def _told_group(message: Message) -> str:
    """Return the same for people."""
    correlation = message.correlation
    told = f"belongs to the group {correlation.key.decode()!r}" if correlation.key else "belongs to the one group"
    if correlation.expected_items:
        told += f", which is complete with {correlation.expected_items:,} messages"
    return told + (", and completes it" if correlation.completes else "")


def _compose(made: EncoderConfig, message: Message) -> tuple[list[Message], list[Rejection]]:
    """Return what would be sent of a message, or why nothing would."""
    prepare = made.prepare
    if prepare is not None:

        async def wait() -> None:
            await prepare([message])

        asyncio.run(wait())
    return BulkEncoder(made, lambda: f"{random.getrandbits(128):032x}").encode([message], time.time())


def _tell_signal(group: dict[str, object], style: str) -> None:
    done = "a signal: it completes its group, is acked and not stored"
    if style == "json":
        _write_json({"accepted": True, "signal": True, "done": done, **group})
    else:
        click.echo(done)


def _stage(made: EncoderConfig, message: Message, settings: Settings) -> tuple[list[Message], list[Rejection]]:
    """Return what would be published of a message (``SIDECAR_SINK=amqp``), or why nothing would."""
    return ForwardEncoder(made, forward_config(settings)).encode([message], time.time())


def _tell_staged(message: Message, forwarded: ForwardConfig, group: dict[str, object], style: str) -> None:
    """Show where a message would be published, with which properties and headers, and which body."""
    raw = ForwardProperties(forwarded).properties(message, b"1")
    published = Message(message.ledger, 1, 0, message.route, raw, message.source or b"", 0)
    exchange, routing_key = forwarded.exchange.decode(), cast("bytes", message.made).decode(errors="replace")
    told = {
        "exchange": exchange,
        "routing_key": routing_key,
        "properties": property_values(published),
        "headers": dict(header_values(published)),
    }
    if style == "json":
        body = published.body.decode(errors="backslashreplace")
        _write_json({"accepted": True, "method": "PUBLISH", **told, "body": body, **group})
        return
    click.echo(f"PUBLISH to {f'the exchange {exchange!r}' if exchange else 'the default exchange'}: {routing_key!r}\n")
    for kind in ("properties", "headers"):
        click.echo(f"{kind} {orjson.dumps(told[kind]).decode()}")
    click.echo(b"\n" + published.body)
    if group:
        click.echo(f"\n{_told_group(message)}")


def _tell_request(
    path: str, body: bytes, more: tuple[dict[str, object], dict[str, object]], message: Message, style: str
) -> None:
    """Show a bulk request, and what is said of group and answer."""
    group, answer = more
    if style == "json":
        _write_json({"accepted": True, "method": "POST", "path": path, "body": body.decode(), **group, **answer})
        return
    click.echo(f"POST {path}\n")
    click.echo(body, nl=False)
    if group:
        click.echo(f"\n{_told_group(message)}")
    for told in answer.values():
        if isinstance(told, dict):
            _tell(told)
        else:
            click.echo(f"\nwarning: {told}")


def _refused(message: Message) -> str:
    """Return why Elasticsearch will refuse a document because of its field names; empty if no reason is known."""
    try:
        content = exact_json.read(message.source or b"{}")
    except exact_json.JsonError:
        return ""
    if message.action in {"update", "upsert"} and isinstance(content, dict):
        content = content.get("doc")
    name = metadata_name(content)
    return has_metadata(name).detail if name else ""


# What would be done --------------------------------------------------------------------------------------------------


def _verdict(message: Message, result: bulk.Result, made: EncoderConfig, settings: Settings) -> dict[str, object]:
    """Return the verdict of a first attempt, and where attempts count, what follows the last one."""
    rule = policy.classify_item(result, message.action or made.constant_action or "")
    chosen = error_policy(settings)
    ours = may_be_own_write(message)
    round_left = may_delay(message, versioned=made.version is not None, max_rounds=settings.delayed_retry_max_rounds)

    def fate(*, may_try: bool) -> Disposition:
        return policy.decide(rule, chosen, may_be_own_write=ours, may_retry=may_try, may_delay=round_left)

    outcomes = [_outcome(fate(may_try=settings.retry_max_attempts > 1), rule, message, settings)]
    if rule.result_class is ResultClass.RETRYABLE and settings.retry_max_attempts > 1:
        outcomes.append(_outcome(fate(may_try=False), rule, message, settings))
    told: dict[str, object] = {
        "status": result.status,
        "error_type": result.error_type,
        "rule": rule.result_class.value,
        "why": rule.why,
        "fate": outcomes[0].name,
        "done": outcomes[0].told,
    }
    if len(outcomes) > 1:
        told |= {"then": outcomes[1].name, "afterwards": outcomes[1].told}
    return told


def _course(result: bulk.Result) -> dict[str, object]:
    course = policy.classify_request(bulk.Fault(result.status, result.error_type, result.reason))
    return {
        "status": result.status,
        "error_type": result.error_type,
        "rule": course.value,
        "why": "the answer to the whole request",
        "done": COURSES[course],
    }


def _outcome(fate: Disposition, rule: Rule, message: Message, settings: Settings) -> Outcome:
    name = fate.value
    if fate is Disposition.STORED:
        return Outcome(name, "acked")
    if fate is Disposition.THROTTLED:
        return Outcome(name, "again in place without limit, and slower")
    if fate is Disposition.RETRY_UNTIL_ROUTABLE:
        return Outcome(name, "again in place after a pause, until its target takes it")
    if fate is Disposition.RETRY:
        counted = rule.result_class is ResultClass.RETRYABLE
        limit = f"at most {settings.retry_max_attempts} attempts" if counted else "without limit"
        return Outcome(name, f"again in place after a pause, {limit}")
    if fate is Disposition.DELAY:
        counted = rule.result_class is ResultClass.RETRYABLE
        seconds = delay_seconds(message, settings.delayed_retry_delay, counted=counted, now=time.time())
        return Outcome(name, f"round by the delay queue, back after {seconds:g} s")
    return Outcome(name, _reject_outcome(rule.reason or "retries-exhausted", message, settings))


def _reject_outcome(reason: str, message: Message, settings: Settings) -> str:
    if settings.on_reject == "discard":
        return f"discarded: {reason}"
    if settings.on_reject == "broker":
        return f"rejected, for the queue's own dead-letter exchange to take: {reason}"
    routing_key = settings.dead_letter_routing_key or dead_letter_queue(message.ledger.queue)
    exchange = settings.dead_letter_exchange
    where = f"the exchange {exchange!r} with the routing key {routing_key!r}" if exchange else repr(routing_key)
    return f"dead-lettered to {where}: {reason}"


# Output --------------------------------------------------------------------------------------------------------------


def _tell_nothing(style: str) -> NoReturn:
    done = "acked, and counted as discard"
    if style == "json":
        _write_json({"accepted": False, "reject": None, "done": done})
    else:
        click.echo(f"SIDECAR_TRANSFORM makes no document of it\n{done}")
    sys.exit(EXIT_FAILED)


def _tell_reject(reject: Rejection, settings: Settings, style: str) -> NoReturn:
    done = _reject_outcome(reject.reason, reject.message, settings)
    if not reject.reason:
        _tell_nothing(style)
    several = settings.split != "none" or settings.transform is not None
    part = reject.message.split if several else None
    which = f"document {reject.message.split_index} of {part.count}: " if part is not None else ""
    if style == "json":
        told = {"reason": reject.reason, "detail": which + reject.detail, "done": done}
        _write_json({"accepted": False, "reject": told})
    else:
        click.echo(f"rejected before any request: {reject.reason}: {which}{reject.detail}\n{done}")
    sys.exit(EXIT_FAILED)


def _tell(told: dict[str, object]) -> None:
    answer = " ".join(str(told[name]) for name in ("status", "error_type") if told[name])
    click.echo(f"\n{answer}: {told['why']} ({told['rule']})\n{told['done']}")
    if "afterwards" in told:
        click.echo(f"and after the last: {told['afterwards']}")


def _write_json(content: dict[str, object]) -> None:
    click.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE), nl=False)
