"""Exported generators of every architecture in OpenVINO: right in each precision, and seen where they are wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, Arrays, Artifact, Source, Z, one_by_one, rewrite_manifest
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.openvino.exact_ids import compare_ids_as_integers
from spade_deploy.engines.openvino.exact_norms import sum_axis_by_axis
from spade_deploy.engines.openvino.library import core, has_bf16, load_openvino
from spade_deploy.engines.openvino.models import settings_of
from spade_deploy.engines.openvino.runtime import OpenVinoRuntime
from spade_deploy.errors import ConfigError, InputRefusedError, RuntimeUnavailableError, ValidationFailedError
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.lookup.row_counts import rounded_count
from spade_deploy.lookup.tables import LATENT, graph_inputs, level_names, modulated_channels
from spade_deploy.networks.build import build_generator
from spade_deploy.networks.spade import initialize, make_segmap
from spade_deploy.spec import Architecture, Backend, GeneratorSpec, GraphKind, LabelSpec, Precision
from spade_deploy.validation.report import ValidationReport
from spade_deploy.validation.request import ValidationRequest
from spade_deploy.validation.validate import validate

LABELS = LabelSpec(7, has_dontcare=True, has_edges=True)
SPADE = GeneratorSpec(LABELS, base_channels=4, hidden_channels=8, height=64, width=64)
SPECS = {
    "spade": SPADE,
    "int8": replace(SPADE, base_channels=2, hidden_channels=4, height=32, width=32),
    "style": replace(SPADE, z_dim=16, height=32, width=32),
    "many ids": replace(SPADE, labels=LabelSpec(300)),
    "pix2pixhd": SPADE.with_architecture(Architecture.PIX2PIXHD),
    "crn": SPADE.with_architecture(Architecture.CRN),
}
OPENVINO = ValidationRequest(backend=Backend.OPENVINO)
needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="this CPU has no bf16")


def inputs_of(spec: GeneratorSpec, count: int = 2) -> Arrays:
    ids, objects = synthetic_label_maps(spec.labels, spec.height, spec.width, count, seed=1)
    ids[-1, : spec.height // 2] = np.random.default_rng(0).integers(0, spec.labels.num_ids, ids[-1].shape)[:1]
    inputs: Arrays = {LABEL: ids}
    if spec.labels.has_edges:
        inputs[INSTANCE] = objects
    if spec.z_dim is not None:
        inputs[Z] = np.random.default_rng(2).standard_normal((count, spec.z_dim), np.float32)
    return inputs


def export(folder: Path, spec: GeneratorSpec, **asked: Any) -> Artifact:
    """A generator whose statistics, scales and offsets are not fresh, exported with its golden outputs."""
    torch.manual_seed(3)
    generator = build_generator(spec)
    initialize(generator, 1.0)
    inputs = inputs_of(spec)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for _ in range(3):
            generator(make_segmap(tensors[LABEL], tensors.get(INSTANCE), spec.labels), tensors.get(Z))
    folder.mkdir()
    export_artifact(generator.eval(), folder, ExportRequest(inputs, Source("small", 0, "import", "0" * 64), **asked))
    return Artifact.open(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    folder, made = tmp_path_factory.mktemp("exported"), dict[str, Artifact]()

    def find(name: str) -> Artifact:
        if name not in made:
            more: dict[str, Any] = {}
            if name == "spade":
                more = {"precisions": (Precision.FP32, Precision.FP16)}
            if name == "int8":
                more = {"int8": Int8Request(inputs_of(SPECS[name], 1), "one map", 15.0)}
            made[name] = export(folder / name.replace(" ", "-"), SPECS[name], **more)
        return made[name]

    return find


def in_openvino(artifact: Artifact) -> ValidationReport:
    report = validate(artifact, OPENVINO)
    assert all(result.runtime.startswith("OpenVINO ") for result in report.results)
    return report


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ("int8", "many ids", "crn") else ()) for name in SPECS],
)
def test_every_graph_is_right_in_every_precision(exported: Callable[[str], Artifact], name: str) -> None:
    report = in_openvino(exported(name))
    report.require_passed()
    ran = [result.name for result in report.results]
    kinds = ["", " lookup"] if SPECS[name].architecture is Architecture.SPADE else [""]
    others = {"spade": ["fp16"], "int8": ["int8"]}.get(name, [])
    expected = [f"{precision}{kind}" for precision in ("fp32", *others) for kind in kinds]
    assert ran == expected + ([f"bf16{kind}" for kind in kinds] if has_bf16() else [])
    by_name = {result.name: result for result in report.results}
    for kind in kinds:
        exact = by_name[f"fp32{kind}"]
        # In multiples of eager PyTorch's own float32 rounding: measured 0.9 to 2.2.
        assert exact.diff.mean_abs <= 4 * report.rounding.mean_abs
        if has_bf16():  # that it is bf16 which runs shows in its error
            assert by_name[f"bf16{kind}"].diff.mean_abs > 1000 * exact.diff.mean_abs
            assert by_name[f"bf16{kind}"].runtime.endswith(f" CPU, bf16{kind}")
    if name == "spade":
        half = by_name["fp16"].half
        assert half is not None
        assert half.diff is not None, "OpenVINO computes fp16 in float32: real half precision is emulated, too"


def layers_in(artifact: Artifact, precision: Precision, kind: GraphKind) -> list[tuple[str, str]]:
    """Of each layer that OpenVINO runs, what it is, and the type in which OpenVINO says that it computes it."""
    golden = artifact.golden()
    with OpenVinoRuntime(artifact, precision, 1, kind) as runtime:
        runtime.run(golden.inputs)
        assert runtime._models is not None
        (ready,) = runtime._models._ready.values()
        facts = [node.get_rt_info() for node in ready.request.get_compiled_model().get_runtime_model().get_ops()]
    return [(str(one["layerType"].value), str(one["runtimePrecision"].value)) for one in facts]


def convolutions_in(artifact: Artifact, precision: Precision, kind: GraphKind) -> set[str]:
    return {how for what, how in layers_in(artifact, precision, kind) if what == "Convolution"}


@pytest.mark.parametrize("kind", list(GraphKind))
def test_the_convolutions_are_computed_in_what_was_asked_for(
    exported: Callable[[str], Artifact], kind: GraphKind
) -> None:
    for precision in (Precision.FP32, Precision.FP16):
        assert convolutions_in(exported("spade"), precision, kind) == {"f32"}
    if has_bf16():
        assert convolutions_in(exported("spade"), Precision.BF16, kind) == {"bf16"}


def test_rows_of_patterns_are_sums_where_products_are_slow(exported: Callable[[str], Artifact]) -> None:
    def sums(precision: Precision, kind: GraphKind) -> int:
        return [what for what, _ in layers_in(exported("spade"), precision, kind)].count("EmbeddingBagPacked")

    norms = sum(2 + (block.in_channels != block.out_channels) for block in SPADE.blocks)
    assert norms == 18
    assert sums(Precision.FP32, GraphKind.LOOKUP) == 2 * norms, "a scale and an offset each"
    assert sums(Precision.FP32, GraphKind.DENSE) == 0
    if has_bf16():
        assert sums(Precision.BF16, GraphKind.LOOKUP) == 0


@needs_bf16
def test_numbers_of_rows_are_rounded_in_bf16_alone(
    exported: Callable[[str], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO makes code for each new number; no pixel shows that there are more rows."""
    artifact, counts = exported("spade"), dict[Precision, list[int]]()
    names = [name for stride in modulated_channels(SPADE) for name in level_names(stride)[:2]]
    images = dict[Precision, np.ndarray]()
    for precision in (Precision.BF16, Precision.FP32):
        with OpenVinoRuntime(artifact, precision, 1, GraphKind.LOOKUP) as runtime:
            images[precision] = runtime.run(artifact.golden().inputs)[IMAGE]
            assert runtime._models is not None
            (ready,) = runtime._models._ready.values()
            counts[precision] = [ready.request.get_tensor(name).get_shape()[0] for name in names]
    assert counts[Precision.BF16] == [rounded_count(count) for count in counts[Precision.FP32]]
    assert counts[Precision.BF16] != counts[Precision.FP32]
    monkeypatch.setattr("spade_deploy.engines.openvino.runtime.with_rounded_counts", lambda _, tables: tables)
    with OpenVinoRuntime(artifact, Precision.BF16, 1, GraphKind.LOOKUP) as runtime:
        unrounded = runtime.run(artifact.golden().inputs)[IMAGE]
    # Measured 0: a row is the same whatever it is computed beside. bf16 itself is 1e-3 away from float32 in the mean.
    np.testing.assert_allclose(images[Precision.BF16], unrounded, rtol=0, atol=1e-5)
    assert np.abs(unrounded - images[Precision.FP32]).mean() > 1e-4


