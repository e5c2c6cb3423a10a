"""``SIDECAR_*`` → frozen, typed settings; every problem at once, and no secret in any of them.

pydantic-settings reads and checks them: it is what Python services use for this, and knows ``.env`` files and errors by
the field. What it can't know (units, templates, values in files, hints for misspelt names, settings against each other)
is here.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import re
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from yarl import URL

from sidecar.config import dotenv
from sidecar.config.service_links import is_service_link
from sidecar.core.address import DEFAULT_HTTP_ADDRESS, MAX_PORT, can_be_looked_up, split_address
from sidecar.core.encoding.correlation import expected_items, whole_number
from sidecar.core.encoding.document import MAX_DOCUMENT_BYTES, RefusedError
from sidecar.core.encoding.encoder import (
    ACTIONS,
    ACTIONS_ON_WHAT_IS_THERE,
    ACTIONS_WITH_VERSION,
    MAX_VERSION,
    EncoderConfig,
)
from sidecar.core.encoding.fields import FieldNameError, Fields
from sidecar.core.encoding.template import Template, TemplateError
from sidecar.core.wire.names import (
    DEAD_LETTER_SUFFIX,
    MAX_DELAY_SUFFIX,
    MAX_NAME_BYTES,
    name_fault,
    table_fault,
    text_fault,
    without_last_line_break,
)
from sidecar.core.wire.republish import MAX_DELAY_SECONDS
from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX = "SIDECAR_"
_FILE = "_FILE"
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_SIZE_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
MAX_PREFETCH = 65_535
"""The prefetch of ``basic.qos`` is 16 bits wide."""
_ID_MODES = ("auto", "generated", "none")
_ANY_NAME = re.compile(r"SIDECAR_[A-Z_]*[A-Z]")
_QUOTED = re.compile(r"""(['"]).*\1""")
_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{2}(?::?[0-9A-Fa-f]{2}){31}")
_REFERENCE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")
_VISIBLE = re.compile(r"[!-~]+")
_LIST_PART = re.compile(r"(?:\\[\\,]|[^,])+")
_ESCAPED = re.compile(r"\\([\\,])")
_MAX_SECONDS = 366 * 24 * 3600.0
_MAX_BYTES = 1 << 50
_SPAN_LINES = frozenset({"list", "URLs", "JSON object"})
"""Kinds of values that may span several lines."""
_MAX_FILE_BYTES = 1 << 20
_EMPTY_IS_A_VALUE = frozenset({"http_address"})
"""Settings for which an empty value isn't none at all."""


def _duration(value: object) -> object:
    number = _with_unit(value, _DURATION_UNITS, "a duration such as 500ms, 1s, 5m, or seconds")
    if isinstance(number, float) and number > _MAX_SECONDS:
        raise ValueError("must be at most a year")
    return number


def _size(value: object) -> object:
    number = _with_unit(value, _SIZE_UNITS, "a size such as 5MiB, 10MB, or bytes")
    if isinstance(number, int | float) and number > _MAX_BYTES:
        raise ValueError("must be at most 1 PiB")
    return int(number) if isinstance(number, float) and number == number else number  # noqa: PLR0124 - not a number


def _with_unit(value: object, units: Mapping[str, float], wanted: str) -> object:
    if not isinstance(value, str):
        return value
    match = _NUMBER.fullmatch(value)
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"must be {wanted}")
    return float(match[1]) * unit


def split_list(text: str) -> tuple[str, ...]:
    r"""Split a list at commas; space around the parts and empty parts are dropped.

    ``\,`` is a comma and ``\\`` a backslash; any other backslash stands for itself.

    Args:
        text: as it is given.
    """
    parts = (_ESCAPED.sub(r"\1", part.strip()) for part in _LIST_PART.findall(text))
    return tuple(part for part in parts if part)


def join_list(parts: Iterable[str]) -> str:
    """Join parts to the text of a list, from which `split_list` returns them again.

    Args:
        parts: none of them empty, or with space at either end.
    """
    return ",".join(re.sub(r"\\(?=[\\,]|$)|,", r"\\\g<0>", part) for part in parts)


def _split(value: object) -> object:
    return split_list(value) if isinstance(value, str) else value


def _template(text: str) -> str:
    _compiled(text)
    return text


def _compiled(text: str) -> Template:
    try:
        return Template(text)
    except TemplateError as error:
        # Its text quotes the template, and a secret may have got there; the character is enough to find it.
        where = f", at character {error.position + 1}"
        why, told, _ = str(error).rpartition(f"{where}: {text!r}")
        raise ValueError((_QUOTED.sub("this", why) if told else "is no template") + where) from None


def _action(text: str) -> str:
    constant = _compiled(text).constant
    if constant is not None and constant.decode() not in ACTIONS:
        raise ValueError(f"must be one of {', '.join(ACTIONS)}, or a template that gives one of them")
    return text


def _id(text: str) -> str:
    if text not in _ID_MODES and _compiled(text).constant is not None:
        raise ValueError(
            f"must be one of {', '.join(_ID_MODES)}, or a template with a {{field}}: with the same id for all messages "
            "each would overwrite the one before"
        )
    return text


def _reference(text: str) -> str:
    if not _REFERENCE.fullmatch(text):
        raise ValueError("must be module:function, by the names that Python imports")
    return text


def _version(text: str) -> str:
    constant = _compiled(text).constant
    if constant is not None and whole_number(constant, MAX_VERSION) is None:
        raise ValueError("must be a whole number, or a template that gives one")
    return text


def _fields(fields: dict[str, Any]) -> dict[str, str]:
    compiled = {}
    for at, (name, text) in enumerate(fields.items(), 1):
        if not isinstance(text, str):
            raise ValueError(f"the value of its field {at} is no text; values are templates")  # noqa: TRY004 - pydantic
        try:
            compiled[name] = _compiled(text)
        except ValueError as error:
            raise ValueError(f"{error}, of its field {at}") from None
    try:
        Fields(compiled)
    except FieldNameError as error:
        raise ValueError(str(error)) from None
    return fields


def _set_size(text: str) -> str:
    constant = _compiled(text).constant
    if constant is not None:
        try:
            if not expected_items(constant):
                raise ValueError("is empty")
        except RefusedError:
            raise ValueError("must be a whole number from 1 to a billion, or a template that gives one") from None
    return text


def _readable(path: str) -> str:
    try:
        with Path(path).open("rb"):
            return path
    except (OSError, ValueError) as error:
        # Not by its name: whoever puts the certificate itself here would find it in the log.
        raise ValueError(f"must be the path of a file that can be read ({_why(error)})") from None


def _folder(path: str) -> str:
    try:
        if Path(path).is_dir():
            return path
    except (OSError, ValueError) as error:
        raise ValueError(f"must be the path of a folder ({_why(error)})") from None
    raise ValueError("must be the path of a folder")


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "no path"


def _token(secret: SecretStr) -> SecretStr:
    if not _VISIBLE.fullmatch(secret.get_secret_value()):
        raise ValueError("has characters that can't stand in an HTTP header")
    return secret


def _fingerprint(text: str) -> str:
    if not _FINGERPRINT.fullmatch(text):
        raise ValueError(
            "must be the SHA-256 fingerprint of a certificate: 64 hexadecimal digits, with colons or without"
        )
    return text


def _cloud_id(text: str) -> str:
    try:
        host, dollar, _ = base64.b64decode(text.rpartition(":")[2], validate=True).partition(b"$")
    except (binascii.Error, ValueError):
        host, dollar = b"", b""
    if not (host and dollar):
        raise ValueError("is not a cloud id; copy it from the deployment's page")
    return text


def _user_name(text: str) -> str:
    if ":" in text:
        raise ValueError("holds a colon, which basic authentication can't carry")
    return text


def _address(text: str) -> str:
    if text and split_address(text) is None:
        raise ValueError(f"must be host:port with a port up to {MAX_PORT} (0.0.0.0:9180, [::]:9180), or empty: off")
    return text


def _name_of(name: str) -> str:
    fault = name_fault(name)
    if fault is not None:
        raise ValueError(fault)
    return name


def _names(names: tuple[str, ...]) -> tuple[str, ...]:
    for at, name in enumerate(names, 1):
        fault = name_fault(name)
        if fault is not None:
            raise ValueError(f"its name {at} {fault}" if len(names) > 1 else fault)
    return names


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        fault = text_fault(pattern)
        if fault is not None:
            raise ValueError(fault)
    return patterns


def _arguments(table: dict[str, Any]) -> dict[str, Any]:
    fault = table_fault(table)
    if fault is not None:
        raise ValueError(fault)
    return table


@dataclass(frozen=True, slots=True)
class ValueKind:
    """What people call values of a type, where the type alone doesn't say it."""

    name: str


@dataclass(frozen=True, slots=True)
class DefaultText:
    """The default, where it is worked out from elsewhere; in Markdown."""

    text: str


Seconds = Annotated[float, BeforeValidator(_duration), Field(gt=0), ValueKind("duration")]
Bytes = Annotated[int, BeforeValidator(_size), Field(gt=0), ValueKind("size")]
Name = Annotated[str, AfterValidator(_name_of)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_names), ValueKind("list")]
Patterns = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_patterns), ValueKind("list")]
TemplateText = Annotated[str, AfterValidator(_template), ValueKind("template")]
ActionText = Annotated[str, AfterValidator(_action), ValueKind("choice or template")]
IdText = Annotated[str, AfterValidator(_id), ValueKind("choice or template")]
VersionText = Annotated[str, AfterValidator(_version), ValueKind("template")]
SetSizeText = Annotated[str, AfterValidator(_set_size), ValueKind("number or template")]
File = Annotated[str, AfterValidator(_readable), ValueKind("file")]
Address = Annotated[str, AfterValidator(_address), ValueKind("host:port")]
Token = Annotated[SecretStr, AfterValidator(_token), ValueKind("secret")]


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise ValueError("must be a JSON object") from None


