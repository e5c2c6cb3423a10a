"""What a person sees: a live view on a terminal, plain lines elsewhere, and the account at the end."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from sidecar.cli.samples import BAD, KIND_HEADER

if TYPE_CHECKING:
    from demo.checks import Check
    from demo.findings import DeadLetter

_LINE_SECONDS = 2.0
_RATE_SECONDS = 2.0
_PIPE_WIDTH = 110
_BODY_CHARACTERS = 400
_OF_THE_LOOK = ("x-delivery-count",)  # RabbitMQ adds it when somebody looks


class Numbers:
    """How far it is."""

    def __init__(self) -> None:
        self.published = 0
        self.stored = 0
        self.dead = 0
        self.queued = 0


class Screen:
    """Standard output."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:  # a log has no width: none of its lines is to be folded at 80
            self.console = Console(highlight=False, width=_PIPE_WIDTH)
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Say what happens, with the seconds since the beginning."""
        self.console.print(f"[dim]{time.monotonic() - self._began:5.1f} s[/]  {escape(text)}")

    def fail(self, text: str) -> None:
        """Say what went wrong."""
        self.console.print(f"[bold red]The demo failed:[/] {escape(text)}")

    def quote(self, title: str, text: str) -> None:
        """Show the end of a log."""
        self.console.print(f"[bold]{escape(title)}[/]\n{escape(text)}", soft_wrap=True)

    def live(self, total: int, good: int, bad: int) -> Live:
        """Return the view of a run with so many messages."""
        return Live(self, total, good, bad)

    def account(self, checks: list[Check]) -> None:
        """Show what was checked."""
        table = Table(title="The account", title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
        table.add_column("")
        table.add_column("expected", justify="right")
        table.add_column("found", justify="right")
        table.add_column("")
        for check in checks:
            verdict = "[green]holds[/]" if check.holds else "[bold red]DOES NOT HOLD[/]"
            table.add_row(check.what, f"{check.expected:,}", f"{check.found:,}", verdict)
        self.console.print()
        self.console.print(table)

    def kinds(self, letters: list[DeadLetter]) -> None:
        """Show why there are dead letters."""
        names = (KIND_HEADER.decode(), "sidecar-reason", "sidecar-error-type")
        found = Counter(tuple(str(letter.headers.get(name)) for name in names) for letter in letters)
        meanings = {kind.name: kind.meaning for kind in BAD}
        table = Table(title="Dead letters", title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
        table.add_column("", justify="right")
        table.add_column("what was wrong")
        table.add_column("sidecar-reason")
        table.add_column("sidecar-error-type")
        for (kind, reason, error_type), count in found.most_common():
            table.add_row(f"{count:,}", escape(meanings.get(kind, kind)), escape(reason), escape(error_type))
        self.console.print()
        self.console.print(table)

    def document(self, document_id: str, source: dict[str, Any]) -> None:
        """Show one document."""
        text = json.dumps(source, ensure_ascii=False, indent=1)
        self.console.print()
        self._panel(f"A document, _id {document_id}", text)

    def letter(self, letter: DeadLetter) -> None:
        """Show one dead letter: its headers, and how its body begins."""
        lines = [f"[cyan]{escape(name)}[/]: {escape(str(value))}" for name, value in letter.headers.items()
                 if value != "" and name not in _OF_THE_LOOK]  # fmt: skip
        body = letter.body.decode(errors="replace")
        more = "…" if len(body) > _BODY_CHARACTERS else ""
        lines += ["", escape(body[:_BODY_CHARACTERS] + more)]
        self._panel(f"A dead letter, message_id {letter.document_id}", "\n".join(lines), markup=True)

    def _panel(self, title: str, text: str, *, markup: bool = False) -> None:
        if self.console.is_terminal:
            self.console.print(Panel(text if markup else escape(text), title=escape(title), title_align="left"))
        else:
            self.console.print(f"{escape(title)}\n{text if markup else escape(text)}\n", soft_wrap=True)

    def verdict(self, *, holds: bool) -> None:
        """Say how it ended."""
        if holds:
            self.console.print("\n[bold green]The account holds: every message is a document or a dead letter.[/]")
        else:
            self.console.print("\n[bold red]The account does not hold.[/]")


class Live:
    """Progress while it runs: bars on a terminal, a line every two seconds elsewhere."""

    def __init__(self, screen: Screen, total: int, good: int, bad: int) -> None:
        self._screen = screen
        self._totals = total, good, bad
        self._told = time.monotonic()
        self._seen: deque[tuple[float, int]] = deque()
        self._progress = Progress(
            TextColumn("{task.description:>14}"),
            BarColumn(bar_width=36),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=screen.console,
            disable=not screen.console.is_terminal,
        )
        names = ("published", "stored", "dead letters")
        self._tasks = [
            self._progress.add_task(name, total=of, note="") for name, of in zip(names, self._totals, strict=True)
        ]
        self._queue = self._progress.add_task("in the queue", total=total, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, numbers: Numbers) -> None:
        """Show the numbers of this moment."""
        rate = self._rate(numbers.stored)
        values = (numbers.published, numbers.stored, numbers.dead)
        if self._screen.console.is_terminal:
            for task, value in zip(self._tasks, values, strict=True):
                self._progress.update(task, completed=value, note="")
            self._progress.update(self._tasks[1], note=f"{rate:,.0f} docs/s")
            self._progress.update(self._queue, completed=numbers.queued)
        elif time.monotonic() - self._told >= _LINE_SECONDS or values == self._totals:
            self._told = time.monotonic()
            self._screen.say(
                f"published {numbers.published:,}, stored {numbers.stored:,} ({rate:,.0f} docs/s), "
                f"dead letters {numbers.dead:,}, in the queue {numbers.queued:,}"
            )

    def _rate(self, stored: int) -> float:
        """Return documents per second over the last two seconds."""
        now = time.monotonic()
        self._seen.append((now, stored))
        while len(self._seen) > 2 and now - self._seen[0][0] > _RATE_SECONDS:  # noqa: PLR2004 - a span has two ends
            self._seen.popleft()
        then, before = self._seen[0]
        return (stored - before) / (now - then) if now > then else 0.0
