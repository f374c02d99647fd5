"""Small wrong changes of formulas: where one can be made, and the module with it made.

A change is of what is computed. Text, annotations and `raise` statements are left as they are, and
so is `huggingface_defaults`, a table that tests compare whole with transformers' classes.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("planner", "allocator", "models")
LEFT_OUT = {"huggingface_defaults.py"}
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.And: ast.Or, ast.Or: ast.And,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
UNTOUCHED = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
UNTOUCHED_FIELDS = {"annotation", "returns", "type_comment", "decorator_list", "ops", "op"}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        file: relative to the root.
        index: which place of the file.
        line: where.
        lines: of the statement that it is in: a test covers the change if it runs one of them.
        function: the class and function that it is in; empty at the top of the module.
        change: `a + b → a - b`; the second of a function that looks the same has `#2` behind it.
    """

    file: str
    index: int
    line: int
    lines: tuple[int, int]
    function: str
    change: str

    @property
    def key(self) -> str:
        """What it is called in lists: without a line number, which other changes move."""
        return f"{self.file} {self.function}: {self.change}"

    @property
    def module(self) -> str:
        """Its module's name."""
        return self.file.removesuffix(".py").replace("/", ".")


def files() -> list[Path]:
    """Modules that are changed."""
    found = [path for name in PACKAGES for path in (ROOT / "tritter_mem" / name).rglob("*.py")]
    return sorted(path for path in found if path.name not in LEFT_OUT)


def mutants(path: Path) -> list[Mutant]:
    """Every change of a module."""
    tree = ast.parse(path.read_bytes())
    name = str(path.relative_to(ROOT))
    found, seen = [], Counter[str]()
    for index, (node, statement, function) in enumerate(_places(tree)):
        lines = (statement.lineno, _last_line(statement))
        change = f"{_shown(node)} → {_shown(_changed(node))}"
        seen[function + change] += 1
        if (number := seen[function + change]) > 1:
            change = f"{change} #{number}"
        found.append(Mutant(name, index, node.lineno, lines, function, change))  # type: ignore[attr-defined]
    return found


def sample(seed: int, count: int) -> list[Mutant]:
    """Some of all changes: those whose names have the lowest hashes with the seed.

    Where a file is changed, the sample of the others stays nearly as it was.
    """

    def rank(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{seed} {mutant.key}".encode()).digest()

    return sorted((mutant for path in files() for mutant in mutants(path)), key=rank)[:count]


def mutated(path: Path, index: int) -> ast.Module:
    """The module with one change made."""
    tree = ast.parse(path.read_bytes())
    node, _, _ = next(place for n, place in enumerate(_places(tree)) if n == index)
    changed = _changed(node)
    for field in node._fields:
        if hasattr(node, field):
            delattr(node, field)
    node.__class__ = changed.__class__  # type: ignore[assignment]
    for field, value in ast.iter_fields(changed):
        setattr(node, field, value)
    return tree


def _places(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, ast.stmt, str]]:
    """Each node that can be changed, with its statement and the name of its function."""
    yield from _within(tree, tree, "")  # type: ignore[arg-type]


def _within(
    node: ast.AST, statement: ast.stmt, function: str
) -> Iterator[tuple[ast.expr | ast.stmt, ast.stmt, str]]:
    if isinstance(node, UNTOUCHED):
        return
    if isinstance(node, ast.stmt):
        statement = node
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        function = f"{function}.{node.name}" if function else node.name
    if isinstance(node, ast.expr | ast.AugAssign | ast.If) and _changed(node) is not node:
        yield node, statement, function
    for part in _parts(node):
        yield from _within(part, statement, function)


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    for field, value in ast.iter_fields(node):
        if field not in UNTOUCHED_FIELDS:
            parts = value if isinstance(value, list) else [value]
            yield from (part for part in parts if isinstance(part, ast.AST))


def _changed(node: ast.AST) -> ast.AST:
    """A node in place of another; the same one where it has no change."""
    made = copy.copy(node)
    match made:
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(made.op) in OPERATORS:
            made.op = OPERATORS[type(made.op)]()  # type: ignore[assignment]
        case ast.Compare(ops=[op]) if type(op) in OPERATORS:
            made.ops = [OPERATORS[type(op)]()]  # type: ignore[list-item]
        case ast.Constant(value=bool() | int() as value):
            made.value = not value if isinstance(value, bool) else value + 1
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            made.func = ast.copy_location(ast.Name(NAMES[name], ast.Load()), made.func)
        case _:
            return _turned(node, made)
    return made


def _turned(node: ast.AST, made: ast.AST) -> ast.AST:
    """A sign, a negation or a choice the other way round; else the same node."""
    match made:
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return ast.copy_location(made.operand, node)
        case ast.IfExp():
            made.body, made.orelse = made.orelse, made.body
        case ast.If():
            made.test = ast.copy_location(ast.UnaryOp(ast.Not(), made.test), made.test)
        case _:
            return node
    return made


def _last_line(statement: ast.stmt) -> int:
    """Of a statement's own lines: of a compound one, those of its head."""
    body = getattr(statement, "body", None)
    if isinstance(body, list) and body:
        return max(statement.lineno, body[0].lineno - 1)
    return statement.end_lineno or statement.lineno


def _shown(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"[:100]
    return ast.unparse(node)[:100]
