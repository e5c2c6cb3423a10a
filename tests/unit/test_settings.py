"""`sidecar.config.settings`: each problem with its mend, all of them at once, and never a secret."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path  # noqa: TC003 - pytest looks at the annotations of fixtures
from typing import Protocol

import pytest

from sidecar.config.settings import ELASTICSEARCH_ONLY, MAX_PREFETCH, SINK_ONLY, Settings, load, split_address
from sidecar.errors import ConfigError

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
    assert (settings.bulk_concurrency, settings.bulk_timeout, settings.bulk_compress) == (4, 20.0, False)
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
    [("5MiB", 5 << 20), ("10MB", 10_000_000), ("123", 123), ("1 KiB", 1024), ("1.5kb", 1500), ("0.0625GiB", 1 << 26)],
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
        SIDECAR_AMQP_EXCHANGE="e",
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
        ("SIDECAR_INDX_FILE", "did you mean SIDECAR_INDEX_FILE?"),
        ("SIDECAR_AMQP_CA_FIL", "did you mean SIDECAR_AMQP_CA_FILE?"),
        ("SIDECAR_AMQP_CA", "did you mean SIDECAR_AMQP_CA_FILE?"),
        ("SIDECAR_ZZZ", "`sidecar config` lists what there is"),
    ],
)
def test_unknown_names_are_errors_with_a_hint(loaded: Load, name: str, hint: str) -> None:
    """The nearest real name, where one is near."""
    (problem,) = problems(loaded, **{name: "1"})
    assert problem.startswith(f"{name} is no setting")
    assert problem.endswith(hint)


SERVICE_LINKS = {
    "SIDECAR_SERVICE_HOST": "10.0.0.1",
    "SIDECAR_SERVICE_PORT": "9180",
    "SIDECAR_SERVICE_PORT_HTTP": "9180",
    "SIDECAR_PORT": "tcp://10.0.0.1:9180",
    "SIDECAR_PORT_9180_TCP": "tcp://10.0.0.1:9180",
    "SIDECAR_PORT_9180_TCP_PROTO": "tcp",
    "SIDECAR_PORT_9180_TCP_PORT": "9180",
    "SIDECAR_PORT_9180_TCP_ADDR": "10.0.0.1",
    "SIDECAR_HTTP_SERVICE_HOST": "fd00::1",
    "SIDECAR_HTTP_SERVICE_PORT": "80",
    "SIDECAR_HTTP_PORT": "tcp://[fd00::1]:80",
    "SIDECAR_DNS_PORT_53_UDP": "udp://10.0.0.2:53",
    "SIDECAR_DNS_PORT_53_UDP_PROTO": "udp",
}


def test_what_kubernetes_injects_is_ignored(loaded: Load) -> None:
    """A Service called ``sidecar`` must not keep its own pods from starting."""
    assert loaded(**SERVICE_LINKS).index == "logs"


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("SIDECAR_HTTP_PORT", "9555", "SIDECAR_HTTP_ADDRESS"),
        ("SIDECAR_HTTP_PORT", "0.0.0.0:9555", "SIDECAR_HTTP_ADDRESS"),
        ("SIDECAR_HTTP_PORT", "tcp://elasticsearch:9555", "SIDECAR_HTTP_ADDRESS"),
        ("SIDECAR_PORT", "9180", "`sidecar config`"),
        ("SIDECAR_SERVICE_PORT", "9180", "`sidecar config`"),  # no host beside it
        ("SIDECAR_SERVICE_HOST", "elasticsearch", "`sidecar config`"),
        ("SIDECAR_AMQP_PORT_5672_TCP_PORT", "5673", "`sidecar config`"),
        ("SIDECAR_AMQP_PORT_5672_TCP_PROTO", "udp", "`sidecar config`"),
        ("SIDECAR_AMQP_PORT_5672_TCP_ADDR", "rabbitmq", "`sidecar config`"),
        ("SIDECAR_AMQP_PORT", "5672", ""),
    ],
)
def test_what_only_looks_like_kubernetes_is_named(loaded: Load, name: str, value: str, hint: str) -> None:
    """By its value: a setting that somebody mistyped must not be ignored."""
    (problem,) = problems(loaded, **{name: value})
    assert problem.startswith(f"{name} is no setting")
    assert hint in problem


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
        ({"SIDECAR_BATCH_COMPLETE_COUNT": "70000"}, ["65535", "70000", "SIDECAR_BATCH_COMPLETE_COUNT"]),
        ({"SIDECAR_BATCH_COMPLETE_COUNT": "2500", "SIDECAR_AMQP_PREFETCH": "2499"}, ["2499", "2500", "15000"]),
    ],
)
def test_a_prefetch_that_cannot_fill_a_batch_is_refused_with_the_sum(
    loaded: Load, given: dict[str, str], says: list[str]
) -> None:
    """Batches would only ever complete by age; and the protocol has 16 bits for it."""
    (problem,) = problems(loaded, **given)
    assert [number for number in says if number not in problem] == []


def test_the_prefetch_has_room_for_complete_sets(loaded: Load) -> None:
    """Where their size is the same for all; a set smaller than a batch needs no more than itself."""
    assert loaded(SIDECAR_BATCH_COMPLETE_COUNT="2500").prefetch == 2500 * (4 + 2)
    assert loaded(SIDECAR_BATCH_COMPLETE_COUNT="250").prefetch == 1000 * (4 + 2)
    assert loaded(SIDECAR_BATCH_COMPLETE_COUNT="{header.n}").prefetch == 1000 * (4 + 2)
    assert loaded(SIDECAR_BATCH_COMPLETE_COUNT="250", SIDECAR_AMQP_PREFETCH="250").prefetch == 250


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "many", "00", "9" * 20])
def test_a_set_has_a_positive_whole_number_of_messages(loaded: Load, size: str) -> None:
    """Where it is the same for all, that is known at the start."""
    (problem,) = problems(loaded, SIDECAR_BATCH_COMPLETE_COUNT=size)
    assert problem.startswith("SIDECAR_BATCH_COMPLETE_COUNT: must be a whole number from 1")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ('["a"]', "dictionary"),
        ("{", "must be a JSON object"),
        ('{"a": 5}', "the value of its field 1 is no text"),
        ('{"a": "x", "b": "{nothing}"}', "this is no field; there are"),
        ('{"a": "x", "b": "{nothing}"}', "at character 2, of its field 2"),
        ('{"_id": "{message_id}"}', "Elasticsearch's own"),
        ('{"a": "x", "a.b": "y"}', "a.b would lie inside of a"),
    ],
)
def test_a_mistake_in_fields_is_told_at_the_start(loaded: Load, fields: str, says: str) -> None:
    """With its place."""
    (problem,) = problems(loaded, SIDECAR_FIELDS=fields)
    assert problem.startswith("SIDECAR_FIELDS: ")
    assert says in problem


def test_templates_to_install_need_a_folder(loaded: Load, tmp_path: Path) -> None:
    """One that is there."""
    assert problems(loaded, SIDECAR_MAPPINGS_APPLY="true") == [
        "SIDECAR_MAPPINGS_APPLY installs templates of a folder: SIDECAR_MAPPINGS_DIR is missing"
    ]
    assert problems(loaded, SIDECAR_MAPPINGS_DIR=str(tmp_path / "none")) == [
        "SIDECAR_MAPPINGS_DIR: must be the path of a folder"
    ]
    assert loaded(SIDECAR_MAPPINGS_APPLY="true", SIDECAR_MAPPINGS_DIR=str(tmp_path)).mappings_apply


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
        ("SIDECAR_AMQP_URL", "amqp://mq..local/"),
        ("SIDECAR_ELASTICSEARCH_URL", f"http://{'a' * 64}.local:9200"),
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
        {"SIDECAR_INDEX": "{hunter2}"},
        {"SIDECAR_INDEX": "{hunter2"},
        {"SIDECAR_INDEX": "-hunter2"},
        {"SIDECAR_ROUTING": "{hunter2:%Y}"},
        {"SIDECAR_PIPELINE": """{hunter2'"}"""},
        {"SIDECAR_ID": "hunter2"},
        {"SIDECAR_VERSION": "hunter2"},
        {"SIDECAR_VERSION_TYPE": "hunter2"},
        {"SIDECAR_AMQP_CA_FILE": "hunter2"},
        {"SIDECAR_ELASTICSEARCH_FINGERPRINT": "hunter2"},
        {"SIDECAR_ELASTICSEARCH_CLOUD_ID": "hunter2"},
        {"SIDECAR_ELASTICSEARCH_API_KEY": "hunter2\nx"},
        {"SIDECAR_ELASTICSEARCH_USERNAME": "hunter2:"},
        {"SIDECAR_ELASTICSEARCH_API_KEY": "hunter2", "SIDECAR_ELASTICSEARCH_BEARER_TOKEN": "hunter2"},
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
    settings = loaded(
        SIDECAR_AMQP_URL="amqp://u:hunter2@host/",
        SIDECAR_ELASTICSEARCH_USERNAME="elastic",
        SIDECAR_ELASTICSEARCH_PASSWORD="hunter2",
    )
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


def test_a_password_in_the_url_of_elasticsearch_is_masked_too(loaded: Load) -> None:
    """Many write it there."""
    assert "hunter2" not in repr(loaded(SIDECAR_ELASTICSEARCH_URL="https://elastic:hunter2@host:9200"))


def test_the_defaults_of_what_becomes_of_messages_are_those_of_the_contract(loaded: Load) -> None:
    """Source: contract §3."""
    settings = loaded()
    assert (settings.delayed_retry_max_rounds, settings.delayed_retry_delay) == (3, 10.0)
    assert (settings.on_reject, settings.on_conflict) == ("dead-letter", "ack")
    assert (settings.on_index_missing, settings.on_index_blocked) == ("dead-letter", "delay")
    assert (settings.reject_guard, settings.version_type, settings.index_allow) == (1000, "external", ())
    assert (settings.routing, settings.pipeline, settings.version) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ACTION", "create"),
        ("ACTION", "{header.action|index}"),
        ("ID", "generated"),
        ("ID", "{body.id}-{header.part|0}"),
        ("ROUTING", "{routing_key}"),
        ("PIPELINE", "geo"),
        ("VERSION", "{body.version}"),
        ("VERSION_TYPE", "external_gte"),
        ("ON_REJECT", "broker"),
        ("ON_REJECT", "discard"),
        ("ON_CONFLICT", "dead-letter"),
        ("ON_INDEX_MISSING", "hold"),
        ("ON_INDEX_BLOCKED", "dead-letter"),
        ("INDEX", "logs-{timestamp:%Y.%m.%d|none}"),
    ],
)
def test_templates_and_words_are_taken_as_they_are(loaded: Load, name: str, text: str) -> None:
    """They are compiled to check them; the text stays."""
    assert getattr(loaded(**{f"SIDECAR_{name}": text}), name.lower()) == text


