"""`sidecar.settings`: each problem with its mend, all of them at once, and never a secret."""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003 - pytest looks at the annotations of fixtures
from typing import Protocol

import pytest

from sidecar.errors import ConfigError
from sidecar.settings import MAX_PREFETCH, Settings, load

REQUIRED = {"SIDECAR_AMQP_QUEUE": "work", "SIDECAR_INDEX": "logs"}


class Load(Protocol):
    """Loads the settings from an environment of nothing but the required ones and those given."""

    def __call__(self, **given: str) -> Settings:
        """Load them."""
        ...


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """Return a loader that nothing on this machine has an influence on."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("SIDECAR_"):
            monkeypatch.delenv(name)

    def loader(**given: str) -> Settings:
        for name, value in (REQUIRED | given).items():
            monkeypatch.setenv(name, value)
        return load(os.environ)

    return loader


def problems(loaded: Load, **given: str) -> list[str]:
    """Return what is wrong with the settings given."""
    with pytest.raises(ConfigError) as caught:
        loaded(**given)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_the_defaults_are_those_of_the_contract(loaded: Load) -> None:
    """Two settings are enough."""
    settings = loaded()
    assert settings.amqp_queue == ("work",)
    assert [url.get_secret_value() for url in settings.elasticsearch_url] == ["http://localhost:9200"]
    assert [url.get_secret_value() for url in settings.amqp_url] == ["amqp://guest:guest@localhost:5672/"]
    assert (settings.batch_max_items, settings.batch_max_bytes, settings.batch_max_age) == (1000, 5 << 20, 1.0)
    assert (settings.bulk_concurrency, settings.bulk_timeout, settings.bulk_compress) == (4, 60.0, False)
    assert (settings.retry_max_attempts, settings.retry_delay_min, settings.retry_delay_max) == (5, 0.5, 30.0)
    assert (settings.amqp_queue_type, settings.amqp_declare, settings.action, settings.id) == (
        "quorum", "missing", "index", "auto",
    )  # fmt: skip
    assert (settings.shutdown_timeout, settings.log_level, settings.log_format) == (25.0, "info", "auto")


def test_the_mapping_that_is_given_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`load` is pure: the process's environment is read by the command line only."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("SIDECAR_"):
            monkeypatch.delenv(name)
    assert load(REQUIRED | {"SIDECAR_BATCH_MAX_ITEMS": "7"}).batch_max_items == 7
    monkeypatch.setenv("SIDECAR_BATCH_MAX_ITEMS", "8")
    assert load(REQUIRED).batch_max_items == 1000


def test_settings_are_read_from_a_dotenv_file(loaded: Load, tmp_path: Path) -> None:
    """The environment goes before it."""
    (tmp_path / ".env").write_text("SIDECAR_BATCH_MAX_ITEMS=7\nSIDECAR_INDEX=other\nHOME_OF=others\n")
    settings = loaded()
    assert (settings.batch_max_items, settings.index) == (7, "logs")


def test_an_unknown_name_in_a_dotenv_file_is_an_error_too(loaded: Load, tmp_path: Path) -> None:
    """A misspelt setting must not be ignored, wherever it stands."""
    (tmp_path / ".env").write_text("SIDECAR_BATCH_MAX_ITEM=7\n")
    assert problems(loaded) == ["SIDECAR_BATCH_MAX_ITEM is no setting: did you mean SIDECAR_BATCH_MAX_ITEMS?"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("1s", 1.0), ("1.5s", 1.5), ("5m", 300.0), ("1h", 3600.0), ("2", 2.0), (" 3 S ", 3.0)],
)  # fmt: skip
def test_durations_take_a_unit_or_are_seconds(loaded: Load, text: str, seconds: float) -> None:
    """Source: contract §3."""
    assert loaded(SIDECAR_BATCH_MAX_AGE=text).batch_max_age == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("5MiB", 5 << 20), ("10MB", 10_000_000), ("123", 123), ("1 KiB", 1024), ("1.5kb", 1500), ("1GiB", 1 << 30)],
)  # fmt: skip
def test_sizes_take_a_unit_or_are_bytes(loaded: Load, text: str, size: int) -> None:
    """Binary and decimal units are not the same."""
    assert loaded(SIDECAR_BATCH_MAX_BYTES=text).batch_max_bytes == size


@pytest.mark.parametrize("text", ["0", "0s", "-1s", "1 day", "s", "1,5s", "nan", "inf", "1e3"])
def test_bad_durations_are_refused_with_examples(loaded: Load, text: str) -> None:
    """Nothing but a positive number with a known unit."""
    (problem,) = problems(loaded, SIDECAR_BULK_TIMEOUT=text)
    assert problem.startswith("SIDECAR_BULK_TIMEOUT: ")
    assert "500ms" in problem or "greater than 0" in problem


@pytest.mark.parametrize("text", ["0", "5XB", "-5", "0.1B", "MiB"])
def test_bad_sizes_are_refused_with_examples(loaded: Load, text: str) -> None:
    """Likewise."""
    (problem,) = problems(loaded, SIDECAR_BATCH_MAX_BYTES=text)
    assert problem.startswith("SIDECAR_BATCH_MAX_BYTES: ")


def test_lists_are_separated_by_commas(loaded: Load) -> None:
    """Space around the words, and empty ones, mean nothing."""
    settings = loaded(
        SIDECAR_AMQP_QUEUE=" a, b,,c ",
        SIDECAR_AMQP_URL="amqp://u:p@one/,amqps://two/v",
        SIDECAR_AMQP_ROUTING_KEYS="k.#",
    )
    assert settings.amqp_queue == ("a", "b", "c")
    assert [url.get_secret_value() for url in settings.amqp_url] == ["amqp://u:p@one/", "amqps://two/v"]
    assert settings.amqp_routing_keys == ("k.#",)


def test_arguments_are_json_objects(loaded: Load) -> None:
    """With the types that the broker is to see."""
    settings = loaded(SIDECAR_AMQP_QUEUE_ARGUMENTS='{"x-max-length":10,"x-overflow":"reject-publish"}')
    assert settings.amqp_queue_arguments == {"x-max-length": 10, "x-overflow": "reject-publish"}


@pytest.mark.parametrize("text", ["{", "[]", "17", "x-max-length=10"])
def test_arguments_that_are_no_json_object_are_a_problem_like_any_other(loaded: Load, text: str) -> None:
    """Reported with the others, under the setting's own name."""
    found = problems(loaded, SIDECAR_AMQP_QUEUE_ARGUMENTS=text, SIDECAR_ACTION="replace")
    assert sorted(problem.partition(":")[0].split()[0] for problem in found) == [
        "SIDECAR_ACTION",
        "SIDECAR_AMQP_QUEUE_ARGUMENTS",
    ]