def _urls(schemes: tuple[str, ...]) -> AfterValidator:
    def check(urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for url in urls:
            problem = _url_problem(url.get_secret_value(), schemes)
            if problem:
                raise ValueError(problem)
        return urls

    return AfterValidator(check)


FieldTemplates = Annotated[
    dict[str, Any], NoDecode, BeforeValidator(_json_object), AfterValidator(_fields), ValueKind("JSON object")
]
Arguments = Annotated[
    dict[str, Any], NoDecode, BeforeValidator(_json_object), AfterValidator(_arguments), ValueKind("JSON object")
]
AmqpUrls = Annotated[
    tuple[SecretStr, ...], NoDecode, BeforeValidator(_split), _urls(("amqp", "amqps")), ValueKind("URLs")
]
HttpUrls = Annotated[
    tuple[SecretStr, ...], NoDecode, BeforeValidator(_split), _urls(("http", "https")), ValueKind("URLs")
]

_environment: ContextVar[Mapping[str, str]] = ContextVar("environment")


class AmqpSettings(BaseSettings):
    """The settings of a command that only deals with RabbitMQ; the first half of those of ``sidecar run``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read what `load` was given, not the process's environment: that is the command line's to read."""
        source = EnvSettingsSource(settings_cls)
        source.env_vars = {name.lower(): text for name, text in _environment.get().items()}
        return init_settings, source

    amqp_url: AmqpUrls = Field(
        (SecretStr("amqp://guest:guest@localhost:5672/"),),
        description="one or more, comma-separated; tried in turn on reconnect; `amqps://` for TLS",
    )
    amqp_queue: Names = Field(description="one or more queues, comma-separated; all feed the same aggregator")
    amqp_declare: Literal["missing", "own", "never"] = Field(
        "missing",
        description="`missing`: create what is missing, leave what exists as it is; `own`: create only dead-letter and "
        "delay queues, and wait until the producer has declared the queue; `never`: create nothing, everything must "
        "exist",
    )
    amqp_queue_type: Literal["classic", "quorum"] = Field(
        "quorum", description="type of a queue that the sidecar creates; delay and dead-letter queues are quorum always"
    )
    amqp_queue_arguments: Arguments = Field({}, description="JSON object, for the work queue only")
    amqp_consumer_arguments: Arguments = Field({}, description="JSON object (priority, …)")
    amqp_exchange: Name | None = Field(None, description="exchange to create and bind to")
    amqp_exchange_type: Name = Field("direct", description="`direct`, `fanout`, `topic`, `headers`, or a plug-in's")
    amqp_routing_keys: Annotated[Names, DefaultText("queue's name")] = Field(
        (), description="comma-separated binding keys; bindings of earlier values are not removed"
    )
    amqp_binding_arguments: Arguments = Field({}, description="JSON object (headers exchange)")
    amqp_prefetch: Annotated[int | None, DefaultText("derived")] = Field(
        None,
        gt=0,
        description="deliveries unsettled at once; derived from batch size, complete count and concurrency",
    )
    amqp_ca_file: File | None = Field(None, description="TLS: certificates of the authorities that are trusted, PEM")
    amqp_cert_file: File | None = Field(None, description="mutual TLS: the client's certificate (SASL EXTERNAL), PEM")
    amqp_key_file: File | None = Field(
        None, description="mutual TLS: the client's key, PEM; not needed where the certificate's file holds it"
    )
    dead_letter_exchange: Annotated[Name, DefaultText("default exchange")] = Field("", description="where rejects go")
    dead_letter_routing_key: Annotated[Name | None, DefaultText("`<queue>.dead`")] = Field(
        None, description="routing key of rejects"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: object, info: ValidationInfo) -> object:
        """Apply the rules for the text of every setting, from the environment or from a program."""
        if isinstance(value, list | tuple):
            return tuple(without_last_line_break(part) if isinstance(part, str) else part for part in value)
        if not isinstance(value, str):
            return value
        value = without_last_line_break(value)
        kinds = {mark.name for mark in cls.model_fields[info.field_name or ""].metadata if isinstance(mark, ValueKind)}
        fault = text_fault(value, spans_lines=bool(kinds & _SPAN_LINES))
        if fault is not None:
            raise ValueError(fault)
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = self._problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> list[str]:
        """Return what is wrong between settings: all of it, so that it is mended in one go."""
        problems = self._queue_problems()
        if self.amqp_key_file is not None and self.amqp_cert_file is None:
            problems.append("SIDECAR_AMQP_KEY_FILE is the key of a certificate: SIDECAR_AMQP_CERT_FILE is missing")
        if self.amqp_exchange is None:
            problems += self._without(
                "amqp_exchange", "amqp_exchange_type", "amqp_routing_keys", "amqp_binding_arguments"
            )
        if self.dead_letter_routing_key is None:
            problems += self._too_long(DEAD_LETTER_SUFFIX, "name another queue in SIDECAR_DEAD_LETTER_ROUTING_KEY")
        return problems

    def _queue_problems(self) -> list[str]:
        return [] if self.amqp_queue else ["SIDECAR_AMQP_QUEUE names no queue"]

    def _given(self, fields: Iterable[str]) -> list[str]:
        """Return which of `fields` say something else than their defaults, as the environment names them."""
        given = self.model_fields_set.intersection(fields)
        return [
            _name(name)
            for name, field in type(self).model_fields.items()
            if name in given and getattr(self, name) != field.default
        ]

    def _without(self, missing: str, *fields: str) -> list[str]:
        """Return the settings that have no effect without another one, which is missing."""
        return [f"{name} has no effect without {_name(missing)}" for name in self._given(fields)]

    def _too_long(self, suffix: str, fix: str) -> list[str]:
        """Return the queues whose derived queue would have a name that is too long."""
        return [
            f"SIDECAR_AMQP_QUEUE: a name of {size} bytes leaves no room for the queue <name>{suffix}, which RabbitMQ "
            f"limits to {MAX_NAME_BYTES} bytes; {fix}"
            for size in (len(queue.encode()) for queue in self.amqp_queue)
            if size + len(suffix) > MAX_NAME_BYTES
        ]

    def _delay_problems(self) -> list[str]:
        max_bytes = MAX_NAME_BYTES - len(MAX_DELAY_SUFFIX)
        return self._too_long(MAX_DELAY_SUFFIX, f"use a queue whose name has at most {max_bytes} bytes")


ELASTICSEARCH_ONLY = frozenset({
    "elasticsearch_url", "elasticsearch_username", "elasticsearch_password", "elasticsearch_api_key",
    "elasticsearch_bearer_token", "elasticsearch_cloud_id", "elasticsearch_ca_file", "elasticsearch_fingerprint",
    "elasticsearch_cert_file", "elasticsearch_key_file", "index", "index_allow", "action", "id", "routing", "pipeline",
    "version", "version_type", "fields", "content", "split", "transform", "batch_coalesce", "bulk_compress",
    "delayed_retry_max_rounds", "on_conflict", "on_index_missing", "on_index_blocked", "on_failure_store",
    "mappings_dir", "mappings_apply",
})  # fmt: skip
"""Settings that mean nothing with ``SIDECAR_SINK=amqp``."""
_TLS_OF_AMQP = ("amqp_ca_file", "amqp_cert_file", "amqp_key_file")
_TLS_OF_ELASTICSEARCH = (
    "elasticsearch_ca_file", "elasticsearch_fingerprint", "elasticsearch_cert_file", "elasticsearch_key_file",
)  # fmt: skip
SINK_ONLY = frozenset({
    "sink_amqp_url", "sink_exchange", "sink_exchange_type", "sink_routing_key", "sink_envelope", "on_unroutable",
})  # fmt: skip
"""Settings that mean nothing without it."""


class Settings(AmqpSettings):
    """All settings: those of ``sidecar run``."""

    sink: Literal["elasticsearch", "amqp"] = Field(
        "elasticsearch",
        description="`elasticsearch`, or `amqp`: messages are published, confirmed, to another exchange, for a further "
        "stage to consume",
    )
    sink_amqp_url: Annotated[AmqpUrls, DefaultText("`SIDECAR_AMQP_URL`")] = Field(
        (), description="`SIDECAR_SINK=amqp`: where to publish, as `SIDECAR_AMQP_URL`; the same files for TLS"
    )
    sink_exchange: Annotated[Name, DefaultText("default exchange")] = Field(
        "", description="`SIDECAR_SINK=amqp`: exchange to publish to, created where it is absent"
    )
    sink_exchange_type: Name = Field(
        "direct", description="`direct`, `fanout`, `topic`, `headers`, or a plug-in's, for an exchange that is created"
    )
    sink_routing_key: TemplateText = Field(
        "{routing_key}",
        description="`SIDECAR_SINK=amqp`: routing key to publish with; with the default exchange the queue's name, and "
        "required",
    )
    sink_envelope: Literal["none", "json"] = Field(
        "none",
        description="`json`: the body goes into a JSON object that tells where it came from; `none`: it goes on as is",
    )
    elasticsearch_url: HttpUrls = Field(
        (SecretStr("http://localhost:9200"),), description="one or more, comma-separated; Elasticsearch 8 and 9"
    )
    elasticsearch_username: Annotated[str, AfterValidator(_user_name)] | None = Field(
        None, description="basic authentication; at most one way to log in"
    )
    elasticsearch_password: SecretStr | None = Field(None, description="basic authentication")
    elasticsearch_api_key: Token | None = Field(None, description="log in by an API key: its encoded form, or `id:key`")
    elasticsearch_bearer_token: Token | None = Field(None, description="log in by a token (service account, OAuth)")
    elasticsearch_cloud_id: Annotated[str, AfterValidator(_cloud_id)] | None = Field(
        None, description="deployment in Elastic Cloud, in place of `SIDECAR_ELASTICSEARCH_URL`"
    )
    elasticsearch_ca_file: File | None = Field(
        None, description="TLS: certificates of the authorities that are trusted, PEM"
    )
    elasticsearch_fingerprint: Annotated[str, AfterValidator(_fingerprint)] | None = Field(
        None, description="TLS: SHA-256 fingerprint of the server's own certificate, not of its authority's"
    )
    elasticsearch_cert_file: File | None = Field(None, description="mutual TLS: the client's certificate, PEM")
    elasticsearch_key_file: File | None = Field(
        None, description="mutual TLS: the client's key, PEM; not needed where the certificate's file holds it"
    )
    index: Annotated[TemplateText, DefaultText("required")] = Field(
        "", description="where documents go: index, alias or data stream"
    )
    index_allow: Annotated[Patterns, DefaultText("any name that begins with a letter or digit")] = Field(
        (),
        description="comma-separated patterns (`logs-*`); an index name outside them is a reject",
    )
    action: ActionText = Field(
        "index",
        description="`index`, `create`, `update`, `upsert`, `delete`, or a template that gives one of them",
    )
    id: IdText = Field(
        "auto",
        description="`auto`: the `message_id` property where there is one, otherwise Elasticsearch's own; "
        "`generated`: made here and kept through retries; `none`; or a template",
    )
    routing: TemplateText | None = Field(None, description="which shard; documents of one routing lie together")
    pipeline: TemplateText | None = Field(None, description="ingest pipeline")
    version: VersionText | None = Field(
        None, description="external version, for `index` and `delete`: an older one never overwrites a newer one"
    )
    version_type: Literal["external", "external_gte"] = Field(
        "external", description="whether a version must be higher (`external`) or may be equal (`external_gte`)"
    )
    fields: FieldTemplates = Field(
        {},
        description="JSON object of field → template, added to documents that haven't the field, without re-encoding "
        "them; always as text, and not at all where the template comes out empty",
    )
    content: Literal["json", "text"] = Field(
        "json", description='`json`, or `text` (any UTF-8, wrapped as `{"message": …}`)'
    )
    split: Literal["none", "array", "lines"] = Field(
        "none",
        description="several documents in one message: the elements of a JSON array, or a document a line; with "
        "`SIDECAR_ID=auto` their ids are `{message_id}-{item}`",
    )
    transform: Annotated[str, AfterValidator(_reference), ValueKind("module:function")] | None = Field(
        None,
        description="your own code: a Python function, also an asynchronous one, that makes of a message one document, "
        "several, or none",
    )
    batch_max_items: int = Field(1000, gt=0, description="completion by count, in messages")
    batch_max_bytes: Bytes = Field(5 * 1024 * 1024, description="completion by size of the request body")
    batch_max_age: Seconds = Field(1.0, description="completion by age of the *first* item")
    batch_key: TemplateText | None = Field(None, description="correlation key; one open group a key")
    batch_flush_when: TemplateText | None = Field(
        None,
        description="a message for which it is not empty completes its group; with an empty body it is a pure signal, "
        "acked and not stored",
    )
    batch_complete_count: SetSizeText | None = Field(
        None,
        description="size of the complete set, in messages (for instance from a header); such a group is complete by "
        "that and not by `SIDECAR_BATCH_MAX_ITEMS`",
    )
    batch_coalesce: Literal["none", "latest", "merge"] = Field(
        "none",
        description="`latest`: an operation not yet sent is superseded by a later `index` or `delete` on the same "
        "document; `merge`: consecutive partial updates become one as well; each message is settled by the result that "
        "covers it",
    )
    bulk_concurrency: int = Field(
        4, gt=0, description="most requests in flight; the adaptive limit moves between 1 and this"
    )
    bulk_timeout: Seconds = Field(20.0, description="timeout of a bulk request")
    bulk_compress: bool = Field(default=False, description="gzip")
    memory_limit: Bytes = Field(
        64 * 1024 * 1024, description="bytes of messages held at once; one message above it is admitted alone"
    )
    retry_max_attempts: int = Field(5, gt=0, description="counted attempts in place")
    retry_delay_min: Seconds = Field(0.5, description="backoff: the bound of the first pause; doubled, full jitter")
    retry_delay_max: Seconds = Field(30.0, description="backoff: what the bound doesn't exceed")
    delayed_retry_max_rounds: int = Field(
        3,
        ge=0,
        description="then how often a message without document id, or with a version, goes round by the delay queue, "
        "after which it is dead-lettered",
    )
    delayed_retry_delay: Annotated[Seconds, Field(ge=0.001, le=MAX_DELAY_SECONDS)] = Field(
        10.0, description="delay of the first round, doubled each round, at most 5 minutes"
    )
    on_reject: Literal["dead-letter", "broker", "discard"] = Field(
        "dead-letter",
        description="`dead-letter`; `broker`: `basic.reject`, so that the queue's own dead-letter exchange takes it; "
        "`discard`: counted, logged",
    )
    on_conflict: Literal["ack", "dead-letter"] = Field(
        "ack", description="what a true 409 means for `create` and external versions: `ack` or `dead-letter`"
    )
    on_index_missing: Literal["dead-letter", "delay", "hold"] = Field(
        "dead-letter", description="the index doesn't exist and may not be created: `dead-letter`, `delay` or `hold`"
    )
    on_index_blocked: Literal["delay", "dead-letter", "hold"] = Field(
        "delay",
        description="closed, write-blocked or forbidden target: `delay` (round by the delay queue, uncounted, until it "
        "is taken), `dead-letter` or `hold`",
    )
    on_delay_refused: Literal["wait", "dead-letter"] = Field(
        "wait",
        description="if a delay queue can't be created or refuses a message: `wait` (messages whose target is blocked "
        "are retried in place, up to half of the prefetch, and dead-lettered beyond that) or `dead-letter`",
    )
    on_failure_store: Literal["ack", "dead-letter"] = Field(
        "ack",
        description="if the failure store of a data stream stored a document that the data stream refused: `ack`, or "
        "also `dead-letter`",
    )
    on_unroutable: Literal["hold", "delay", "dead-letter"] = Field(
        "hold",
        description="`SIDECAR_SINK=amqp`, where no queue takes a message: `hold` (it waits until one does), `delay` "
        "(round by the delay queue, uncounted) or `dead-letter`",
    )
    reject_guard: int = Field(
        1000,
        ge=0,
        description="rejects of one kind in a row before a hold begins, instead of emptying the queue into the dead "
        "letters. A reject before the request counts until a later message can be encoded; a reject by the answer "
        "counts until a document is stored; 0: off",
    )
    hold_max: Seconds = Field(
        300.0,
        description="how long an outage is sat out with messages held; then they are requeued, consumption stops, and "
        "it resumes when a probe succeeds (stay below the broker's consumer timeout)",
    )
    http_address: Address = Field(
        DEFAULT_HTTP_ADDRESS,
        description="probes, metrics, status page; empty: off",
    )
    mappings_dir: Annotated[str, AfterValidator(_folder), ValueKind("folder")] | None = Field(
        None, description="folder of index and component templates (`*.json`), for `sidecar mappings`"
    )
    mappings_apply: bool = Field(
        default=False, description="install those templates at start, before anything is consumed"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least level shown")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal")
    shutdown_timeout: Seconds = Field(25.0, description="the drain")

    @property
    def prefetch(self) -> int:
        """The prefetch: given, or room for all batches in flight, the next one, and one that waits for its acks."""
        return self.amqp_prefetch or min(MAX_PREFETCH, self._largest_batch * (self.bulk_concurrency + 2))

    @property
    def _expected_items(self) -> int | None:
        """The size of complete sets where it is the same for all."""
        constant = Template(self.batch_complete_count).constant if self.batch_complete_count is not None else None
        return expected_items(constant) if constant is not None else None

    @property
    def _largest_batch(self) -> int:
        return max(self.batch_max_items, self._expected_items or 0)

    def _problems(self) -> list[str]:
        problems = super()._problems() + self._delay_problems() + self._prefetch_problems()
        if self.retry_delay_min > self.retry_delay_max:
            problems.append("SIDECAR_RETRY_DELAY_MIN is above SIDECAR_RETRY_DELAY_MAX")
        if self.mappings_apply and self.mappings_dir is None:
            problems.append("SIDECAR_MAPPINGS_APPLY installs templates of a folder: SIDECAR_MAPPINGS_DIR is missing")
        if self.sink == "amqp":
            return [*problems, *self._sink_problems()]
        return [
            *problems,
            *self._without_sink_problems(),
            *self._request_problems(),
            *self._login_problems(),
            *self._operation_problems(),
        ]

    @property
    def without_effect(self) -> list[str]:
        """The settings that are given without effect, with the setting that they need; they are not errors."""
        found = self._without("version", "version_type") if self.version is None else []
        if self.sink == "amqp" and not self.sink_exchange:
            found += self._without("sink_exchange", "sink_exchange_type")
        sides: list[tuple[str, tuple[SecretStr, ...], tuple[str, ...], str]]
        sides = [("amqps", (*self.amqp_url, *self.sink_amqp_url), _TLS_OF_AMQP, "SIDECAR_AMQP_URL")]
        if self.elasticsearch_cloud_id is None:
            sides += [("https", self.elasticsearch_url, _TLS_OF_ELASTICSEARCH, "SIDECAR_ELASTICSEARCH_URL")]
        for scheme, urls, fields, needed in sides:
            if not any(url.get_secret_value().startswith(f"{scheme}://") for url in urls):
                found += [
                    f"{name} has no effect: {needed} doesn't begin with {scheme}://, so nothing is encrypted"
                    for name in self._given(fields)
                ]
        return found

    def _sink_problems(self) -> list[str]:
        problems = [
            f"{name} is about Elasticsearch, where SIDECAR_SINK=amqp writes nothing: unset it"
            for name in self._given(ELASTICSEARCH_ONLY)
        ]
        if not self.sink_exchange and "sink_routing_key" not in self.model_fields_set:
            problems.append("SIDECAR_SINK_ROUTING_KEY is required with the default exchange: it is the name of a queue")
        if self.sends_to_itself:
            problems.append(
                "SIDECAR_SINK_ROUTING_KEY is a queue of SIDECAR_AMQP_QUEUE: every message would come back, for ever"
            )
        if any("item" in Template(text).fields for text in (self.sink_routing_key, *self._group_templates())):
            problems.append("{item} is the place of a document in its message, and SIDECAR_SINK=amqp splits none")
        return problems

    @property
    def sink_is_here(self) -> bool:
        """Whether messages are published to the broker that they come from: the URLs have one in common."""
        return not self.sink_amqp_url or not set(self.amqp_url).isdisjoint(self.sink_amqp_url)

    @property
    def sends_to_itself(self) -> bool:
        """Whether messages are published to a queue that they come from, likewise."""
        constant = Template(self.sink_routing_key).constant
        to_queue = constant is not None and not self.sink_exchange and constant.decode() in self.amqp_queue
        return to_queue and self.sink_is_here

    def _without_sink_problems(self) -> list[str]:
        return [f"{name} is about SIDECAR_SINK=amqp, which isn't set" for name in self._given(SINK_ONLY)]

    def _request_problems(self) -> list[str]:
        if self.batch_max_bytes <= MAX_DOCUMENT_BYTES:
            return []
        above = self.batch_max_bytes - MAX_DOCUMENT_BYTES
        problem = f"SIDECAR_BATCH_MAX_BYTES is {self.batch_max_bytes:,} bytes"
        most = f"the {MAX_DOCUMENT_BYTES:,} (100 MB) that Elasticsearch takes as one request (http.max_content_length)"
        return [f"{problem}, {above:,} above {most}"]

    def _login_problems(self) -> list[str]:
        problems = []
        named, secret = self.elasticsearch_username is not None, self.elasticsearch_password is not None
        if named and not secret:
            problems.append("SIDECAR_ELASTICSEARCH_USERNAME is given without SIDECAR_ELASTICSEARCH_PASSWORD")
        if secret and not named:
            problems.append("SIDECAR_ELASTICSEARCH_PASSWORD is given without SIDECAR_ELASTICSEARCH_USERNAME")
        ways = self._ways_to_log_in()
        if len(ways) > 1:
            problems.append(f"{len(ways)} ways to log in to Elasticsearch, at most one goes: {', '.join(ways)}")
        if self.elasticsearch_cloud_id is not None and "elasticsearch_url" in self.model_fields_set:
            problems.append("SIDECAR_ELASTICSEARCH_CLOUD_ID and SIDECAR_ELASTICSEARCH_URL both say where; give one")
        if self.elasticsearch_key_file is not None and self.elasticsearch_cert_file is None:
            problems.append(
                "SIDECAR_ELASTICSEARCH_KEY_FILE is the key of a certificate: SIDECAR_ELASTICSEARCH_CERT_FILE is missing"
            )
        return problems

    def _ways_to_log_in(self) -> list[str]:
        basic = self.elasticsearch_username is not None or self.elasticsearch_password is not None
        in_url = any(URL(url.get_secret_value()).user is not None for url in self.elasticsearch_url)
        ways = {
            "user and password (SIDECAR_ELASTICSEARCH_USERNAME)": basic,
            "SIDECAR_ELASTICSEARCH_API_KEY": self.elasticsearch_api_key is not None,
            "SIDECAR_ELASTICSEARCH_BEARER_TOKEN": self.elasticsearch_bearer_token is not None,
            "the user in SIDECAR_ELASTICSEARCH_URL": in_url,
        }
        return [way for way, given in ways.items() if given]

    def _operation_problems(self) -> list[str]:
        problems = [] if self.index else ["SIDECAR_INDEX is required"]
        encoder_config = EncoderConfig(
            index=Template(self.index), action=Template(self.action), index_allow=self.index_allow
        )
        action, index = encoder_config.constant_action, encoder_config.path_index
        if self.version is not None and action is not None and action not in ACTIONS_WITH_VERSION:
            takes = " and ".join(ACTIONS_WITH_VERSION)
            problems.append(f"SIDECAR_VERSION goes with {takes}; SIDECAR_ACTION={action} takes no version")
        if self.version is not None and self.id == "none":
            problems.append("SIDECAR_VERSION needs a document id, and SIDECAR_ID=none gives none")
        if action in ACTIONS_ON_WHAT_IS_THERE and self.id in {"none", "generated"}:
            problems.append(
                f"SIDECAR_ACTION={action} needs the id of a document that is there, and SIDECAR_ID={self.id} gives none"
            )
        if self.split != "none" and self.transform is not None:
            problems.append("SIDECAR_TRANSFORM makes the documents of a message, and SIDECAR_SPLIT would too; one goes")
        if (
            self.split == "none"
            and self.transform is None
            and any("item" in Template(text).fields for text in self._templates())
        ):
            problems.append("{item} is the place of a document in its message, and SIDECAR_SPLIT=none splits none")
        if self.split == "array" and self.content == "text":
            problems.append("SIDECAR_SPLIT=array takes JSON, and SIDECAR_CONTENT=text says that bodies are none")
        if index and not encoder_config.allows(index):
            problems.append("SIDECAR_INDEX is always the same name, and one that SIDECAR_INDEX_ALLOW doesn't allow")
        return problems

    def _templates(self) -> list[str]:
        texts = [self.index, self.action, self.routing, self.pipeline, self.version, *self.fields.values()]
        texts += self._group_templates()
        texts += [None if self.id in _ID_MODES else self.id]
        return [text for text in texts if text is not None]

    def _group_templates(self) -> list[str]:
        texts = (self.batch_key, self.batch_flush_when, self.batch_complete_count)
        return [text for text in texts if text is not None]

    def _prefetch_problems(self) -> list[str]:
        needed = self._expected_items or self.batch_max_items
        setting = "SIDECAR_BATCH_COMPLETE_COUNT" if self._expected_items is not None else "SIDECAR_BATCH_MAX_ITEMS"
        if self.amqp_prefetch is not None and self.amqp_prefetch > MAX_PREFETCH:
            return [f"SIDECAR_AMQP_PREFETCH is {self.amqp_prefetch}; the protocol takes at most {MAX_PREFETCH}"]
        if self.prefetch < needed:
            wanted = f"{needed} x (concurrency {self.bulk_concurrency} + 2) = {needed * (self.bulk_concurrency + 2)}"
            problem = f"the prefetch of {self.prefetch} can't fill a batch of {needed} ({setting})"
            return [f"{problem}: batches would only ever complete by age. Room for all is {wanted}"]
        return []


def _url_problem(text: str, schemes: tuple[str, ...]) -> str | None:
    fault = text_fault(text)
    if fault is not None:
        return fault
    scheme, separator, rest = text.partition("://")
    if scheme not in schemes or not separator:
        return f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)} and name a host"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "#" in rest or "@" in rest[len(authority) :] or "[" in authority.rpartition("@")[0]:
        return _PERCENT_ENCODE
    try:
        url = URL(text)
        _ = url.port
    except ValueError:
        return f"is not a valid URL. {_PERCENT_ENCODE_USER}"
    if not url.host:
        return f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)} and name a host"
    if not can_be_looked_up(url.host):
        return "names a host that can't be: each part between dots has 1 to 63 characters"
    return _query_problem(url) if "amqp" in schemes else None


