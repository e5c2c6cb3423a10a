"""How long ``sidecar run`` takes to start, what its imports take in memory, and that nothing needless is among them.

``python -m bench.start``. No server is needed: what is imported once both are reached is imported here as well.
"""

from __future__ import annotations

import subprocess

from bench import command, tools

ROUNDS = 5
NEEDLESS = (
    *(
        "rich",
        "opentelemetry",
        "testcontainers",
        "sidecar.amqp.check",
        "sidecar.elasticsearch.check",
        "sidecar.cli.check",
    ),
    *("sidecar.cli.dlq", "sidecar.cli.explain", "sidecar.cli.produce", "sidecar.cli.samples"),
)
_LIBRARIES = ("aiohttp", "aiormq", "click", "elasticsearch", "prometheus_client", "pydantic_settings", "structlog")
_PAGE = "sidecar.observability"
_WHAT_RUNS = f"import sidecar.cli.run, sidecar.cli.indexing, {_PAGE}.http, {_PAGE}.metrics, {_PAGE}.status"
NAMES = {"pass": "nothing", _WHAT_RUNS: "all that `sidecar run` imports"}
_LOOK = """
import gc, sys, time
began = time.process_time()
{work}
took = time.process_time() - began
status = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Vm"))
print(took, int(status["VmRSS"].split()[0]), *sys.modules)
"""


def look(interpreter: str, work: str) -> tuple[float, float, list[str]]:
    """Return the processor seconds that some work takes in a fresh interpreter, its MiB, and its modules."""
    command = [interpreter, "-c", _LOOK.format(work=work)]
    seconds, kibibytes, *modules = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), int(kibibytes) / 1024, modules


def main() -> int:
    """Measure and print; return the exit status: 1 where something needless is imported."""
    interpreter = tools.python()
    print(tools.describe(interpreter))
    print("| imported | CPU s | MiB | modules |\n|---|---|---|---|")
    modules: list[str] = []
    works = ("pass", *(f"import {library}" for library in _LIBRARIES), _WHAT_RUNS)
    for work in works:
        found = [look(interpreter, work) for _ in range(ROUNDS)]
        modules = found[0][2]
        name = (
            "nothing" if work == "pass" else "all that `sidecar run` imports" if work == _WHAT_RUNS else work.split()[1]
        )
        print(f"| {name} | {min(one[0] for one in found):.2f} | {min(one[1] for one in found):.0f} | {len(modules)} |")
    needless = [name for name in modules if name.startswith(NEEDLESS)]
    if needless:
        print(f"needless: {', '.join(needless)}")
    return int(bool(needless))


if __name__ == "__main__":
    command.run(main)