def test_zero_turns_guard_and_rounds_off(loaded: Load) -> None:
    """Both count something that may be none."""
    settings = loaded(SIDECAR_REJECT_GUARD="0", SIDECAR_DELAYED_RETRY_MAX_ROUNDS="0")
    assert (settings.reject_guard, settings.delayed_retry_max_rounds) == (0, 0)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("INDEX", "logs-{nowhere}", "at character 7"),
        ("INDEX", "logs-{now", "at character 6"),
        ("ROUTING", "a}b", "at character 2"),
        ("PIPELINE", "{priority:%Y}", "not a time"),
        ("ID", "{body.}", "at character 2"),
        ("VERSION", "{}", "at character 2"),
        ("ACTION", "{action}", "at character 2"),
    ],
)
def test_a_mistake_in_a_template_is_told_with_its_place(loaded: Load, name: str, text: str, says: str) -> None:
    """And under the setting's name."""
    (problem,) = problems(loaded, **{f"SIDECAR_{name}": text})
    assert problem.startswith(f"SIDECAR_{name}: ")
    assert says in problem


@pytest.mark.parametrize("text", ["replace", "Index", "{{index}}", "index,create"])
def test_an_action_without_a_field_is_one_of_the_five(loaded: Load, text: str) -> None:
    """Otherwise every message would be rejected."""
    (problem,) = problems(loaded, SIDECAR_ACTION=text)
    assert "index, create, update, upsert, delete" in problem