_PERCENT_ENCODE_USER = (
    "Special characters in user and password must be percent-encoded: / as %2F, # as %23, ? as %3F, @ as %40, "
    ": as %3A, [ as %5B, % as %25"
)
_PERCENT_ENCODE = f"contains #, @ or [ in a place where a URL can't have it. {_PERCENT_ENCODE_USER}"


_URL_PARAMETERS = frozenset({"auth", "heartbeat", "name", "timeout"})


def _query_problem(url: URL) -> str | None:
    """Return what is wrong with the query parameters of an AMQP URL."""
    unknown = len(url.query.keys() - _URL_PARAMETERS)
    if unknown:
        return (
            f"has {unknown} parameter(s) that the sidecar doesn't know; it knows {', '.join(sorted(_URL_PARAMETERS))}"
        )
    for name in ("heartbeat", "timeout"):
        value = url.query.get(name)
        if value is not None and whole_number(value.encode(), MAX_PREFETCH) is None:
            return f"has a {name} that is not a whole number up to {MAX_PREFETCH:,}"
    if url.query.get("auth", "plain") not in {"plain", "amqplain", "external"}:
        return "has an auth that is not plain, amqplain or external"
    return None


_Kind = TypeVar("_Kind", bound=AmqpSettings)


def load(environment: Mapping[str, str]) -> Settings:
    """Return the settings in `environment` (and ``.env``).

    Raises:
        ConfigError: with every problem, none of them quoting a value.
    """
    return _load(Settings, environment, {})


