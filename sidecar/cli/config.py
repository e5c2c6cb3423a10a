"""``sidecar config``: every setting with its type, default, present value and meaning. README's table is made here too.

It shows what is given even where that can't work: whoever looks for a mistake wants to see it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from io import StringIO
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args, get_origin

import click
from pydantic import SecretStr
from yarl import URL

from sidecar.cli import fail
from sidecar.config import dotenv
from sidecar.config.settings import (
    PREFIX,
    DefaultText,
    RawSettings,
    Settings,
    ValueKind,
    join_list,
    load,
    load_without_required,
    read_raw,
    split_list,
)
from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo

    from sidecar.config.settings import AmqpSettings

MASK = "***"
NONE, REQUIRED, MISSING, EMPTY = "none", "required", "not given", "empty"
_LOGIN_IN_URL = re.compile(r"://[^/\s]*@")
_LEAST_COLUMNS, _ENDLESS_COLUMNS = 120, 10_000
_PLAIN_TYPES = {bool: "true or false", int: "number", float: "number", str: "text", SecretStr: "secret"}


class Row(NamedTuple):
    """What is to be said of a setting; for people, and without a secret.

    Attributes:
        name: of the environment variable.
        type: of its values.
        default: in Markdown.
        value: the present one, masked where it is secret; the default's where none is given, None where there is none.
        file: the path that it comes from (``NAME_FILE``).
        is_given: it was said, and isn't just the default.
        is_masked: `value` isn't what was said.
        meaning: in Markdown.
    """

    name: str
    type: str
    default: str
    value: str | None
    file: str | None
    is_given: bool
    is_masked: bool
    meaning: str


def rows(found: RawSettings, kind: type[AmqpSettings] = Settings) -> list[Row]:
    """Return a row for each setting, in the order in which they are explained.

    Args:
        found: what is said about them.
        kind: of settings.
    """
    return [_row(name, field, found) for name, field in kind.model_fields.items()]


def _row(name: str, field: FieldInfo, found: RawSettings) -> Row:
    text = found.texts.get(name)
    shown = _shown(text, field) if text is not None else _spelled(field)
    return Row(
        name=PREFIX + name.upper(),
        type=_type(field),
        default=_default(field),
        value=shown,
        file=found.files.get(name),
        is_given=name in found.texts or name in found.files,
        is_masked=text is not None and shown != text,
        meaning=_meaning(field),
    )


def _marks(field: FieldInfo) -> Iterator[object]:
    """Return what is said of a field's type, from the outside to the inside: marks first, then the types."""
    yield from field.metadata
    pending: list[Any] = [field.annotation]
    while pending:
        kind = pending.pop(0)
        if get_origin(kind) is Annotated:
            yield from kind.__metadata__
        if get_origin(kind) is Literal:
            yield ValueKind("choice")
        yield kind
        pending += [inner for inner in get_args(kind) if get_origin(kind) is not Literal]


def _type(field: FieldInfo) -> str:
    marks = list(_marks(field))
    named = [mark.name for mark in marks if isinstance(mark, ValueKind)]
    plain = [_PLAIN_TYPES[mark] for mark in marks if isinstance(mark, type) and mark in _PLAIN_TYPES]
    return (named + plain)[0]


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in _marks(field)


def _shown(text: str, field: FieldInfo) -> str:
    """Return a value as it was given, but for what is secret in it."""
    if _type(field) == "URLs":
        return join_list(_url(part) for part in split_list(text))
    if _is_secret(field):
        return MASK
    return _LOGIN_IN_URL.sub(f"://{MASK}@", text)  # a URL where none belongs


def _url(text: str) -> str:
    """Return a URL without its password; nothing at all of what can't be read for certain."""
    try:
        url = URL(text)
        _ = url.port
    except ValueError:
        return MASK
    # An @ or a # within a password cuts it in two, and one half would be taken for something else.
    if not (url.scheme and url.host) or "@" in url.path_qs + url.fragment or url.fragment:
        return MASK
    bare = url.with_password(MASK) if url.password is not None else url
    if not bare.query_string:
        return text if bare == url else str(bare)
    return f"{bare.with_query(None)}?{MASK}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return REQUIRED
    otherwise = next((mark.text for mark in field.metadata if isinstance(mark, DefaultText)), None)
    spelled = _spelled(field)
    if otherwise is not None or spelled is None:
        return otherwise or NONE
    return f"`{spelled}`"


def _spelled(field: FieldInfo) -> str | None:
    """Return a default as somebody would write it into the environment; None where there is none."""
    value = field.default
    if field.is_required() or value is None or value in ((), ""):
        return None
    if isinstance(value, tuple):
        return join_list(part.get_secret_value() if isinstance(part, SecretStr) else str(part) for part in value)
    if isinstance(value, bool):
        return str(value).lower()
    return _with_unit(value, _type(field))