@pytest.mark.parametrize("text", ["message_id", "Auto", "{{id}}"])
def test_an_id_that_is_the_same_for_all_is_refused(loaded: Load, text: str) -> None:
    """Forgotten braces would leave one document of a whole queue."""
    (problem,) = problems(loaded, SIDECAR_ID=text)
    assert "auto, generated, none" in problem


def test_a_version_that_can_never_be_one_is_refused(loaded: Load) -> None:
    """Likewise."""
    assert loaded(SIDECAR_VERSION="7").version == "7"
    for text in ("body.version", "-1", str(2**63)):
        (problem,) = problems(loaded, SIDECAR_VERSION=text)
        assert "whole number" in problem


@pytest.mark.parametrize(("name", "text"), [("DELAYED_RETRY_DELAY", "6m"), ("DELAYED_RETRY_DELAY", "0.1ms")])
def test_the_delay_is_within_what_a_delay_queue_takes(loaded: Load, name: str, text: str) -> None:
    """Whole milliseconds, at most five minutes."""
    (problem,) = problems(loaded, **{f"SIDECAR_{name}": text})
    assert problem.startswith(f"SIDECAR_{name}: ")


def secret_file(folder: Path, content: str) -> str:
    """Write a file; return its path."""
    path = folder / "secret"
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_value_can_stand_in_a_file(loaded: Load, tmp_path: Path, end: str) -> None:
    """As Kubernetes mounts secrets, and editors write them."""
    settings = loaded(
        SIDECAR_ELASTICSEARCH_USERNAME="elastic",
        SIDECAR_ELASTICSEARCH_PASSWORD_FILE=secret_file(tmp_path, " hunter2 " + end),
    )
    assert settings.elasticsearch_password is not None
    assert settings.elasticsearch_password.get_secret_value() == " hunter2 "


