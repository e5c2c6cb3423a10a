"""What is wrong with Elasticsearch, for ``sidecar check``. Nothing is written or changed there.

It asks for one thing after the other and takes no answer for granted: what a user may not see, or a distribution
doesn't have, is left out.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import orjson
from elastic_transport import AsyncTransport, TransportError
from yarl import URL

from sidecar.core.encoding.index_names import name_fault, template_fault
from sidecar.core.findings import Finding, names_pattern, on_data_stream, on_time_series
from sidecar.core.results import bulk
from sidecar.core.results.bulk import ACCEPT
from sidecar.elasticsearch.client import authorization, describe_error, nodes, pass_bytes
from sidecar.elasticsearch.node import OTHER_SHAPE, Node, as_answer, find_obstacle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from elastic_transport import NodeConfig

    from sidecar.core.encoding.encoder import EncoderConfig
    from sidecar.elasticsearch.client import Connection
    from sidecar.elasticsearch.templates import IndexTemplate
    from sidecar.ports import Answer

_OK, _BAD_REQUEST, _NOT_FOUND = 200, 400, 404
_JSON_HEADERS = {"accept": ACCEPT, "content-type": ACCEPT}
_LOOK_SECONDS = 10.0
_SETTING = "SIDECAR_INDEX"
_TIME_SERIES = "time_series"
_FIX_NAME = "correct SIDECAR_INDEX; {field!lower} gives lower case, and {now:%Y.%m.%d} a time without colons"


class _Reply(NamedTuple):
    """An answer, and its content where that is a JSON object (otherwise an empty one)."""

    status: int
    content: dict[str, Any]


class _Node:
    """Asks one node.

    Args:
        config: where it is.
        login: the header that logs in.
        seconds: how long an answer may take.
    """

    def __init__(self, config: NodeConfig, login: str | None, seconds: float) -> None:
        self.where = f"Elasticsearch {URL.build(scheme=config.scheme, host=config.host, port=config.port)}"
        self.seconds = seconds
        self._login = {"authorization": login} if login is not None else {}
        self._transport = AsyncTransport([config], node_class=Node)
        pass_bytes(self._transport)

    async def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> _Reply:
        """Return the answer, whatever it says.

        Raises:
            TransportError, ValueError: there is none.
        """
        body = orjson.dumps(content) if content is not None else None
        answer = await self.answer(method, path, _JSON_HEADERS, body)
        return _Reply(answer.status, _object(answer.body))

    async def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> Answer:
        """Return the answer as it came.

        Raises:
            TransportError, ValueError: there is none.
        """
        meta, answer = await self._transport.perform_request(
            method,
            path,
            body=body,
            headers={**headers, **self._login},
            max_retries=0,
            request_timeout=self.seconds,
        )
        return as_answer(meta, answer, path)

    async def close(self) -> None:
        """Close its connections."""
        await self._transport.close()


def _object(answer: object) -> dict[str, Any]:
    try:
        parsed = orjson.loads(answer) if isinstance(answer, bytes) else answer
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _at(content: object, *path: str) -> Any:  # noqa: ANN401 - JSON
    """Return what stands at a path; None where there is nothing."""
    for step in path:
        content = content.get(step) if isinstance(content, Mapping) else None
    return content


async def check(
    connection: Connection, encoder_config: EncoderConfig, *, templates: Sequence[IndexTemplate] = ()
) -> list[Finding]:
    """Return all that is wrong with the cluster.

    Args:
        connection: each node is tried; the rest is asked of the first that answers.
        encoder_config: what becomes of messages.
        templates: those that the sidecar installs at the start.

    Raises:
        ConfigError: several logins, or a wrong cloud id.
    """
    login = authorization(connection)
    seconds = min(_LOOK_SECONDS, connection.timeout_seconds)
    all_nodes = [_Node(config, login, seconds) for config in nodes(connection)]
    try:
        tried = await asyncio.gather(*(_try(node, bulk.path(encoder_config.path_index)) for node in all_nodes))
        findings = [finding for finding in tried if finding is not None]
        good = next((node for node, finding in zip(all_nodes, tried, strict=True) if finding is None), None)
        if good is None:
            return findings
        # Others do the work of those that are away.
        return [
            *(replace(finding, severity="warning") for finding in findings),
            *await _look(good, encoder_config, templates),
        ]
    finally:
        await asyncio.gather(*(node.close() for node in all_nodes))


async def _look(node: _Node, encoder_config: EncoderConfig, templates: Sequence[IndexTemplate]) -> list[Finding]:
    findings: list[Finding] = []
    try:
        target = await _target(node, encoder_config)
        if templates:
            findings += await _cluster_privileges(node)
            findings += await _uninstallable(node, templates)
        for look in (_privileges, _place, _failure_store, _pipeline):
            findings += await look(node, encoder_config, target)
    except (TransportError, ValueError) as error:
        text = describe_error(error) if isinstance(error, TransportError) else str(error)
        fix = "look into the server's log, then run the check again"
        findings.append(Finding("problem", node.where, f"the check broke off: {text}", fix))
    except OTHER_SHAPE:
        what = "the check was aborted: an answer is not in Elasticsearch's format"
        fix = "see that nothing between the sidecar and Elasticsearch changes answers, then run the check again"
        findings.append(Finding("problem", node.where, what, fix))
    return findings


# The way there -------------------------------------------------------------------------------------------------------


async def _try(node: _Node, bulk_path: str) -> Finding | None:
    """Return what keeps us from using a node; None where nothing does."""
    try:
        found = await find_obstacle(node.answer, bulk_path)
    except TransportError as error:
        return _unreached(node.where, describe_error(error))
    except ValueError as error:
        return _unreached(node.where, str(error))
    return Finding("problem", node.where, found.what, found.fix) if found is not None else None


def _unreached(where: str, text: str) -> Finding:
    fix = "see that the node runs, and that scheme, host and port in SIDECAR_ELASTICSEARCH_URL are right"
    if "TLS" in text or "certificate" in text:
        fix = "set SIDECAR_ELASTICSEARCH_CA_FILE or _FINGERPRINT to what the server has; see that the port speaks TLS"
    return Finding("problem", where, f"Elasticsearch can't be reached: {text}", fix)


# What is there -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Target:
    """Where documents go.

    Attributes:
        name: of the index, alias or data stream; a pattern where it isn't always the same.
        is_constant: it is.
        kind: ``index``, ``alias``, ``data stream`` or ``missing``; None where that can't be seen.
        detail: what Elasticsearch says of it.
        templates: all index templates, by name; None where they can't be seen.
    """

    name: str
    is_constant: bool
    kind: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    templates: dict[str, dict[str, Any]] | None = None

    @property
    def where(self) -> str:
        """It, for people."""
        kind = self.kind if self.kind in {"alias", "data stream"} else "index"
        return f"{kind} {self.name!r}"

    def template(self) -> tuple[str, dict[str, Any]] | None:
        """Return the template that a new index of this name is made by; for a pattern that of a name like it."""
        sample = self.name.replace("*", "x")
        matching = [
            (name, template)
            for name, template in (self.templates or {}).items()
            if any(fnmatchcase(sample, pattern) for pattern in template.get("index_patterns", ()))
        ]
        return max(matching, key=lambda pair: pair[1].get("priority") or 0, default=None)


async def _target(node: _Node, encoder_config: EncoderConfig) -> _Target:
    name = encoder_config.path_index
    target = _Target(name if name is not None else names_pattern(encoder_config.index.text), name is not None)
    listed = await node.ask("GET", "/_index_template")
    if listed.status == _OK:
        entries = listed.content.get("index_templates", [])
        target = replace(target, templates={entry["name"]: entry["index_template"] for entry in entries})
    if name is None:
        return target
    resolved = await node.ask("GET", f"/_resolve/index/{_quoted(name)}?expand_wildcards=all")
    if resolved.status == _NOT_FOUND:
        return replace(target, kind="missing")
    if resolved.status != _OK:
        return target
    for kind, key in (("data stream", "data_streams"), ("alias", "aliases"), ("index", "indices")):
        for entry in resolved.content.get(key, []):
            if entry.get("name") == name:
                return replace(target, kind=kind, detail=entry)
    return replace(target, kind="missing")


def _quoted(name: str) -> str:
    return quote(name, safe="")


# Privileges ----------------------------------------------------------------------------------------------------------

_TEMPLATES = "manage_index_templates"
_CLOSED = {"false", "strict"}
_PRIVILEGES = {"index": ("index",), "create": ("create_doc",), "update": ("index",), "upsert": ("index",)}


async def _cluster_privileges(node: _Node) -> list[Finding]:
    reply = await node.ask("POST", "/_security/user/_has_privileges", {"cluster": [_TEMPLATES]})
    if reply.status != _OK or _at(reply.content, "cluster", _TEMPLATES) is not False:
        return []
    user = reply.content.get("username", "")
    what = f"the user {user!r} lacks {_TEMPLATES}: no template can be installed, and the sidecar ends at its start"
    fix = f"give a role of that user the cluster privilege {_TEMPLATES}, or unset SIDECAR_MAPPINGS_APPLY"
    return [Finding("problem", "SIDECAR_MAPPINGS_APPLY", what, fix)]


async def _uninstallable(node: _Node, templates: Sequence[IndexTemplate]) -> list[Finding]:
    """Return which templates Elasticsearch would refuse, by simulating them; nothing is installed.

    A component is simulated as an index template of its own. An index template is simulated without the components of
    the folder, which may not be installed yet.
    """
    components = {template.name for template in templates if template.kind == "component"}
    findings = []
    for template in templates:
        content = dict(template.content)
        name = template.name
        if template.kind == "component":
            name = f"sidecar-check-{secrets.token_hex(8)}"
            content = {"index_patterns": [name], "priority": 0, "template": content.get("template", {})}
        else:
            content["composed_of"] = [part for part in content.get("composed_of", ()) if part not in components]
        answer = await node.answer(
            "POST", f"/_index_template/_simulate/{_quoted(name)}", _JSON_HEADERS, orjson.dumps(content)
        )
        fault = bulk.fault(answer.status, answer.body)
        if answer.status == _BAD_REQUEST and fault.error_type:
            where = f"{template.kind} template {template.name!r} (SIDECAR_MAPPINGS_DIR)"
            what = f"Elasticsearch refuses it: {fault.reason}; the sidecar won't start"
            findings.append(Finding("problem", where, what, f"correct {template.name}.json"))
    return findings


async def _privileges(node: _Node, encoder_config: EncoderConfig, target: _Target) -> list[Finding]:
    action = encoder_config.constant_action
    needed = list(_PRIVILEGES.get(action or "index", ("delete",)))
    # Of a user who may create it, but not look at it, it isn't known whether it is missing.
    creates = action != "delete" and (target.kind == "missing" or not target.is_constant)
    names = _names(encoder_config, target)
    optional = ["auto_configure", "create_index", *(("delete",) if action is None else ())]
    body = {"index": [{"names": names, "privileges": [*needed, *optional]}]}
    reply = await node.ask("POST", "/_security/user/_has_privileges", body)
    if reply.status != _OK:  # security is off, or not there at all
        return []
    findings = []
    user = reply.content.get("username", "")
    for name in names:
        has = _at(reply.content, "index", name) or {}
        lacks = [privilege for privilege in needed if has.get(privilege) is False]
        if creates and has.get("auto_configure") is False and has.get("create_index") is False:
            lacks.append("auto_configure")
        if lacks:
            findings.append(_lacking(target, name, user, lacks))
        if has.get("delete") is False and "delete" in optional:
            findings.append(_lacking_deletions(name, user))
        if not lacks and has.get("auto_configure") is False and action != "delete":
            findings += await _lacking_fields(node, target, name, user)
    return findings


def _lacking_deletions(name: str, user: str) -> Finding:
    what = (
        f"the user {user!r} lacks delete there: where SIDECAR_ACTION gives delete, items come back with 403, and wait"
    )
    fix = f"give a role of that user the index privilege delete on {name!r}, unless no message ever deletes"
    return Finding("warning", f"indices {name!r}", what, fix)


async def _lacking_fields(node: _Node, target: _Target, name: str, user: str) -> list[Finding]:
    """Return what a user can't do who may write to what is there: let documents bring fields, or indices.

    Indices let fields in still, as a deprecated favour of the privilege to write; data streams don't.
    """
    where = target.where if target.is_constant else f"indices {name!r}"
    fix = f"give a role of that user the index privilege auto_configure on {name!r}"
    if target.kind != "data stream":
        what = f"the user {user!r} lacks auto_configure there: an index that is missing isn't created by a document"
        return [Finding("note", where, what, f"nothing needs to be done, if that is on purpose; otherwise {fix}")]
    reply = await node.ask("GET", f"/{_quoted(target.name)}/_mapping?filter_path=*.mappings.dynamic")
    modes = {_at(entry, "mappings", "dynamic") for entry in reply.content.values()}
    if reply.status == _OK and modes and modes <= _CLOSED:
        return []
    what = (
        f"the user {user!r} lacks auto_configure there: a document with a field that the mapping doesn't have comes "
        "back with 403, and waits (SIDECAR_ON_INDEX_BLOCKED)"
    )
    return [Finding("warning", where, what, f"{fix}, or close its mapping (dynamic: false or strict)")]


def _names(encoder_config: EncoderConfig, target: _Target) -> list[str]:
    """Return the names to ask about; of patterns those that allow, for they are nearer to what is meant."""
    return [target.name] if target.is_constant or not encoder_config.index_allow else list(encoder_config.index_allow)


def _lacking(target: _Target, name: str, user: str, lacks: list[str]) -> Finding:
    privileges = " and ".join(lacks)
    fix = f"give a role of that user the index privilege {privileges} on {name!r}"
    if target.is_constant:
        what = (
            f"the user {user!r} lacks {privileges} there: items come back with 403, and wait (SIDECAR_ON_INDEX_BLOCKED)"
        )
        return Finding("problem", target.where, what, fix)
    what = f"the user {user!r} lacks {privileges} on some of the names that {name!r} stands for"
    return Finding("warning", f"indices {name!r}", what, f"{fix}, or narrow SIDECAR_INDEX_ALLOW to what is granted")


# The index -----------------------------------------------------------------------------------------------------------


async def _place(node: _Node, encoder_config: EncoderConfig, target: _Target) -> list[Finding]:
    if not target.is_constant:
        return [*await _names_fault(node, encoder_config, target), *await _many(node, encoder_config, target)]
    if target.kind == "missing":
        return await _missing(node, encoder_config, target)
    if target.kind == "data stream":
        return [*on_data_stream(encoder_config, target.where), *await _mode(node, encoder_config, target)]
    if target.kind == "alias":
        return await _alias(node, encoder_config, target)
    if target.kind == "index":
        return [*await _index(node, target), *await _mode(node, encoder_config, target)]
    what = "whether it exists can't be seen by this user (it takes the index privilege view_index_metadata)"
    return [Finding("note", target.where, what, "run the check as a user who may, once")]


async def _names_fault(node: _Node, encoder_config: EncoderConfig, target: _Target) -> list[Finding]:
    """Return why Elasticsearch refuses every name that the template gives; aliases may have any name."""
    fault = template_fault(encoder_config.index)
    if fault is None:
        return []
    resolved = await node.ask("GET", f"/_resolve/index/{_quoted(target.name)}")
    if resolved.content.get("aliases"):  # aliases may have upper case
        return []
    return [Finding("problem", f"{_SETTING} ({target.name})", f"{fault}: every document is refused (400)", _FIX_NAME)]


async def _mode(node: _Node, encoder_config: EncoderConfig, target: _Target) -> list[Finding]:
    """Return the problems with the mode of an existing index."""
    reply = await node.ask("GET", f"/{_quoted(target.name)}/_settings/index.mode?flat_settings=true")
    modes = {_at(entry, "settings", "index.mode") for entry in reply.content.values()} if reply.status == _OK else set()
    return on_time_series(encoder_config, target.where) if _TIME_SERIES in modes else []


async def _mode_to_be(node: _Node, encoder_config: EncoderConfig, name: str, where: str) -> list[Finding]:
    """Return the problems with the mode that templates give to a new index."""
    reply = await node.ask("POST", f"/_index_template/_simulate_index/{_quoted(name)}")
    is_series = _at(reply.content, "template", "settings", "index", "mode") == _TIME_SERIES
    return on_time_series(encoder_config, where) if is_series else []


async def _many(node: _Node, encoder_config: EncoderConfig, target: _Target) -> list[Finding]:
    if target.templates is None:
        return []
    found = target.template()
    if found is None:
        what = "no index template seems to match the names that it gives: Elasticsearch guesses the mappings"
        fix = "install a template for them (sidecar mappings apply), unless each index exists already"
        return [Finding("warning", f"{_SETTING} ({target.name})", what, fix)]
    name, template = found
    where = f"names {target.name!r} (template {name!r})"
    series = await _mode_to_be(node, encoder_config, target.name.replace("*", "x"), where)
    series = [replace(finding, severity="warning") for finding in series]  # it may apply to some of the names only
    if "data_stream" not in template:
        return series
    where = f"data streams {target.name!r} (template {name!r})"
    return [*on_data_stream(encoder_config, where, is_certain=False), *series]


async def _missing(node: _Node, encoder_config: EncoderConfig, target: _Target) -> list[Finding]:
    template = target.template()
    where = f"index {target.name!r}"
    fault = name_fault(target.name)
    if fault is not None:
        what = f"it doesn't exist, and Elasticsearch can't create it: {fault}. Every document is refused (400)"
        return [Finding("problem", where, what, _FIX_NAME)]
    findings = []
    automatic = template[1].get("allow_auto_create") if template is not None else None
    if automatic is None:
        automatic = await _is_created(node, target.name)
    if automatic is False:
        what = "it doesn't exist, and action.auto_create_index (or its template) forbids that a document creates it"
        fix = "create it, or permit its name there; until then SIDECAR_ON_INDEX_MISSING decides about every message"
        findings.append(Finding("warning", where, what, fix))
    elif encoder_config.constant_action == "delete":
        what = "it doesn't exist, so there is nothing to delete"
        findings.append(Finding("warning", where, what, "mend SIDECAR_INDEX, or create it"))
    if template is None:
        if target.templates is not None:
            what = "it doesn't exist, and no index template matches: Elasticsearch guesses the mappings from documents"
            fix = "install a template for it (sidecar mappings apply), or create it with its mappings"
            findings.append(Finding("warning", where, what, fix))
        return findings
    if automatic is not False:
        what = f"it doesn't exist; the first document creates it, by the template {template[0]!r}"
        findings.append(Finding("note", where, what, "nothing needs to be done, if the name is right"))
    if "data_stream" in template[1]:
        findings += on_data_stream(encoder_config, f"data stream {target.name!r} (to be created by {template[0]!r})")
    return [*findings, *await _mode_to_be(node, encoder_config, target.name, where)]


async def _is_created(node: _Node, name: str) -> bool | None:
    """Return whether a document may create an index; None where it can't be seen."""
    path = "/_cluster/settings?include_defaults=true&filter_path=*.action.auto_create_index"
    reply = await node.ask("GET", path)
    for level in ("transient", "persistent", "defaults"):
        rule = _at(reply.content, level, "action", "auto_create_index")
        if rule is not None:
            return permits(str(rule), name)
    return None