def _with_unit(value: object, kind: str) -> str:
    if kind == "duration" and isinstance(value, float):
        return f"{value:g}s" if value >= 1 else f"{value * 1000:g}ms"
    if kind == "size" and isinstance(value, int) and value % (1 << 20) == 0:
        return f"{value >> 20}MiB"
    return str(value)


def _meaning(field: FieldInfo) -> str:
    meaning = field.description or ""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if any(f"`{choice}`" not in meaning for choice in choices):  # the description doesn't name them all
        meaning += f" ({', '.join(f'`{choice}`' for choice in choices)})"
    return meaning


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Args:
        lines: the cells of the heading, then those of each row.
    """
    escaped = [[_one_line(cell).replace("|", "\\|") for cell in line] for line in lines]
    heading, *others = [f"| {' | '.join(line)} |" for line in escaped]
    return "\n".join([heading, f"|{'---|' * len(lines[0])}", *others, ""])


def readme_table() -> str:
    """Return the table that stands in README.md: all but the present values, in Markdown."""
    listed = rows(RawSettings({}, {}, {}))
    return markdown(
        [
            ("setting", "type", "default", "meaning"),
            *((f"`{row.name}`", row.type, row.default, row.meaning) for row in listed),
        ]
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _as_markdown(listed: list[Row]) -> str:
    heading = ("setting", "type", "default", "present value", "meaning")
    cells = [(f"`{row.name}`", row.type, row.default, _present(row), row.meaning) for row in listed]
    return markdown([heading, *cells])


def _present(row: Row) -> str:
    return _code(row.value) if row.value is not None else _no_value(row)


def _no_value(row: Row) -> str:
    return MISSING if row.default == REQUIRED else _plain(row.default)


def _code(value: str) -> str:
    """Return text as code in Markdown, between more backticks than stand in it."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", value)), default=0))
    space = " " if "`" in value else ""
    return f"{fence}{space}{value}{space}{fence}"


def _as_json(listed: list[Row]) -> str:
    entries = [
        {
            "name": row.name,
            "type": row.type,
            "default": _plain(row.default),
            "value": row.value,
            "given": row.is_given,
            "file": row.file,
            "meaning": _plain(row.meaning),
        }
        for row in listed
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def _plain(text: str) -> str:
    return text.replace("`", "")


def _as_env(listed: list[Row]) -> str:
    """Return what a ``.env`` file takes: what is given as it is, the rest and what is masked as comments."""
    return "\n".join(
        f"# {_plain(row.meaning)} ({row.type}; {_default_note(row)})\n{_assignment(row)}\n" for row in listed
    )


def _default_note(row: Row) -> str:
    return REQUIRED if row.default == REQUIRED else f"default: {_plain(row.default)}"


def _assignment(row: Row) -> str:
    if row.file is not None:
        return f"{row.name}_FILE={dotenv.quote(row.file)}"
    line = f"{row.name}={dotenv.quote(row.value or '')}"
    if row.is_masked:
        return f"# {line}  (given, not shown)"
    return line if row.is_given or row.default == REQUIRED else f"# {line}"


def _as_table(listed: list[Row]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("setting", "type", "default", "present value", "meaning"):
        # Names are looked for with grep; only what is read may be broken.
        table.add_column(heading, no_wrap=heading in {"setting", "type"}, overflow="fold")
    for row in listed:
        shown = _no_value(row) if row.value is None else row.value or EMPTY
        value = Text(_one_line(shown), style="bold" if row.is_given else "")
        table.add_row(Text(row.name), row.type, Text(_plain(row.default)), value, Text(_plain(row.meaning)))
    on_terminal = sys.stdout.isatty()
    columns = max(_LEAST_COLUMNS, shutil.get_terminal_size().columns) if on_terminal else _ENDLESS_COLUMNS
    written = StringIO()
    Console(file=written, width=columns, force_terminal=on_terminal, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in written.getvalue().strip("\n").split("\n")) + "\n"


FORMATS: Mapping[str, Callable[[list[Row]], str]] = {
    "table": _as_table,
    "json": _as_json,
    "markdown": _as_markdown,
    "env": _as_env,
}


@click.command("config")
@click.option(
    "--format", "style", default="table", show_default=True, type=click.Choice(list(FORMATS)), help="How it is written."
)
def command(*, style: str) -> None:
    """List every setting: name, type, default, present value (secrets masked), meaning.

    Problems with the settings are reported on standard error, with exit status 2. Missing required settings are named
    there too, with exit status 0.
    """
    try:
        found = read_raw(os.environ)
    except ConfigError as error:
        fail(error)
    click.echo(FORMATS[style](rows(found)), nl=False)
    try:
        _, missing = load_without_required(os.environ)
    except ConfigError as error:
        fail(_with_missing(error))
    if missing:
        click.echo(f"sidecar: sidecar run requires {' and '.join(missing)}", err=True)


def _with_missing(error: ConfigError) -> ConfigError:
    """Return all problems, including missing settings."""
    try:
        load(os.environ)
    except ConfigError as all_of_them:
        return all_of_them
    return error
