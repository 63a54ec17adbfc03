"""The baselines' exports: the folds in float64, the same proof as for SPADE, and what a deployment does with them."""

from __future__ import annotations

import functools
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
from PIL import Image

from spade_deploy.artifact import IMAGE, LABEL, LOGITS, Arrays, Artifact, Source, rewrite_manifest
from spade_deploy.artifact.manifest import read_manifest
from spade_deploy.engines.base import Backend
from spade_deploy.engines.input_shapes import tensor_ranges
from spade_deploy.engines.open import open_runtime
from spade_deploy.errors import ArtifactError, ConfigError, ExportError, InputRefusedError
from spade_deploy.export import pix2pixhd
from spade_deploy.export.build import build_model, stage_names, unit_names
from spade_deploy.export.fold import ConvWeights, fold_conv, fold_normalized
from spade_deploy.export.int8.qdq import quantize_weight
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.int8.write import write_int8_graphs
from spade_deploy.export.pipeline import ExportRequest, export_artifact, rounding_error, run_reference
from spade_deploy.export.precision import parse_kept, unit_ranges, units_to_keep
from spade_deploy.inference import InferRequest
from spade_deploy.inference.infer import infer
from spade_deploy.inspection.describe import inspect_path
from spade_deploy.lookup.tables import extract_patterns
from spade_deploy.metrics.tolerances import tolerance_for
from spade_deploy.networks.build import Generator, build_generator
from spade_deploy.networks.pix2pixhd import NormalizedConv
from spade_deploy.networks.spade import initialize, make_segmap
from spade_deploy.release.release import Release, export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.checkpoint import load_generator, save_checkpoint
from spade_deploy.spec import (
    Architecture,
    GeneratorSpec,
    GraphKind,
    LabelSpec,
    NormType,
    Precision,
    ShapeProfile,
    Upsampling,
)
from spade_deploy.validation.request import ValidationRequest
from spade_deploy.validation.validate import validate
from tests.support.exactness import FLOAT32_EPS, errors, in_float64, reference
from tests.support.generators import random_inputs
from tests.support.torch_candidates import torch_candidates

# Instance norm over the four pixels of a latent of 2 x 2 would multiply rounding errors until nothing is certain.
PLAIN = GeneratorSpec(LabelSpec(5), base_channels=4, height=64, width=64)
EDGES = replace(PLAIN, labels=LabelSpec(5, has_dontcare=True, has_edges=True))
PIX2PIXHD, CRN = Architecture.PIX2PIXHD, Architecture.CRN
PLUS_PLUS = replace(PLAIN.with_architecture(PIX2PIXHD), norm=NormType.SYNC_BATCH, spectral_norm=True)
VARIANTS = {
    "pix2pixhd": EDGES.with_architecture(PIX2PIXHD),
    "pix2pixhd, spectral norm": replace(PLAIN.with_architecture(PIX2PIXHD), spectral_norm=True),
    "pix2pixhd, batch": replace(PLAIN.with_architecture(PIX2PIXHD), norm=NormType.BATCH),
    "pix2pixhd++": PLUS_PLUS,
    "crn": EDGES.with_architecture(CRN),
    "crn, more": replace(PLAIN.with_architecture(CRN), upsampling=Upsampling.MORE),
}
each_variant = pytest.mark.parametrize("name", VARIANTS)


@functools.cache
def trained(name: str, seed: int = 0) -> Generator:
    """A generator in eval mode whose statistics, spectral-norm vectors, scales and offsets are not fresh."""
    spec = VARIANTS[name]
    torch.manual_seed(seed)
    generator = build_generator(spec)
    initialize(generator, 1.0)
    for parameter in generator.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    generator.conv_img.weight.data.mul_(0.3)  # logits of trained models are small
    with torch.no_grad():
        for _ in range(3):
            label, instance, _ = random_inputs(spec, 2)
            generator(make_segmap(label, instance, spec.labels))
    return generator.eval()


def some_inputs(spec: GeneratorSpec, height: int, width: int) -> tuple[list[torch.Tensor], tuple[Any, Any, None]]:
    """What the traced model takes, and the same as (label, instance, z)."""
    torch.manual_seed(1)
    label, instance, _ = random_inputs(spec, 2, height, width)
    return [label, *([instance] if spec.labels.has_edges else [])], (label, instance, None)