def test_required_settings_and_those_with_units_can_stand_in_files_too(loaded: Load, tmp_path: Path) -> None:
    """Every setting can."""
    path = secret_file(tmp_path, "5m\n")
    settings = loaded(SIDECAR_INDEX="", SIDECAR_INDEX_FILE=path, SIDECAR_BULK_TIMEOUT_FILE=path)
    assert (settings.index, settings.bulk_timeout) == ("5m", 300.0)


def test_a_setting_whose_own_name_ends_so_is_a_path(loaded: Load, tmp_path: Path) -> None:
    """Its file is not read into it."""
    path = secret_file(tmp_path, "hunter2")
    settings = loaded(SIDECAR_AMQP_CA_FILE=path, SIDECAR_ELASTICSEARCH_CERT_FILE=path)
    assert (settings.amqp_ca_file, settings.elasticsearch_cert_file) == (path, path)
    holder = tmp_path / "holder"
    holder.write_text(path + "\n")
    assert loaded(SIDECAR_AMQP_CA_FILE="", SIDECAR_AMQP_CA_FILE_FILE=str(holder)).amqp_ca_file == path


def test_a_value_given_twice_is_a_problem(loaded: Load, tmp_path: Path) -> None:
    """Nobody should have to know which wins."""
    path = secret_file(tmp_path, "hunter2")
    assert problems(loaded, SIDECAR_INDEX_FILE=path) == [
        "SIDECAR_INDEX and SIDECAR_INDEX_FILE are both given; one goes"
    ]


def test_a_file_that_cannot_be_read_is_named_and_hides_nothing_else(loaded: Load, tmp_path: Path) -> None:
    """The setting itself isn't called missing, nor what goes with it; all other problems are told."""
    missing = str(tmp_path / "missing")
    found = problems(
        loaded,
        SIDECAR_INDEX="",
        SIDECAR_INDEX_FILE=missing,
        SIDECAR_ELASTICSEARCH_USERNAME="elastic",
        SIDECAR_ELASTICSEARCH_PASSWORD_FILE=str(tmp_path),
        SIDECAR_ACTION="replace",
        SIDECAR_RETRY_DELAY_MIN="1m",
    )
    assert [problem.split(":")[0] for problem in found] == [
        "SIDECAR_ELASTICSEARCH_PASSWORD_FILE",
        "SIDECAR_INDEX_FILE",
        "SIDECAR_ACTION",
        "SIDECAR_RETRY_DELAY_MIN is above SIDECAR_RETRY_DELAY_MAX",
    ]
    assert f"{missing} can't be read (No such file or directory)" in found[1]


@pytest.mark.parametrize(("content", "says"), [(b"", "is empty"), (b"\n", "is empty"), (b"\xffhunter2", "not UTF-8")])
def test_a_file_without_text_is_a_problem(loaded: Load, tmp_path: Path, content: bytes, says: str) -> None:
    """An empty password would be found out much later."""
    path = tmp_path / "secret"
    path.write_bytes(content)
    (problem,) = problems(loaded, SIDECAR_ELASTICSEARCH_API_KEY_FILE=str(path))
    assert says in problem
    assert str(path) in problem
    assert "hunter2" not in problem


def test_certificates_that_cannot_be_read_are_told_at_the_start(loaded: Load, tmp_path: Path) -> None:
    """Not by the first connection."""
    found = problems(loaded, SIDECAR_AMQP_CA_FILE=str(tmp_path / "no"), SIDECAR_ELASTICSEARCH_CA_FILE=str(tmp_path))
    assert [problem.split(":")[0] for problem in found] == ["SIDECAR_AMQP_CA_FILE", "SIDECAR_ELASTICSEARCH_CA_FILE"]


def test_a_dotenv_file_that_is_no_text_is_a_problem(loaded: Load, tmp_path: Path) -> None:
    """Not a traceback."""
    (tmp_path / ".env").write_bytes(b"\xff\xfe=1")
    assert problems(loaded) == [".env can't be read (it is not UTF-8)"]


CLOUD_ID = "mine:ZWFzdC5leGFtcGxlLm5ldCRhYmMkZGVm"
"""east.example.net$abc$def"""


