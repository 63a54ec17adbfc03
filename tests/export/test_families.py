"""Imported neighbours of SPADE through the whole chain: export, proof, engines, images, all against second writings."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spade_deploy.artifact import IMAGE, PIXELS, Artifact
from spade_deploy.engines.input_shapes import default_profile, tensor_ranges
from spade_deploy.engines.open import open_runtime
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.int8.write import write_int8_graphs
from spade_deploy.inference import InferRequest
from spade_deploy.inference.infer import infer
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.networks.spade import make_segmap
from spade_deploy.release.release import Release, export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.runs.importer import import_checkpoint
from spade_deploy.spec import Backend, GraphChoice, GraphKind, Precision
from tests.export.test_operators import parse
from tests.support.exactness import named_inputs, rounding_limit
from tests.support.families import CHAINS, FILES
from tests.support.generators import random_inputs


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Release]:
    """Releases of imported files by their names; each takes seconds, and is made once."""

    @functools.cache
    def make(name: str) -> Release:
        folder = tmp_path_factory.mktemp("work")
        file = FILES[name]()
        torch.save(file.state, folder / "published.pth")
        import_checkpoint(folder / "published.pth", file.request, runs_dir=folder / "runs", name="imported")
        return export_checkpoint(ReleaseRequest(fp16=True), runs_dir=folder / "runs")

    return make


@pytest.fixture(params=CHAINS)
def made(request: pytest.FixtureRequest, released: Callable[[str], Release]) -> Release:
    return released(request.param)


def test_the_release_is_proved(made: Release) -> None:
    report, kinds = made.report, made.artifact.manifest.generator.graph_kinds
    assert report.passed
    assert report.reference.startswith("PyTorch")
    expected = [f"{precision}{'' if kind is GraphKind.DENSE else f' {kind}'}" for precision in ("fp32", "fp16")
                for kind in kinds]  # fmt: skip
    assert [result.name for result in report.results] == expected
    for result in report.results[: len(kinds)]:
        assert result.diff.max_abs <= 3 * report.rounding.max_abs


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("backend", [Backend.CPU, Backend.OPENVINO])
def test_every_engine_makes_the_image_of_the_second_writing(
    name: str, backend: Backend, released: Callable[[str], Release]
) -> None:
    file, made = FILES[name](), released(name)
    generator = load_generator(made.checkpoint).module
    spec = generator.spec
    torch.manual_seed(4)
    label, instance, z = random_inputs(spec, 2, spec.height, spec.width + spec.stride)
    state = {key: value.double() if value.is_floating_point() else value for key, value in file.state.items()}
    exact = file.generate(state, label, instance if spec.labels.has_edges else None, None if z is None else z.double())
    limit = rounding_limit(
        lambda x: generator(x, None if z is None else z.repeat(len(x) // 2, 1)),
        make_segmap(label, instance, spec.labels),
        exact,
        times=8,
    )
    given = named_inputs(spec, label, instance, z)
    for kind in spec.graph_kinds:
        with open_runtime(made.artifact, Precision.FP32, backend, graph=GraphChoice(str(kind))) as runtime:
            found = runtime.run(given)
        # Measured worst 1.6 times the error that PyTorch has itself, over engines and graphs; 8 times are allowed.
        assert np.abs(found[IMAGE] - exact.numpy()).max() <= limit, kind
        assert found[PIXELS].dtype == np.uint8
        assert found[PIXELS].shape == (2, spec.height, spec.width + spec.stride, 3)


def test_tensorrt_parses_every_graph(made: Release) -> None:
    for graph in made.artifact.manifest.graphs:
        assert parse(made.artifact.path / graph.file) == [], graph.name


def test_int8_graphs_of_both_kinds(made: Release, tmp_path: Path) -> None:
    shutil.copytree(made.artifact.path, tmp_path / "artifact")
    artifact = Artifact.open(tmp_path / "artifact")
    generator = load_generator(made.checkpoint).module
    golden = artifact.golden()
    one = {name: array[:1] for name, array in golden.inputs.items()}
    kinds = generator.spec.graph_kinds
    asked = (one, golden.outputs[IMAGE][:1])
    graphs, summary = write_int8_graphs(generator, artifact.path, kinds, Int8Request(one, "a map", 20.0), asked)
    assert [graph.kind for graph in graphs] == list(kinds)
    for quality in summary.graphs:
        assert quality.golden_psnr_db >= 20
        assert len(quality.kept) < len(summary.ranking)


def test_infer_writes_photos(made: Release, tmp_path: Path) -> None:
    spec = made.artifact.manifest.generator
    (tmp_path / "labels").mkdir()
    ids = np.random.default_rng(1).integers(0, spec.labels.num_labels, (80, 80), dtype=np.uint8)
    Image.fromarray(ids).save(tmp_path / "labels" / "a.png")
    edges = {"no_instances": True} if spec.labels.has_edges else {}
    summary = infer(made.artifact, InferRequest(tmp_path / "labels", tmp_path / "out", backend=Backend.CPU, **edges))
    assert (summary.written, summary.failures) == (1, ())
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.size == (spec.width, spec.height)


def test_shape_profiles_of_engines_hold_what_maps_need(made: Release) -> None:
    spec = made.artifact.manifest.generator
    label, instance, z = random_inputs(spec, 2)
    given = named_inputs(spec, label, instance, z)
    for kind in spec.graph_kinds:
        ranges = tensor_ranges(spec, kind, default_profile(spec))
        fed = graph_inputs(spec, kind, given)
        assert list(ranges) == list(fed)
        for name, array in fed.items():
            least, best, most = (np.array(shape) for shape in ranges[name])
            assert (least <= best).all()
            assert (best <= most).all()
            assert ((least <= array.shape) & (array.shape <= most)).all(), name


def test_the_artifact_opens_again_and_is_the_same(made: Release) -> None:
    found = Artifact.open(made.artifact.path).manifest.generator
    assert found == load_generator(made.checkpoint).spec
