"""``SIDECAR_*`` → frozen, typed settings; every problem at once, and no secret in any of them.

pydantic-settings reads and checks them: it is what Python services use for this, and knows ``.env`` files and errors by
the field. What it can't know (units, hints for misspelt names, settings against each other) is here.
"""

from __future__ import annotations

import difflib
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import orjson
from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from yarl import URL

from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "SIDECAR_"
_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_.+)?$|_PORT$|_PORT_.+$")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_SIZE_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
MAX_PREFETCH = 65_535
"""The prefetch of ``basic.qos`` is 16 bits wide."""


def _duration(value: object) -> object:
    return _with_unit(value, _DURATION_UNITS, "a duration such as 500ms, 1s, 5m, or seconds")


def _size(value: object) -> object:
    number = _with_unit(value, _SIZE_UNITS, "a size such as 5MiB, 10MB, or bytes")
    return int(number) if isinstance(number, float) else number


def _with_unit(value: object, units: Mapping[str, float], wanted: str) -> object:
    if not isinstance(value, str):
        return value
    match = _NUMBER.fullmatch(value)
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"must be {wanted}")
    return float(match[1]) * unit


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Seconds = Annotated[float, BeforeValidator(_duration), Field(gt=0)]
Bytes = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


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


JsonObject = Annotated[dict[str, Any], NoDecode, BeforeValidator(_json_object)]
AmqpUrls = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split), _urls(("amqp", "amqps"))]
HttpUrls = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split), _urls(("http", "https"))]

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
        source.env_vars = {name.lower(): text for name, text in _environment.get().items() if text}
        return init_settings, source

    amqp_url: AmqpUrls = Field(
        (SecretStr("amqp://guest:guest@localhost:5672/"),),
        description="one or more, comma-separated; tried in turn on reconnect; `amqps://` for TLS",
    )
    amqp_queue: Words = Field(description="one or more queues, comma-separated; all feed the same aggregator")
    amqp_declare: Literal["missing", "never"] = Field(
        "missing",
        description="`missing`: create what is absent, never fail over arguments of what exists; "
        "`never`: everything must exist",
    )
    amqp_queue_type: Literal["classic", "quorum"] = Field(
        "quorum", description="type of a queue that the sidecar creates; dead-letter queues are quorum always"
    )
    amqp_queue_arguments: JsonObject = Field({}, description="JSON object, for the work queue only")
    amqp_consumer_arguments: JsonObject = Field({}, description="JSON object (priority, …)")
    amqp_exchange: str | None = Field(None, description="exchange to create and bind to")
    amqp_exchange_type: str = Field("direct", description="`direct`, `fanout`, `topic`, `headers`, or a plug-in's")
    amqp_routing_keys: Words = Field((), description="comma-separated binding keys; the queue's name by default")
    amqp_binding_arguments: JsonObject = Field({}, description="JSON object (headers exchange)")
    amqp_prefetch: int | None = Field(
        None, gt=0, description="deliveries unsettled at once; derived from batch size and concurrency"
    )
    dead_letter_exchange: str = Field("", description="where rejects go; the default exchange if empty")
    dead_letter_routing_key: str | None = Field(None, description="`<queue>.dead` by default")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = self._problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> list[str]:
        """Return what is wrong between settings: all of it, so that it is mended in one go."""
        return [] if self.amqp_queue else ["SIDECAR_AMQP_QUEUE names no queue"]


class Settings(AmqpSettings):
    """All settings: those of ``sidecar run``."""

    elasticsearch_url: HttpUrls = Field(
        (SecretStr("http://localhost:9200"),), description="one or more, comma-separated; Elasticsearch 8 and 9"
    )
    elasticsearch_username: str | None = Field(None, description="basic authentication")
    elasticsearch_password: SecretStr | None = Field(None, description="basic authentication")
    index: str = Field(description="where documents go: index, alias or data stream")
    action: Literal["index", "create"] = Field("index", description="`index` or `create`")
    id: Literal["auto", "none"] = Field(
        "auto",
        description="`auto`: the `message_id` property where there is one, otherwise Elasticsearch's own; `none`",
    )
    batch_max_items: int = Field(1000, gt=0, description="completion by count, in messages")
    batch_max_bytes: Bytes = Field(5 * 1024 * 1024, description="completion by size of the request body")
    batch_max_age: Seconds = Field(1.0, description="completion by age of the *first* item")
    bulk_concurrency: int = Field(
        4, gt=0, description="most requests in flight; the adaptive limit moves between 1 and this"
    )
    bulk_timeout: Seconds = Field(60.0, description="one request")
    bulk_compress: bool = Field(default=False, description="gzip")
    retry_max_attempts: int = Field(5, gt=0, description="counted attempts in place")
    retry_delay_min: Seconds = Field(0.5, description="backoff: the bound of the first pause; doubled, full jitter")
    retry_delay_max: Seconds = Field(30.0, description="backoff: what the bound doesn't exceed")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least level shown")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal")
    shutdown_timeout: Seconds = Field(25.0, description="the drain")

    @property
    def prefetch(self) -> int:
        """The prefetch: given, or room for all batches in flight, the next one, and one that waits for its acks."""
        return self.amqp_prefetch or min(MAX_PREFETCH, self.batch_max_items * (self.bulk_concurrency + 2))

    def _problems(self) -> list[str]:
        problems = super()._problems() + self._prefetch_problems()
        if self.retry_delay_min > self.retry_delay_max:
            problems.append("SIDECAR_RETRY_DELAY_MIN is above SIDECAR_RETRY_DELAY_MAX")
        return problems

    def _prefetch_problems(self) -> list[str]:
        needed = self.batch_max_items
        if self.amqp_prefetch is not None and self.amqp_prefetch > MAX_PREFETCH:
            return [f"SIDECAR_AMQP_PREFETCH is {self.amqp_prefetch}; the protocol takes at most {MAX_PREFETCH}"]
        if self.prefetch < needed:
            wanted = f"{needed} x (concurrency {self.bulk_concurrency} + 2) = {needed * (self.bulk_concurrency + 2)}"
            problem = f"the prefetch of {self.prefetch} can't fill a batch of {needed} (SIDECAR_BATCH_MAX_ITEMS)"
            return [f"{problem}: batches would only ever complete by age. Room for all is {wanted}"]
        return []


