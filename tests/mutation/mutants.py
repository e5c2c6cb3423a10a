"""Mutants: the small changes of a module that a test should find, by Cosmic Ray's operators and two of our own.

Cosmic Ray is the mutation tester that works on source text without a wrapper around each function: wrappers change the
depth of the stack, on which tests of ours depend. Its own runner tests each mutant with the whole suite; ours
(`tests.mutation.runner`) with the tests that execute the changed line.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cosmic_ray.operators.operator import Operator

OPERATORS: Final = (
    "ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add", "ReplaceBinaryOperator_Mul_Div",
    "ReplaceBinaryOperator_Div_Mul", "ReplaceBinaryOperator_FloorDiv_Mul", "ReplaceBinaryOperator_Mod_Mul",
    "ReplaceBinaryOperator_BitOr_BitAnd", "ReplaceBinaryOperator_BitAnd_BitOr", "ReplaceBinaryOperator_LShift_RShift",
    "ReplaceBinaryOperator_RShift_LShift", "ReplaceComparisonOperator_Eq_NotEq",
    "ReplaceComparisonOperator_NotEq_Eq", "ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_GtE_Gt", "ReplaceComparisonOperator_Is_IsNot",
    "ReplaceComparisonOperator_IsNot_Is", "ReplaceUnaryOperator_Delete_Not", "AddNot", "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer", "ZeroIterationForLoop",
)  # fmt: skip
"""Each operator's nearest neighbour only: `+` for `-`, but not also `+` for `*`, `/`, `//`, `%`, `**`, `<<` …"""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one module.

    Attributes:
        path: of the module, from the project's folder, with ``/``.
        name: the operator and its position, or the name that somebody gave to a planted bug.
        line: the first line that changes, from 1.
        last_line: the last one, in the module as it was.
        make: returns the whole module after the change.
    """

    path: str
    name: str
    line: int
    last_line: int
    make: Callable[[], str]

    def __str__(self) -> str:
        """Return where the change is, and what kind of change."""
        return f"{self.path}:{self.line} {self.name}"


class Statements:
    """Where the statements of a module are: coverage.py need not name each line of one."""

    def __init__(self, source: str) -> None:
        self._lines: dict[int, range] = {}
        self._in_functions: set[int] = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.stmt, ast.ExceptHandler, ast.match_case)):
                first = node.pattern.lineno if isinstance(node, ast.match_case) else node.lineno
                body = getattr(node, "body", None)
                last = max(first, body[0].lineno - 1) if body else _span(node)[1][0]
                self._lines.update(dict.fromkeys(range(first, last + 1), range(first, last + 1)))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._in_functions.update(range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1))

    def lines(self, mutant: Mutant) -> set[int]:
        """Return all lines of the statements that a mutant changes."""
        return {
            line
            for number in range(mutant.line, mutant.last_line + 1)
            for line in self._lines.get(number, range(number, number + 1))
        }

    def at_import(self, mutant: Mutant) -> bool:
        """Whether a mutant changes something that runs when the module is imported, before any test."""
        return mutant.line not in self._in_functions


def generate(root: Path, path: str) -> list[Mutant]:
    """Return all mutants of a module. Some can't be compiled (`compiles`)."""
    source = (root / path).read_text()
    tree = ast.parse(source)
    ignored = _ignored(tree)
    found = (
        *_standard(path, source, tree),
        *deleted_statements(path, source, tree),
        *changes_of_arguments(path, source, tree),
    )
    return [
        mutant
        for mutant in found
        if not any(first <= mutant.line and mutant.last_line <= last for first, last in ignored)
    ]


def compiles(source: str) -> bool:
    """Whether Python can read a module."""
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _standard(path: str, source: str, tree: ast.AST) -> Iterator[Mutant]:
    # Imported here: Cosmic Ray is installed only where mutants are made.
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    annotations = _annotations(tree)
    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        positions = [position for node in nodes for position in operator.mutation_positions(node)]
        for occurrence, (start, end) in enumerate(positions):
            if not any(first <= start and end <= last for first, last in annotations):
                make = partial(_mutate, source, operator, occurrence)
                yield Mutant(path, f"{name} {occurrence}", start[0], end[0], make)


def _mutate(source: str, operator: Operator, occurrence: int) -> str:
    from cosmic_ray.mutating import mutate_code

    return str(mutate_code(source, operator, occurrence))


def _annotations(tree: ast.AST) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where types are written: nothing runs there."""
    found: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.AnnAssign, ast.arg)):
            found.append(node.annotation)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(node.returns)
    return [_span(node) for node in found if node is not None]


def _span(node: ast.expr | ast.stmt | ast.keyword | ast.excepthandler) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)


def _ignored(tree: ast.AST) -> list[tuple[int, int]]:
    """Return the lines that never run or only help a type checker: assertions, and imports for annotations."""
    return [
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        or (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    ]


def _offsets(source: str) -> list[int]:
    """Return where each line begins, in bytes: the columns of `ast` are bytes."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _replaced(source: str, start: int, end: int, new: str) -> str:
    raw = source.encode()
    return (raw[:start] + new.encode() + raw[end:]).decode()


def deleted_statements(path: str, source: str, tree: ast.AST) -> Iterator[Mutant]:
    """Yield the module without one call or assignment of a function: a reset or a release that is forgotten."""
    starts = _offsets(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    statements = {node: None for function in functions for node in ast.walk(function) if isinstance(node, ast.stmt)}
    for node in statements:
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await))
        if is_call or isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)):
            (line, column), (last_line, last_column) = _span(node)
            start, end = starts[line - 1] + column, starts[last_line - 1] + last_column
            make = partial(_replaced, source, start, end, "pass")
            yield Mutant(path, f"DeleteStatement {start}", line, last_line, make)


def changes_of_arguments(path: str, source: str, tree: ast.AST) -> Iterator[Mutant]:
    """Yield the module without one keyword argument of a call: its default is taken instead."""
    starts = _offsets(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.keywords:
            continue
        arguments = sorted((*node.args, *node.keywords), key=lambda argument: (argument.lineno, argument.col_offset))
        spans = [
            (starts[first[0] - 1] + first[1], starts[last[0] - 1] + last[1]) for first, last in map(_span, arguments)
        ]
        for place, argument in enumerate(arguments):
            if not isinstance(argument, ast.keyword) or argument.arg is None:
                continue
            start, end = spans[place]
            if place + 1 < len(arguments):
                end = spans[place + 1][0]
            elif place:
                start = spans[place - 1][1]
            line, last_line = argument.lineno, argument.end_lineno or argument.lineno
            yield Mutant(path, f"DropArgument {start}", line, last_line, partial(_replaced, source, start, end, ""))
