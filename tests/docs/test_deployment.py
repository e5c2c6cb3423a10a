"""docs/deployment.md against what it tells of."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from sidecar.cli import COMMANDS
from sidecar.config.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "deployment.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_settings_commands_and_overlays_exist() -> None:
    """A reader copies them."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"`(SIDECAR_[A-Z_]+[A-Z])\b", TEXT)) <= known
    assert set(re.findall(r"`sidecar ([a-z]+)", TEXT)) <= set(COMMANDS)
    overlays = {path.name for path in (ROOT / "deploy" / "kubernetes" / "overlays").iterdir()}
    table = TEXT.partition("| overlay |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \| .*$", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} == overlays


def test_rights_are_those_of_the_files() -> None:
    """Each privilege of the role has its row, and the patterns are those that the script sets."""
    role = json.loads((ROOT / "deploy" / "elasticsearch" / "role.json").read_text(encoding="utf-8"))
    for privilege in role["indices"][0]["privileges"]:
        assert f"\n| `{privilege}` | " in TEXT
    script = str(ROOT / "deploy" / "rabbitmq" / "permissions.sh")
    environment = {"RABBITMQCTL": "printf %s\\n", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", script, "sidecar", "orders"], env=environment, capture_output=True, text=True, check=True
    )
    *_, configure, write, read = done.stdout.splitlines()
    for name, pattern in (("configure", configure), ("write", write), ("read", read)):
        escaped = pattern.replace("|", "\\|")
        assert f"| {name} | `{escaped}` | " in TEXT