def load_without_required(environment: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """Return the settings for a command that moves no messages, and the names of missing settings that `load` requires.

    Raises:
        ConfigError: with all problems but missing settings.
    """
    found = read_raw(environment)
    absent = [field for field in _STAND_INS if field not in found.texts and field not in found.files]
    if found.texts.get("sink") == "amqp":
        absent = [field for field in absent if field not in ELASTICSEARCH_ONLY]
    settings = load({**environment, **{_name(field): _STAND_INS[field] for field in absent}})
    return settings, [_name(field) for field in absent]


_STAND_INS = {"amqp_queue": "any", "index": "{queue}"}
"""For required settings. The index is a template, because SIDECAR_INDEX_ALLOW can't refuse that beforehand."""


def load_amqp(environment: Mapping[str, str], **given: object) -> AmqpSettings:
    """Return those settings in `environment` (and ``.env``) that are about RabbitMQ; the others need not be there.

    Args:
        environment: the process's.
        given: what options of the command line say instead, by the field's name; None says nothing.

    Raises:
        ConfigError: with every problem, none of them quoting a value.
    """
    return _load(AmqpSettings, environment, {name: value for name, value in given.items() if value is not None})


class RawSettings(NamedTuple):
    """What is said about the settings, before it is checked.

    Attributes:
        texts: the value of each setting that is given, by the field's name.
        files: the paths of those whose value stands in a file (``NAME_FILE``), by the field's name.
        problems: with those files, by the field's name.
    """

    texts: dict[str, str]
    files: dict[str, str]
    problems: dict[str, str]


def read_raw(environment: Mapping[str, str], kind: type[AmqpSettings] = Settings) -> RawSettings:
    """Return what `environment`, ``.env`` and the files that they name say; empty values count as none, mostly.

    Raises:
        ConfigError: ``.env`` can't be read.
    """
    return _given(_texts(environment), kind)


def _given(names: Mapping[str, str], kind: type[AmqpSettings]) -> RawSettings:
    found = RawSettings({}, {}, {})
    for field in kind.model_fields:
        text, path = names.get(_name(field)), names.get(_name(field) + _FILE)
        if text or (text is not None and field in _EMPTY_IS_A_VALUE):
            found.texts[field] = text
        if path and field + _FILE.lower() not in Settings.model_fields:
            found.files[field] = path
            try:
                found.texts[field] = _one_of(field, text, path)
            except ValueError as error:
                found.problems[field] = str(error)
    return found


def _one_of(field: str, text: str | None, path: str) -> str:
    """Return what stands in the file, where that is the only thing said."""
    name = _name(field)
    if text:
        raise ValueError(f"{name} and {name}{_FILE} are both given; one goes")
    fault = text_fault(path)
    if fault is not None:
        raise ValueError(f"{name}{_FILE}: the path {fault}")
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        content = without_last_line_break(data.decode())
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}{_FILE}: {path} can't be read ({_why(error)})") from None
    if len(data) > _MAX_FILE_BYTES:
        raise ValueError(f"{name}{_FILE}: {path} is larger than {_MAX_FILE_BYTES:,} bytes")
    if not content:
        raise ValueError(f"{name}{_FILE}: {path} is empty")
    return content


