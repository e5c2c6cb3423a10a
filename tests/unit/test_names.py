"""What people may write: one rule for every setting however it is given, and every name that RabbitMQ takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import commands, decode, frame

from sidecar.cli.check import _check_traits, _proxies
from sidecar.config.settings import Settings, load, load_amqp, split_list
from sidecar.core.findings import traps
from sidecar.core.wire.names import MAX_NAME_BYTES, table_fault
from sidecar.errors import ConfigError
from sidecar.library.settings import load as load_library

if TYPE_CHECKING:
    from collections.abc import Callable

REQUIRED = {"SIDECAR_AMQP_QUEUE": "work", "SIDECAR_INDEX": "logs"}
LEGAL = ["logs.*", "q1$node", "tasks;high", "a=b", "Aufträge", "a b", "%2F", "🐇", "x" * MAX_NAME_BYTES, "ä" * 127]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing on this machine has an influence."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("SIDECAR_"):
            monkeypatch.delenv(name)


def in_environment(name: str, value: str) -> Settings:
    return load(REQUIRED | {name: value})


def in_dotenv(name: str, value: str) -> Settings:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    Path(".env").write_bytes(f'{name}="{quoted}"\n'.encode())
    return load({key: text for key, text in REQUIRED.items() if key != name})


def in_a_file(name: str, value: str) -> Settings:
    Path("value").write_bytes(value.encode())
    return load({key: text for key, text in REQUIRED.items() if key != name} | {f"{name}_FILE": "value"})


WAYS = [in_environment, in_dotenv, in_a_file]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", ""])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("index", "logs"),
        ("amqp_queue", "orders"),
        ("amqp_exchange", "shop"),
        ("bulk_timeout", "5s"),
        ("batch_max_items", "10"),
        ("bulk_compress", "true"),
        ("on_reject", "discard"),
        ("elasticsearch_api_key", "secret"),
    ],
)
def test_the_last_line_break_of_a_value_means_nothing(
    way: Callable[[str, str], Settings], field: str, value: str, end: str
) -> None:
    """``echo`` writes one, and env files with CRLF leave one."""
    plain = in_environment(f"SIDECAR_{field.upper()}", value)
    assert getattr(way(f"SIDECAR_{field.upper()}", value + end), field) == getattr(plain, field)


def test_a_library_gets_the_same_rule() -> None:
    """Also for the parts of a list."""
    settings = load_library(None, {"amqp_queue": ["a\n", "b"], "amqp_exchange": "e\r\n", "amqp_routing_keys": "k\n"})
    assert (settings.amqp_queue, settings.amqp_exchange, settings.amqp_routing_keys) == (("a", "b"), "e", ("k",))
    with pytest.raises(ConfigError, match=r"amqp_queue: .*control character"):
        load_library(None, {"amqp_queue": ["a\nb"]})


def test_a_value_of_line_breaks_alone_is_none() -> None:
    """As an empty one is none."""
    with pytest.raises(ConfigError, match="SIDECAR_INDEX is required"):
        load(REQUIRED | {"SIDECAR_INDEX": "\r\n"})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", ["a\nb", "a\tb", "a\x1bb", "a\x7fb", "a\x85b"])
@pytest.mark.parametrize(
    "name",
    ["AMQP_QUEUE", "INDEX", "AMQP_EXCHANGE", "DEAD_LETTER_ROUTING_KEY", "ELASTICSEARCH_USERNAME",
     "ELASTICSEARCH_API_KEY", "ELASTICSEARCH_PASSWORD", "INDEX_ALLOW", "AMQP_URL"],
)  # fmt: skip
def test_a_control_character_within_a_value_is_refused(
    way: Callable[[str, str], Settings], name: str, bad: str
) -> None:
    """In words, with its place, and without the value."""
    value = f"amqp://u:{bad}@host/" if name == "AMQP_URL" else bad
    with pytest.raises(ConfigError) as caught:
        way(f"SIDECAR_{name}", value)
    (problem,) = [text for text in caught.value.problems if "without SIDECAR_" not in text]
    assert problem.startswith(f"SIDECAR_{name}: ")
    assert "control character" in problem
    assert bad not in problem


def test_lists_and_json_may_be_written_over_several_lines() -> None:
    """As YAML does it."""
    settings = load(
        REQUIRED | {"SIDECAR_AMQP_QUEUE": "a,\n  b,\n", "SIDECAR_AMQP_QUEUE_ARGUMENTS": '{\n\t"x-max-length": 5\r\n}\n'}
    )
    assert settings.amqp_queue == ("a", "b")
    assert settings.amqp_queue_arguments == {"x-max-length": 5}


def test_bytes_that_are_no_text_are_refused() -> None:
    """The process's environment may hold any; Python keeps them as half characters."""
    (problem,) = problems(SIDECAR_INDEX="a\udcff")
    assert problem == "SIDECAR_INDEX: is not valid UTF-8, at character 2"


