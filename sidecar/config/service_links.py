"""Recognises the environment variables that Kubernetes injects for a Service, by name and value together.

A Service called ``sidecar`` or ``sidecar-http`` adds ``SIDECAR_PORT=tcp://10.0.0.1:9180`` and others to all pods of
its namespace. By name alone ``SIDECAR_HTTP_PORT=9180`` would be one of them, and a mistyped setting would be ignored.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_URL = re.compile(r"(?:tcp|udp|sctp)://(?P<host>\[[^\]]+\]|[^:/\s]+):\d{1,5}")
_LINK = re.compile(r".+?_PORT(?:_(?P<port>\d{1,5})_(?P<protocol>TCP|UDP|SCTP)(?:_(?P<part>PROTO|PORT|ADDR))?)?")
_PORT = re.compile(r"(?P<service>.+)_SERVICE_PORT(?:_.+)?")
_NUMBER = re.compile(r"\d{1,5}")
_HOST = "_SERVICE_HOST"


def is_service_link(name: str, environment: Mapping[str, str]) -> bool:
    """Return whether a variable of `environment` comes from Kubernetes.

    Args:
        name: of the variable.
        environment: all variables; a port counts only if its host is there.
    """
    value = environment[name]
    if name.endswith(_HOST):
        return _is_address(value)
    port = _PORT.fullmatch(name)
    if port is not None and _NUMBER.fullmatch(value):
        return _is_address(environment.get(port["service"] + _HOST, ""))
    link = _LINK.fullmatch(name)
    if link is None:
        return False
    match link["part"]:
        case "PROTO":
            return value == (link["protocol"] or "").lower()
        case "PORT":
            return value == link["port"]
        case "ADDR":
            return _is_address(value)
        case _:
            found = _URL.fullmatch(value)
            return found is not None and _is_address(found["host"].strip("[]"))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