def _texts(environment: Mapping[str, str], prefix: str = PREFIX) -> dict[str, str]:
    """Return the variables of the environment and ``.env`` whose names begin with `prefix`.

    Raises:
        ConfigError: ``.env`` can't be read, or a line with such a name is not valid.
    """
    said = {**_dotenv(prefix), **environment}
    return {name: without_last_line_break(text) for name, text in said.items() if name.startswith(prefix)}


def _dotenv(prefix: str) -> dict[str, str]:
    try:
        text = Path(".env").read_bytes().decode()
    except (FileNotFoundError, IsADirectoryError):  # a folder of that name is a Python virtual environment
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f".env can't be read ({_why(error)})"]) from None
    entries = [entry for entry in dotenv.read(text) if not entry.name or entry.name.startswith(prefix)]
    problems = [
        f".env, line {entry.line}: {f'{entry.name} ' if entry.name else ''}{entry.problem}"
        for entry in entries
        if entry.problem is not None
    ]
    if problems:
        raise ConfigError(problems)
    return {entry.name: entry.value for entry in entries}


def load_with_prefix(
    kind: type[_Kind], environment: Mapping[str, str], prefix: str | None, options: dict[str, Any]
) -> _Kind:
    """Return the settings of a program that has names of its own.

    Args:
        kind: of settings.
        environment: the process's; other names in it that begin with `prefix` are the program's business.
        prefix: what names begin with, there and in ``.env``; None for neither.
        options: what the program says itself, by the field's name; it counts for more.

    Raises:
        ConfigError: with every problem, none of them quoting a value.
    """
    names = {}
    if prefix is not None:
        names = {PREFIX + name.removeprefix(prefix): text for name, text in _texts(environment, prefix).items()}
    unknown = [
        f"{name} is no setting{_hint(name, kind.model_fields)}" for name in options if name not in kind.model_fields
    ]
    try:
        return _load_texts(kind, names, options, unknown)
    except ConfigError as error:

        def spelt(match: re.Match[str]) -> str:
            bare = match[0].removeprefix(PREFIX)
            return bare.lower() if prefix is None else prefix + bare

        raise ConfigError([_ANY_NAME.sub(spelt, problem) for problem in error.problems]) from None


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)
    return f": did you mean {near[0]}?" if near else ""


