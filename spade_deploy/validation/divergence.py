"""Find where a graph goes wrong: the first value that differs from that of the trained generator.

The exported graph's values carry the names of the trained layers (`up_0.conv_1`). In a copy of the graph they become
outputs. They are compared, in the order they are computed, with the values that hooks record in the untouched PyTorch
module.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spade_deploy.artifact import FEATURES, INSTANCE, LABEL, Graph, Z
from spade_deploy.engines.ort.session import Optimization, SessionSetup, open_session
from spade_deploy.errors import ArtifactError
from spade_deploy.export.build import stage_names
from spade_deploy.export.lookup import OUTPUTS_NCHW, merged
from spade_deploy.files.onnx_data import external_files
from spade_deploy.files.temporary import scratch_folder
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.networks.build import Generator
from spade_deploy.networks.sims import bank_of_generator
from spade_deploy.networks.spade import make_segmap
from spade_deploy.spec import GraphKind, Precision

RELATIVE_LIMIT = {Precision.FP32: 1e-3, Precision.FP16: 0.1, Precision.INT8: 0.3}
"""The limit of the root mean square error divided by the root mean square of the value. Right graphs stay far below it
(tests/validation/test_validate.py); rounding alone can never exceed it."""


@dataclass(frozen=True)
class Divergence:
    """The first value whose error exceeds the limit."""

    tensor: str
    """The name of the value."""
    relative_error: float
    """The root mean square of the error over that of the reference's value."""
    max_abs: float
    """The largest error."""


def first_divergence(
    file: Path, graph: Graph, generator: Generator, inputs: Mapping[str, NDArray[Any]]
) -> Divergence | None:
    """Compare every named value of a graph with the reference's for one input; None if all are within the limit.

    file, graph: the ONNX file and what the manifest says of it. inputs: label and what else the model takes, by name;
    N of 1 is enough. CPU only. Raises ArtifactError for a graph that reads weights from elsewhere than beside it.
    """
    names = stage_names(generator.spec)
    is_lookup = graph.kind is GraphKind.LOOKUP
    found = _graph_values(file, names, graph_inputs(generator.spec, graph.kind, inputs, bank_of_generator(generator)))
    expected = _reference_values(generator, names, inputs)
    for name in names:
        if name not in found:
            continue  # a file of another exporter may lack the name
        reference, candidate = expected[name].astype(np.float64), found[name].astype(np.float64)
        if is_lookup and not name.endswith(OUTPUTS_NCHW):
            candidate = merged(torch.from_numpy(candidate)).permute(0, 3, 1, 2).numpy()
        error = candidate - reference
        scale = float(np.sqrt(np.mean(reference**2))) or 1.0
        relative = float(np.sqrt(np.mean(error**2))) / scale
        if not relative <= RELATIVE_LIMIT[graph.precision]:
            return Divergence(name, relative, float(np.abs(error).max()))
    return None


def _graph_values(graph: Path, names: list[str], inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    import onnx

    try:
        beside = external_files(graph)  # these are plain names, so nothing is read or written elsewhere
    except ValueError as error:
        raise ArtifactError(f"{graph} is not opened: {error}") from error
    model = onnx.load(str(graph), load_external_data=False)
    there = {output for node in model.graph.node for output in node.output}
    wanted = [name for name in names if name in there]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    with scratch_folder("divergence") as folder:
        copy = folder / "graph.onnx"  # no file beside it may have this name
        for name in beside:
            if name == copy.name:
                raise ArtifactError(f"{graph} is not opened: its weights lie in a file of the name {name}")
            shutil.copyfile(graph.parent / name, folder / name)
        onnx.save(model, str(copy))
        # Fusions would remove the very values that are asked for.
        session = open_session(copy, SessionSetup(optimization=Optimization.BASIC))
        values = session.run(wanted, dict(inputs))
    return dict(zip(wanted, values, strict=True))


def _reference_values(
    generator: Generator, names: list[str], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    values: dict[str, NDArray[Any]] = {}

    def keep(name: str) -> Any:
        def hook(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
            values[name] = output.detach().numpy()

        return hook

    handles = [generator.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array.copy()) for name, array in inputs.items()}
            segmap = make_segmap(tensors[LABEL], tensors.get(INSTANCE), generator.spec.labels)
            if FEATURES in tensors:
                segmap = torch.cat([segmap, tensors[FEATURES]], dim=1)
            generator(segmap, tensors.get(Z))
    finally:
        for handle in handles:
            handle.remove()
    return values
