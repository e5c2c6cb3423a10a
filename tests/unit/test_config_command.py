"""`sidecar config`: every setting as it is, and no secret."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - pytest looks at the annotations of fixtures
from typing import Any, Protocol

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import cli
from sidecar.cli.config import FORMATS, readme_table
from sidecar.config import dotenv
from sidecar.config.settings import PREFIX, Settings, load
from tests import compose_dotenv
from tests.builders import without_settings

NAMES = [PREFIX + name.upper() for name in Settings.model_fields]
REQUIRED = {"SIDECAR_AMQP_QUEUE": "work", "SIDECAR_INDEX": "logs"}
SECRETS = {
    "SIDECAR_AMQP_URL": "amqp://user:hunter2@one/,amqps://user:hunter2@two:5671/vhost?password=hunter2",
    "SIDECAR_ELASTICSEARCH_URL": "https://elastic:hunter2@host:9200",
    "SIDECAR_ELASTICSEARCH_USERNAME": "elastic",
    "SIDECAR_ELASTICSEARCH_PASSWORD": "hunter2",
    "SIDECAR_ELASTICSEARCH_API_KEY": "hunter2",
    "SIDECAR_ELASTICSEARCH_BEARER_TOKEN": "hunter2",
}


class Listed(Protocol):
    """Runs the command in an environment of nothing but what is given."""

    def __call__(self, style: str, environment: dict[str, str]) -> Result:
        """Run it."""
        ...


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Listed:
    """Return a runner that nothing on this machine has an influence on."""
    monkeypatch.chdir(tmp_path)
    nothing = without_settings()

    def run(style: str, environment: dict[str, str]) -> Result:
        return CliRunner().invoke(cli, ["config", "--format", style], env=nothing | environment)

    return run


def entries(result: Result) -> dict[str, dict[str, Any]]:
    """Return what the format ``json`` says, by the setting's name."""
    return {entry["name"]: entry for entry in json.loads(result.stdout)}


@pytest.mark.parametrize("style", FORMATS)
def test_every_format_names_every_setting_with_its_meaning(listed: Listed, style: str) -> None:
    """In the order of the code."""
    result = listed(style, REQUIRED)
    assert (result.exit_code, result.stderr) == (0, "")
    places = [result.stdout.find(name) for name in NAMES]
    assert -1 not in places
    assert "one or more queues, comma-separated; all feed the same aggregator" in result.stdout
    assert "work" in result.stdout


@pytest.mark.parametrize("style", FORMATS)
def test_no_format_shows_a_secret(listed: Listed, style: str, tmp_path: Path) -> None:
    """Neither as it is given, nor inside of URLs, nor from a file, nor by the problems."""
    result = listed(style, REQUIRED | SECRETS)
    assert "hunter2" not in result.output
    assert "***" in result.stdout
    path = tmp_path / "secret"
    path.write_text("hunter2\n")
    result = listed(style, REQUIRED | {"SIDECAR_ELASTICSEARCH_API_KEY_FILE": str(path)})
    assert result.exit_code == 0
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://host/", "amqp://host/"),
        ("amqp://user:hunter2@host:1/v", "amqp://user:***@host:1/v"),
        ("amqp://one/, amqp://u:hunter2@two/", "amqp://one/,amqp://u:***@two/"),
        ("amqp://u:hunter2@host/?heartbeat=5", "amqp://u:***@host/?***"),
        ("hunter2", "***"),
        ("u:hunter2@host", "***"),
        ("amqp://u:hunter2@host:port/", "***"),
        ("amqp://u:12/hunter2@host/", "***"),
        ("amqp://u:12#hunter2@host/", "***"),
        ("amqp://u:hunter2@x@host/", "amqp://u:***@host/"),
    ],
)
def test_of_a_url_all_but_the_password_is_shown(listed: Listed, url: str, shown: str) -> None:
    """And nothing of one that can't be read for certain."""
    assert entries(listed("json", REQUIRED | {"SIDECAR_AMQP_URL": url}))["SIDECAR_AMQP_URL"]["value"] == shown