def _load(kind: type[_Kind], environment: Mapping[str, str], options: dict[str, Any]) -> _Kind:
    names = _texts(environment)
    return _load_texts(kind, names, options, [*_unknown_names(names), *_in_other_case(environment)])


def _load_texts(kind: type[_Kind], names: Mapping[str, str], options: dict[str, Any], problems: list[str]) -> _Kind:
    found = _given(names, kind)
    problems = problems + list(found.problems.values())
    wrong = set(found.problems)
    settings = None
    # pydantic looks at settings against each other only once each is right by itself: hence again without the wrong.
    for _ in range(2):
        try:
            settings = _read(kind, _valid_only(kind, found.texts, wrong), options, wrong)
        except ValidationError as error:
            problems += _explain(error, wrong)
            more = {str(fault["loc"][0]) for fault in error.errors(include_input=False) if fault["loc"]}
            if not more:
                break
            wrong |= more
        else:
            break
    if problems or settings is None:
        raise ConfigError(problems)
    return settings


def _valid_only(kind: type[AmqpSettings], texts: Mapping[str, str], wrong: set[str]) -> dict[str, str]:
    """Return the texts that are right by themselves, and something for what can't be left out."""
    needed = {field: "any" for field in wrong if kind.model_fields[field].is_required()}
    return {field: text for field, text in texts.items() if field not in wrong} | needed


