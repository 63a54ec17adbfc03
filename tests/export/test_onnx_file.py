from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from spade_deploy.export.build import stage_names
from spade_deploy.export.onnx_file import OPSET, write_onnx
from spade_deploy.export.spade import DeployModel
from spade_deploy.networks.spade import SpadeGenerator, make_segmap, to_pixels
from spade_deploy.spec import LabelSpec, NormType, Upsampling
from tests.support.generators import build_generator, graph_inputs, random_inputs

VARIANTS: dict[str, dict[str, Any]] = {
    "edges": {},
    "instance norm, more": {
        "norm": NormType.INSTANCE,
        "upsampling": Upsampling.MORE,
        "labels": LabelSpec(5),
        "width": 128,
    },
    "style vector": {"z_dim": 16},
    "300 labels": {"labels": LabelSpec(300), "kernel_size": 1},
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    generator = build_generator(**VARIANTS[request.param])
    path = tmp_path_factory.mktemp("graph") / "generator.onnx"
    write_onnx(DeployModel(generator), path)
    return generator, path


def run(path: Path, inputs: list[Any]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    outputs: list[np.ndarray] = session.run(
        ["pixels", "image"], {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    )
    return outputs


def test_equals_the_trained_module_at_every_batch_and_size(exported: tuple[Any, Path]) -> None:
    generator, path = exported
    spec = generator.spec
    wide = SpadeGenerator(spec).double()
    wide.load_state_dict(generator.state_dict())
    wide.eval()
    torch.manual_seed(3)
    sizes = [(spec.height, spec.width)]
    if spec.is_dynamic:
        sizes += [(spec.stride, 3 * spec.stride), (3 * spec.stride, 2 * spec.stride)]
    for batch, size in [(1, sizes[0]), *((3, size) for size in sizes)]:
        label, instance, z = random_inputs(spec, batch, *size)
        pixels, image = run(path, graph_inputs(spec, label, instance, z))
        with torch.no_grad():
            expected = generator(make_segmap(label, instance, spec.labels), z)
        # In multiples of eager PyTorch's own float32 rounding: measured worst 2.9 (instance norm over two values).
        with torch.no_grad():
            exact = wide(make_segmap(label, instance, spec.labels).double(), None if z is None else z.double())
        rounding = float((expected - exact).abs().max())
        assert np.abs(image - expected.numpy()).max() < 6 * rounding + 1e-6
        # Truncation may flip a value that lies on an integer: seldom, and by one.
        flips = np.abs(pixels.astype(int) - to_pixels(expected).numpy().astype(int))
        assert flips.max() <= 1
        assert (flips > 0).mean() < 0.005 + 100 * rounding


def test_contract(exported: tuple[Any, Path]) -> None:
    generator, path = exported
    spec = generator.spec
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET

    def described(entries: Any) -> dict[str, tuple[int, list[Any]]]:
        return {
            entry.name: (
                entry.type.tensor_type.elem_type,
                [part.dim_param or part.dim_value for part in entry.type.tensor_type.shape.dim],
            )
            for entry in entries
        }

    stride = spec.stride
    size = [f"{stride}*h{stride}", f"{stride}*w{stride}"] if spec.is_dynamic else [spec.height, spec.width]
    label_type = onnx.TensorProto.UINT8 if spec.labels.num_ids <= 256 else onnx.TensorProto.INT32
    inputs = {"label": (label_type, ["batch", *size])}
    if spec.labels.has_edges:
        inputs["instance"] = (onnx.TensorProto.INT32, ["batch", *size])
    if spec.z_dim is not None:
        inputs["z"] = (onnx.TensorProto.FLOAT, ["batch", spec.z_dim])
    assert described(model.graph.input) == inputs
    assert described(model.graph.output) == {
        "pixels": (onnx.TensorProto.UINT8, ["batch", *size, 3]),
        "image": (onnx.TensorProto.FLOAT, ["batch", 3, *size]),
    }


def test_values_carry_the_names_of_the_layers(exported: tuple[Any, Path]) -> None:
    generator, path = exported
    values = {name for node in onnx.load(str(path)).graph.node for name in node.output}
    assert set(stage_names(generator.spec)) <= values


def test_polygraphy_accepts_the_graph_without_being_told_a_shape(exported: tuple[Any, Path]) -> None:
    _, path = exported
    command = [Path(sys.executable).with_name("polygraphy"), "run", path, "--onnxrt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout


def test_nothing_in_a_graph_depends_on_the_process_that_exports_it(exported: tuple[Any, Path]) -> None:
    """The exporter writes ranges in the order of a set: with another hash seed the same model would be other bytes."""
    model = onnx.load(str(exported[1]))
    assert list(model.graph.metadata_props) == []
    assert list(model.metadata_props) == []
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)


def test_no_norm_no_nearest_resize_of_labels_no_paths(exported: tuple[Any, Path]) -> None:
    generator, path = exported
    operators = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert "BatchNormalization" not in operators
    assert "OneHot" not in operators
    assert operators.count("Resize") == generator.spec.upsampling.doublings
    content = path.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert b"stack_trace" not in content


def test_fp16_graph_has_the_same_inputs_and_outputs(tmp_path: Path) -> None:
    generator = build_generator()
    path = tmp_path / "half.onnx"
    write_onnx(DeployModel(generator, fp16=True, keep_fp32=("up_2",)), path)
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    halves = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    wides = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    assert {name for name in wides if name.startswith("up_2.")}
    assert not {name for name in halves if name.startswith("up_2.")}
    assert {name for name in halves if name.startswith("up_1.")}
    label, instance, _ = random_inputs(generator.spec, 2)
    pixels, image = run(path, [label, instance])
    assert (pixels.dtype, image.dtype) == (np.uint8, np.float32)
    with torch.no_grad():
        expected = generator(make_segmap(label, instance, generator.spec.labels)).numpy()
    # Measured 8e-4; a wrong bias or a lost block is off by 0.1 and more.
    assert 0 < np.abs(image - expected).max() < 0.01
