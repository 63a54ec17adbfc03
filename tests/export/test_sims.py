"""SIMS deployed: the traced module, the artifact with its bank, and label maps alone in every command's way in."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spade_deploy.artifact import BANK, CANVAS, IMAGE, LABEL, PIXELS, Artifact, Source, rewrite_manifest
from spade_deploy.artifact.manifest import read_manifest
from spade_deploy.bench.plain_export import write_plain_export
from spade_deploy.engines.base import Backend
from spade_deploy.engines.input_shapes import default_profile, tensor_ranges
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.ort.session import open_session
from spade_deploy.errors import ArtifactError, ConfigError, ExportError
from spade_deploy.export.build import build_model, model_inputs
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.int8.write import write_int8_graphs
from spade_deploy.export.pipeline import ExportRequest, export_artifact, run_reference
from spade_deploy.inference import InferRequest, infer
from spade_deploy.inference.maker import artifact_digest
from spade_deploy.labels.files import resize_nearest
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.metrics.tolerances import tolerance_for
from spade_deploy.networks.sims import SemiParametricGenerator, bank_of_generator, give_bank
from spade_deploy.networks.spade import initialize
from spade_deploy.packaging.repository import write_repository
from spade_deploy.packaging.request import PackageRequest
from spade_deploy.release.release import Release, export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.retrieval.bank_file import bank_of
from spade_deploy.retrieval.build import BankBuilder
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.serving.web.folder import write_web
from spade_deploy.spec import Architecture, GeneratorSpec, GraphKind, LabelSpec, Precision
from spade_deploy.validation.request import ValidationRequest
from spade_deploy.validation.validate import validate
from tests.support.exactness import errors, in_float64, reference
from tests.support.generators import random_inputs
from tests.support.memory_banks import blocks, photo_of

LABELS = LabelSpec(5, has_dontcare=True, has_edges=True)
SPEC = GeneratorSpec(LABELS, base_channels=4, height=64, width=64).with_architecture(Architecture.SIMS)


def generator_of(spec: GeneratorSpec = SPEC, seed: int = 0) -> SemiParametricGenerator:
    """A generator with scales and offsets that are not fresh, and a bank of six photos."""
    torch.manual_seed(seed)
    generator = SemiParametricGenerator(spec)
    initialize(generator, 1.0)
    for parameter in generator.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    generator.conv_img.weight.data.mul_(0.3)  # logits of trained models are small
    builder = BankBuilder(spec.labels)
    for number in range(6):
        builder.add(number, blocks(number, 16), photo_of(number))
    give_bank(generator, builder.bank(40))
    return generator.eval()


def maps(count: int, side: int = 64) -> np.ndarray:
    return np.stack([blocks(20 + number, 16, side) for number in range(count)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of a model without edges, so that a label map alone is enough."""
    runs = tmp_path_factory.mktemp("work") / "runs"
    plain = replace(SPEC, labels=LabelSpec(5, has_dontcare=True))
    save_checkpoint(checkpoint_folder(new_run(runs, "small"), 0), generator_of(plain), step=0, origin="import")
    return export_checkpoint(ReleaseRequest(fp16=True), runs_dir=runs)


@pytest.fixture
def copy(made: Release, tmp_path: Path) -> Artifact:
    """The artifact, for a test that damages it."""
    return Artifact.open(Path(shutil.copytree(made.artifact.path, tmp_path / "artifact")))


def test_the_traced_model_is_the_trained_one_in_float64() -> None:
    generator = generator_of()
    torch.manual_seed(1)
    label, instance, _ = random_inputs(SPEC, 2, 64, 96)
    label[1] = torch.from_numpy(blocks(9, 16)[:64, :96])
    named = {LABEL: label.numpy(), "instance": instance.numpy()}
    wide = in_float64(generator)
    give_bank(wide, bank_of_generator(generator))
    exact = reference(wide, label, instance, None)
    traced = build_model(wide, dtype=torch.float64)
    assert (traced(*model_inputs(traced, named))[1] - exact).abs().max() < 1e-12  # measured 2e-14
    narrow = build_model(generator)
    found = errors(narrow(*model_inputs(narrow, named))[1], reference(generator, label, instance, None), exact)
    # Measured 1.3 and 1.2 times the error that eager float32 has itself.
    assert found.max_ratio < 3
    assert found.mean_ratio < 2


def test_a_release_passes_the_same_proof(made: Release) -> None:
    report = made.report
    assert report.passed
    assert report.reference.startswith("PyTorch")
    assert [result.name for result in report.results] == ["fp32", "fp16"]
    fp32, fp16 = report.results
    assert fp32.diff.max_abs <= 3 * report.rounding.max_abs
    assert fp16.half is not None
    assert fp16.half.skipped is None
    card = (made.artifact.path / "README.md").read_text(encoding="utf-8")
    assert "bank.npz holds pieces of the photos" in card
    # The example of the card, for any ONNX client, runs.
    code = (
        card.split("```python\n")[1]
        .split("```")[0]
        .replace("generator.fp32.onnx", str(made.artifact.path / "generator.fp32.onnx"))
    )
    names: dict[str, np.ndarray] = {}
    exec(code, names)
    assert names["pixels"].shape == (1, 64, 64, 3)