@each_variant
def test_the_traced_model_is_the_trained_one_in_float64(name: str) -> None:
    generator, spec = trained(name), VARIANTS[name]
    fed, same = some_inputs(spec, spec.least_side + spec.stride, 2 * spec.stride)
    wide = in_float64(generator)
    exact = reference(wide, *same)
    assert (build_model(wide, dtype=torch.float64)(*fed)[1] - exact).abs().max() < 1e-12  # measured 2e-14
    found = errors(build_model(generator)(*fed)[1], reference(generator, *same), exact)
    # Measured 1.0 and 1.2 times the error that eager float32 has itself.
    assert found.max_ratio < 2.5
    assert found.mean_ratio < 2


@pytest.mark.parametrize("mistake", ["no eps", "no shift", "no scale", "no sigma", "the other axis"])
def test_a_wrong_fold_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = in_float64(trained("pix2pixhd++"))
    fed, same = some_inputs(generator.spec, 32, 32)

    def wrong(layer: NormalizedConv) -> ConvWeights:
        right, norm = fold_normalized(layer), layer.norm
        if mistake == "no eps":
            norm.eps = 0.0
            right = fold_normalized(layer)
            norm.eps = 1e-5
        elif mistake == "no shift":
            right = ConvWeights(right.weight, torch.zeros_like(right.bias))
        elif mistake == "no scale":
            axis = (1, -1, 1, 1) if isinstance(layer.conv, torch.nn.ConvTranspose2d) else (-1, 1, 1, 1)
            right = ConvWeights(right.weight / layer.scale.view(axis), right.bias)
        elif mistake == "no sigma":
            right = ConvWeights(right.weight * layer.conv.weight_orig.norm(), right.bias)
        elif isinstance(layer.conv, torch.nn.ConvTranspose2d) or layer.conv.in_channels == layer.conv.out_channels:
            right = ConvWeights(right.weight.flip(1 if right.weight.shape[0] != len(right.bias) else 0), right.bias)
        return right

    monkeypatch.setattr(pix2pixhd, "fold_normalized", wrong)
    error = (build_model(generator, dtype=torch.float64)(*fed)[1] - reference(generator, *same)).abs().max()
    assert error > 1e-9  # where 1e-12 is allowed


def test_a_transposed_convolution_has_its_own_sigma() -> None:
    # mat(W) has a row for each output channel, which is the weight's second axis.
    conv = trained("pix2pixhd++").get_submodule("up_0").conv
    with torch.no_grad():
        trained("pix2pixhd++").get_submodule("up_0")(torch.zeros(1, conv.in_channels, 2, 2))  # sets conv.weight
    # The same float32 numbers, added up in another order for sigma.
    assert (fold_conv(conv).weight - conv.weight).abs().max() < 16 * FLOAT32_EPS * conv.weight.abs().max()


def test_what_does_not_fold_says_so() -> None:
    with pytest.raises(ExportError, match="InstanceNorm2d has no running statistics"):
        fold_normalized(trained("pix2pixhd").get_submodule("down_0"))
    layer = NormalizedConv(PLUS_PLUS, torch.nn.Conv2d(2, 2, 3))
    with pytest.raises(ExportError, match="in train mode would change it"):
        fold_normalized(layer)


@each_variant
def test_units_and_stages_are_parts_of_both_models(name: str) -> None:
    generator = trained(name)
    model = build_model(generator)
    for stage in stage_names(generator.spec):
        assert generator.get_submodule(stage)
        assert model.get_submodule(stage)
    units = unit_names(generator.spec)
    covered = {name for unit in units for name, _ in model.get_submodule(unit).named_parameters(unit)}
    assert covered == {name for name, _ in model.named_parameters()}
    assert parse_kept(generator.spec, [units[-1], units[0]]) == (units[0], units[-1])
    with pytest.raises(ConfigError, match=f"'head_0' is not a part.*{units[1]}"):
        parse_kept(generator.spec, ["head_0"])


@pytest.mark.parametrize(("name", "unit"), [("pix2pixhd", "block_3"), ("crn", "refine_2")])
def test_what_overflows_stays_float32(name: str, unit: str) -> None:
    generator = build_generator(VARIANTS[name])
    generator.load_state_dict(trained(name).state_dict())
    fed, _ = some_inputs(generator.spec, 64, 64)
    assert units_to_keep(unit_ranges(build_model(generator.eval()), fed)) == ()
    generator.get_submodule(unit).conv_0.get_parameter("weight" if name == "crn" else "conv.weight").data.mul_(1e5)
    assert units_to_keep(unit_ranges(build_model(generator), fed)) == (unit,)


