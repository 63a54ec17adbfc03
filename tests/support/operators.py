"""The ONNX operators of a graph, the golden list of those that may occur, and what makes that list.

    python -m tests.support.operators

exports the graphs of all variants, which takes minutes, and writes tests/golden/operators.txt. To be run when a graph
needs another operator, after every runtime was seen to take it.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from spade_deploy.files.atomic import write_text

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = TESTS / "golden" / "operators.txt"
HEADING = "# What graphs may contain: kind, or precision where that adds it; operator with its domain.\n"


@dataclass(frozen=True)
class Case:
    """One graph to export. fields: of the generator's spec."""

    kind: str
    precision: str
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kind} {self.precision}, {', '.join(self.fields) or 'edges'}"


def operators_of(model: onnx.ModelProto) -> set[str]:
    """Operators with their domains, those of inner graphs and of functions included."""
    found: set[str] = set()
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        found.add(f"{node.domain or 'ai.onnx'}.{node.op_type}")
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending.extend(graph.node)
    return found


def read_golden() -> dict[str, set[str]]:
    """Operators by kind or precision."""
    golden: dict[str, set[str]] = {}
    for line in GOLDEN.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            group, operator = line.split()
            golden.setdefault(group, set()).add(operator)
    return golden


def unexpected(golden: dict[str, set[str]], case: Case, found: set[str]) -> set[str]:
    return found - golden[case.kind] - golden.get(case.precision, set())


def export(case: Case, folder: Path) -> Path:
    """The graph of a small generator; an int8 one is made of the fp32 graph beside it."""
    from spade_deploy.export.build import build_model
    from spade_deploy.export.int8.qdq import write_int8
    from spade_deploy.export.int8.sensitivity import calibrate
    from spade_deploy.export.int8.write import _batches
    from spade_deploy.export.onnx_file import write_onnx
    from spade_deploy.spec import GraphKind
    from tests.support.exactness import named_inputs
    from tests.support.generators import build_generator, random_inputs

    generator = build_generator(**case.fields)
    kind = GraphKind(case.kind)
    model = build_model(generator, kind, fp16=case.precision == "fp16")
    plain = folder / f"{'fp16' if case.precision == 'fp16' else 'fp32'}.onnx"
    if not plain.exists():
        write_onnx(model, plain)
    if case.precision != "int8":
        return plain
    inputs = named_inputs(generator.spec, *random_inputs(generator.spec, 1))
    int8 = folder / "int8.onnx"
    write_int8(plain, int8, calibrate(model, _batches(model, inputs)).ranges)
    return int8


def main() -> None:
    from tests.support.exactness import VARIANTS

    golden: dict[str, set[str]] = {kind: set() for kind in ("dense", "lookup")}
    added: dict[str, set[str]] = {precision: set() for precision in ("fp16", "int8")}
    for kind, (variant, fields) in itertools.product(golden, VARIANTS.items()):
        print(f"{kind}, {variant}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for precision in ("fp32", "fp16", "int8"):
                found = operators_of(onnx.load(str(export(Case(kind, precision, fields), Path(folder)))))
                (golden[kind] if precision == "fp32" else added[precision]).update(found)
    for precision, operators in added.items():
        golden[precision] = operators - golden["dense"] - golden["lookup"]
    lines = [f"{group} {operator}\n" for group, operators in golden.items() for operator in sorted(operators)]
    write_text(GOLDEN, HEADING + "".join(lines))


if __name__ == "__main__":
    main()
