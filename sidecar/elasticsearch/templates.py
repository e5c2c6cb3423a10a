"""Index and component templates of a folder against those of a cluster: what differs, and putting it right.

Elasticsearch gives back what it was given in a spelling of its own (numbers as text, ``index.`` before settings,
defaults written out), so both sides are brought to one spelling first. A higher version in the cluster stays: an older
release, started once more, must not undo what a newer one brought.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import orjson

from sidecar.core.results.bulk import fault
from sidecar.core.wire.names import text_fault
from sidecar.elasticsearch.node import OTHER_SHAPE
from sidecar.errors import ConfigError, RefusedTemplateError, SinkError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from sidecar.elasticsearch.client import ElasticsearchClient
    from sidecar.ports import Answer

    Ask = Callable[[str, str, bytes | None], Awaitable[Answer]]

Kind = Literal["component", "index"]
State = Literal["same", "missing", "different", "newer"]

_OK, _NOT_FOUND = 200, 404
_AWAY = frozenset({429, 502, 503, 504})
_PATHS: dict[Kind, str] = {"component": "/_component_template/", "index": "/_index_template/"}
_LISTS: dict[Kind, str] = {"component": "component_templates", "index": "index_templates"}
_DATA_STREAM = {"hidden": False, "allow_custom_routing": False}
"""What Elasticsearch writes out of a data stream of which nothing else was said."""
_STAMPS = ("created_date", "created_date_millis", "modified_date", "modified_date_millis")


_NOT_SHOWN = "the answer is not in Elasticsearch's format: is there something else at its address?"


@dataclass(frozen=True, slots=True)
class IndexTemplate:
    """A template of the folder.

    Attributes:
        name: as Elasticsearch knows it: that of the file.
        kind: of an index, or a component of others.
        content: what the file says.
    """

    name: str
    kind: Kind
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TemplateDiff:
    """What a template is in the cluster, compared with the folder.

    Attributes:
        template: of the folder.
        state: ``newer`` where the cluster has a higher version, which stays.
        actual: what differs, as the cluster has it, by path.
        expected: the same as the folder has it.
    """

    template: IndexTemplate
    state: State
    actual: dict[str, str]
    expected: dict[str, str]


def load(folder: Path) -> list[IndexTemplate]:
    """Return the templates of a folder in the order in which they can be installed: components first, then by name.

    Raises:
        ConfigError: files that hold none, all of them.
    """
    found, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            content = orjson.loads(path.read_bytes())
        except OSError as error:
            problems.append(f"{path}: can't be read ({error.strerror})")
            continue
        except orjson.JSONDecodeError as error:
            problems.append(f"{path}: is not JSON: {error}")
            continue
        if text_fault(path.stem) is not None:
            problems.append(f"{path}: the name of the template {text_fault(path.stem)}")
            continue
        if not isinstance(content, dict) or not content.keys() & {"template", "index_patterns"}:
            problems.append(f"{path}: is no template: an index template has index_patterns, a component one template")
            continue
        found.append(IndexTemplate(path.stem, "index" if "index_patterns" in content else "component", content))
    if not found and not problems:
        problems.append(f"{folder}: has no templates (*.json)")
    if problems:
        raise ConfigError(problems)
    return sorted(found, key=lambda one: (one.kind != "component", one.name))


async def when_available(
    sink: ElasticsearchClient,
    work: Callable[[Ask, list[IndexTemplate]], Awaitable[list[TemplateDiff]]],
    templates: list[IndexTemplate],
) -> list[TemplateDiff]:
    """Run `compare` or `apply` if Elasticsearch can be used: a proxy's 404 would look like a missing template.

    Raises:
        SinkError: Elasticsearch can't be used.
        RefusedTemplateError: as these do.
    """
    reason = await sink.check()
    if reason is not None:
        raise SinkError(reason)
    return await work(sink.request, templates)


async def compare(ask: Ask, templates: list[IndexTemplate]) -> list[TemplateDiff]:
    """Return how each template compares with the cluster's.

    Args:
        ask: sends a request with method, path and body.
        templates: of the folder.

    Raises:
        SinkError: Elasticsearch is away.
        RefusedTemplateError: it doesn't show them.
    """
    return [await _compare(ask, template) for template in templates]


async def _compare(ask: Ask, template: IndexTemplate) -> TemplateDiff:
    answer = await ask("GET", _path(template), None)
    if answer.status == _NOT_FOUND:
        return TemplateDiff(template, "missing", {}, normalized(template.content))
    _check(answer, template, "show")
    content = _shown(answer, template)
    there, wanted = normalized(content), normalized(template.content)
    state: State = "same" if there == wanted else "different"
    if state == "different" and version(content) > version(template.content):
        state = "newer"
    different = {path for path in there.keys() | wanted.keys() if there.get(path) != wanted.get(path)}
    return TemplateDiff(
        template,
        state,
        {path: there[path] for path in sorted(there) if path in different},
        {path: wanted[path] for path in sorted(wanted) if path in different},
    )


async def apply(ask: Ask, templates: list[IndexTemplate]) -> list[TemplateDiff]:
    """Install what is missing or different; return what each was before.

    Raises:
        SinkError: Elasticsearch is away; doing it again does the rest.
        RefusedTemplateError: it doesn't take one; those before it are installed.
    """
    changes = []
    for template in templates:  # one after the other: an index template needs its components
        change = await _compare(ask, template)
        if change.state in {"missing", "different"}:
            answer = await ask("PUT", _path(template), orjson.dumps(template.content))
            _check(answer, template, "take")
        changes.append(change)
    return changes


def _shown(answer: Answer, template: IndexTemplate) -> dict[str, Any]:
    """Return a template as the cluster shows it.

    Raises:
        SinkError: the answer is not in Elasticsearch's format.
    """
    try:
        (listed,) = orjson.loads(answer.body)[_LISTS[template.kind]]
        content = listed[f"{template.kind}_template"]
    except OTHER_SHAPE as error:
        raise SinkError(_NOT_SHOWN) from error
    if not isinstance(content, dict):
        raise SinkError(_NOT_SHOWN)
    return content


def _path(template: IndexTemplate) -> str:
    return _PATHS[template.kind] + quote(template.name, safe="")


def _check(answer: Answer, template: IndexTemplate, verb: str) -> None:
    if answer.status == _OK:
        return
    if answer.status in _AWAY:
        raise SinkError(f"Elasticsearch answered {answer.status}: it is not there yet")
    why = f"{answer.status} {fault(answer.status, answer.body, answer.location).reason}"
    raise RefusedTemplateError(f"Elasticsearch doesn't {verb} the {template.kind} template {template.name}: {why}")


def version(content: dict[str, Any]) -> int:
    """Return the version that a template says it has, itself or in its ``_meta``; 0 where it says none."""
    meta = content.get("_meta")
    said = (content.get("version"), meta.get("version") if isinstance(meta, dict) else None)
    return max((number for number in said if isinstance(number, int)), default=0)


def normalized(content: dict[str, Any]) -> dict[str, str]:
    """Return what a template says by path, in one spelling."""
    plain = {name: value for name, value in content.items() if name not in _STAMPS}
    if isinstance(plain.get("data_stream"), dict):
        plain["data_stream"] = _DATA_STREAM | plain["data_stream"]
    inner = plain.get("template")
    if isinstance(inner, dict) and isinstance(inner.get("settings"), dict):
        plain["template"] = inner | {"settings": _settings(inner["settings"])}
    return dict(_leaves(plain, ""))


def _settings(settings: dict[str, Any]) -> dict[str, str]:
    flat = dict(_leaves(settings, ""))
    return {name if name.startswith("index.") else f"index.{name}": text for name, text in flat.items()}


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, bool):
        yield path, "true" if value else "false"
    elif isinstance(value, list):
        if value:  # an empty one is what there is without it
            yield path, orjson.dumps([dict(_leaves(one, "")).get("", one) for one in value]).decode()
    elif value is not None and value != {}:
        yield path, str(value)