def test_there_are_four_ways_to_log_in(loaded: Load) -> None:
    """Each by itself, with a cloud id or without."""
    basic = {"SIDECAR_ELASTICSEARCH_USERNAME": "u", "SIDECAR_ELASTICSEARCH_PASSWORD": "p"}
    ways: list[dict[str, str]] = [
        basic, {"SIDECAR_ELASTICSEARCH_API_KEY": "id:key=="}, {"SIDECAR_ELASTICSEARCH_BEARER_TOKEN": "AAE.x-_/+"},
    ]  # fmt: skip
    for way in ways:
        blank = dict.fromkeys((name for other in ways for name in other), "")
        loaded(**blank | way)
        assert loaded(**blank | way, SIDECAR_ELASTICSEARCH_CLOUD_ID=CLOUD_ID).elasticsearch_cloud_id == CLOUD_ID


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"USERNAME": "u"}, ["USERNAME is given without SIDECAR_ELASTICSEARCH_PASSWORD"]),
        ({"PASSWORD": "p"}, ["PASSWORD is given without SIDECAR_ELASTICSEARCH_USERNAME"]),
        ({"API_KEY": "k", "BEARER_TOKEN": "t"}, ["2 ways", "SIDECAR_ELASTICSEARCH_API_KEY", "BEARER_TOKEN"]),
        ({"USERNAME": "u", "PASSWORD": "p", "API_KEY": "k", "BEARER_TOKEN": "t"}, ["3 ways"]),
        ({"URL": "https://u:p@host", "API_KEY": "k"}, ["2 ways", "SIDECAR_ELASTICSEARCH_URL"]),
        ({"URL": "https://host", "CLOUD_ID": CLOUD_ID}, ["CLOUD_ID", "SIDECAR_ELASTICSEARCH_URL"]),
        ({"FINGERPRINT": "ab:cd"}, ["64 hexadecimal digits"]),
        ({"CLOUD_ID": "mine"}, ["CLOUD_ID"]),
        ({"KEY_FILE": "/dev/null"}, ["SIDECAR_ELASTICSEARCH_CERT_FILE is missing"]),
    ],
)
def test_what_does_not_go_together_at_elasticsearch(loaded: Load, given: dict[str, str], says: list[str]) -> None:
    """One problem each, that names the settings."""
    (problem,) = problems(loaded, **{f"SIDECAR_ELASTICSEARCH_{name}": text for name, text in given.items()})
    assert [part for part in says if part not in problem] == []


@pytest.mark.parametrize("digits", ["ab" * 32, ":".join(["AB"] * 32)])
def test_a_fingerprint_is_taken_with_colons_or_without(loaded: Load, digits: str) -> None:
    """As openssl and the server print it."""
    assert loaded(SIDECAR_ELASTICSEARCH_FINGERPRINT=digits).elasticsearch_fingerprint == digits


def test_a_key_without_its_certificate_is_refused(loaded: Load) -> None:
    """The other way round the key may stand in the same file."""
    (problem,) = problems(loaded, SIDECAR_AMQP_KEY_FILE="/dev/null")
    assert "SIDECAR_AMQP_CERT_FILE" in problem
    assert loaded(SIDECAR_AMQP_CERT_FILE="/dev/null", SIDECAR_AMQP_KEY_FILE="").amqp_cert_file == "/dev/null"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"VERSION": "{body.v}", "ACTION": "create"}, ["SIDECAR_ACTION=create", "index and delete"]),
        ({"VERSION": "{body.v}", "ACTION": "upsert"}, ["SIDECAR_ACTION=upsert"]),
        ({"VERSION": "{body.v}", "ID": "none"}, ["SIDECAR_VERSION", "SIDECAR_ID=none"]),
        ({"ACTION": "update", "ID": "none"}, ["SIDECAR_ACTION=update", "SIDECAR_ID=none"]),
        ({"ACTION": "upsert", "ID": "generated"}, ["SIDECAR_ACTION=upsert", "SIDECAR_ID=generated"]),
        ({"ACTION": "delete", "ID": "none"}, ["SIDECAR_ACTION=delete"]),
        ({"INDEX": ".security"}, ["SIDECAR_INDEX ", "SIDECAR_INDEX_ALLOW"]),
        ({"INDEX": "logs", "INDEX_ALLOW": "metrics-*, logs-*"}, ["SIDECAR_INDEX ", "SIDECAR_INDEX_ALLOW"]),
        ({"BATCH_MAX_BYTES": "101MiB"}, ["105,906,176", "1,048,576", "104,857,600"]),
    ],
)
def test_what_can_never_work_is_refused(loaded: Load, given: dict[str, str], says: list[str]) -> None:
    """With the sum where there is one; only what is the same for every message can be known."""
    (problem,) = problems(loaded, **{f"SIDECAR_{name}": text for name, text in given.items()})
    assert [part for part in says if part not in problem] == []


