from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_generator, graph_inputs, random_inputs

from spade_deploy.artifact import INSTANCE, LABEL, Z
from spade_deploy.engines.ort import _onnxruntime
from spade_deploy.export import lookup_model
from spade_deploy.export.deploy_model import DeployModel, unit_names
from spade_deploy.export.lookup_model import LookupModel
from spade_deploy.export.onnx_graph import model_stages, write_onnx
from spade_deploy.export.pipeline import model_inputs
from spade_deploy.spec import GeneratorSpec, LabelSpec, NormType, Upsampling
from spade_deploy.training.networks import SpadeGenerator, make_segmap, to_pixels

VARIANTS: dict[str, dict[str, Any]] = {
    "normal, dontcare and edges": {},
    "no edges, no dontcare, batch norm": {"labels": LabelSpec(5), "norm": NormType.BATCH},
    "more, wide": {"upsampling": Upsampling.MORE, "height": 64, "width": 128},
    "most, kernel 1": {"upsampling": Upsampling.MOST, "height": 128, "width": 128, "kernel_size": 1},
    "kernel 5, no spectral norm": {"kernel_size": 5, "spectral_norm": False},
    "instance norm": {"norm": NormType.INSTANCE},
    "style vector": {"z_dim": 16},
}


def arrays(spec: GeneratorSpec, label: Any, instance: Any, z: Any) -> dict[str, Any]:
    found = {LABEL: label.numpy()}
    if spec.labels.has_edges:
        found[INSTANCE] = instance.numpy()
    if spec.z_dim is not None:
        found[Z] = z.numpy()
    return found


def reference(generator: SpadeGenerator, label: Any, instance: Any, z: Any) -> torch.Tensor:
    dtype = generator.conv_img.weight.dtype
    with torch.no_grad():
        segmap = make_segmap(label, instance, generator.spec.labels).to(dtype)
        image: torch.Tensor = generator(segmap, None if z is None else z.to(dtype))
    return image


def in_float64(generator: SpadeGenerator) -> SpadeGenerator:
    wide = SpadeGenerator(generator.spec).double()
    wide.load_state_dict(generator.state_dict())
    return wide.eval()


def single_class(spec: GeneratorSpec) -> tuple[Any, Any, Any]:
    label, instance, z = random_inputs(spec, 2)
    return torch.full_like(label, 2), torch.zeros_like(instance), z


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("maps", ["noise", "one class"])
def test_equals_the_trained_module(variant: str, maps: str) -> None:
    generator = build_generator(**VARIANTS[variant])
    spec = generator.spec
    torch.manual_seed(5)
    label, instance, z = random_inputs(spec, 2) if maps == "noise" else single_class(spec)
    wide = in_float64(generator)
    exact = reference(wide, label, instance, z)
    model, model64 = LookupModel(generator), LookupModel(wide, dtype=torch.float64)
    inputs = model_inputs(model, arrays(spec, label, instance, z))
    with torch.no_grad():
        _, image64 = model64(*inputs)
        pixels, image = model(*inputs)
    # Measured worst over the variants: see the float64 test below for what a wrong table does.
    assert (image64 - exact).abs().max() < 1e-12
    eager = (reference(generator, label, instance, z).double() - exact).abs()
    error = (image.double() - exact).abs()
    assert error.max() <= 2 * eager.max() + 1e-7
    assert error.mean() <= 2 * eager.mean() + 1e-8
    assert torch.equal(pixels, to_pixels(image))


def test_a_border_that_is_not_zero_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    # Outside the image the hidden map is zero, not relu(bias): the mistake that a lookup is prone to.
    generator = in_float64(build_generator())
    label, instance, z = random_inputs(generator.spec, 1)
    monkeypatch.setattr(lookup_model.torch, "zeros", lambda *size, **kw: torch.full(size, 0.1, **kw))
    model = LookupModel(generator, dtype=torch.float64)
    with torch.no_grad():
        _, image = model(*model_inputs(model, arrays(generator.spec, label, instance, z)))
    assert (image - reference(generator, label, instance, z)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (160, 32)])
def test_the_graph_equals_the_trained_module_at_every_size(size: tuple[int, int], lookup_graph: Any) -> None:
    generator, session = lookup_graph
    torch.manual_seed(2)
    label, instance, z = random_inputs(generator.spec, 3, *size)
    exact = reference(in_float64(generator), label, instance, z)
    eager = (reference(generator, label, instance, z).double() - exact).abs()
    given = arrays(generator.spec, label, instance, z)
    tensors = model_inputs(LookupModel(generator), given)
    names = [entry.name for entry in session.get_inputs()]
    pixels, image = session.run(["pixels", "image"], {n: t.numpy() for n, t in zip(names, tensors, strict=True)})
    error = np.abs(image - exact.numpy())
    assert error.max() <= 2 * eager.max() + 1e-7
    assert error.mean() <= 2 * eager.mean() + 1e-8
    np.testing.assert_array_equal(pixels, to_pixels(torch.from_numpy(image)).numpy())


@pytest.fixture(scope="module")
def lookup_graph(tmp_path_factory: pytest.TempPathFactory) -> Any:
    generator = build_generator()
    path = tmp_path_factory.mktemp("lookup") / "generator.lookup.fp32.onnx"
    write_onnx(LookupModel(generator), path)
    return generator, _onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_values_carry_the_trained_names(tmp_path: Path) -> None:
    import onnx

    model = LookupModel(build_generator(z_dim=8))
    write_onnx(model, tmp_path / "lookup.onnx")
    graph = onnx.load(str(tmp_path / "lookup.onnx")).graph
    values = {output for node in graph.node for output in node.output}
    assert set(model_stages(model)) <= values
    assert "Conv" in {node.op_type for node in graph.node}
    assert sum(node.op_type == "Conv" for node in graph.node) == 2 * 7 + 1  # the residual blocks' own, and conv_img


def test_fp16_keeps_what_it_is_told() -> None:
    generator = build_generator()
    keep = ("up_1", "level_1")
    model = LookupModel(generator, fp16=True, keep_fp32=keep)
    for name in unit_names(model.spec):
        types = {parameter.dtype for parameter in model.get_submodule(name).parameters()}
        assert types == {torch.float32 if name in keep else torch.float16}, name
    label, instance, z = random_inputs(generator.spec, 1)
    with torch.no_grad():
        _, image = model(*model_inputs(model, arrays(generator.spec, label, instance, z)))
        _, dense = DeployModel(generator)(*graph_inputs(generator.spec, label, instance, z))
    # Half precision: measured under 3e-3 for the dense model of the same generator.
    assert 0 < (image - dense).abs().max() < 0.01
