"""Keep ids exact: OpenVINO compares label ids in bfloat16, which holds integers up to 256, and instance ids in float32.

Both were found by comparing images with ONNX Runtime's (OpenVINO 2026.4.1): edges went missing where instance ids of
2^24 and more differ by one, in float32 as well, and pixels of a model with 300 labels got the wrong class in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from spade_deploy.artifact import INSTANCE, LABEL, Arrays
from spade_deploy.errors import RuntimeUnavailableError
from spade_deploy.spec import LabelSpec

LARGEST_EXACT = 256
"""Up to this every integer is a bfloat16: it has 8 bits of mantissa."""
LARGEST_INSTANCE = 1 << 24
"""Up to this every integer is a float32."""
_MOVES = ("Unsqueeze", "StridedSlice", "Slice", "Reshape")
"""The operators that move ids and change none."""


def compare_ids_as_integers(model: Any, labels: LabelSpec) -> None:
    """Change an OpenVINO `Model` of a dense graph, so that its one-hot map is right in bf16 for ids over 256.

    Its graph casts the ids to float32 and compares them with 0, 1, 2 and so on. OpenVINO casts straight to bfloat16
    then, and ids such as 257 and 258 become one. With 257 ids and fewer nothing is changed. Raises
    RuntimeUnavailableError for a graph that uses its ids in another way.
    """
    if labels.num_ids <= LARGEST_EXACT + 1:
        return
    from openvino import opset13

    (parameter,) = (one for one in model.get_parameters() if LABEL in one.output(0).get_names())
    for cast in [node for node in _readers(parameter) if node.get_type_name() == "Convert"]:
        compared = list(_compared(cast))
        for equal, side in compared:
            constant = equal.input_value(side).get_node()
            numbers = constant.get_data()
            equal.input(side).replace_source_output(opset13.constant(numbers.astype(np.int32)).output(0))
        for target in cast.output(0).get_target_inputs():  # the labels of so many classes are int32 as they come
            target.replace_source_output(parameter.output(0))
    model.validate_nodes_and_infer_types()


def exact_inputs(inputs: Arrays) -> Arrays:
    """A dense graph's inputs, with instance ids that float32 holds.

    The graph looks at nothing but whether neighbours have the same instance id, so larger ids are numbered anew.
    """
    instance = inputs.get(INSTANCE)
    if instance is None or (instance.max() <= LARGEST_INSTANCE and instance.min() >= -LARGEST_INSTANCE):
        return inputs
    numbers = np.unique(instance, return_inverse=True)[1].reshape(instance.shape)
    return {**inputs, INSTANCE: numbers.astype(instance.dtype)}


def _compared(node: Any) -> Iterator[tuple[Any, int]]:
    """Each comparison that ids come to, and which of its inputs is the constant."""
    for reader in _readers(node):
        kind = reader.get_type_name()
        if kind in _MOVES:
            yield from _compared(reader)
            continue
        sides = [side for side in (0, 1) if kind == "Equal" and reader.input_value(side).get_node() is not node]
        constants = [side for side in sides if reader.input_value(side).get_node().get_type_name() == "Constant"]
        if len(constants) != 1:
            raise RuntimeUnavailableError(
                f"bf16: the graph uses its label ids in {kind} {reader.get_friendly_name()}, and ids over"
                f" {LARGEST_EXACT} would be rounded",
                hint="the lookup graph (`graph`) is right in bf16; or take fp32",
            )
        yield reader, constants[0]


def _readers(node: Any) -> list[Any]:
    return [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]