def problems(**given: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(REQUIRED | given)
    return caught.value.problems


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEGAL)
def test_every_name_that_rabbitmq_takes_goes_into_every_method(name: str) -> None:
    """As bytes, and back; pamqp by itself takes only some of them."""
    methods: list[Any] = [
        commands.Connection.Open(virtual_host=name),
        commands.Exchange.Declare(exchange=name, exchange_type=name),
        commands.Exchange.Unbind(destination=name, source=name, routing_key=name),
        commands.Queue.Declare(queue=name),
        commands.Queue.Bind(queue=name, exchange=name, routing_key=name),
        commands.Queue.Unbind(queue=name, exchange=name, routing_key=name),
        commands.Queue.Purge(queue=name),
        commands.Queue.Delete(queue=name),
        commands.Basic.Consume(queue=name, consumer_tag=name),
        commands.Basic.Get(queue=name),
        commands.Basic.Publish(exchange=name, routing_key=name),
    ]
    for method in methods:
        _, _, read = frame.unmarshal(frame.marshal(method, 1))
        named = {key: value for key, value in method if isinstance(value, str) and value == name}
        assert named
        assert {key: read[key] for key in named} == named


def test_a_text_that_is_cut_within_a_character_is_read() -> None:
    """RabbitMQ cuts the reason of a refusal at 255 bytes, wherever that is."""
    raw = ("x" + "ä" * 127).encode()[:254]
    assert decode.METHODS["shortstr"](bytes([254]) + raw)[0] == 255


@pytest.mark.parametrize("name", [name for name in LEGAL if len(name.encode()) < 200])
def test_every_legal_name_is_a_setting(name: str) -> None:
    """Of queues, exchanges, routing keys and dead letters."""
    settings = load(
        REQUIRED
        | dict.fromkeys(["SIDECAR_AMQP_QUEUE", "SIDECAR_AMQP_EXCHANGE", "SIDECAR_AMQP_ROUTING_KEYS"], name)
        | {"SIDECAR_DEAD_LETTER_EXCHANGE": name, "SIDECAR_DEAD_LETTER_ROUTING_KEY": name}
    )
    assert settings.amqp_queue == settings.amqp_routing_keys == (name,)
    assert settings.amqp_exchange == settings.dead_letter_exchange == settings.dead_letter_routing_key == name


@pytest.mark.parametrize(
    "name",
    ["AMQP_EXCHANGE", "AMQP_ROUTING_KEYS", "DEAD_LETTER_EXCHANGE", "DEAD_LETTER_ROUTING_KEY", "AMQP_EXCHANGE_TYPE"],
)
@pytest.mark.parametrize("text", ["x" * 256, "ä" * 128])
def test_a_name_that_is_too_long_is_told_with_its_size(name: str, text: str) -> None:
    """In bytes, which characters may have several of."""
    (problem,) = problems(**{"SIDECAR_AMQP_EXCHANGE": "e", f"SIDECAR_{name}": text})
    assert problem == f"SIDECAR_{name}: has 256 bytes in UTF-8; RabbitMQ accepts at most 255"


def test_a_name_leaves_room_for_those_made_of_it() -> None:
    """Of the dead-letter queue, and of the delay queue that has the longest name."""
    longest = "ä" * 121  # 242 bytes, and .delay.300000 has 13
    assert load(REQUIRED | {"SIDECAR_AMQP_QUEUE": longest}).amqp_queue == (longest,)
    (delay,) = problems(SIDECAR_AMQP_QUEUE=longest + "x")
    assert "243 bytes" in delay
    assert ".delay.300000" in delay
    dead, delay = problems(SIDECAR_AMQP_QUEUE="x" * 251)
    assert "<name>.dead" in dead
    assert "SIDECAR_DEAD_LETTER_ROUTING_KEY" in dead
    with pytest.raises(ConfigError, match="leaves no room"):
        load_library(None, {"amqp_queue": "x" * 243})


