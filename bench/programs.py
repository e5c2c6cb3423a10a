"""The programs that are compared: what to run, and with which environment."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from devstack.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REPOSITORY = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
BATCH_ITEMS = 1000


class Target(NamedTuple):
    """Where a program reads and writes: queue and index have the same name."""

    amqp_url: str
    elasticsearch_url: str
    name: str


@dataclass(frozen=True, slots=True)
class Program:
    """A program that moves messages until it is terminated.

    Attributes:
        name: in the tables.
        command: starts it.
        environment: gives what it adds to ours, for a target.
        scraped: whether it has ``/metrics``, at the ``SIDECAR_HTTP_ADDRESS`` of its environment.
    """

    name: str
    command: tuple[str, ...]
    environment: Callable[[Target], Mapping[str, str]]
    scraped: bool = False


@dataclass(frozen=True, slots=True)
class Sidecar:
    """``sidecar run`` with every guarantee on and all settings at their defaults, but for `settings`."""

    settings: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, target: Target) -> Mapping[str, str]:
        """Return its environment."""
        return {
            "SIDECAR_AMQP_URL": target.amqp_url,
            "SIDECAR_AMQP_QUEUE": target.name,
            "SIDECAR_ELASTICSEARCH_URL": target.elasticsearch_url,
            "SIDECAR_INDEX": target.name,
            "SIDECAR_HTTP_ADDRESS": f"127.0.0.1:{free_port()}",
            "SIDECAR_LOG_FORMAT": "json",
            **self.settings,
        }


def sidecar(python: str, name: str = "sidecar", settings: Mapping[str, str] | None = None) -> Program:
    """Return the sidecar, with settings that aren't defaults."""
    return Program(name, (python, "-m", "sidecar", "run"), Sidecar(settings or {}), scraped=True)


@dataclass(frozen=True, slots=True)
class _Peer:
    queue_type: str

    def __call__(self, target: Target) -> Mapping[str, str]:
        return {
            "PEER_AMQP": target.amqp_url,
            "PEER_ES": target.elasticsearch_url,
            "PEER_QUEUE": target.name,
            "PEER_QUEUE_TYPE": self.queue_type,
            "PEER_INDEX": target.name,
            "PEER_BATCH": str(BATCH_ITEMS),
        }


def _floor(target: Target) -> Mapping[str, str]:
    return {
        "FLOOR_AMQP": urlsplit(target.amqp_url).netloc.rpartition("@")[2],
        "FLOOR_ES": target.elasticsearch_url,
        "FLOOR_QUEUE": target.name,
        "FLOOR_INDEX": target.name,
        "FLOOR_BATCH": str(BATCH_ITEMS),
    }


def floor(python: str, path: Path | None = None) -> Program:
    """Return the floor, ours or another."""
    name = "floor" if path is None else f"floor ({path.parent.name}/{path.name})"
    return Program(name, (python, str(path or PEERS / "floor.py")), _floor)


def peers(python: str, bento: Path | None, queue_type: str) -> list[Program]:
    """Return the peers that are there: those whose packages the interpreter has, and Bento where it was built."""
    scripts = (
        ("pika", "pika_loop.py", "pika"),
        ("kombu", "kombu_loop.py", "kombu"),
        ("aio-pika-batch", "aio_pika_loop.py", "aio_pika_batch"),
    )
    found = [
        Program(name, (python, str(PEERS / script)), _Peer(queue_type))
        for name, script, module in scripts
        if _has(python, module)
    ]
    if bento is not None:
        found.append(Program("Bento", (str(bento), "-c", str(PEERS / "bento" / "config.yaml")), _Peer(queue_type)))
    return found


def _has(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], check=False, capture_output=True).returncode == 0
