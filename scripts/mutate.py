"""Change a module in one place at a time and see whether its tests notice: those changes that they do not are printed.

    python scripts/mutate.py spade_deploy/export/fold.py tests/export/test_fold.py --count 100

The changes are drawn with a seed from all that the list below makes. The repository is copied; nothing here is touched.
A mutant lives in a forked process that has the libraries loaded already. One that takes ten times as long as the tests
unchanged, or runs out of memory, counts as noticed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


@dataclass(frozen=True)
class Mutant:
    """The text that replaces `start:end` (bytes) of a source; line and what: for the reader."""

    start: int
    end: int
    text: str
    line: int
    what: str


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        yield _with(node, ops=[COMPARED[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in COMPUTED:
        yield _with(node, op=COMPUTED[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
        yield from node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.If | ast.While):
        yield _with(node, test=ast.Constant(False))
        yield _with(node, test=ast.Constant(True)) if isinstance(node, ast.If) else ast.Pass()
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1 if isinstance(node.value, int) else node.value * 2)
    elif isinstance(node, ast.Call):
        yield from (_with(node, keywords=[k for k in node.keywords if k is not gone]) for gone in node.keywords)
        if len(node.args) == 1 and not node.keywords:
            yield node.args[0]
        if isinstance(node.func, ast.Attribute) and not node.args:
            yield node.func.value
    elif isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
        yield ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Continue | ast.Break):
        yield ast.Pass()


def _with(node: ast.AST, **fields: object) -> ast.AST:
    made = copy.copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def mutants(source: str) -> list[Mutant]:
    """Every change of a module; none in annotations, docstrings, or the making of messages."""
    tree = ast.parse(source)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        parts = [getattr(node, name, None) for name in ("annotation", "returns")]
        parts += [node] if isinstance(node, ast.JoinedStr) else []
        parts += [node.exc] if isinstance(node, ast.Raise) else []
        skipped.update(inner for part in parts if isinstance(part, ast.AST) for inner in ast.walk(part))
    encoded = [line.encode() for line in source.splitlines(keepends=True)]
    begins = [0]
    for line in encoded:
        begins.append(begins[-1] + len(line))
    found = []
    for node in ast.walk(tree):
        if node in skipped or not isinstance(node, ast.expr | ast.stmt):
            continue
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = begins[node.lineno - 1] + node.col_offset
        end = begins[node.end_lineno - 1] + node.end_col_offset
        before = source.encode()[start:end].decode()
        for variant in variants(node):
            text = ast.unparse(ast.fix_missing_locations(variant))
            text = f"({text})" if isinstance(variant, ast.expr) else text.replace("\n", "\n" + " " * node.col_offset)
            if isinstance(node, ast.If) and before.startswith("elif"):
                text = "el" + text
            first = f"{before.splitlines()[0][:70]}  ->  {text.splitlines()[0][:70]}"
            found.append(Mutant(start, end, text, node.lineno, first))
    return found


def survives(content: bytes, module: Path, tests: list[str], copy_at: Path, timeout_s: float) -> bool:
    """Whether the tests pass with the module as `content`."""
    module.write_bytes(content)
    child = os.fork()
    if not child:
        _run_tests(copy_at, tests)
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status == 0
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run_tests(copy_at: Path, tests: list[str]) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(copy_at)
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        sys.path.insert(0, str(copy_at))
        os.environ["PYTHONPATH"] = str(copy_at)
        import pytest

        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    finally:
        os._exit(code)


def main() -> int:
    """Draw, change, test, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+", help="what pytest is given: files, or -k and a word after a --")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    source = asked.module.read_bytes()
    every = mutants(source.decode())
    drawn = random.Random(asked.seed).sample(every, min(asked.count, len(every)))
    for library in ("numpy", "torch", "onnx", "PIL.Image"):  # not what pytest wants to import itself
        with contextlib.suppress(ImportError):
            __import__(library)
    with tempfile.TemporaryDirectory() as folder:
        copy_at = Path(folder, "repository")
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "runs", "demo")
        shutil.copytree(ROOT, copy_at, ignore=ignored, symlinks=True)
        module = copy_at / asked.module
        began = time.monotonic()
        if not survives(source, module, asked.tests, copy_at, 3600):
            print("the tests fail without any change")
            return 2
        timeout_s = 10 * (time.monotonic() - began) + 20
        print(f"{asked.module}: {len(drawn)} of {len(every)} mutants, {timeout_s:.0f} s at most each", flush=True)
        alive = 0
        for number, mutant in enumerate(sorted(drawn, key=lambda mutant: mutant.start), start=1):
            content = source[: mutant.start] + mutant.text.encode() + source[mutant.end :]
            try:
                compile(content, str(module), "exec")
            except SyntaxError:
                continue
            if survives(content, module, asked.tests, copy_at, timeout_s):
                alive += 1
                print(f"  [{number}] survived, line {mutant.line}: {mutant.what}", flush=True)
        print(f"{asked.module}: {len(drawn) - alive} of {len(drawn)} were noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