def test_a_dead_letter_queue_may_have_the_longest_name() -> None:
    """Nothing is added to it: `sidecar dlq --queue` names the queue itself."""
    assert load_amqp({}, amqp_queue=("x" * 255,), dead_letter_routing_key="x" * 255).amqp_queue == ("x" * 255,)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (r"Shop.OrderCreated\, Shop.Messages_elastic", ("Shop.OrderCreated, Shop.Messages_elastic",)),
        (r"a\,b,c", ("a,b", "c")),
        (r"a\\,b", ("a\\", "b")),
        (r"a\\\,b", (r"a\,b",)),
        (r"a\b\.c", (r"a\b\.c",)),
        ("a\\", ("a\\",)),
        (r"\,", (",",)),
    ],
)
def test_a_comma_can_be_written(text: str, parts: tuple[str, ...]) -> None:
    r"""``\,`` is one and ``\\`` is a backslash; any other backslash stands for itself."""
    assert split_list(text) == parts
    assert load(REQUIRED | {"SIDECAR_AMQP_QUEUE": text}).amqp_queue == parts
    assert load(REQUIRED | {"SIDECAR_AMQP_EXCHANGE": "e", "SIDECAR_AMQP_ROUTING_KEYS": text}).amqp_routing_keys == parts


# Argument tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"a": 1 << 64}, "64 bits"),
        ({"a": 1e300}, "too large"),
        ({"a": [{"b": 1 << 70}]}, "64 bits"),
        ({"k" * 129: 1}, "129 bytes"),
        ({"a": "x" * 70_000}, "too large"),
        ({"a": b"x"}, "bytes"),
        ({"a": "\ud800"}, "UTF-8"),
    ],
)
def test_arguments_that_amqp_cannot_carry_are_told(table: dict[str, object], says: str) -> None:
    """At the start; the client library would raise, cut or send something else."""
    assert says in (table_fault(table) or "")


def test_arguments_that_are_nested_too_deep_are_told() -> None:
    """Before Python's own limit is reached."""
    deep: dict[str, object] = {}
    for _ in range(3000):
        deep = {"a": deep}
    assert "nested" in (table_fault(deep) or "")
    assert table_fault({"a": [1, 2.5, "x", None, True, {"b": []}]}) is None


# Durations, sizes, URLs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BULK_TIMEOUT", "HOLD_MAX", "BATCH_MAX_AGE", "MEMORY_LIMIT", "BATCH_MAX_BYTES"])
@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "h", "99999999999999999999999", "nan", "inf", "1e400"])
def test_a_number_without_end_is_refused(name: str, text: str) -> None:
    """In words: none of them can be meant."""
    if name in {"MEMORY_LIMIT", "BATCH_MAX_BYTES"} and text.endswith("h"):
        text = text[:-1] + "GiB"
    (problem,) = problems(**{f"SIDECAR_{name}": text})
    assert problem.startswith(f"SIDECAR_{name}: must be ")


@pytest.mark.parametrize("mark", ["/", "#", "?", "[", "@/", "/@"])
@pytest.mark.parametrize(("name", "scheme"), [("AMQP_URL", "amqp"), ("ELASTICSEARCH_URL", "https")])
def test_a_password_that_ends_its_url_is_to_be_percent_encoded(name: str, scheme: str, mark: str) -> None:
    """Digits before the mark would even be a port, and the user's name the host."""
    for password in (f"pa{mark}ss", f"12{mark}ss"):
        (problem,) = problems(**{f"SIDECAR_{name}": f"{scheme}://user:{password}@host/"})
        assert "percent-encoded" in problem
        assert "%2F" in problem
        assert password not in problem


def test_a_percent_encoded_password_is_taken() -> None:
    """That is the way."""
    settings = load(REQUIRED | {"SIDECAR_AMQP_URL": "amqp://user:a%2F%23%3F%5B%40%2C@host/%2Fv"})
    assert settings.amqp_url[0].get_secret_value().endswith("/%2Fv")


@pytest.mark.parametrize(
    ("query", "says"),
    [("heartbeet=5", "doesn't know"), ("heartbeat=soon", "heartbeat"), ("timeout=-1", "timeout"), ("auth=x", "auth")],
)
def test_what_a_url_says_behind_its_question_mark_is_known(query: str, says: str) -> None:
    """The client library ignores what it doesn't understand."""
    (problem,) = problems(SIDECAR_AMQP_URL=f"amqp://host/?{query}")
    assert says in problem


# Settings without an effect ------------------------------------------------------------------------------------------


def test_bindings_without_an_exchange_are_a_problem() -> None:
    """Nothing would be bound, and nothing would arrive."""
    assert problems(SIDECAR_AMQP_ROUTING_KEYS="a.#", SIDECAR_AMQP_BINDING_ARGUMENTS='{"a":1}') == [
        "SIDECAR_AMQP_ROUTING_KEYS has no effect without SIDECAR_AMQP_EXCHANGE",
        "SIDECAR_AMQP_BINDING_ARGUMENTS has no effect without SIDECAR_AMQP_EXCHANGE",
    ]