def test_a_url_in_the_wrong_setting_is_masked_too(listed: Listed) -> None:
    """It is no secret by its type, but by its looks."""
    found = entries(listed("json", REQUIRED | {"SIDECAR_AMQP_EXCHANGE": "amqp://u:hunter2@host/"}))
    assert found["SIDECAR_AMQP_EXCHANGE"]["value"] == "amqp://***@host/"


@pytest.mark.parametrize("style", FORMATS)
def test_wrong_settings_are_listed_and_then_told(listed: Listed, style: str) -> None:
    """Whoever looks for a mistake wants to see it; exit status 2."""
    result = listed(style, {"SIDECAR_ACTION": "replace", "SIDECAR_INDX": "logs"})
    assert result.exit_code == 2
    assert [name for name in NAMES if name not in result.stdout] == []
    assert "replace" in result.stdout
    problems = result.stderr.splitlines()
    assert problems[:2] == [
        "sidecar: SIDECAR_INDX is no setting: did you mean SIDECAR_INDEX?",
        "sidecar: SIDECAR_AMQP_QUEUE is required",
    ]
    assert problems[2].startswith("sidecar: SIDECAR_ACTION: must be one of ")
    assert problems[3:] == ["sidecar: SIDECAR_INDEX is required"]
    assert "Traceback" not in result.output


def test_json_says_type_default_value_and_whether_it_is_given(listed: Listed) -> None:
    """Defaults are values too; what is worked out later has none."""
    found = entries(listed("json", REQUIRED | {"SIDECAR_BATCH_MAX_AGE": "250ms"}))
    assert list(found) == NAMES
    assert found["SIDECAR_BATCH_MAX_AGE"] == {
        "name": "SIDECAR_BATCH_MAX_AGE",
        "type": "duration",
        "default": "1s",
        "value": "250ms",
        "given": True,
        "file": None,
        "meaning": "completion by age of the *first* item",
    }
    assert (found["SIDECAR_BATCH_MAX_BYTES"]["value"], found["SIDECAR_BATCH_MAX_BYTES"]["given"]) == ("5MiB", False)
    assert (found["SIDECAR_AMQP_PREFETCH"]["value"], found["SIDECAR_AMQP_PREFETCH"]["default"]) == (None, "derived")
    assert found["SIDECAR_INDEX"]["default"] == "required"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("AMQP_URL", "URLs"),
        ("AMQP_QUEUE", "list"),
        ("AMQP_QUEUE_ARGUMENTS", "JSON object"),
        ("AMQP_EXCHANGE", "text"),
        ("AMQP_PREFETCH", "number"),
        ("AMQP_CA_FILE", "file"),
        ("ELASTICSEARCH_USERNAME", "text"),
        ("ELASTICSEARCH_PASSWORD", "secret"),
        ("ELASTICSEARCH_API_KEY", "secret"),
        ("INDEX", "template"),
        ("INDEX_ALLOW", "list"),
        ("ACTION", "choice or template"),
        ("VERSION", "template"),
        ("ON_REJECT", "choice"),
        ("BATCH_MAX_BYTES", "size"),
        ("BULK_COMPRESS", "true or false"),
        ("DELAYED_RETRY_DELAY", "duration"),
    ],
)
def test_types_are_named_for_people(listed: Listed, name: str, kind: str) -> None:
    """Not as the code names them."""
    assert entries(listed("json", REQUIRED))[f"SIDECAR_{name}"]["type"] == kind


def test_the_table_has_a_line_a_setting_where_nobody_watches(listed: Listed) -> None:
    """So that `grep` finds all of it."""
    lines = listed("table", REQUIRED | {"SIDECAR_INDEX": "logs-[bold]{now:%Y}\n"}).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["setting", *NAMES]
    assert all(line == line.rstrip() for line in lines)
    (line,) = [line for line in lines if line.startswith("SIDECAR_INDEX ")]
    assert line.split(maxsplit=4)[:4] == ["SIDECAR_INDEX", "template", "required", "logs-[bold]{now:%Y}"]