def _url_problem(text: str, schemes: tuple[str, ...]) -> str | None:
    try:
        url = URL(text)
        _ = url.port
    except ValueError:
        return "is not a URL"
    if url.scheme not in schemes or not url.host:
        return f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)} and name a host"
    return None


_Kind = TypeVar("_Kind", bound=AmqpSettings)


def load(environment: Mapping[str, str]) -> Settings:
    """Return the settings in `environment` (and ``.env``).

    Raises:
        ConfigError: with every problem, none of them quoting a value.
    """
    return _load(Settings, environment, {})


def load_amqp(environment: Mapping[str, str], **given: object) -> AmqpSettings:
    """Return those settings in `environment` (and ``.env``) that are about RabbitMQ; the others need not be there.

    Args:
        environment: the process's.
        given: what options of the command line say instead, by the field's name; None says nothing.

    Raises:
        ConfigError: with every problem, none of them quoting a value.
    """
    return _load(AmqpSettings, environment, {name: value for name, value in given.items() if value is not None})


def _load(kind: type[_Kind], environment: Mapping[str, str], given: dict[str, Any]) -> _Kind:
    texts = {**_dotenv(), **environment}
    problems = _unknown_names(texts)
    try:
        settings = _read(kind, texts, given)
    except ValidationError as error:
        raise ConfigError(problems + _explain(error) + _further_problems(kind, texts, given, error)) from None
    if problems:
        raise ConfigError(problems)
    return settings


def _dotenv() -> dict[str, str]:
    return {name: text for name, text in dotenv_values(".env").items() if text is not None}


def _read(kind: type[_Kind], texts: Mapping[str, str], given: dict[str, Any]) -> _Kind:
    token = _environment.set(texts)
    try:
        return kind(**given)
    finally:
        _environment.reset(token)


def _further_problems(
    kind: type[_Kind], texts: Mapping[str, str], given: dict[str, Any], error: ValidationError
) -> list[str]:
    """Return what is wrong between the settings that are right by themselves, which pydantic looks at only then."""
    wrong = {str(fault["loc"][0]) for fault in error.errors(include_input=False) if fault["loc"]}
    if not wrong:
        return []
    names = {_name(field) for field in wrong}
    sound = {name: text for name, text in texts.items() if name not in names}
    required = {_name(field): "any" for field in wrong if kind.model_fields[field].is_required()}
    try:
        _read(kind, sound | required, {field: value for field, value in given.items() if field not in wrong})
    except ValidationError as further:
        return [problem for problem in _explain(further) if not any(name in problem for name in names)]
    return []


def _name(field: str) -> str:
    return PREFIX + field.upper()


def _unknown_names(environment: Mapping[str, str]) -> list[str]:
    known = {field.upper() for field in Settings.model_fields}
    problems = []
    for name in environment:
        bare = name.removeprefix(PREFIX)
        if bare == name or bare in known or _KUBERNETES.search(name):
            continue
        near = difflib.get_close_matches(bare, sorted(known), n=1, cutoff=0.7)
        hint = f": did you mean {PREFIX}{near[0]}?" if near else "; README.md lists what there is"
        problems.append(f"{name} is no setting{hint}")
    return problems


def _explain(error: ValidationError) -> list[str]:
    problems: list[str] = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        text = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:
            problems += text.split("\n")
            continue
        name = _name(str(fault["loc"][0]))
        problems.append(f"{name} is required" if fault["type"] == "missing" else f"{name}: {text}")
    return problems
