"""``sidecar check``: everything that is wrong with the settings and both servers, each with its mend."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sidecar.amqp import check as amqp
from sidecar.cli import EXIT_FAILED
from sidecar.cli.recipe import encoder_config
from sidecar.config.broker import connect_options, sink_topology, sink_urls, topology
from sidecar.config.settings import Settings, load
from sidecar.core.encoding.template import Template
from sidecar.core.findings import SEVERITIES, Finding, Traits, by_severity, traps
from sidecar.core.wire.republish import delay_lengths
from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from sidecar.amqp.connection import ConnectOptions

    Look = Callable[[ConnectOptions], Coroutine[None, None, list[Finding]]]

_ARROW = f"{'':<7}  -> "


async def _check(settings: Settings, reaching: ConnectOptions, far_side: Look) -> list[Finding]:
    urls = tuple(url.get_secret_value() for url in settings.amqp_url)
    # As many as sidecar run opens at this broker. The sink is checked afterwards, so that no more are open at once.
    connections = 3 if settings.sink == "amqp" and settings.sink_is_here else 2
    near = await amqp.check(
        urls,
        reaching,
        topology(settings),
        settings.on_reject,
        delays=delay_lengths(settings.delayed_retry_delay),
        connections=connections,
        consumer_arguments=settings.amqp_consumer_arguments,
    )
    sides = near, await far_side(reaching)
    own = (
        traps(_check_traits(settings)),
        _forwarding_loop(settings),
        _without_effect(settings),
        _proxies(settings, os.environ),
    )
    return by_severity([finding for side in (*sides, *own) for finding in side])


def _without_effect(settings: Settings) -> list[Finding]:
    fix = "unset it, or set the setting that it needs"
    return [Finding("warning", what.partition(" ")[0], what, fix) for what in settings.without_effect]


def _proxies(settings: Settings, environment: Mapping[str, str]) -> list[Finding]:
    """Note an HTTP proxy in the environment, which the sidecar doesn't use."""
    if settings.sink == "amqp":
        return []
    variables = {scheme: (f"{scheme}_proxy", f"{scheme}_proxy".upper()) for scheme in ("http", "https")}
    schemes = {url.get_secret_value().partition("://")[0] for url in settings.elasticsearch_url}
    named = [name for scheme in sorted(schemes) for name in variables.get(scheme, ()) if environment.get(name)]
    what = "the sidecar connects to Elasticsearch directly: it doesn't use HTTP proxies"
    fix = (
        "if only the proxy can reach Elasticsearch, put a reverse proxy there and name it in SIDECAR_ELASTICSEARCH_URL"
    )
    return [Finding("note", name, what, fix) for name in named]


def _forwarding_loop(settings: Settings) -> list[Finding]:
    """Return whether messages that are passed on may come back to where they were taken from."""
    exchange = settings.sink_exchange
    if settings.sink != "amqp" or not exchange or exchange != settings.amqp_exchange or not settings.sink_is_here:
        return []
    what = (
        f"messages are published to {exchange!r}, which is SIDECAR_AMQP_EXCHANGE as well: those that the bindings of "
        "SIDECAR_AMQP_QUEUE take come back, again and again"
    )
    fix = "publish to another exchange, or with a routing key that SIDECAR_AMQP_ROUTING_KEYS doesn't take"
    return [Finding("warning", "SIDECAR_SINK_EXCHANGE", what, fix)]


def _check_traits(settings: Settings) -> Traits:
    return Traits(
        encoder_config=encoder_config(settings),
        prefetch=settings.prefetch,
        batch_max_items=settings.batch_max_items,
        bulk_concurrency=settings.bulk_concurrency,
        bulk_timeout_seconds=settings.bulk_timeout,
        shutdown_timeout_seconds=settings.shutdown_timeout,
        on_reject=settings.on_reject,
        hold_max_seconds=settings.hold_max,
        memory_limit_bytes=settings.memory_limit,
        batch_max_bytes=settings.batch_max_bytes,
    )


def _checks(settings: Settings) -> tuple[ConnectOptions, Look]:
    """Return how to reach RabbitMQ, and what looks at the far side.

    Raises:
        ConfigError: files for TLS that can't be used, several logins; with the problems of both sides.
    """
    problems: list[str] = []
    reaching = far_side = None
    try:
        reaching = connect_options(settings)
    except ConfigError as error:
        problems += error.problems
    try:
        far_side = _look_at_sink(settings) if settings.sink == "amqp" else _look_at_elasticsearch(settings)
    except ConfigError as error:
        problems += error.problems
    if problems or reaching is None or far_side is None:
        raise ConfigError(problems)
    return reaching, far_side


def _look_at_elasticsearch(settings: Settings) -> Look:
    from sidecar.cli.wiring import elasticsearch  # its client takes long to load
    from sidecar.elasticsearch import check as elastic
    from sidecar.elasticsearch import templates as index_templates
    from sidecar.elasticsearch.client import authorization, nodes

    connection = elasticsearch(settings)
    authorization(connection)
    nodes(connection)
    made = encoder_config(settings)
    applies = settings.mappings_apply and settings.mappings_dir
    templates = index_templates.load(Path(settings.mappings_dir or "")) if applies else []
    return lambda _: elastic.check(connection, made, templates=templates)


def _look_at_sink(settings: Settings) -> Look:
    constant = Template(settings.sink_routing_key).constant
    routing_key = constant.decode() if constant is not None else None
    urls = sink_urls(settings)
    own = "SIDECAR_SINK_AMQP_URL" if settings.sink_amqp_url else "SIDECAR_AMQP_URL"
    return lambda reaching: amqp.check_sink(
        urls, reaching, sink_topology(settings), routing_key, named=own, on_unroutable=settings.on_unroutable
    )


def _counts(findings: list[Finding]) -> dict[str, int]:
    return {f"{severity}s": sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}


def as_text(findings: list[Finding]) -> str:
    """Return the findings for people: what is wrong where, and below it what to do.

    Args:
        findings: in the order wanted.
    """
    lines = [
        f"{finding.severity:<7}  {_one_line(f'{finding.where}: {finding.what}')}\n{_ARROW}{_one_line(finding.fix)}\n"
        for finding in findings
    ]
    counted = [f"{count} {name if count != 1 else name[:-1]}" for name, count in _counts(findings).items() if count]
    return "".join([*lines, f"{', '.join(counted) or 'nothing found'}\n"])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def as_json(findings: list[Finding]) -> str:
    """Return the findings for programs.

    Args:
        findings: in the order wanted.
    """
    counts = _counts(findings)
    listed = [finding.as_dict() for finding in findings]
    return json.dumps({"ok": not counts["problems"], **counts, "findings": listed}, indent=2, ensure_ascii=False) + "\n"


FORMATS: Mapping[str, Callable[[list[Finding]], str]] = {"text": as_text, "json": as_json}


@click.command("check")
@click.option(
    "--format", "style", default="text", show_default=True, type=click.Choice(list(FORMATS)), help="How it is written."
)
def command(*, style: str) -> None:
    """Check the settings and both servers, and list every problem with its fix.

    Nothing that exists on either server is changed. Whether missing queues and exchanges can be created is tried under
    other names, which are deleted again. Exit status: 0 no problem (there may be warnings and notes), 1 problems, 2 the
    settings are wrong.
    """
    settings = load(os.environ)
    reaching, far_side = _checks(settings)
    findings = asyncio.run(_check(settings, reaching, far_side))
    click.echo(FORMATS[style](findings), nl=False)
    if _counts(findings)["problems"]:
        sys.exit(EXIT_FAILED)