def test_markdown_has_a_row_a_setting_whatever_the_values_are(listed: Listed) -> None:
    """Bars, line breaks and backticks don't end a cell."""
    result = listed("markdown", REQUIRED | {"SIDECAR_INDEX": "{type|`a`}\nb"})
    lines = result.stdout.splitlines()
    assert lines[:2] == ["| setting | type | default | present value | meaning |", "|---|---|---|---|---|"]
    assert [line.split("`")[1] for line in lines[2:]] == NAMES
    assert "| `` {type\\|`a`} b `` |" in result.stdout


def test_the_format_env_can_be_read_back(listed: Listed, tmp_path: Path) -> None:
    """What is given stays, defaults are comments, and what is masked doesn't overwrite the secret."""
    path = tmp_path / "password"
    path.write_text("hunter2")
    given = REQUIRED | {
        "SIDECAR_INDEX": "logs-{header.it's|a b}#1",
        "SIDECAR_AMQP_QUEUE_ARGUMENTS": '{"x-max-length": 10, "a": "\\\\"}',
        "SIDECAR_ELASTICSEARCH_USERNAME": "elastic",
        "SIDECAR_ELASTICSEARCH_PASSWORD_FILE": str(path),
        "SIDECAR_AMQP_URL": "amqp://u:hunter2@host/",
    }
    result = listed("env", given)
    assert (result.exit_code, result.stderr) == (0, "")
    read = {entry.name: entry.value for entry in dotenv.read(result.stdout)}
    assert read == compose_dotenv.read(result.stdout)
    assert read == {name: text for name, text in given.items() if name != "SIDECAR_AMQP_URL"}
    assert "# SIDECAR_BATCH_MAX_AGE=1s\n" in result.stdout


def test_the_format_env_is_a_file_to_begin_with(listed: Listed) -> None:
    """Without any setting, only what is required isn't a comment."""
    result = listed("env", {})
    given = {entry.name: entry.value for entry in dotenv.read(result.stdout)}
    assert given == {"SIDECAR_AMQP_QUEUE": "", "SIDECAR_INDEX": ""}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, ["sidecar: sidecar run requires SIDECAR_AMQP_QUEUE and SIDECAR_INDEX"]),
        ({"SIDECAR_AMQP_QUEUE": "q"}, ["sidecar: sidecar run requires SIDECAR_INDEX"]),
        ({"SIDECAR_INDEX_ALLOW": "a-*"}, ["sidecar: sidecar run requires SIDECAR_AMQP_QUEUE and SIDECAR_INDEX"]),
        (
            {"SIDECAR_SINK": "amqp", "SIDECAR_SINK_EXCHANGE": "e"},
            ["sidecar: sidecar run requires SIDECAR_AMQP_QUEUE"],
        ),
        (REQUIRED, []),
    ],
)
def test_nothing_is_required_to_list_what_there_is(
    listed: Listed, environment: dict[str, str], says: list[str]
) -> None:
    """A beginner's first command lists the settings, says what is missing, and succeeds."""
    result = listed("table", environment)
    assert (result.exit_code, result.stderr.splitlines()) == (0, says)
    assert [name for name in NAMES if name not in result.stdout] == []


def test_every_default_that_is_shown_is_taken_as_a_value(listed: Listed) -> None:
    """Whoever copies it from the list gets what the code has."""
    found = entries(listed("json", REQUIRED))
    shown = {name: entry["value"] for name, entry in found.items() if entry["value"] is not None}
    assert load(REQUIRED | shown) == load(REQUIRED)


def test_the_table_of_the_readme_says_nothing_of_this_machine(listed: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made without looking at the environment."""
    monkeypatch.setenv("SIDECAR_INDEX", "hunter2")
    assert "hunter2" not in readme_table()
    assert [line.split("`")[1] for line in readme_table().splitlines()[2:]] == NAMES


def test_an_empty_address_is_shown_as_such(listed: Listed) -> None:
    """It means off; the default would be a lie."""
    environment = REQUIRED | {"SIDECAR_HTTP_ADDRESS": ""}
    (line,) = [line for line in listed("table", environment).stdout.splitlines() if "SIDECAR_HTTP_ADDRESS" in line]
    assert line.split()[3] == "empty"
    assert "\nSIDECAR_HTTP_ADDRESS=\n" in listed("env", environment).stdout
