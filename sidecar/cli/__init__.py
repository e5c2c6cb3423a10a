"""The command line: one thin file a command, loaded only when it is called.

click, because it starts in a tenth of the time that typer and rich take, and the sidecar starts with every pod.
"""

from __future__ import annotations

import importlib
import sys
from io import TextIOWrapper
from typing import NoReturn

import click

from sidecar import __version__
from sidecar.errors import ConfigError

COMMANDS = {
    "run": "the sidecar, until SIGTERM or SIGINT (a second one ends at once)",
    "explain": "a message as the exact bulk lines that it would become, and the verdict that it would get",
    "health": "asks the sidecar on this machine whether it lives, for health checks of containers",
    "check": "looks at the settings and both servers, and lists every problem with its mend",
    "config": "every setting: name, type, default, present value, meaning",
    "dlq": "dead letters: grouped by error, one in full, back to their queue, removed",
    "mappings": "the templates in a folder against the cluster: what differs, and putting it right",
    "produce": "load and demo generator",
}
EXIT_FAILED, EXIT_CONFIGURATION = 1, 2


class _Commands(click.Group):
    """Imports a command's module only when it is wanted: `run` needs neither rich nor a progress bar."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"sidecar.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sidecar")
@click.pass_context
def cli(context: click.Context) -> None:
    """Move messages from RabbitMQ queues into Elasticsearch, with a verdict for each.

    Settings are environment variables SIDECAR_*. Exit status: 0 done, 1 failed, 2 the configuration is wrong.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a value may have characters that the terminal's encoding doesn't
            stream.reconfigure(errors="backslashreplace")
    if context.invoked_subcommand is None:
        from sidecar.cli.run import command

        context.invoke(command)


def fail(error: ConfigError) -> NoReturn:
    """Tell every problem with the settings on standard error, and exit."""
    for problem in error.problems:
        click.echo(f"sidecar: {problem}", err=True)
    sys.exit(EXIT_CONFIGURATION)


def main() -> None:
    """Run the command line and exit."""
    try:
        cli(standalone_mode=True)
    except ConfigError as error:
        fail(error)
