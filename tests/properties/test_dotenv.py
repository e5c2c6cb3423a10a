"""`.env` files: what is written is read, by us and by ``docker compose``, and what is read is what compose reads."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.cli import cli
from sidecar.config import dotenv
from sidecar.config.settings import join_list, split_list
from sidecar.config.settings import read_raw as said
from tests import compose_dotenv
from tests.builders import examples
from tests.compose_dotenv import ComposeError
from tests.drawing import drew, how_many

if TYPE_CHECKING:
    from collections.abc import Iterator

AWKWARD = st.sampled_from(
    ["'", '"', "\\", "$", "${HOME}", "$HOME", "$$", "#", " #", "=", ",", "\\,", "\n", "\r\n", "\t", "é", "\u2028",
     "\xa0", "%", "{header.x}", "a", "b c", "\\n", "\\'", '\\"', "\\$", "\\0101", "\\c", "`", "!", ":", "export "]
)  # fmt: skip
TEXTS = st.one_of(
    st.just(""),
    st.lists(AWKWARD, max_size=8).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
PLAIN = st.sampled_from(["", "a", "b c", "x # y", "\\n", "\\t\\\\", '\\"', "\\$", "\\0101"])
PLAIN_LINES = st.lists(
    st.builds("{}{}{}".format, st.sampled_from(["A=", "A=", "export B=", "E: "]), st.sampled_from(["", "a", "b c"]),
              st.sampled_from(["", " # y"]))
    | st.builds('R="{}"'.format, st.sampled_from(["a", "\\n", "\\t\\\\", '\\"', "\\$", "\\0101"]))
    | st.builds("Q='{}'".format, st.sampled_from(["a", "\\n", "\\'", "$x # y"])),
    max_size=5,
).map("\n".join)  # fmt: skip
LINES = PLAIN_LINES | st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["A=", "export B=", "C =", "D= ", "E: ", "F", "A:"]), PLAIN | TEXTS).map("".join),
        st.builds(lambda text: f"Q='{text}'", PLAIN | TEXTS),
        st.builds(lambda text: f'R="{text}"', PLAIN | TEXTS),
        st.builds(lambda text: f"# {text}", TEXTS),
        TEXTS,
    ),
    max_size=6,
).map("\n".join)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work in a folder without a ``.env``."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("dotenv"))
    yield
    os.chdir(before)


@pytest.mark.draws(
    "nothing", "as it is", "in single quotes", "in double quotes", "several lines", "not ASCII",
)  # fmt: skip
@given(TEXTS)
@example("it's \\")
@example("a\\'b")
@example("${HOME} $$ $x")
@example('{"a": "\\\\", "b": "it\'s"}')
def test_what_is_written_is_read_by_us_and_by_compose(value: str) -> None:
    """Whatever stands in a value."""
    quoted = dotenv.quote(value)
    drew({"": "nothing", "'": "in single quotes", '"': "in double quotes"}.get(quoted[:1], "as it is"))
    drew("several lines", "\n" in value)
    drew("not ASCII", not value.isascii())
    text = f"# before\nNAME={quoted}\nLAST=1\n"
    read = {entry.name: entry.value for entry in dotenv.read(text)}
    assert read == compose_dotenv.read(text) == {"NAME": value, "LAST": "1"}


@pytest.mark.draws(
    "no entries", "one entries", "several entries", "a problem", "a name twice", "single quotes", "double quotes",
    "an escape", "a comment behind a value", "export", "a colon",
)  # fmt: skip
@given(LINES)
@example("A='a\\\\' # x")
@example("A= # x")
@example('A="\\\\$x"')
@example('A="\\0101 \\0400 \\018"')
def test_what_we_read_compose_reads(text: str) -> None:
    """Any file: what we take from it, without a problem, is what compose takes; and what it refuses, we do."""
    entries = dotenv.read(text + "\n")
    drew("a problem" if any(entry.problem for entry in entries) else how_many(len(entries), "entries"))
    if any(entry.problem for entry in entries):
        return
    assert {entry.name: entry.value for entry in entries} == compose_dotenv.read(text + "\n")
    drew("a name twice", len({entry.name for entry in entries}) < len(entries))
    for kind, mark in (("single quotes", "Q='"), ("double quotes", 'R="'), ("export", "export B"), ("a colon", "E: ")):
        drew(kind, mark in text)
    drew("an escape", re.search(r'R="[^"]*\\', text))
    drew("a comment behind a value", re.search(r"=.* #", text))


@pytest.mark.draws("a $ in it", "quotes in it", "a # in it", "a value in quotes")
@given(st.sampled_from(["a", "b c", "'$x'", '"a"', r'"\$x"']), TEXTS.map(lambda text: text.replace("\n", " ")))
@example("a", "costs $5")
def test_a_comment_behind_a_value_may_hold_anything(value: str, comment: str) -> None:
    """It changes neither the value nor the next line."""
    entries = [[(one.name, one.value, one.problem) for one in dotenv.read(f"A={value}{behind}\nB=1\n")]
               for behind in ("", f" #{comment}")]  # fmt: skip
    assert entries[0] == entries[1]
    assert entries[1][0][2] is None
    drew("a value in quotes", value[0] in "'\"")
    for kind, marks in (("a $ in it", "$"), ("quotes in it", "'\""), ("a # in it", "#")):
        drew(kind, any(mark in comment for mark in marks))


@pytest.mark.draws("refused", "taken")
@given(LINES)
def test_what_compose_refuses_is_a_problem(text: str) -> None:
    """But for a name alone at the very end, which says nothing."""
    try:
        compose_dotenv.read(text + "\n")
    except ComposeError:
        drew("refused")
        assert any(entry.problem for entry in dotenv.read(text + "\n"))
    else:
        drew("taken")


@pytest.mark.draws(
    "one settings", "several settings", "an empty value", "a value that can't work", "all can work",
)  # fmt: skip
@settings(max_examples=examples(60))
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(
    ["SIDECAR_INDEX", "SIDECAR_AMQP_QUEUE", "SIDECAR_AMQP_QUEUE_ARGUMENTS", "SIDECAR_FIELDS", "SIDECAR_BATCH_KEY",
     "SIDECAR_AMQP_EXCHANGE", "SIDECAR_ELASTICSEARCH_USERNAME", "SIDECAR_ROUTING", "SIDECAR_INDEX_ALLOW"],
    TEXTS.map(lambda text: "".join(text.replace("\0", "").split("://"))),
)))  # fmt: skip
def test_settings_are_read_as_config_writes_them(elsewhere: None, values: dict[str, str]) -> None:
    """Also those that can't work: whoever looks for a mistake finds it again. (Logins in URLs are masked.)"""
    del elsewhere
    inherited = {name: text for name, text in os.environ.items() if not name.upper().startswith("SIDECAR_")}
    file = Path(".env")
    file.unlink(missing_ok=True)
    with mock.patch.dict(os.environ, inherited | values, clear=True):
        before = said(os.environ).texts
        result = CliRunner().invoke(cli, ["config", "--format", "env"])
        assert result.exit_code in {0, 2}, result.output
    drew(how_many(len(values), "settings"), values)
    drew("an empty value", "" in values.values())
    drew("a value that can't work" if result.exit_code else "all can work", values)
    file.write_bytes(result.stdout_bytes)
    with mock.patch.dict(os.environ, inherited, clear=True):
        assert said(os.environ).texts == before


@pytest.mark.draws("one part", "several parts", "a comma", "a backslash at the end", "space within")
@given(
    st.one_of(
        st.lists(
            st.lists(st.sampled_from(["a", ",", "\\", " b", "é"]), min_size=1, max_size=6).map("".join).map(str.strip),
            min_size=least,
            max_size=least + 2,
        )
        for least in (0, 1, 2)
    )
)
def test_lists_are_split_as_they_were_joined(parts: list[str]) -> None:
    r"""``\,`` is a comma and ``\\`` a backslash."""
    assert split_list(join_list(parts)) == tuple(parts)
    drew("one part" if len(parts) == 1 else "several parts", parts)
    drew("a comma", any("," in part for part in parts))
    drew("a backslash at the end", any(part.endswith("\\") for part in parts))
    drew("space within", any(" " in part for part in parts))