def permits(rule: str, name: str) -> bool:
    """Return whether ``action.auto_create_index`` lets a document create an index.

    Args:
        rule: ``true``, ``false``, or patterns with + or - before them, of which the first that matches counts.
        name: of the index.
    """
    if rule in {"true", "false"}:
        return rule == "true"
    for part in rule.strip("[]").split(","):
        pattern = part.strip()
        if fnmatchcase(name, pattern.lstrip("+-")):
            return not pattern.startswith("-")
    return False


async def _alias(node: _Node, encoder_config: EncoderConfig, target: _Target) -> list[Finding]:
    reply = await node.ask("GET", f"/_alias/{_quoted(target.name)}")
    behind = target.detail.get("indices") or []
    behind = [behind] if isinstance(behind, str) else behind
    if reply.status != _OK or not reply.content:  # an alias of data streams isn't listed there
        is_stream = any(name.startswith(".ds-") for name in behind)
        return on_data_stream(encoder_config, target.where) if is_stream else []
    flags = [_at(entry, "aliases", target.name, "is_write_index") for entry in reply.content.values()]
    if True in flags or (len(flags) == 1 and flags[0] is None):
        return []
    names = ", ".join(sorted(reply.content))
    what = f"it stands for {names}, and none is its write index: every document is refused (400)"
    return [Finding("problem", target.where, what, "set is_write_index on one of them (POST /_aliases)")]