def test_the_required_settings_are_named(loaded: Load) -> None:
    """Both at once; an empty value counts as none."""
    assert problems(loaded, SIDECAR_AMQP_QUEUE="", SIDECAR_INDEX="") == [
        "SIDECAR_AMQP_QUEUE is required",
        "SIDECAR_INDEX is required",
    ]
    assert problems(loaded, SIDECAR_AMQP_QUEUE=" , ") == ["SIDECAR_AMQP_QUEUE names no queue"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SIDECAR_BATCH_MAX_ITEM", "did you mean SIDECAR_BATCH_MAX_ITEMS?"),
        ("SIDECAR_AMPQ_QUEUE", "did you mean SIDECAR_AMQP_QUEUE?"),
        ("SIDECAR_ELASTIC_URL", "did you mean SIDECAR_ELASTICSEARCH_URL?"),
        ("SIDECAR_ZZZ", "README.md lists what there is"),
    ],
)
def test_unknown_names_are_errors_with_a_hint(loaded: Load, name: str, hint: str) -> None:
    """The nearest real name, where one is near."""
    (problem,) = problems(loaded, **{name: "1"})
    assert problem.startswith(f"{name} is no setting")
    assert problem.endswith(hint)


@pytest.mark.parametrize(
    "name",
    [
        "SIDECAR_SERVICE_HOST",
        "SIDECAR_SERVICE_PORT",
        "SIDECAR_SERVICE_PORT_HTTP",
        "SIDECAR_PORT",
        "SIDECAR_PORT_9180_TCP",
        "SIDECAR_PORT_9180_TCP_ADDR",
        "SIDECAR_METRICS_SERVICE_HOST",
        "SIDECAR_METRICS_PORT_80_TCP_PROTO",
    ],
)
def test_what_kubernetes_injects_is_ignored(loaded: Load, name: str) -> None:
    """A Service called ``sidecar`` must not keep its own pods from starting."""
    assert loaded(**{name: "tcp://10.0.0.1:9180"}).index == "logs"


def test_names_of_others_are_nobodys_business(loaded: Load) -> None:
    """Only our prefix is looked at."""
    assert loaded(SIDECARS="1", XSIDECAR_INDEX="2").index == "logs"


