"""The address of probes, metrics and status page, as text; apart, so that `sidecar health` loads no more than this."""

from __future__ import annotations

import re

DEFAULT_HTTP_ADDRESS = "0.0.0.0:9180"
MAX_PORT = 65_535
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[^\s:/@\[\]]*):(?P<port>[0-9]{1,5})")
_LOOPBACKS = {None: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here


def split_address(text: str) -> tuple[str | None, int] | None:
    """Return host (None for all of this machine's addresses) and port of ``host:port``; None where it isn't that."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > MAX_PORT:
        return None
    host = match["host"].strip("[]")
    return (host or None, int(match["port"])) if can_be_looked_up(host) else None


def can_be_looked_up(host: str) -> bool:
    """Whether a resolver can be asked for a host: each part between dots has 1 to 63 characters."""
    try:
        host.encode("idna")  # as `socket.getaddrinfo` does
    except UnicodeError:
        return False
    return True


def reachable(host: str | None) -> str:
    """Return where to find, on this machine, what listens on `host`."""
    return _LOOPBACKS.get(host) or host or ""
