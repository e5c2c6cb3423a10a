"""``sidecar mappings``: the templates of a folder against the cluster."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sidecar.cli import EXIT_FAILED
from sidecar.cli.wiring import elasticsearch
from sidecar.config.settings import load_without_required
from sidecar.elasticsearch import templates as index_templates
from sidecar.elasticsearch.client import ElasticsearchClient
from sidecar.errors import RefusedTemplateError, SinkError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.elasticsearch.templates import Ask, IndexTemplate, TemplateDiff

DEFAULT_FOLDER = "mappings"
_DONE = {"same": "unchanged", "missing": "installed", "different": "changed", "newer": "left as it is"}
_FOLDER = click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help=f"Of the templates.  [default: SIDECAR_MAPPINGS_DIR, or {DEFAULT_FOLDER}]",
)


@click.group("mappings")
def command() -> None:
    """Compare the index and component templates of a folder with the cluster's, or install them.

    A file's name is its template's. One with index_patterns is an index template, any other a component template.
    """


@command.command("diff")
@_FOLDER
def diff(*, folder: Path | None) -> None:
    """Show what differs. Exit status: 0 nothing, 1 something, or Elasticsearch can't be asked."""
    changes = _do(index_templates.compare, folder)
    for change in changes:
        _tell(change, _state(change))
    if any(change.state != "same" for change in changes):
        sys.exit(EXIT_FAILED)


@command.command("apply")
@_FOLDER
def apply(*, folder: Path | None) -> None:
    """Install what is missing or different, components first, and say what was changed.

    A template of a higher version in the cluster stays as it is. Exit status: 1 where Elasticsearch refuses one.
    """
    for change in _do(index_templates.apply, folder):
        _tell(change, f"{_DONE[change.state]}{f': {_state(change)}' if change.state == 'newer' else ''}")


def _do(
    work: Callable[[Ask, list[IndexTemplate]], Awaitable[list[TemplateDiff]]], folder: Path | None
) -> list[TemplateDiff]:
    settings, _ = load_without_required(os.environ)
    templates = index_templates.load(folder or Path(settings.mappings_dir or DEFAULT_FOLDER))
    connection = elasticsearch(settings)

    async def done() -> list[TemplateDiff]:
        sink = ElasticsearchClient(connection)
        try:
            return await index_templates.when_available(sink, work, templates)
        finally:
            await sink.close()

    try:
        return asyncio.run(done())
    except (SinkError, RefusedTemplateError) as error:
        click.echo(f"sidecar: {error}", err=True)
        sys.exit(EXIT_FAILED)


def _state(change: TemplateDiff) -> str:
    if change.state == "newer":
        own = index_templates.version(change.template.content)
        return f"the cluster has a higher version than {own}, which stays"
    return change.state


def _tell(change: TemplateDiff, told: str) -> None:
    click.echo(f"{change.template.kind} template {click.style(change.template.name, bold=True)}: {told}")
    if change.state == "missing":
        return
    for path in sorted(change.actual.keys() | change.expected.keys()):
        for sign, side, colour in (("-", change.actual, "red"), ("+", change.expected, "green")):
            if path in side:
                click.secho(f"  {sign} {path}: {side[path]}", fg=colour)