async def _index(node: _Node, target: _Target) -> list[Finding]:
    consequence = "items are refused, and wait (SIDECAR_ON_INDEX_BLOCKED)"
    if "closed" in target.detail.get("attributes", ()):
        what = f"it is closed: {consequence}"
        return [Finding("problem", target.where, what, f"open it: POST /{target.name}/_open")]
    path = f"/{_quoted(target.name)}/_settings/index.blocks.*?flat_settings=true"
    reply = await node.ask("GET", path)
    settings = _at(reply.content, target.name, "settings") or {}
    blocks = [block for block in ("write", "read_only") if settings.get(f"index.blocks.{block}") == "true"]
    if settings.get("index.blocks.read_only_allow_delete") == "true":
        what = f"its node's disk is nearly full (index.blocks.read_only_allow_delete): {consequence}"
        return [Finding("problem", target.where, what, "make room on the disk; the block goes by itself then")]
    fix = f"take the block off: PUT /{target.name}/_settings"
    return [Finding("problem", target.where, f"it has index.blocks.{block}: {consequence}", fix) for block in blocks]


# The failure store ---------------------------------------------------------------------------------------------------


async def _failure_store(node: _Node, _config: EncoderConfig, target: _Target) -> list[Finding]:
    """Note a failure store: Elasticsearch answers with a success for the documents in it."""
    if target.kind not in {"data stream", "missing", None} or not await _has_failure_store(node, target):
        return []
    what = (
        "it has a failure store: documents that the data stream refuses are stored there, with status 201, and no "
        "search of the data stream finds them"
    )
    fix = "nothing needs to be done: they are acked and logged, or also dead-lettered (SIDECAR_ON_FAILURE_STORE)"
    return [Finding("note", f"data stream {target.name!r}", what, fix)]