@pytest.mark.parametrize(
    "given",
    [
        {"VERSION": "{body.v}", "ACTION": "delete"},
        {"VERSION": "{body.v}", "ACTION": "{header.action}"},
        {"ACTION": "{header.action}", "ID": "none"},
        {"ACTION": "update"},
        {"INDEX": "{body.index}", "INDEX_ALLOW": "logs-*"},
        {"INDEX": "logs-a", "INDEX_ALLOW": "metrics-*,logs-*"},
        {"BATCH_MAX_BYTES": "100MiB"},
        {"SHUTDOWN_TIMEOUT": "1s", "BULK_TIMEOUT": "10m"},
    ],
)
def test_what_can_work_is_not_refused(loaded: Load, given: dict[str, str]) -> None:
    """A message at a time may still be rejected."""
    loaded(**{f"SIDECAR_{name}": text for name, text in given.items()})


def test_problems_between_settings_are_told_beside_bad_ones(loaded: Load) -> None:
    """But for those that only come from leaving the bad one out; names that merely begin alike aren't mixed up."""
    found = problems(loaded, SIDECAR_INDEX="{", SIDECAR_VERSION="v", SIDECAR_ACTION="update", SIDECAR_ID="none")
    assert sorted(problem.split(":")[0].split("=")[0] for problem in found) == [
        "SIDECAR_ACTION",
        "SIDECAR_INDEX",
        "SIDECAR_VERSION",
    ]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:9180", ("0.0.0.0", 9180)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::]:9180", ("::", 9180)),
        ("[::1]:80", ("::1", 80)),
        (":9180", (None, 9180)),
        ("localhost:65535", ("localhost", 65535)),
        ("", None),
    ],
)
def test_the_address_of_probes_is_host_and_port(
    loaded: Load, text: str, address: tuple[str | None, int] | None
) -> None:
    """Or empty, which means off: the only setting of which an empty value says something."""
    assert split_address(loaded(SIDECAR_HTTP_ADDRESS=text).http_address) == address


def test_probes_are_answered_where_nothing_else_is_said(loaded: Load) -> None:
    """On all addresses: they come from other machines."""
    assert loaded().http_address == "0.0.0.0:9180"


@pytest.mark.parametrize(
    "text", ["9180", "0.0.0.0", "host:", "host:x", "host:65536", "::1:80", "http://host:80", "a b:1", "a..b:80"]
)
def test_an_address_that_is_none_is_refused_with_examples(loaded: Load, text: str) -> None:
    """Before anything listens."""
    (problem,) = problems(loaded, SIDECAR_HTTP_ADDRESS=text)
    assert problem.startswith("SIDECAR_HTTP_ADDRESS: must be host:port")
    assert "off" in problem


def test_what_is_said_of_documents_in_a_message_fits_together(loaded: Load) -> None:
    """A place of a document where none has one, and an array of what is no JSON."""
    (problem,) = problems(loaded, SIDECAR_ID="{message_id}-{item}")
    assert "{item}" in problem
    array = {"SIDECAR_SPLIT": "array", "SIDECAR_CONTENT": "text"}
    (problem,) = problems(loaded, **array)
    assert "SIDECAR_SPLIT=array takes JSON" in problem
    assert loaded(**(array | {"SIDECAR_SPLIT": "lines"})).split == "lines"
    (problem,) = problems(loaded, SIDECAR_ID="auto", SIDECAR_SPLIT="none", SIDECAR_FIELDS='{"at":"{item}"}')
    assert "{item}" in problem


# Another exchange ----------------------------------------------------------------------------------------------------

SINK = {"SIDECAR_SINK": "amqp", "SIDECAR_INDEX": "", "SIDECAR_SINK_EXCHANGE": "staging"}


def test_another_exchange_needs_no_index(loaded: Load) -> None:
    """Its own defaults: the same broker, the same routing key, no envelope; what no queue takes waits."""
    settings = loaded(**SINK)
    assert (settings.sink, settings.sink_exchange, settings.sink_exchange_type) == ("amqp", "staging", "direct")
    assert (settings.sink_amqp_url, settings.sink_routing_key) == ((), "{routing_key}")
    assert (settings.sink_envelope, settings.on_unroutable) == ("none", "hold")


def test_settings_of_elasticsearch_are_told_one_by_one_where_they_mean_nothing(loaded: Load) -> None:
    """Beside all that is wrong otherwise."""
    wrong = {"SIDECAR_INDEX": "logs", "SIDECAR_ID": "none", "SIDECAR_SPLIT": "lines", "SIDECAR_HOLD_MAX": "long"}
    found = problems(loaded, **SINK | wrong)
    assert found[0].startswith("SIDECAR_HOLD_MAX: ")
    assert found[1:] == [
        f"{name} is about Elasticsearch, where SIDECAR_SINK=amqp writes nothing: unset it"
        for name in ("SIDECAR_INDEX", "SIDECAR_ID", "SIDECAR_SPLIT")
    ]