def test_a_lookup_graph_is_refused_by_name(tmp_path: Path) -> None:
    message = "a lookup graph cannot be made of a crn generator"
    with pytest.raises(ConfigError, match=message):
        build_model(trained("crn"), GraphKind.LOOKUP)
    with pytest.raises(ConfigError, match=message):
        export_artifact(
            trained("crn"),
            tmp_path,
            ExportRequest(
                precisions=[Precision.FP32],
                kinds=list(GraphKind),
                golden_inputs={},
                source=Source("run", 0, "train", "0" * 64),
            ),
        )
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputRefusedError, match="a crn generator has no pattern tables"):
        extract_patterns(VARIANTS["crn"], np.zeros((1, 32, 32), np.uint8), np.zeros((1, 32, 32), np.int32))


RELEASED = ("pix2pixhd", "pix2pixhd++", "crn")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Release]:
    """Releases by variant; each is traced once, which takes seconds."""

    @functools.cache
    def make(name: str) -> Release:
        runs = tmp_path_factory.mktemp("work") / "runs"
        save_checkpoint(checkpoint_folder(new_run(runs, "small"), 0), trained(name), step=0, origin="import")
        return export_checkpoint(ReleaseRequest(fp16=name != "pix2pixhd++"), runs_dir=runs)

    return make


@pytest.fixture(params=RELEASED)
def made(request: pytest.FixtureRequest, released: Callable[[str], Release]) -> Release:
    return released(request.param)


@pytest.fixture
def copy(released: Callable[[str], Release], tmp_path: Path) -> tuple[Artifact, Path]:
    """A copy of pix2pixHD's (artifact, runs) that a test may damage."""
    shutil.copytree(released("pix2pixhd").artifact.path.parents[1], tmp_path / "runs")
    return Artifact.open(tmp_path / "runs" / "small" / "artifact"), tmp_path / "runs"


def test_a_release_passes_the_same_proof(made: Release) -> None:
    report = made.report
    assert report.passed
    assert report.reference.startswith("PyTorch")
    names = ["fp32"] if made.artifact.manifest.generator == PLUS_PLUS else ["fp32", "fp16"]
    assert [result.name for result in report.results] == names  # dense graphs alone
    # In multiples of eager PyTorch's own float32 rounding, max and mean; 6 are allowed for fp32, mean 8192 for fp16.
    fp32, *fp16 = report.results
    assert fp32.diff.max_abs <= 3 * report.rounding.max_abs
    assert fp32.diff.mean_abs <= 3 * report.rounding.mean_abs
    for half in fp16:
        assert half.diff.mean_abs <= 4096 * report.rounding.mean_abs
        statistics = "layer" if made.artifact.manifest.generator.architecture is CRN else "instance"
        assert f"{statistics} norm statistics" in half.graph.kept_fp32


def test_the_graph_runs_at_other_sizes_and_batches(made: Release) -> None:
    generator = load_generator(made.checkpoint).module
    spec = generator.spec
    height, width = 64, 64 + spec.stride
    _, (label, instance, _) = some_inputs(spec, height, width)
    inputs: Arrays = {LABEL: label.numpy(), **({"instance": instance.numpy()} if spec.labels.has_edges else {})}
    with open_runtime(made.artifact, Precision.FP32, "cpu") as runtime:
        assert runtime.kind is GraphKind.DENSE  # 'auto' has nothing to choose from
        found = runtime.run(inputs)
        assert found["pixels"].shape == (2, height, width, 3)
        small = {name: array[:, :16, :16] for name, array in inputs.items()}
        with pytest.raises(InputRefusedError, match="height 16 is not a multiple of"):
            runtime.run(small)
    expected = run_reference(generator, inputs)
    limit = tolerance_for(Precision.FP32, rounding_error(generator, inputs, expected[LOGITS])).max_abs
    assert np.abs(found[IMAGE] - expected[IMAGE]).max() <= limit
    with pytest.raises(ArtifactError, match=f"a {spec.architecture} generator has no lookup graph"):
        open_runtime(made.artifact, Precision.FP32, "cpu", graph="lookup")


def test_a_graph_that_was_tampered_with_fails_and_the_layer_is_named(copy: tuple[Artifact, Path]) -> None:
    artifact, runs = copy
    graph = artifact.path / "generator.fp32.onnx"
    model = onnx.load(str(graph))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "block_4.conv_1.conv.weight")
    weight.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(weight), 1, axis=0), weight.name))
    onnx.save(model, str(graph))
    rewrite_manifest(artifact.path, read_manifest(artifact.path))
    report = validate(Artifact.open(artifact.path), ValidationRequest(runs_dir=runs, backend=Backend.CPU))
    fp32, fp16 = report.results
    assert not fp32.passed
    assert fp32.diverges_at is not None
    assert "block_4.conv_1 " in fp32.diverges_at
    assert fp16.passed