async def _has_failure_store(node: _Node, target: _Target) -> bool:
    """Return whether a data stream has a failure store, or would have one; false if that can't be seen."""
    if target.kind == "data stream":
        reply = await node.ask("GET", f"/_data_stream/{_quoted(target.name)}")
        for entry in reply.content.get("data_streams", []):
            enabled = _at(entry, "failure_store", "enabled")
            if isinstance(enabled, bool):
                return enabled
    found = target.template()
    if found is None or "data_stream" not in found[1]:
        return False
    enabled = await _failure_store_option(node, found[1])
    return enabled if enabled is not None else await _has_one_by_default(node, target.name)


async def _failure_store_option(node: _Node, template: dict[str, Any]) -> bool | None:
    """Return what a template says of the failure store: by itself, or by the last component that says something."""
    path = ("template", "data_stream_options", "failure_store", "enabled")
    enabled = _at(template, *path)
    for name in reversed(template.get("composed_of", [])):
        if isinstance(enabled, bool):
            break
        reply = await node.ask("GET", f"/_component_template/{_quoted(name)}")
        for entry in reply.content.get("component_templates", []):
            enabled = _at(entry, "component_template", *path)
    return enabled if isinstance(enabled, bool) else None


async def _has_one_by_default(node: _Node, name: str) -> bool:
    """Return whether the cluster gives data streams of this name one; since 9.2 it does so for ``logs-*-*``."""
    path = "/_cluster/settings?include_defaults=true&filter_path=*.data_streams.failure_store.enabled"
    reply = await node.ask("GET", path)
    for level in ("transient", "persistent", "defaults"):
        patterns = _at(reply.content, level, "data_streams", "failure_store", "enabled")
        if patterns is not None:
            listed = patterns if isinstance(patterns, list) else str(patterns).split(",")
            return any(fnmatchcase(name.replace("*", "x"), str(pattern).strip()) for pattern in listed)
    return False


# The pipeline --------------------------------------------------------------------------------------------------------


async def _pipeline(node: _Node, encoder_config: EncoderConfig, _target: _Target) -> list[Finding]:
    if encoder_config.pipeline is None or not encoder_config.pipeline.constant:
        return []
    name = encoder_config.pipeline.constant.decode()
    if name == "_none":
        return []
    reply = await node.ask("GET", f"/_ingest/pipeline/{_quoted(name)}")
    if reply.status != _NOT_FOUND:
        return []
    what = "it doesn't exist: every document is refused (400)"
    return [Finding("problem", f"pipeline {name!r}", what, "create it, or unset SIDECAR_PIPELINE")]
