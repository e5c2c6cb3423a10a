"""`sidecar health`: what a container's health check runs."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import sidecar
from sidecar.cli.health import command
from sidecar.core.address import reachable, split_address
from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Probes(BaseHTTPRequestHandler):
    """It lives, and is not ready."""

    def do_GET(self) -> None:
        alive = self.path == "/livez"
        body = b'{"live":true}\n' if alive else b'{"ready":false,"reason":"held"}\n'
        self.send_response(200 if alive else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """Return the port of something that answers as the sidecar does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Probes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIDECAR_HTTP_ADDRESS", raising=False)


def test_who_lives_is_healthy_and_who_is_not_ready_may_be_asked_for(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Liveness by default: what readiness tells isn't mended by a restart. An address of all interfaces is this one."""
    monkeypatch.setenv("SIDECAR_HTTP_ADDRESS", f"0.0.0.0:{port}")
    healthy = CliRunner().invoke(command)
    assert (healthy.exit_code, healthy.output) == (0, '{"live":true}\n')
    held = CliRunner().invoke(command, ["--probe", "readyz"])
    assert held.exit_code == 1
    assert "answered 503" in held.output
    assert "held" in held.output


def test_who_does_not_answer_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence with the address."""
    monkeypatch.setenv("SIDECAR_HTTP_ADDRESS", "127.0.0.1:1")
    told = CliRunner().invoke(command)
    assert told.exit_code == 1
    assert "http://127.0.0.1:1/livez doesn't answer" in told.output


def test_the_address_is_found_where_the_sidecar_finds_it(port: int, tmp_path: Path) -> None:
    """In `.env` as well as in the environment, which wins."""
    (tmp_path / ".env").write_text(f"SIDECAR_HTTP_ADDRESS=127.0.0.1:{port}\n")
    assert CliRunner().invoke(command).exit_code == 0


@pytest.mark.parametrize("text", ["", "nowhere"])
def test_without_an_address_nothing_can_be_asked(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the settings: exit status 2, by the command line."""
    monkeypatch.setenv("SIDECAR_HTTP_ADDRESS", text)
    assert isinstance(CliRunner().invoke(command).exception, ConfigError)


def test_addresses_of_all_interfaces_are_reached_on_this_machine() -> None:
    """By either protocol; a host of its own stays."""
    assert [reachable(host) for host in (None, "0.0.0.0", "::", "10.1.2.3")] == [
        "127.0.0.1",
        "127.0.0.1",
        "::1",
        "10.1.2.3",
    ]
    assert split_address("[::]:9180") == ("::", 9180)


def test_it_loads_next_to_nothing() -> None:
    """It runs within the sidecar's limit of memory, every few seconds."""
    line = (
        "import sys, sidecar.cli.health as health; health._given();"
        "print(sorted({'pydantic', 'aiohttp', 'aiormq', 'elasticsearch', 'rich'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(Path(sidecar.__file__).parents[1])}  # the folder isn't that of the package
    done = subprocess.run([sys.executable, "-c", line], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
