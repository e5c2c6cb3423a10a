"""``sidecar health``: asks the sidecar on this machine, so that an image needs neither shell nor curl.

It runs every few seconds beside the sidecar, inside its limits of memory: so it loads no more than it needs.
"""

from __future__ import annotations

import http.client
import os
import sys
from pathlib import Path

import click

from sidecar.cli import EXIT_FAILED
from sidecar.core.address import DEFAULT_HTTP_ADDRESS, reachable, split_address
from sidecar.errors import ConfigError

_VARIABLE = "SIDECAR_HTTP_ADDRESS"
_OK = 200
_TELLS_BYTES = 2000


@click.command("health")
@click.option(
    "--probe",
    default="livez",
    show_default=True,
    type=click.Choice(["livez", "startupz", "readyz"]),
    help="What is asked: whether the loop turns, both sides were reached once, or messages flow.",
)
@click.option("--timeout", default=3.0, show_default=True, type=click.FloatRange(min=0.1), help="In seconds.")
def command(*, probe: str, timeout: float) -> None:
    """Ask the sidecar that runs on this machine, at SIDECAR_HTTP_ADDRESS, how it is.

    Exit status: 0 it is well, 1 it isn't or doesn't answer, 2 nothing listens by the settings.
    """
    host, port = _address()
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}/{probe}"
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", f"/{probe}")
        answer = connection.getresponse()
        told = answer.read(_TELLS_BYTES).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        click.echo(f"sidecar: {where} doesn't answer: {error}", err=True)
        sys.exit(EXIT_FAILED)
    finally:
        connection.close()
    if answer.status != _OK:
        click.echo(f"sidecar: {where} answered {answer.status}: {told}", err=True)
        sys.exit(EXIT_FAILED)
    click.echo(told)


def _address() -> tuple[str, int]:
    """Return where the sidecar listens.

    Raises:
        ConfigError: nowhere, or at no address.
    """
    text = _given()
    if not text:
        raise ConfigError([f"{_VARIABLE} is empty: the sidecar doesn't listen, and nothing can be asked"])
    address = split_address(text)
    if address is None:
        raise ConfigError([f"{_VARIABLE} must be host:port"])
    host, port = address
    return reachable(host), port


def _given() -> str:
    if _VARIABLE in os.environ:
        return os.environ[_VARIABLE]
    if f"{_VARIABLE}_FILE" not in os.environ and not Path(".env").exists():
        return DEFAULT_HTTP_ADDRESS
    from sidecar.config.settings import (
        read_raw,  # reads files as the sidecar itself does, and takes ten times as long to load
    )

    found = read_raw(os.environ)
    if "http_address" in found.problems:
        raise ConfigError([found.problems["http_address"]])
    return found.texts.get("http_address", DEFAULT_HTTP_ADDRESS)
