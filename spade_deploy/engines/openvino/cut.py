"""Cut a lookup graph in two, where its rows of gamma and beta end.

    label side    codes, patterns                    -> rows     what a pattern alone decides
    image side    rows, index, latent or z           -> pixels   what depends on where the patterns lie

Both are OpenVINO models of their own, so that the rows of a pattern can be kept and need not be computed again for the
next map (`kept_rows.py`). They compute what the graph does, operator by operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import numpy as np

from spade_deploy.engines.openvino.library import load_openvino, said_by
from spade_deploy.errors import RuntimeUnavailableError

ROWS = "rows_"
"""How the name of a tensor of rows begins."""
_CODES, _PATTERNS, _INDEX = "codes_", "patterns_", "index_"


class Part(StrEnum):
    """Which part of a graph a model is."""

    WHOLE = "whole"
    LABELS = "label side"
    IMAGE = "image side"


def stride_of(name: str) -> int:
    """The stride of the level that a tensor of rows belongs to."""
    return int(name.split("_")[1])


def is_of_labels(name: str) -> bool:
    """Whether an input of a lookup graph belongs to the label side."""
    return name.startswith((_CODES, _PATTERNS))


def part_of(model: Any, part: Part) -> Any:
    """The part of an OpenVINO `Model` of a lookup graph. The model itself is used up.

    The tensors of rows have the same names on both sides: those of the ONNX file. Raises RuntimeUnavailableError for a
    graph that cannot be cut: it looks up no rows, or they depend on more than patterns, or are no float32.
    """
    if part is Part.WHOLE:
        return model
    openvino = load_openvino()
    op = openvino.opset13
    parameters = {node.output(0).get_any_name(): node for node in model.get_parameters()}
    _forget_order(parameters)
    found: dict[str, Any] = {}  # results, or parameters, by the name of their rows
    for gather, stride in list(_row_gathers(model)):
        rows = gather.input_value(0)
        name = _named(rows, stride)
        if name not in found:
            _check_rows(rows, stride)
            shape, kind = rows.get_partial_shape(), rows.get_element_type()
            found[name] = op.result(rows) if part is Part.LABELS else op.parameter(shape, kind, name=name)
            found[name].output(0).get_tensor().set_names({name})
        if part is Part.IMAGE:
            gather.input(0).replace_source_output(found[name].output(0))
    if not found:
        raise RuntimeUnavailableError("the graph cannot be cut: it gathers no rows by an index")
    made, fed = list(model.get_results()), [node for name, node in parameters.items() if not is_of_labels(name)]
    if part is Part.LABELS:
        made, fed = list(found.values()), [node for name, node in parameters.items() if is_of_labels(name)]
    else:
        fed += found.values()
    try:
        return openvino.Model(made, fed, str(part))
    except RuntimeError as error:  # something of the other side is needed here
        raise RuntimeUnavailableError(f"the graph cannot be cut: {said_by(error)}") from error


def _forget_order(parameters: dict[str, Any]) -> None:
    """Take away the zeros that are added to patterns, which are there to make rows wait for the map (`_windows` in
    export/lookup.py): the label side knows no map."""
    for name, node in parameters.items():
        if not name.startswith(_PATTERNS):
            continue
        for target in node.output(0).get_target_inputs():
            add = target.get_node()
            if add.get_type_name() == "Add" and _is_zero(add.input_value(1 - target.get_index()).get_node()):
                for reader in add.output(0).get_target_inputs():
                    reader.replace_source_output(node.output(0))


def _is_zero(node: Any) -> bool:
    """Whether a node's integers are certainly zero: something times the constant zero."""
    if node.get_type_name() != "Multiply" or not node.output(0).get_element_type().is_integral():
        return False
    factors = [value.get_node() for value in node.input_values()]
    return any(one.get_type_name() == "Constant" and not np.any(one.get_data()) for one in factors)


def _row_gathers(model: Any) -> Iterator[tuple[Any, int]]:
    """Each gather of rows by the index of a level, and the level's stride."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather" or len(node.input_value(0).get_partial_shape()) != 2:
            continue
        axis = node.input_value(2).get_node()
        if axis.get_type_name() != "Constant" or axis.get_data().reshape(-1).tolist() != [0]:
            continue
        numbers = node.input_value(1).get_node()
        while numbers.get_type_name() in ("Reshape", "Convert"):
            numbers = numbers.input_value(0).get_node()
        name = numbers.output(0).get_any_name() if numbers.get_type_name() == "Parameter" else ""
        if name.startswith(_INDEX):
            yield node, int(name.removeprefix(_INDEX))


def _named(rows: Any, stride: int) -> str:
    """The name of a tensor of rows, which is the same for all gathers of it."""
    for name in rows.get_names():
        if name.startswith(ROWS):
            return str(name)
    return f"{ROWS}{stride}_{min(rows.get_names())}"


def _check_rows(rows: Any, stride: int) -> None:
    """Raise RuntimeUnavailableError for rows that cannot be kept: their pattern is not all that they depend on."""
    if rows.get_element_type().to_string() != "f32":
        raise RuntimeUnavailableError(f"the graph cannot be cut: rows of level {stride} are no float32")
    seen, waiting = set(), [rows.get_node()]
    while waiting:
        node = waiting.pop()
        if node.get_type_name() == "Parameter":
            name = node.output(0).get_any_name()
            if name not in (f"{_CODES}{stride}", f"{_PATTERNS}{stride}"):
                raise RuntimeUnavailableError(f"the graph cannot be cut: rows of level {stride} depend on {name}")
        for value in node.input_values():
            above = value.get_node()
            if above.get_name() not in seen:
                seen.add(above.get_name())
                waiting.append(above)