def test_all_problems_are_reported_together(loaded: Load) -> None:
    """Unknown names, bad values, and what is wrong between settings: mended in one go."""
    found = problems(
        loaded,
        SIDECAR_INDX="logs",
        SIDECAR_ACTION="replace",
        SIDECAR_BATCH_MAX_AGE="soon",
        SIDECAR_BATCH_MAX_ITEMS="many",
        SIDECAR_AMQP_URL="http://rabbit/",
        SIDECAR_RETRY_DELAY_MIN="1m",
    )
    assert {problem.split(":")[0].split()[0] for problem in found} == {
        "SIDECAR_INDX",
        "SIDECAR_ACTION",
        "SIDECAR_BATCH_MAX_AGE",
        "SIDECAR_BATCH_MAX_ITEMS",
        "SIDECAR_AMQP_URL",
        "SIDECAR_RETRY_DELAY_MIN",
    }


def test_the_prefetch_is_derived_from_what_can_be_in_flight(loaded: Load) -> None:
    """All batches in flight, the next one, and one that waits for its acks."""
    assert loaded().prefetch == 1000 * (4 + 2)
    assert loaded(SIDECAR_BATCH_MAX_ITEMS="10", SIDECAR_BULK_CONCURRENCY="1").prefetch == 30
    assert loaded(SIDECAR_AMQP_PREFETCH="1234").prefetch == 1234
    assert loaded(SIDECAR_AMQP_PREFETCH="", SIDECAR_BATCH_MAX_ITEMS="60000").prefetch == MAX_PREFETCH


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"SIDECAR_AMQP_PREFETCH": "999"}, ["999", "1000", "6000"]),
        ({"SIDECAR_AMQP_PREFETCH": "65536"}, ["65536", "65535"]),
        ({"SIDECAR_BATCH_MAX_ITEMS": "70000"}, ["65535", "70000"]),
    ],
)
def test_a_prefetch_that_cannot_fill_a_batch_is_refused_with_the_sum(
    loaded: Load, given: dict[str, str], says: list[str]
) -> None:
    """Batches would only ever complete by age; and the protocol has 16 bits for it."""
    (problem,) = problems(loaded, **given)
    assert [number for number in says if number not in problem] == []


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("SIDECAR_AMQP_URL", "http://localhost/"),
        ("SIDECAR_AMQP_URL", "localhost:5672"),
        ("SIDECAR_AMQP_URL", "amqp://"),
        ("SIDECAR_AMQP_URL", "amqp://localhost:port/"),
        ("SIDECAR_AMQP_URL", "amqp://good/,amqp://localhost:70000/"),
        ("SIDECAR_ELASTICSEARCH_URL", "localhost:9200"),
        ("SIDECAR_ELASTICSEARCH_URL", "ftp://localhost"),
    ],
)
def test_urls_are_looked_at_before_anything_is_connected(loaded: Load, name: str, url: str) -> None:
    """A typo is told at the start, not as an endless reconnect."""
    (problem,) = problems(loaded, **{name: url})
    assert problem.startswith(name)


def test_settings_are_frozen(loaded: Load) -> None:
    """Nobody changes them behind another's back."""
    settings = loaded()
    with pytest.raises(ValueError, match="frozen"):
        settings.index = "other"


@pytest.mark.parametrize(
    "given",
    [
        {"SIDECAR_AMQP_URL": "amqp://user:hunter2@host:notaport/"},
        {"SIDECAR_AMQP_URL": "hunter2"},
        {"SIDECAR_AMQP_URL": "http://user:hunter2@host/"},
        {"SIDECAR_ELASTICSEARCH_URL": "ftp://user:hunter2@host/"},
        {"SIDECAR_ELASTICSEARCH_PASSWORD": "hunter2", "SIDECAR_BATCH_MAX_ITEMS": "0"},
        {"SIDECAR_ELASTICSEARCH_PASSWORT": "hunter2"},
        {"SIDECAR_AMQP_QUEUE_ARGUMENTS": '{"password":"hunter2"'},
        {"SIDECAR_AMQP_QUEUE_ARGUMENTS": '["hunter2"]'},
        {"SIDECAR_ACTION": "hunter2"},
        {"SIDECAR_BATCH_MAX_AGE": "hunter2"},
        {"SIDECAR_BATCH_MAX_ITEMS": "hunter2"},
    ],
    ids="+".join,
)
def test_no_problem_quotes_a_value(loaded: Load, given: dict[str, str]) -> None:
    """A secret in the wrong setting must not get into a log; nor by the chain of causes in a traceback."""
    with pytest.raises(ConfigError) as caught:
        loaded(**given)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_secrets_are_masked_where_settings_are_shown(loaded: Load) -> None:
    """In reprs and traces."""
    settings = loaded(SIDECAR_AMQP_URL="amqp://u:hunter2@host/", SIDECAR_ELASTICSEARCH_PASSWORD="hunter2")
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


def test_a_password_in_the_url_of_elasticsearch_is_masked_too(loaded: Load) -> None:
    """Many write it there."""
    assert "hunter2" not in repr(loaded(SIDECAR_ELASTICSEARCH_URL="https://elastic:hunter2@host:9200"))