def test_label_maps_alone_give_the_image_of_torch(made: Release) -> None:
    generator = generator_of(made.artifact.manifest.generator)
    label = np.concatenate([maps(2, 96)[:, :64], maps(1, 96)[:, 32:]])  # a batch of another size than the model's
    label[1, :20, :30] = LABELS.unknown_id
    expected = run_reference(generator, {LABEL: label})
    limit = tolerance_for(Precision.FP32, made.artifact.manifest.rounding).max_abs
    for backend in ("cpu", "openvino"):
        with open_runtime(made.artifact, Precision.FP32, backend) as runtime:
            assert runtime.kind is GraphKind.DENSE
            found = runtime.run({LABEL: label}, [IMAGE])[IMAGE]
        assert np.abs(found - expected[IMAGE]).max() <= limit
    # Not by chance: without the patches the image is another one.
    give_bank(generator, None)
    assert np.abs(run_reference(generator, {LABEL: label})[IMAGE] - found).max() > 100 * limit


def test_the_graph_takes_the_canvas(made: Release) -> None:
    spec, bank = made.artifact.manifest.generator, bank_of(made.artifact)
    assert bank is not None
    fed = graph_inputs(spec, GraphKind.DENSE, {LABEL: maps(1)}, bank)
    assert list(fed) == [LABEL, CANVAS]
    session = open_session(made.artifact.path_of("generator.fp32.onnx"))
    assert [one.name for one in session.get_inputs()] == [LABEL, CANVAS]
    (image,) = session.run([IMAGE], fed)
    with open_runtime(made.artifact, Precision.FP32, "cpu") as runtime:
        np.testing.assert_array_equal(runtime.run({LABEL: maps(1)})[IMAGE], image)
    ranges = tensor_ranges(spec, GraphKind.DENSE, default_profile(spec))
    assert list(ranges) == list(fed)
    assert ranges[CANVAS][2] == (4, 4, 64, 64)


def test_infer_needs_no_more_than_label_maps(made: Release, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    ids = blocks(30, 16, 96)
    Image.fromarray(ids).save(labels / "a.png")
    summary = infer(made.artifact, InferRequest(labels, tmp_path / "out", backend=Backend.CPU))
    assert (summary.written, summary.failures) == (1, ())
    generator = generator_of(made.artifact.manifest.generator)
    expected = run_reference(generator, {LABEL: resize_nearest(ids, (64, 64))[None]})
    with Image.open(tmp_path / "out" / "a.png") as image:
        difference = np.abs(np.asarray(image).astype(int) - expected[PIXELS][0].astype(int))
    assert difference.max() <= 1  # rounding may carry a pixel across an integer
    assert (difference > 0).mean() < 0.001


def test_a_bank_that_was_cut_off_is_refused_by_its_hash(copy: Artifact, made: Release) -> None:
    path = copy.path / BANK
    assert path.read_bytes() == (made.checkpoint / BANK).read_bytes()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"bank.npz is damaged: \d+ bytes"):
        Artifact.open(copy.path)
    # One whose hash is right, too, but that is no bank.
    rewrite_manifest(copy.path, read_manifest(copy.path))
    with pytest.raises(ArtifactError, match=r"bank.npz is no memory bank that can be read"):
        open_runtime(Artifact.open(copy.path), Precision.FP32, "cpu")
    path.unlink()
    with pytest.raises(ArtifactError, match=r"files lacks 'bank.npz'"):
        rewrite_manifest(copy.path, read_manifest(copy.path))


def test_another_bank_is_another_maker(copy: Artifact, made: Release) -> None:
    from spade_deploy.retrieval.bank_file import write_bank

    before = artifact_digest(copy)
    assert before == artifact_digest(made.artifact)
    other = bank_of(copy)
    assert other is not None
    write_bank(copy.path / BANK, replace(other, colors=255 - other.colors))
    rewrite_manifest(copy.path, read_manifest(copy.path))
    changed = Artifact.open(copy.path)
    assert artifact_digest(changed) != before
    # And the validation sees that its images are not those of the checkpoint.
    report = validate(changed, ValidationRequest(checkpoint=made.checkpoint, backend=Backend.CPU))
    assert not report.passed


def test_int8_graphs(copy: Artifact) -> None:
    golden = copy.golden()
    one = {name: array[:1] for name, array in golden.inputs.items()}
    (graph,), summary = write_int8_graphs(
        generator_of(copy.manifest.generator),
        copy.path,
        [GraphKind.DENSE],
        Int8Request(one, "one map", 15.0),
        (one, golden.outputs[IMAGE][:1]),
    )
    assert graph.precision is Precision.INT8
    assert summary.graphs[0].golden_psnr_db >= 15
    assert len(summary.kept) < len(summary.ranking)


def test_what_cannot_be_made_of_it_says_so(made: Release, tmp_path: Path) -> None:
    generator = generator_of()
    with pytest.raises(ConfigError, match="a lookup graph cannot be made of a sims generator"):
        build_model(generator, GraphKind.LOOKUP)
    give_bank(generator, None)
    with pytest.raises(ExportError, match="the generator has no memory bank"):
        export_artifact(generator, tmp_path, ExportRequest({}, Source("run", 0, "train", "0" * 64)))
    with pytest.raises(ConfigError, match="`web`: this model completes a canvas"):
        write_web(made.artifact, tmp_path / "web", {})
    with pytest.raises(ConfigError, match="`triton`: this model completes a canvas"):
        write_repository(made.artifact, PackageRequest(triton=tmp_path / "triton"))
    with pytest.raises(ExportError, match="SIMS has no plain export"):
        write_plain_export(made.checkpoint, tmp_path / "plain.onnx")