def test_golden_outputs_stand_in_for_the_checkpoint(copy: tuple[Artifact, Path], tmp_path: Path) -> None:
    artifact, runs = copy
    shutil.rmtree(runs / "small" / "checkpoints")
    report = validate(artifact, ValidationRequest(runs_dir=tmp_path / "none", backend=Backend.CPU))
    assert report.passed
    assert report.reference.startswith("golden outputs")


def test_an_artifact_is_described_by_what_it_has(made: Release) -> None:
    spec = made.artifact.manifest.generator
    for path in (made.artifact.path, made.checkpoint):
        rows = dict(inspect_path(path).rows)
        assert rows["architecture"] == spec.architecture
        assert rows["channels"] == "4 base"
        assert "style vector" not in rows
        assert ("upsampling" in rows) == (spec.architecture is CRN)
    page = (made.artifact.path / "report.html").read_text(encoding="utf-8")
    assert str(spec.architecture) in page
    assert "hidden" not in dict(inspect_path(made.artifact.path).rows)["channels"]


def test_infer_makes_images(made: Release, tmp_path: Path) -> None:
    spec = made.artifact.manifest.generator
    labels = tmp_path / "labels"
    labels.mkdir()
    for number in range(2):
        ids = np.random.default_rng(number).integers(0, 5, (40, 72), dtype=np.uint8)
        Image.fromarray(ids).save(labels / f"{number}.png")
    edges = {"no_instances": True} if spec.labels.has_edges else {}
    summary = infer(made.artifact, InferRequest(labels, tmp_path / "out", size=(64, 64), backend="cpu", **edges))
    assert (summary.written, summary.failures) == (2, ())
    with Image.open(tmp_path / "out" / "1.png") as image:
        assert image.size == (64, 64)
    with pytest.raises(ConfigError, match="`size`: 16 of 16x64 is not a multiple of"):
        infer(made.artifact, InferRequest(labels, tmp_path / "out", size=(16, 64), backend="cpu", **edges))


def test_shape_profiles_of_engines(made: Release) -> None:
    spec = made.artifact.manifest.generator
    ranges = tensor_ranges(spec, GraphKind.DENSE, ShapeProfile.parse("1x32x64:1x32x64:4x64x64"))
    assert ranges[LABEL] == ((1, 32, 64), (1, 32, 64), (4, 64, 64))
    with pytest.raises(ConfigError, match="height 16 of 1x16x64"):
        tensor_ranges(spec, GraphKind.DENSE, ShapeProfile.parse("1x16x64"))


@pytest.mark.parametrize("name", ["pix2pixhd", "crn"])
def test_every_unit_in_float32_is_the_float32_model(name: str) -> None:
    generator = trained(name)
    fed, (label, instance, _) = some_inputs(generator.spec, 64, 64)
    inputs = {LABEL: label.numpy(), "instance": instance.numpy()}
    exact = build_model(generator)(*fed)[1].numpy()
    units = tuple(unit_names(generator.spec))
    with torch_candidates(generator, GraphKind.DENSE)(units) as run:
        assert np.array_equal(run(inputs)[IMAGE], exact)
    with torch_candidates(generator, GraphKind.DENSE)(units[1:]) as run:
        half = np.abs(run(inputs)[IMAGE] - exact).max()
    assert 0 < half < 0.1


@pytest.mark.parametrize("name", ["pix2pixhd", "crn"])
def test_int8_graphs(name: str, released: Callable[[str], Release], tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(released(name).artifact.path, folder)
    golden = Artifact.open(folder).golden()
    one = {name: array[:1] for name, array in golden.inputs.items()}
    (graph,), summary = write_int8_graphs(
        trained(name), folder, [GraphKind.DENSE], Int8Request(one, "one map", 15.0), (one, golden.outputs[IMAGE][:1])
    )
    assert summary.graphs[0].golden_psnr_db >= 15
    transposed = [f"up_{index}" for index in range(4)] if name == "pix2pixhd" else []
    assert set(transposed) <= set(graph.kept_fp32)  # a transposed convolution multiplies in float32 alone
    model = onnx.load(str(folder / graph.file))
    layers = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name.endswith(".weight.int8")}
    # block_0 has two convolutions, refine_0 as well; each is int8 unless it is among those that were kept.
    assert len(layers) == len(summary.ranking) - len(summary.kept)
    layer = summary.ranking[-1].layer
    trained_weight = build_model(trained(name)).get_submodule(layer)
    trained_weight = getattr(trained_weight, "conv", trained_weight).weight
    stored = next(tensor for key, tensor in layers.items() if key.startswith(layer))
    assert np.array_equal(numpy_helper.to_array(stored), quantize_weight(trained_weight.numpy(), 0).values)
    shares = sum(entry.work_share for entry in summary.ranking)
    assert (shares < 0.99) == bool(transposed)