def test_settings_without_an_effect_are_known_to_the_check() -> None:
    """They keep nothing from working."""
    Path("ca").write_text("")
    given = dict.fromkeys(["SIDECAR_AMQP_CA_FILE", "SIDECAR_ELASTICSEARCH_CA_FILE"], "ca")
    settings = load(REQUIRED | given | {"SIDECAR_VERSION_TYPE": "external_gte"})
    assert [text.partition(" ")[0] for text in settings.without_effect] == [
        "SIDECAR_VERSION_TYPE", "SIDECAR_AMQP_CA_FILE", "SIDECAR_ELASTICSEARCH_CA_FILE",
    ]  # fmt: skip
    assert load(REQUIRED).without_effect == []


def test_a_setting_in_lower_case_is_named() -> None:
    """Names of environment variables have a case, and this one would be ignored."""
    assert problems(sidecar_batch_max_items="5") == [
        "sidecar_batch_max_items is no setting: did you mean SIDECAR_BATCH_MAX_ITEMS?"
    ]


def test_a_fresh_set_up_has_no_trap() -> None:
    """The defaults agree with each other."""
    found = traps(_check_traits(load(REQUIRED)))
    assert [finding for finding in found if finding.severity != "note"] == []


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"HTTPS_PROXY": "http://proxy:3128"}, ["HTTPS_PROXY"]),
        ({"https_proxy": "http://proxy:3128"}, ["https_proxy"]),
        ({"HTTP_PROXY": "http://proxy:3128", "HTTPS_PROXY": ""}, []),
        ({}, []),
    ],
)
def test_a_proxy_that_is_not_used_is_told(environment: dict[str, str], told: list[str]) -> None:
    """Of the scheme with which Elasticsearch is reached."""
    settings = load(REQUIRED | {"SIDECAR_ELASTICSEARCH_URL": "https://host:9200"})
    found = _proxies(settings, environment)
    assert [(finding.severity, finding.where) for finding in found] == [("note", name) for name in told]


# .env ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("'${HOME} $$ $x'", "${HOME} $$ $x"),
        (r"'it\'s'", "it's"),
        (r"'a\\b'", r"a\\b"),
        (r'"a\\b\n\$x"', "a\\b\n$x"),
        ("a b # comment", "a b"),
        ("a#b", "a#b"),
        ("'a' # comment", "a"),
    ],
)
def test_dotenv_is_read_as_compose_reads_it(line: str, value: str) -> None:
    """And nothing in it is expanded."""
    Path(".env").write_text(f"SIDECAR_ELASTICSEARCH_USERNAME={line}\nSIDECAR_ELASTICSEARCH_PASSWORD=x\n")
    if "\n" in value:
        value = value.replace("\n", " ")
        Path(".env").write_text(Path(".env").read_text().replace("\\n", " "))
    assert load(REQUIRED).elasticsearch_username == value


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"SIDECAR_INDEX=${HOME}\n", "line 1: SIDECAR_INDEX contains a $"),
        (b'\nSIDECAR_INDEX="a$b"\n', "line 2: SIDECAR_INDEX contains a $"),
        (b"SIDECAR_INDEX='a\n", "never closed"),
        (b"SIDECAR_INDEX='a'b\n", "continues after"),
        (b"not a setting\n", "is not NAME=value"),
        (b"\xff\xfe", "not UTF-8"),
        (b"SIDECAR_INDEX=a\0b\n", "control character"),
    ],
)
def test_what_dotenv_says_unclearly_is_told_with_its_line(content: bytes, says: str) -> None:
    """Where compose would read something else, or nothing."""
    Path(".env").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load({"SIDECAR_AMQP_QUEUE": "q"} | ({} if b"INDEX" in content else {"SIDECAR_INDEX": "i"}))
    assert any(says in problem for problem in caught.value.problems), caught.value.problems


def test_what_others_write_into_dotenv_is_theirs() -> None:
    """It may say what compose expands."""
    Path(".env").write_bytes(b"\xef\xbb\xbfPATH=${HOME}/bin\r\nexport SIDECAR_INDEX=logs\r\n")
    assert load({"SIDECAR_AMQP_QUEUE": "q"}).index == "logs"


def test_a_folder_called_dotenv_is_none() -> None:
    """Virtual environments of Python are called so."""
    Path(".env").mkdir()
    assert load(REQUIRED).index == "logs"
