"""Elasticsearch's index and component templates over HTTP, in the words that 9.5.0 gives them back in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tests.fakes.http_server import reply, stored

if TYPE_CHECKING:
    from tests.fakes.http_server import Received

KINDS = {"_component_template": "component_template", "_index_template": "index_template"}


class TemplateApi:
    """A handler for `tests.fakes.http_server` that keeps templates.

    Attributes:
        kept: what each template was given as, by kind and name.
        calls: method, kind and name of each request for a template.
        refusals: answers to give instead, by method and name.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], dict[str, Any]] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.refusals: dict[tuple[str, str], bytes] = {}

    def __call__(self, request: Received) -> bytes:
        """Answer a request."""
        path = request.path.partition("?")[0].strip("/").split("/")
        kind = KINDS.get(path[0])
        if kind is None or len(path) != 2:
            return stored(request)
        name = unquote(path[1])
        self.calls.append((request.method, kind, name))
        if (refusal := self.refusals.get((request.method, name))) is not None:
            return refusal
        if request.method == "PUT":
            return self._put(kind, name, json.loads(request.body))
        if (kind, name) not in self.kept:
            return error(404, "resource_not_found_exception", f"{kind} matching [{name}] not found")
        return reply({f"{kind}s": [{"name": name, kind: given_back(self.kept[kind, name])}]})

    def _put(self, kind: str, name: str, content: dict[str, Any]) -> bytes:
        missing = [part for part in content.get("composed_of", []) if ("component_template", part) not in self.kept]
        if missing:
            reason = f"index template [{name}] specifies component templates {missing} that do not exist"
            return error(400, "invalid_index_template_exception", reason)
        self.kept[kind, name] = content
        return reply({"acknowledged": True})


def error(status: int, error_type: str, reason: str) -> bytes:
    """Return an error as Elasticsearch words it."""
    cause = {"type": error_type, "reason": reason}
    return reply({"error": {"root_cause": [cause], **cause}, "status": status}, status)


def given_back(content: dict[str, Any]) -> dict[str, Any]:
    """Return a template as Elasticsearch shows it: settings as texts below `index`, defaults written out."""
    shown = json.loads(json.dumps(content))
    settings = shown.get("template", {}).get("settings")
    if settings is not None:
        shown["template"]["settings"] = {"index": _as_texts(settings)}
    if "data_stream" in shown:
        shown["data_stream"] = {"hidden": False, "allow_custom_routing": False, **shown["data_stream"]}
    return {**shown, "created_date_millis": 1, "modified_date_millis": 2}


def _as_texts(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "index" and isinstance(value, dict):
            flat |= _as_texts(value)
        elif isinstance(value, dict):
            flat[name] = _as_texts(value)
        else:
            flat[name.removeprefix("index.")] = json.dumps(value).strip('"')
    return flat
