"""export/found_lookup.py: finding and lookup as one ONNX graph, in ONNX Runtime on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from spade_deploy.artifact import IMAGE, PIXELS
from spade_deploy.engines.ort.session import open_session
from spade_deploy.export.found_lookup import EXCESS, FoundLookup, write_found_lookup
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.pattern_finder import PatternFinder
from spade_deploy.networks.spade import to_pixels
from spade_deploy.spec import LabelSpec
from tests.export.test_pattern_finder import blocks_of, half_noise, rooms
from tests.support.exactness import errors, in_float64, named_inputs, reference
from tests.support.generators import build_generator, random_inputs

VARIANTS: dict[str, dict[str, Any]] = {
    "edges": {},
    "no edges, style": {"labels": LabelSpec(5), "z_dim": 4},
    "kernel 1": {"kernel_size": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_graph_is_as_exact_as_eager(variant: str, tmp_path: Path) -> None:
    generator = build_generator(**VARIANTS[variant])
    spec, path = generator.spec, tmp_path / "found.onnx"
    size = (2, spec.height, spec.width)
    z = random_inputs(spec, 2)[2]
    maps = [blocks_of(spec, *size), half_noise(spec, *size)]
    finder = PatternFinder(spec, *size, rooms(spec, maps[0][0]), by_products=True)
    write_found_lookup(finder, LookupModel(generator), path)
    session = open_session(path)
    for label, instance in maps:
        fed = {name: np.ascontiguousarray(array) for name, array in named_inputs(spec, label, instance, z).items()}
        pixels, image, excess = session.run([PIXELS, IMAGE, EXCESS], fed)
        assert not excess.any()
        exact = reference(in_float64(generator), label, instance, z)
        found = errors(torch.from_numpy(image), reference(generator, label, instance, z), exact)
        # Measured worst over the variants: 1.0 times eager's largest error, 1.0 times its mean.
        assert found.max_ratio <= 2
        assert found.mean_ratio <= 2
        np.testing.assert_array_equal(pixels, to_pixels(torch.from_numpy(image)).numpy())
    if spec.kernel_size > 1:
        label, instance, z = random_inputs(spec, 2)  # a window of its own for every pixel
        assert session.run([EXCESS], named_inputs(spec, label, instance, z))[0][-1] > 0


def test_a_style_beside_instances_reaches_the_network() -> None:
    generator = build_generator(z_dim=4)
    spec = generator.spec
    label, instance = blocks_of(spec, 1, spec.height, spec.width)
    finder = PatternFinder(spec, 1, spec.height, spec.width, rooms(spec, label))
    model = FoundLookup(finder, LookupModel(generator)).eval()
    for seed in (0, 1):
        z = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            _, image, excess = model(label, instance, z)
        assert not excess.any()
        torch.testing.assert_close(image, reference(generator, label, instance, z), rtol=0, atol=1e-4)


def test_every_operator_is_one_that_a_cuda_graph_takes(tmp_path: Path) -> None:
    generator = build_generator()
    spec, path = generator.spec, tmp_path / "found.onnx"
    label, _ = blocks_of(spec, 1, 64, 64)
    write_found_lookup(
        PatternFinder(spec, 1, 64, 64, rooms(spec, label), by_products=True), LookupModel(generator), path
    )
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    kinds = {node.op_type for node in model.graph.node}
    # Their outputs have a size that depends on values, or they are slow on a GPU.
    assert not kinds & {"NonZero", "Compress", "Unique", "Loop", "If", "CumSum"}
    types = {value.name: value.type.tensor_type for value in [*model.graph.value_info, *model.graph.output]}
    for node in model.graph.node:
        for name in node.output:
            dims = types[name].shape.dim
            assert all(dim.HasField("dim_value") for dim in dims), f"{node.op_type} {name} has an open size"
            if node.op_type in ("Pad", "MaxPool", "MatMul"):
                assert types[name].elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
