"""Which module of the package imports which, read from the sources: imports inside functions count, types do not."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path


def import_graph(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, at its top or inside a function.

    `from a.b import c` is an import of the module `a.b.c` where that is one, and else of `a.b`. What stands under
    `if TYPE_CHECKING:` is left out, since it never runs; `only_types` says whether it is really for types alone.
    """
    trees = read_package(package)
    return {name: set(_imports(name, tree, trees)) for name, tree in trees.items()}


def read_package(package: Path) -> dict[str, ast.Module]:
    """Module -> its tree; a package is the module of its `__init__`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"))
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other, each sorted: Tarjan's strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in graph.get(name, ()):
                found.append(sorted(group))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def only_types(tree: ast.Module) -> list[str]:
    """Names imported under `if TYPE_CHECKING:` alone that stand elsewhere than in annotations; empty is right.

    Every module begins with `from __future__ import annotations`, so an annotation is never run. A name that a function
    imports for itself is not the guarded one.
    """
    blocks = [node for node in ast.walk(tree) if _is_for_types(node)]
    guarded = {name for block in blocks for name in _imported(ast.walk(block))} - set(_imported(_running(tree)))
    annotations: set[int] = set()
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if isinstance(note := getattr(node, field, None), ast.AST):
                annotations.update(map(id, ast.walk(note)))
    used = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in annotations)
    return sorted({node.id for node in used} & guarded)


def _imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _imports(module: str, tree: ast.Module, known: Mapping[str, ast.Module]) -> Iterator[str]:
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                target = inner if inner in known else str(node.module)
                # A package's face imports its own modules; they may import each other, but not the face.
                yield target


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if _is_for_types(node):
            assert isinstance(node, ast.If)
            for other in node.orelse:
                yield from (other, *_running(other))
            continue
        yield node
        yield from _running(node)