def test_settings_of_the_sink_are_told_where_there_is_none(loaded: Load) -> None:
    """Somebody forgot SIDECAR_SINK; without a word messages would go elsewhere."""
    assert problems(loaded, SIDECAR_SINK_EXCHANGE="staging", SIDECAR_ON_UNROUTABLE="delay") == [
        "SIDECAR_SINK_EXCHANGE is about SIDECAR_SINK=amqp, which isn't set",
        "SIDECAR_ON_UNROUTABLE is about SIDECAR_SINK=amqp, which isn't set",
    ]


@pytest.mark.parametrize(
    "environment",
    [SINK | {"SIDECAR_ACTION": "index", "SIDECAR_ELASTICSEARCH_URL": "http://localhost:9200"},
     {"SIDECAR_SINK_ENVELOPE": "none", "SIDECAR_SINK": "elasticsearch"}],
)  # fmt: skip
def test_a_default_that_is_given_says_nothing_and_does_no_harm(loaded: Load, environment: dict[str, str]) -> None:
    """Images and charts set some."""
    loaded(**environment)


def test_every_setting_of_elasticsearch_is_known_as_such() -> None:
    """And every one of the sink; what neither names is good for both."""
    fields = set(Settings.model_fields)
    assert fields >= ELASTICSEARCH_ONLY
    assert fields >= SINK_ONLY
    assert not ELASTICSEARCH_ONLY & SINK_ONLY
    assert {name for name in fields if name.startswith(("elasticsearch_", "mappings_"))} <= ELASTICSEARCH_ONLY
    assert {name for name in fields if name.startswith("sink_")} <= SINK_ONLY


def test_the_default_exchange_needs_the_name_of_a_queue_and_of_another_one(loaded: Load) -> None:
    """The messages' own routing key would lead back here, or nowhere. A node in common is the same broker."""
    default = SINK | {"SIDECAR_SINK_EXCHANGE": ""}
    (problem,) = problems(loaded, **default)
    assert problem == "SIDECAR_SINK_ROUTING_KEY is required with the default exchange: it is the name of a queue"
    loop = "SIDECAR_SINK_ROUTING_KEY is a queue of SIDECAR_AMQP_QUEUE: every message would come back, for ever"
    queues = ("work", "other", "third")
    nodes = "amqp://a/,amqp://b/"
    for key, sink in product(queues, ("", nodes, "amqp://a/", "amqp://b/", "amqp://b/,amqp://c/")):
        given = {"SIDECAR_AMQP_QUEUE": ",".join(queues), "SIDECAR_SINK_ROUTING_KEY": key, "SIDECAR_AMQP_URL": nodes}
        given |= {"SIDECAR_SINK_AMQP_URL": sink} if sink else {}
        assert problems(loaded, **default, **given) == [loop], given
    loaded(**default, SIDECAR_SINK_ROUTING_KEY="work", SIDECAR_SINK_AMQP_URL="amqp://elsewhere/")
    loaded(**default, SIDECAR_SINK_ROUTING_KEY="staging")


def test_the_way_to_the_sink_is_a_secret_as_well(loaded: Load) -> None:
    """It may hold a password."""
    settings = loaded(**SINK, SIDECAR_SINK_AMQP_URL="amqp://u:hunter2@far/, amqps://far2/")
    assert [url.get_secret_value() for url in settings.sink_amqp_url] == ["amqp://u:hunter2@far/", "amqps://far2/"]
    assert "hunter2" not in repr(settings)
    (problem,) = problems(loaded, **SINK, SIDECAR_SINK_AMQP_URL="http://u:hunter2@far/")
    assert problem.startswith("SIDECAR_SINK_AMQP_URL: must begin with amqp:// or amqps://")


def test_nothing_is_split_where_messages_are_passed_on(loaded: Load) -> None:
    """Every message would be without that field."""
    (problem,) = problems(loaded, **SINK, SIDECAR_SINK_ROUTING_KEY="part.{item}")
    assert problem == "{item} is the place of a document in its message, and SIDECAR_SINK=amqp splits none"


