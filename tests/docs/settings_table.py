"""The README's table of settings, made from the settings themselves.

``python -m tests.docs.settings_table`` writes it into the README.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from pydantic import SecretStr

from sidecar.settings import PREFIX, Settings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- settings -->\n", "<!-- /settings -->"


def table() -> str:
    """Return the table in Markdown."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | {_default(field)} | {_meaning(field)} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows, ""])


def in_readme(text: str) -> str:
    """Return the part of a README that should be the table.

    Raises:
        ValueError: the markers aren't there.
    """
    begin = text.index(BEGIN) + len(BEGIN)
    return text[begin : text.index(END, begin)]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value in ((), ""):
        return "none"
    return f"`{_spelled(value, field)}`"


def _spelled(value: object, field: FieldInfo) -> str:
    """Return a default as somebody would write it into the environment."""
    if isinstance(value, tuple):
        return ",".join(part.get_secret_value() if isinstance(part, SecretStr) else str(part) for part in value)
    if isinstance(value, bool):
        return str(value).lower()
    units = {getattr(getattr(part, "func", None), "__name__", "") for part in field.metadata}
    if "_duration" in units and isinstance(value, float):
        return f"{value:g}s" if value >= 1 else f"{value * 1000:g}ms"
    if "_size" in units and isinstance(value, int) and value % (1 << 20) == 0:
        return f"{value >> 20}MiB"
    return str(value)


def _meaning(field: FieldInfo) -> str:
    meaning = field.description or ""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    missing = [choice for choice in choices if f"`{choice}`" not in meaning]
    if missing:  # the description doesn't name them all
        meaning += f" ({', '.join(f'`{choice}`' for choice in choices)})"
    return meaning.replace("|", "\\|")


def main() -> None:
    """Write the table into the README."""
    text = README.read_text(encoding="utf-8")
    README.write_text(text.replace(BEGIN + in_readme(text) + END, BEGIN + table() + END), encoding="utf-8")


if __name__ == "__main__":
    main()
