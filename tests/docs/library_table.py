"""The table of settings in docs/library.md, made by the code of `sidecar config`.

``python -m tests.docs.library_table`` writes it there.
"""

from __future__ import annotations

from pathlib import Path

from sidecar import ConsumerSettings
from sidecar.cli.config import markdown, rows
from sidecar.config.settings import PREFIX, AmqpSettings, RawSettings
from tests.docs.settings_table import BEGIN, END, in_readme

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"


def table() -> str:
    """Return the table: what a consumer can be told besides RabbitMQ's side."""
    listed = rows(RawSettings({}, {}, {}), ConsumerSettings)
    named = [(row.name.removeprefix(PREFIX).lower(), row) for row in listed]
    own = [(name, row) for name, row in named if name not in AmqpSettings.model_fields]
    lines = [(f"`{name}`", row.type, row.default, row.meaning) for name, row in own]
    return markdown([("setting", "type", "default", "meaning"), *lines])


def main() -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.replace(BEGIN + in_readme(text) + END, BEGIN + table() + END), encoding="utf-8")


if __name__ == "__main__":
    main()
