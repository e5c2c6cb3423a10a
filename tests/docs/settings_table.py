"""The README's table of settings, made by the code of `sidecar config`.

``python -m tests.docs.settings_table`` writes it into the README.
"""

from __future__ import annotations

from pathlib import Path

from sidecar.cli.config import readme_table

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- settings -->\n", "<!-- /settings -->"


def in_readme(text: str) -> str:
    """Return the part of a README that should be the table.

    Raises:
        ValueError: the markers aren't there.
    """
    begin = text.index(BEGIN) + len(BEGIN)
    return text[begin : text.index(END, begin)]


def main() -> None:
    """Write the table into the README."""
    text = README.read_text(encoding="utf-8")
    README.write_text(text.replace(BEGIN + in_readme(text) + END, BEGIN + readme_table() + END), encoding="utf-8")


if __name__ == "__main__":
    main()