LIMITS: list[tuple[str, str, str]] = [
    *((name, "1", "0") for name in ("BATCH_MAX_ITEMS", "BULK_CONCURRENCY", "RETRY_MAX_ATTEMPTS")),
    *((name, "0", "-1") for name in ("REJECT_GUARD", "DELAYED_RETRY_MAX_ROUNDS")),
    *((name, "1ms", "0ms") for name in ("BATCH_MAX_AGE", "BULK_TIMEOUT", "RETRY_DELAY_MIN", "HOLD_MAX")),
    *((name, "8784h", "8784.1h") for name in ("BATCH_MAX_AGE", "BULK_TIMEOUT", "RETRY_DELAY_MAX", "HOLD_MAX")),
    *((name, "527040m", "527041m") for name in ("SHUTDOWN_TIMEOUT", "BATCH_MAX_AGE")),
    *((name, "1", "0") for name in ("BATCH_MAX_BYTES", "MEMORY_LIMIT")),
    ("MEMORY_LIMIT", "1048576GiB", "1048576.1GiB"),
    ("BATCH_MAX_BYTES", "100MiB", "104857601"),
    ("AMQP_PREFETCH", "1000", "999"),
    ("AMQP_PREFETCH", "65535", "65536"),
    ("BATCH_MAX_ITEMS", "65535", "65536"),
    ("RETRY_DELAY_MIN", "30s", "30.001s"),
    ("RETRY_DELAY_MAX", "0.5s", "0.499s"),
    ("DELAYED_RETRY_DELAY", "1ms", "0.9ms"),
    ("DELAYED_RETRY_DELAY", "5m", "300.001s"),
    ("AMQP_QUEUE", "q" * 242, "q" * 243),  # with .delay.300000 RabbitMQ's limit of 255 bytes is reached
    ("AMQP_QUEUE", "ü" * 121, "ü" * 122),
    ("AMQP_QUEUE", "a," + "q" * 242 + ",b", "a," + "q" * 243 + ",b"),
    ("AMQP_EXCHANGE", "e" * 255, "e" * 256),
    ("DEAD_LETTER_ROUTING_KEY", "k" * 255, "k" * 256),
    ("HTTP_ADDRESS", "localhost:65535", "localhost:65536"),
    ("AMQP_URL", "amqp://one/?heartbeat=65535", "amqp://one/?heartbeat=65536"),
    ("AMQP_URL", "amqp://one:65535/", "amqp://one:65536/"),
    ("BATCH_COMPLETE_COUNT", "65535", "65536"),
    ("VERSION", str(2**63 - 1), str(2**63)),
]


@pytest.mark.parametrize(("name", "within", "beyond"), LIMITS)
def test_a_limit_is_accepted_and_one_beyond_is_not(loaded: Load, name: str, within: str, beyond: str) -> None:
    """The setting is the only problem."""
    loaded(**{f"SIDECAR_{name}": within})
    (problem,) = problems(loaded, **{f"SIDECAR_{name}": beyond})
    assert f"SIDECAR_{name}" in problem or "prefetch" in problem


def test_a_secret_file_has_at_most_a_mebibyte(loaded: Load, tmp_path: Path) -> None:
    """At the limit it is read, one byte beyond it is refused with the number."""
    path = tmp_path / "secret"
    path.write_bytes(b"x" * (1 << 20))
    key = loaded(SIDECAR_ELASTICSEARCH_API_KEY_FILE=str(path)).elasticsearch_api_key
    assert key is not None
    assert len(key.get_secret_value()) == 1 << 20
    path.write_bytes(b"x" * ((1 << 20) + 1))
    assert problems(loaded, SIDECAR_ELASTICSEARCH_API_KEY_FILE=str(path)) == [
        f"SIDECAR_ELASTICSEARCH_API_KEY_FILE: {path} is larger than 1,048,576 bytes"
    ]


def test_environment_and_dotenv_file_are_one_set_of_names(loaded: Load, tmp_path: Path) -> None:
    """The environment wins name by name, also with an empty value; a value and its file may stand in either."""
    path = secret_file(tmp_path, "from-file")
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"SIDECAR_ELASTICSEARCH_API_KEY_FILE={path}\nSIDECAR_ACTION=create\nSIDECAR_PIPELINE=p\n")
    settings = loaded(SIDECAR_PIPELINE="", SIDECAR_ACTION="index")
    assert settings.elasticsearch_api_key is not None
    assert settings.elasticsearch_api_key.get_secret_value() == "from-file"
    assert (settings.pipeline, settings.action) == (None, "index")
    assert problems(loaded, SIDECAR_ELASTICSEARCH_API_KEY="from-environment") == [
        "SIDECAR_ELASTICSEARCH_API_KEY and SIDECAR_ELASTICSEARCH_API_KEY_FILE are both given; one goes"
    ]
    dotenv.write_text("SIDECAR_ACTION=create\nSIDECAR_ACTION=delete\n")
    assert loaded(SIDECAR_ELASTICSEARCH_API_KEY="", SIDECAR_ACTION="index").action == "index"
    dotenv.write_text("SIDECAR_ROUTING=first\nSIDECAR_ROUTING=second\n")
    assert loaded().routing == "second"