def _read(kind: type[_Kind], texts: Mapping[str, str], options: dict[str, Any], wrong: set[str]) -> _Kind:
    token = _environment.set({_name(field): text for field, text in texts.items()})
    try:
        return kind(**{field: value for field, value in options.items() if field not in wrong})
    finally:
        _environment.reset(token)


def _name(field: str) -> str:
    return PREFIX + field.upper()


def _unknown_names(names: Mapping[str, str]) -> list[str]:
    known = {field.upper() for field in Settings.model_fields}
    in_files = {name + _FILE for name in known}
    problems = []
    for name in names:
        bare = name.removeprefix(PREFIX)
        if bare in known or bare in in_files or is_service_link(name, names):
            continue
        candidates = known | in_files if bare.endswith(_FILE) else known
        near = [bare + _FILE] if bare + _FILE in known else []
        near = near or difflib.get_close_matches(bare, sorted(candidates), n=1, cutoff=0.7) or _only_one(bare, known)
        hint = f": did you mean {PREFIX}{near[0]}?" if near else "; `sidecar config` lists what there is"
        problems.append(f"{name} is no setting{hint}")
    return problems


def _in_other_case(environment: Mapping[str, str]) -> list[str]:
    """Report settings whose names aren't in upper case: such a variable is meant for the sidecar."""
    known = {_name(field) for field in Settings.model_fields}
    return [
        f"{name} is no setting: did you mean {name.upper()}?"
        for name in environment
        if name != name.upper() and name.upper() in known
    ]


def _only_one(bare: str, known: Iterable[str]) -> list[str]:
    """Return the setting that begins with the same word, if only one does."""
    word = bare.partition("_")[0] + "_"
    found = [name for name in known if name.startswith(word)]
    return found if len(found) == 1 else []


def _explain(error: ValidationError, wrong: set[str]) -> list[str]:
    """Return the problems, but for those that come from a setting that was found wrong before and left out."""
    told = {_name(field) for field in wrong}
    problems: list[str] = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        text = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:
            problems += [problem for problem in text.split("\n") if told.isdisjoint(_ANY_NAME.findall(problem))]
            continue
        name = _name(str(fault["loc"][0]))
        problems.append(f"{name} is required" if fault["type"] == "missing" else f"{name}: {text}")
    return problems
