"""Validation on a real export of a small generator: right graphs pass, wrong ones fail and the place is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from spade_deploy.artifact import LABEL, Arrays, Artifact, one_by_one, rewrite_manifest
from spade_deploy.artifact.manifest import read_manifest
from spade_deploy.errors import ConfigError, MissingDependencyError, NotFoundError, ValidationFailedError
from spade_deploy.export import pipeline
from spade_deploy.metrics.tolerances import tolerance_for
from spade_deploy.release.release import Release, export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.checkpoint import load_generator, save_checkpoint
from spade_deploy.spec import Backend, GraphKind, Precision
from spade_deploy.validation import reference
from spade_deploy.validation.divergence import RELATIVE_LIMIT, first_divergence
from spade_deploy.validation.request import KnownOutputs, ValidationRequest
from spade_deploy.validation.validate import validate
from tests.support.exactness import in_float64, rounding_limit
from tests.support.generators import build_generator


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A small generator with an edge channel, exported in both precisions through the whole release."""
    runs = tmp_path_factory.mktemp("work") / "runs"
    save_checkpoint(checkpoint_folder(new_run(runs, "small"), 0), build_generator(), step=0, origin="import")
    return export_checkpoint(ReleaseRequest(fp16=True), runs_dir=runs)


@pytest.fixture
def copy(released: Release, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of (artifact, runs) that a test may damage."""
    runs = tmp_path / "runs"
    shutil.copytree(released.artifact.path.parents[1], runs)
    return runs / "small" / "artifact", runs


def rewrite(artifact: Path) -> Artifact:
    """The artifact, with the manifest of files that were changed on purpose."""
    rewrite_manifest(artifact, read_manifest(artifact))
    return Artifact.open(artifact)


def change_weight(graph: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(str(graph))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    onnx.save(model, str(graph))


def test_the_reference_runs_once_for_all_graphs_and_again_for_other_inputs(
    released: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    images = reference._TorchReference.images

    def counted(self: reference._TorchReference, inputs: Arrays) -> Arrays:
        ran.append(hash(inputs[LABEL].tobytes()))
        return images(self, inputs)

    monkeypatch.setattr(reference._TorchReference, "images", counted)
    artifact = released.artifact
    report = validate(artifact, ValidationRequest(checkpoint=released.checkpoint, backend=Backend.CPU))
    assert report.passed
    golden = [hash(one[LABEL].tobytes()) for one in one_by_one(artifact.golden().inputs)]
    assert len(report.results) == 4
    assert [ran.count(one) for one in golden] == [1] * len(golden)
    assert len(ran) == len(golden) + len(report.stress)


def test_known_outputs_serve_for_their_own_weights_and_inputs_alone(
    released: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden, digest = released.artifact.golden(), released.artifact.manifest.source.generator_sha256
    computed: list[Arrays] = []
    monkeypatch.setattr(pipeline, "run_reference", lambda _, inputs: computed.append(inputs) or {"pixels": "new"})
    first = next(one_by_one(golden.inputs))
    other = {**first, LABEL: first[LABEL][:, ::-1]}
    known = KnownOutputs(digest, golden.inputs, golden.outputs)
    request = ValidationRequest(checkpoint=released.checkpoint, known=known)
    outputs = reference.open_reference(released.artifact, request).images(first)
    assert not computed
    assert all(np.array_equal(array, golden.outputs[name][:1]) for name, array in outputs.items())
    assert outputs.keys() == golden.outputs.keys()
    assert reference.open_reference(released.artifact, request).images(other) == {"pixels": "new"}
    request = replace(request, known=replace(known, generator_sha256="0" * 64))
    assert reference.open_reference(released.artifact, request).images(first) == {"pixels": "new"}
    assert len(computed) == 2


def test_an_export_computes_the_golden_references_once_and_runs_every_file(
    released: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, computed = pipeline.run_reference, list[int]()

    def counted(generator: object, inputs: Arrays) -> Arrays:
        computed.append(len(inputs[LABEL]))
        return run(generator, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "run_reference", counted)
    request = ReleaseRequest(checkpoint=released.checkpoint, out=tmp_path / "artifact", tune=False)
    made = export_checkpoint(request)
    assert computed == [4]  # all of them, before anything was exported
    assert [len(result.seconds) for result in made.report.results] == [4, 4]
    assert made.report.reference.startswith("PyTorch")


def test_a_right_export_passes_against_pytorch(released: Release) -> None:
    report = released.report
    assert report.passed
    assert report.reference.startswith("PyTorch")
    assert [result.name for result in report.results] == ["fp32", "fp32 lookup", "fp16", "fp16 lookup"]
    fp32, fp32_lookup, fp16, fp16_lookup = report.results
    # In multiples of eager PyTorch's own float32 rounding, max and mean; 6 are allowed for fp32, mean 8192 for fp16:
    #                               fp32          fp16
    # this model                    1.3   1.2     1519  2052
    # Earth, 300 steps of training  1.4   0.9      243   625
    # instance norm                 1.2   1.3     1071  1127
    # weights times 3               1.2   1.2     1759  1627
    # weights times 0.02            2.1   2.3     2575  4751
    # more, style vector            1.2   1.2     1887  1361
    for exact in (fp32, fp32_lookup):
        assert exact.diff.max_abs <= 3 * report.rounding.max_abs
        assert exact.diff.mean_abs <= 3 * report.rounding.mean_abs
    for half in (fp16, fp16_lookup):
        assert half.diff.mean_abs <= 4096 * report.rounding.mean_abs
    assert sum(entry.share for entry in fp32.diff.classes) == pytest.approx(1)
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("weight", "where"),
    [
        ("head_0.conv_0.weight", "head_0.conv_0"),
        ("up_1.norm_1.modulation.bias", "up_1.norm_1"),
        ("up_3.conv_s.weight", "up_3.conv_s"),
        ("conv_img.bias", "conv_img"),
        # A hidden map is no value of the trained module; the first that reads it is.
        ("level_4.0.weight", "up_1.norm_s"),
    ],
)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_wrong_graph_fails_and_the_first_tensor_is_named(
    copy: tuple[Path, Path], weight: str, where: str, precision: Precision
) -> None:
    artifact, runs = copy
    change_weight(artifact / f"generator.{precision}.onnx", weight, lambda value: value * value.dtype.type(1.5))
    report = validate(rewrite(artifact), ValidationRequest(runs_dir=runs))
    wrong = next(result for result in report.results if result.name == precision)
    assert all(result.passed for result in report.results if result is not wrong)
    assert not wrong.passed
    assert wrong.diverges_at is not None
    assert f"is {where} (" in wrong.diverges_at
    with pytest.raises(ValidationFailedError, match=f"{precision}.*{where}"):
        report.require_passed()


@pytest.mark.parametrize(
    ("weight", "where"),
    [
        ("fc.table", "fc"),
        ("up_1.norm_1.beta.linear.bias", "up_1.norm_1"),
        ("up_3.conv_s.gamma.linear.bias", "up_3.conv_s"),
        ("up_2.conv_1.weight", "up_2.conv_1"),
        ("level_4.0.bias", "up_1.conv_s"),
    ],
)
def test_a_wrong_lookup_graph_fails_and_the_first_tensor_is_named(
    copy: tuple[Path, Path], weight: str, where: str
) -> None:
    artifact, runs = copy
    change_weight(artifact / "generator.lookup.fp32.onnx", weight, lambda value: value * value.dtype.type(1.5))
    report = validate(rewrite(artifact), ValidationRequest(runs_dir=runs))
    assert [result.name for result in report.results if not result.passed] == ["fp32 lookup"]
    with pytest.raises(ValidationFailedError, match=f"fp32 lookup.* is {where} "):
        report.require_passed()


def test_a_small_error_fails_fp32(copy: tuple[Path, Path]) -> None:
    # The counter-test of the tolerance: one weight tensor off by 3e-5 relative, some hundred roundings.
    artifact, runs = copy
    change_weight(artifact / "generator.fp32.onnx", "up_2.conv_0.weight", lambda value: value * np.float32(1 + 3e-5))
    fp32, *others = validate(rewrite(artifact), ValidationRequest(runs_dir=runs)).results
    assert not fp32.passed
    assert all(result.passed for result in others)


def test_nan_fails(copy: tuple[Path, Path]) -> None:
    artifact, runs = copy
    change_weight(artifact / "generator.fp32.onnx", "conv_img.bias", lambda value: value * np.float32("nan"))
    fp32, *_ = validate(rewrite(artifact), ValidationRequest(runs_dir=runs)).results
    assert fp32.failures == ("the image holds NaN or infinity",)
    assert fp32.diverges_at is not None
    assert "conv_img" in fp32.diverges_at


def test_right_graphs_stay_far_under_the_divergence_limit(released: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = load_generator(released.checkpoint).module
    golden = {name: array[:1] for name, array in released.artifact.golden().inputs.items()}
    # Measured worst relative error of any tensor: 8e-7 in fp32, 2e-3 in fp16.
    for precision, close in ((Precision.FP32, 1e-5), (Precision.FP16, 0.02)):
        monkeypatch.setitem(RELATIVE_LIMIT, precision, close)
        for kind in GraphKind:
            graph = released.artifact.graph(precision, kind)
            assert first_divergence(released.artifact.path_of(graph.file), graph, generator, golden) is None


def test_without_the_checkpoint_the_golden_outputs_serve(copy: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, _ = copy
    report = validate(Artifact.open(artifact), ValidationRequest(runs_dir=tmp_path / "nowhere"))
    assert report.passed  # the checkpoint is found beside the artifact
    moved = tmp_path / "deployed"
    shutil.copytree(artifact, moved)
    report = validate(Artifact.open(moved), ValidationRequest(runs_dir=tmp_path / "nowhere"))
    assert report.passed
    assert report.reference.startswith("golden outputs")
    change_weight(moved / "generator.fp32.onnx", "conv_img.bias", lambda value: value + np.float32(0.1))
    report = validate(rewrite(moved), ValidationRequest(runs_dir=tmp_path / "nowhere"))
    assert not report.passed
    assert "spade-deploy[export]" in str(report.results[0].diverges_at)
    with pytest.raises(NotFoundError, match="was not found"):
        validate(Artifact.open(moved), ValidationRequest(labels=tmp_path, runs_dir=tmp_path / "nowhere"))


def test_without_pytorch(copy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, runs = copy
    found = reference.importlib.util.find_spec
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    report = validate(Artifact.open(artifact), ValidationRequest(runs_dir=runs))
    assert report.passed
    assert "PyTorch is not installed" in report.reference
    with pytest.raises(MissingDependencyError):
        validate(Artifact.open(artifact), ValidationRequest(labels=runs, runs_dir=runs))


def test_another_checkpoint_is_refused(copy: tuple[Path, Path]) -> None:
    artifact, runs = copy
    other = checkpoint_folder(new_run(runs, "other"), 0)
    save_checkpoint(other, build_generator(seed=9), step=0, origin="import")
    with pytest.raises(ConfigError, match="not those that were exported"):
        validate(Artifact.open(artifact), ValidationRequest(checkpoint=other, runs_dir=runs))


def test_a_folder_of_label_maps(copy: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, runs = copy
    labels, instances = tmp_path / "labels", tmp_path / "instances"
    for folder in (labels, instances):
        folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 8, (40, 50), dtype=np.uint8)).save(labels / f"{index}.png")
        Image.fromarray(rng.integers(0, 900, (40, 50)).astype(np.uint16)).save(instances / f"{index}.png")
    (labels / "broken.png").write_bytes(b"no picture")
    opened = Artifact.open(artifact)
    report = validate(opened, ValidationRequest(labels=labels, instances=instances, runs_dir=runs))
    assert report.passed
    assert report.results[0].diff.images == 3
    assert len(report.skipped) == 1
    assert "broken.png" in report.skipped[0]
    with pytest.raises(ConfigError, match="`instances` is needed"):
        validate(opened, ValidationRequest(labels=labels, runs_dir=runs))


def test_the_tolerance_of_a_release_is_the_stated_one(released: Release) -> None:
    manifest = released.artifact.manifest
    for result in released.report.results:
        assert result.tolerance == tolerance_for(result.graph.precision, manifest.rounding)


def test_golden_outputs_are_those_of_the_untouched_module(released: Release) -> None:
    generator = load_generator(released.checkpoint).module
    golden = released.artifact.golden()
    from spade_deploy.networks.spade import make_segmap, to_pixels

    with torch.no_grad():
        inputs = {name: torch.from_numpy(array) for name, array in golden.inputs.items()}
        segmap = make_segmap(inputs[LABEL], inputs["instance"], generator.spec.labels)
        image, exact = generator(segmap), in_float64(generator)(segmap.double())
    # One image at a time against all at once.
    assert np.abs(golden.outputs["image"] - exact.numpy()).max() < rounding_limit(generator, segmap, exact)
    assert (golden.outputs["pixels"] != to_pixels(image).numpy()).mean() < 1e-3


def test_a_model_that_saturates_is_judged_where_rounding_does_not_decide(tmp_path: Path) -> None:
    # Fresh weights of the original's format: spectral norm's vectors have not converged, sigma is near zero, and the
    # logits reach 1e17. A right graph must pass, a wrong one must still fail.
    runs = tmp_path / "runs"
    generator = build_generator(training_steps=0, gain=0.02)
    save_checkpoint(checkpoint_folder(new_run(runs, "fresh"), 0), generator, step=0, origin="import")
    made = export_checkpoint(ReleaseRequest(fp16=True), runs_dir=runs)
    assert made.report.passed
    assert made.report.rounding.logit_max > 1e3
    artifact = made.artifact.path
    for graph in made.artifact.manifest.graphs:
        change_weight(artifact / graph.file, "up_2.conv_1.weight", np.negative)
    report = validate(rewrite(artifact), ValidationRequest(runs_dir=runs))
    assert [result.passed for result in report.results] == [False] * 4
    assert "up_2.conv_1" in str(report.results[0].diverges_at)


def test_undecided_values() -> None:
    from spade_deploy.metrics.tolerances import UNDECIDED, is_undecided

    logits = np.array([0.0, 1e-3, -0.04, 0.5, -3.0, 1e9])
    assert not is_undecided(logits, 1e-4).any()
    assert is_undecided(logits, 0.1).tolist() == [True, True, True, True, False, False]
    assert is_undecided(logits, 10.0).tolist() == [True] * 5 + [False]
    assert np.tanh(0.5) - np.tanh(0.4) > UNDECIDED