@pytest.mark.slow  # the export is
@pytest.mark.parametrize("kind", list(GraphKind))
def test_quantised_convolutions_are_computed_in_int8(exported: Callable[[str], Artifact], kind: GraphKind) -> None:
    quantised = convolutions_in(exported("int8"), Precision.INT8, kind)
    assert "i8" in quantised
    assert "bf16" not in quantised


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "no bias": lambda value: value * 0,
    "mirrored": lambda value: value[..., ::-1].copy(),
    "1.2 times": lambda value: value * np.float32(1.2),
}


@needs_bf16
@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, change) for name in ("spade", "style", "pix2pixhd", "crn") for change in ("no bias", "mirrored")),
        ("spade", "1.2 times"),  # instance and layer norm undo it: for the others it is no mistake
    ],
)
def test_a_slightly_wrong_network_is_seen_in_bf16(
    exported: Callable[[str], Artifact], name: str, change: str, tmp_path: Path
) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(exported(name).path, folder)
    model = onnx.load(str(folder / "generator.fp32.onnx"))
    squares = [one for one in model.graph.initializer if list(one.dims[2:]) == [3, 3]]
    biases = [one for one in model.graph.initializer if one.name == "conv_img.bias"]
    (tensor,) = biases if change == "no bias" else squares[len(squares) // 2 : len(squares) // 2 + 1]
    tensor.CopyFrom(numpy_helper.from_array(CHANGES[change](numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, str(folder / "generator.fp32.onnx"))
    rewrite_manifest(folder, exported(name).manifest)
    report = in_openvino(Artifact.open(folder))
    failed = [result.name for result in report.results if not result.passed]
    assert failed == ["fp32", "bf16"], "the graph of that file alone is wrong"
    with pytest.raises(ValidationFailedError, match=r"bf16 \(OpenVINO .* CPU, bf16\): mean absolute error"):
        report.require_passed()


@pytest.mark.parametrize("axes", [(2, 3), (1, 2), (1, 2, 3), (-1, -2)])
@pytest.mark.parametrize("kind", ["mvn", "mean"])
def test_means_over_flat_regions_are_exact(kind: str, axes: tuple[int, ...]) -> None:
    """OpenVINO's own sums are off by up to 3e-5 here, where the same value is added thousands of times."""
    op = load_openvino().opset13
    blocks = np.random.default_rng(0).standard_normal((1, 4, 4, 4))
    values = (np.kron(blocks, np.ones((1, 8, 32, 32))) + 0.4).astype(np.float32)
    exact = values.astype(np.float64)
    mean = exact.mean(axes, keepdims=True)
    right = mean if kind == "mean" else (exact - mean) / np.sqrt(exact.var(axes, keepdims=True) + 1e-5)
    fed, over = op.parameter([-1, -1, -1, -1], np.float32), op.constant(np.array(axes, np.int64))
    node = op.reduce_mean(fed, over, True) if kind == "mean" else op.mvn(fed, over, True, 1e-5, "inside_sqrt")
    model = load_openvino().Model([node], [fed])
    sum_axis_by_axis(model)
    assert not [one for one in model.get_ops() if one.get_type_name() == "MVN"]
    model.reshape(list(values.shape))
    compiled = core().compile_model(model, "CPU", settings_of(Precision.FP32, 1))
    assert np.abs(compiled([values])[0] - right).max() < 2e-6  # measured 9e-7


@pytest.mark.parametrize("axes", [((3,), (2,)), ((1, 2, 3),), ((3,), (1, 2))])
@pytest.mark.parametrize("is_last_kept", [True, False])
def test_means_whose_axes_go_are_the_same_means(axes: tuple[tuple[int, ...], ...], is_last_kept: bool) -> None:
    """The second counts its axes without those that the first took away."""
    op = load_openvino().opset13
    values = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    fed = op.parameter(list(values.shape), np.float32)
    node, right = fed, values.astype(np.float64)
    for place, over in enumerate(axes):
        is_kept = is_last_kept and place == len(axes) - 1
        node = op.reduce_mean(node, op.constant(np.array(over, np.int64)), is_kept)
        right = right.mean(over, keepdims=is_kept)
    model = load_openvino().Model([node], [fed])
    sum_axis_by_axis(model)
    found = core().compile_model(model, "CPU", settings_of(Precision.FP32, 1))([values])[0]
    assert found.shape == right.shape
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-6)


def test_a_style_vector_or_edges_that_are_mixed_up_are_seen(exported: Callable[[str], Artifact]) -> None:
    for name, tensor in (("style", Z), ("spade", INSTANCE)):
        golden = exported(name).golden()
        turned = {**golden.inputs, tensor: golden.inputs[tensor][::-1].copy()}
        with open_runtime(exported(name), Precision.FP32, "openvino", 1, "lookup") as runtime:
            right, other = runtime.run(golden.inputs)[IMAGE], runtime.run(turned)[IMAGE]
        assert np.abs(right - golden.outputs[IMAGE]).max() < 1e-4
        assert np.abs(other - golden.outputs[IMAGE]).max() > 1e-3


@pytest.mark.parametrize("base", [0, 26_000, 1 << 24, (1 << 31) - 8, -(1 << 31)])
def test_instance_ids_that_differ_by_one_make_an_edge(exported: Callable[[str], Artifact], base: int) -> None:
    """OpenVINO compares integers in float32, which has no 16777217."""
    inputs = inputs_of(SPADE)
    near = {**inputs, INSTANCE: (inputs[INSTANCE].astype(np.int64) % 4 + base).astype(np.int32)}
    with (
        open_runtime(exported("spade"), Precision.FP32, "openvino", 1, "dense") as runtime,
        open_runtime(exported("spade"), Precision.FP32, "cpu", 1, "dense") as trusted,
    ):
        assert np.abs(runtime.run(near)[IMAGE] - trusted.run(near)[IMAGE]).max() < 2e-5


def test_a_graph_that_uses_large_ids_otherwise_is_refused_in_bf16() -> None:
    opset = load_openvino().opset13
    label = opset.parameter([1, 32, 32], np.int32, name=LABEL)
    label.output(0).set_names({LABEL})
    model = load_openvino().Model([opset.sin(opset.convert(label, "f32"))], [label])
    compare_ids_as_integers(model, LabelSpec(257))
    with pytest.raises(RuntimeUnavailableError, match="bf16: the graph uses its label ids in Sin ") as caught:
        compare_ids_as_integers(model, LabelSpec(258))
    assert "take fp32" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", list(GraphKind))
def test_a_batch_and_every_size_are_the_images_one_by_one(exported: Callable[[str], Artifact], kind: GraphKind) -> None:
    artifact = exported("spade")
    spec = artifact.manifest.generator
    with (
        open_runtime(artifact, Precision.FP32, "openvino", 1, str(kind)) as runtime,
        open_runtime(artifact, Precision.FP32, "cpu", 1, str(kind)) as trusted,
    ):
        for height, width in ((64, 64), (32, 96), (96, 32), (64, 64)):
            inputs = inputs_of(replace(spec, height=height, width=width), 3)
            whole = runtime.run(inputs)[IMAGE]
            assert np.abs(whole - trusted.run(inputs)[IMAGE]).max() < 2e-5
            for index, one in enumerate(one_by_one(inputs)):
                assert np.abs(runtime.run(one)[IMAGE] - whole[index : index + 1]).max() < 2e-5


def test_tables_are_checked_before_anything_runs(exported: Callable[[str], Artifact]) -> None:
    artifact = exported("spade")
    spec = artifact.manifest.generator
    golden = artifact.golden()
    tables = graph_inputs(spec, GraphKind.LOOKUP, golden.inputs)
    with OpenVinoRuntime(artifact, Precision.FP32, 1, GraphKind.LOOKUP) as runtime:
        assert np.abs(runtime.run_tables(tables)[IMAGE] - golden.outputs[IMAGE]).max() < 1e-4
        runtime.run(golden.inputs)
        assert runtime.patterns_s is not None
        with pytest.raises(InputRefusedError, match=f"input {LATENT}: "):
            runtime.run_tables({**tables, LATENT: tables[LATENT] + 1000})


def test_auto_takes_the_lookup_graph_map_by_map(exported: Callable[[str], Artifact]) -> None:
    artifact = exported("spade")
    graphs = tuple(replace(one, break_even_share=0.4) for one in artifact.manifest.graphs)
    artifact = Artifact(artifact.path, replace(artifact.manifest, graphs=graphs))
    spec = artifact.manifest.generator
    rng = np.random.default_rng(0)
    noise = {
        LABEL: rng.integers(0, spec.labels.num_ids, (1, 64, 64)).astype(np.uint8),
        INSTANCE: rng.integers(0, 3, (1, 64, 64)).astype(np.int32),
    }
    flat = {LABEL: np.zeros_like(noise[LABEL]), INSTANCE: np.zeros_like(noise[INSTANCE])}
    precision = Precision.BF16 if has_bf16() else Precision.FP32
    with open_runtime(artifact, precision, "openvino", 1) as runtime:
        assert runtime.name.endswith(f" CPU, {precision} lookup (dense above 40% unique patterns)")
        assert runtime.precision is precision
        for inputs, kind in ((flat, GraphKind.LOOKUP), (noise, GraphKind.DENSE)):
            with open_runtime(artifact, Precision.FP32, "cpu", 1, "dense") as trusted:
                assert np.abs(runtime.run(inputs)[IMAGE] - trusted.run(inputs)[IMAGE]).mean() < 0.01
            assert runtime.kind is kind


def test_a_graph_that_the_architecture_lacks_is_an_error(exported: Callable[[str], Artifact]) -> None:
    with pytest.raises(Exception, match="a crn generator has no lookup graph"):
        open_runtime(exported("crn"), Precision.FP32, "openvino", graph="lookup")
    with pytest.raises(ConfigError, match="`precision`: no graph is exported in bf16; allowed are fp32, fp16, int8"):
        exported("crn").graph(Precision.BF16)
