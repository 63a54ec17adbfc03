"""pix2pixHD with instance features through the whole chain: export, proof, engines, photos, the server, the bench."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from spade_deploy.artifact import (
    FEATURES,
    IMAGE,
    INSTANCE,
    LABEL,
    Artifact,
    region_means,
    rewrite_manifest,
    with_features,
)
from spade_deploy.bench.baselines import remove_spectral_norm
from spade_deploy.bench.inputs import SEGMAP, golden_cases, module_feeds
from spade_deploy.bench.plain_export import write_plain_export
from spade_deploy.cli import app
from spade_deploy.engines.input_shapes import default_profile, tensor_ranges
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.ort.session import open_session
from spade_deploy.errors import ConfigError, InputRefusedError, ValidationFailedError
from spade_deploy.export import instance_encoder
from spade_deploy.export.encoder import prove_encoder, write_encoder
from spade_deploy.export.instance_encoder import to_image
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.int8.write import write_int8_graphs
from spade_deploy.images.image_file import read_photo
from spade_deploy.inference import infer, make_images
from spade_deploy.inference.style import StyleEncoder
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.spec import Backend, GeneratorSpec, GraphKind, LabelSpec, Precision, ResizePolicy
from spade_deploy.validation.divergence import first_divergence
from tests.export.test_operators import parse
from tests.support import pix2pixhd_by_the_facts as pix2pixhd
from tests.support.featured import (
    DEPTH,
    ENCODER,
    GENERATOR,
    SIZE,
    Made,
    assert_shows,
    photos_of,
    release,
    second_image,
    some_maps,
    write_maps,
    write_photo,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return release(tmp_path_factory.mktemp("features"), fp16=True)


@pytest.fixture(scope="module")
def maps() -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    return some_maps()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_photo(tmp_path / "photo.png")


# --- Export ----------------------------------------------------------------------------------------------------------


def test_the_release_is_proved_with_features_that_matter(made: Made) -> None:
    report, artifact = made.release.report, made.artifact
    assert report.passed
    assert [result.name for result in report.results] == ["fp32", "fp16"]
    assert report.results[0].diff.max_abs <= 3 * report.rounding.max_abs
    golden = artifact.golden()
    features, instance = golden.inputs[FEATURES], golden.inputs[INSTANCE]
    assert features.shape == (len(instance), 3, *SIZE)
    assert 0.3 < features.std() < 0.9
    for values, ids in zip(features, instance, strict=True):  # real features are the same in all of an instance
        np.testing.assert_array_equal(region_means(values, ids), values)
    with open_runtime(artifact, Precision.FP32, Backend.CPU) as runtime:
        found = runtime.run(golden.inputs)[IMAGE]
        other = runtime.run({**golden.inputs, FEATURES: np.zeros_like(features)})[IMAGE]
        np.testing.assert_allclose(found, golden.outputs[IMAGE], atol=1e-4)
        assert np.abs(found - other).max() > 0.1
        with pytest.raises(InputRefusedError, match="features: missing; expected are label, instance, features"):
            runtime.run({name: array for name, array in golden.inputs.items() if name != FEATURES})
        with pytest.raises(InputRefusedError, match=r"features: shape .* expected N x 3 x H x W"):
            runtime.run({**golden.inputs, FEATURES: features[:, :2]})


@pytest.mark.parametrize("backend", [Backend.CPU, Backend.OPENVINO])
def test_every_engine_makes_the_image_of_the_second_writing(made: Made, backend: Backend) -> None:
    rng = np.random.default_rng(4)
    shape = (2, SIZE[0] + 8, SIZE[1])  # of another size than the model's
    label = rng.integers(0, 5, shape).astype(np.uint8)
    instance = rng.integers(0, 3, shape).astype(np.int32)
    features = rng.uniform(-1, 1, (2, 3, *shape[1:])).astype(np.float32)
    state = {name: one.double() for name, one in GENERATOR.items()}
    given = (torch.from_numpy(label), torch.from_numpy(instance), torch.from_numpy(features).double())
    expected = pix2pixhd.generate(state, *given, num_ids=5, **DEPTH).numpy()
    with open_runtime(made.artifact, Precision.FP32, backend) as runtime:
        found = runtime.run({LABEL: label, INSTANCE: instance, FEATURES: features})[IMAGE]
    # Measured: 2.9e-6 (CPU) and 4.6e-6 (OpenVINO).
    assert np.abs(found - expected).max() < 2e-5


def test_tensorrt_parses_every_graph(made: Made) -> None:
    for graph in made.artifact.manifest.graphs:
        assert parse(made.artifact.path / graph.file) == [], graph.name


def test_an_int8_graph_is_made(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.artifact.path, tmp_path / "artifact")
    artifact = Artifact.open(tmp_path / "artifact")
    generator = load_generator(made.release.checkpoint).module
    golden = artifact.golden()
    one = {name: array[:1] for name, array in golden.inputs.items()}
    asked = (one, golden.outputs[IMAGE][:1])
    graphs, summary = write_int8_graphs(
        generator, artifact.path, [GraphKind.DENSE], Int8Request(one, "a map", 20.0), asked
    )
    assert [graph.kind for graph in graphs] == [GraphKind.DENSE]
    assert summary.graphs[0].golden_psnr_db >= 20
    assert len(summary.graphs[0].kept) < len(summary.ranking)


def test_shape_profiles_of_engines_hold_the_features(made: Made) -> None:
    spec = made.artifact.manifest.generator
    golden = made.artifact.golden().inputs
    ranges = tensor_ranges(spec, GraphKind.DENSE, default_profile(spec))
    assert list(ranges) == list(graph_inputs(spec, GraphKind.DENSE, golden)) == [LABEL, INSTANCE, FEATURES]
    assert ranges[FEATURES][2] == (4, 3, *SIZE)


def test_where_a_graph_diverges_is_told_with_the_features_it_was_given(made: Made) -> None:
    artifact = made.artifact
    graph = artifact.graph(Precision.FP32, GraphKind.DENSE)
    generator = load_generator(made.release.checkpoint).module
    one = {name: array[:1] for name, array in artifact.golden().inputs.items()}
    assert first_divergence(artifact.path_of(graph.file), graph, generator, one) is None
    with torch.no_grad():
        generator.enhancer_in.conv.weight[:, -3:] = 0  # the features that the fine half sees
    found = first_divergence(artifact.path_of(graph.file), graph, generator, one)
    assert found is not None
    assert found.tensor == "enhancer_in"


# --- The encoder -----------------------------------------------------------------------------------------------------


def test_the_encoders_file_equals_the_second_writing_at_any_size(made: Made, photo: Path) -> None:
    encoder = StyleEncoder(made.artifact)
    state = {name: one.double() for name, one in ENCODER.items()}
    for size in (SIZE, (32, 80)):
        pixels = torch.from_numpy(read_photo(photo, size)[None].copy()).permute(0, 3, 1, 2).double() / 127.5 - 1
        each_pixel = torch.arange(size[0] * size[1]).view(1, *size)
        expected = pix2pixhd.encode(state, pixels, each_pixel, halvings=2)[0].numpy()
        assert expected.std() > 0.1
        np.testing.assert_allclose(encoder.features(photo, size), expected, atol=1e-5)


def test_an_encoder_file_that_is_not_equal_is_refused(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_generator(made.release.checkpoint)
    assert loaded.encoder is not None
    fact = write_encoder(loaded.encoder, loaded.spec, tmp_path / "encoder.onnx")
    assert fact.max_error <= fact.tolerance < 1e-4
    monkeypatch.setattr(instance_encoder, "to_image", lambda photo: torch.tanh(to_image(photo)))
    with pytest.raises(ValidationFailedError, match="does not equal the trained encoder of instance features"):
        write_encoder(loaded.encoder, loaded.spec, tmp_path / "wrong.onnx")
    with pytest.raises(ValidationFailedError):
        prove_encoder(loaded.encoder, loaded.spec, tmp_path / "wrong.onnx")


def test_means_are_those_of_each_region() -> None:
    values = np.float32([[[1, 2, 6], [3, 4, 8]]])
    regions = np.array([[70000, 70000, 5], [70000, 5, 5]])
    np.testing.assert_array_equal(region_means(values, regions), [[[2, 2, 6], [2, 6, 6]]])


def test_default_features_are_zeros_and_drawn_ones_follow_the_regions() -> None:
    spec = GeneratorSpec(LabelSpec(3))
    inputs = {LABEL: np.zeros((1, 4, 4), np.uint8)}
    assert list(with_features(spec, inputs)) == [LABEL]
    plain = with_features(_featured(), inputs)
    assert (plain[FEATURES].shape, plain[FEATURES].any()) == ((1, 3, 4, 4), False)
    given = {**inputs, FEATURES: np.ones((1, 3, 4, 4), np.float32)}
    assert with_features(_featured(), given)[FEATURES].all()
    drawn = with_features(_featured(), inputs, np.random.default_rng(0))[FEATURES]
    assert len(np.unique(drawn)) == 3, "a map of one class has one colour"


def _featured() -> GeneratorSpec:
    return replace(GeneratorSpec(LabelSpec(3)).with_architecture("pix2pixhd"), has_features=True)  # type: ignore[arg-type]


# --- Photos ----------------------------------------------------------------------------------------------------------


def test_infer_gives_each_instance_the_features_of_a_photo(
    made: Made, maps: tuple[NDArray[np.uint8], NDArray[np.int32]], photo: Path, tmp_path: Path
) -> None:
    label, instance = maps
    request = write_maps(tmp_path, maps)
    infer(made.artifact, request)
    assert_shows(photos_of(tmp_path / "out"), second_image(label, instance, None))
    with_photo = replace(request, out=tmp_path / "with", style_image=photo)
    infer(made.artifact, with_photo)
    wanted = second_image(label, instance, photo)
    assert_shows(photos_of(tmp_path / "with"), wanted)
    assert np.abs(wanted - second_image(label, instance, photo, regions=label)).max() > 5, "instances are no classes"
    assert np.abs(wanted - second_image(label, instance, None)).max() > 5, "the default is another"
    # Without instance maps there are no edges, and each class is an instance.
    infer(made.artifact, replace(with_photo, out=tmp_path / "by_class", instances=None, no_instances=True))
    assert_shows(photos_of(tmp_path / "by_class"), second_image(label, None, photo, regions=label))


def test_a_folder_of_another_photos_images_is_another_makers(
    made: Made, maps: tuple[NDArray[np.uint8], NDArray[np.int32]], photo: Path, tmp_path: Path
) -> None:
    request = write_maps(tmp_path, maps)
    infer(made.artifact, request)
    with pytest.raises(ConfigError, match="style"):
        infer(made.artifact, replace(request, style_image=photo))


def test_what_infer_cannot_do_is_refused_before_anything_is_written(
    made: Made, maps: tuple[NDArray[np.uint8], NDArray[np.int32]], photo: Path, tmp_path: Path
) -> None:
    request = write_maps(tmp_path, maps)
    with pytest.raises(ConfigError, match="`seed`: this model has no style vector"):
        infer(made.artifact, replace(request, seed=3))
    with pytest.raises(ConfigError, match="`style_image` contradicts `resize` never"):
        infer(made.artifact, replace(request, style_image=photo, resize=ResizePolicy.NEVER))
    shutil.copytree(made.artifact.path, tmp_path / "artifact")
    rewrite_manifest(tmp_path / "artifact", replace(made.artifact.manifest, encoder=None))
    with pytest.raises(ConfigError, match="has no encoder of instance features") as caught:
        infer(Artifact.open(tmp_path / "artifact"), replace(request, style_image=photo))
    assert "--encoder latest_net_E.pth" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_several_processes_make_the_same_photos(
    made: Made, maps: tuple[NDArray[np.uint8], NDArray[np.int32]], photo: Path, tmp_path: Path
) -> None:
    request = write_maps(tmp_path, maps)
    infer(made.artifact, replace(request, style_image=photo, workers=2))
    assert_shows(photos_of(tmp_path / "out"), second_image(*maps, photo))


def test_arrays_take_features(made: Made, maps: tuple[NDArray[np.uint8], NDArray[np.int32]], photo: Path) -> None:
    label, instance = maps
    features = region_means(StyleEncoder(made.artifact).features(photo, SIZE), instance)
    with open_runtime(made.artifact, backend=Backend.CPU) as runtime:
        assert_shows(make_images(runtime, label, instance, features=features), second_image(label, instance, photo))
        assert_shows(make_images(runtime, label, instance), second_image(label, instance, None))


def test_the_bench_feeds_the_untouched_module_the_same(made: Made, tmp_path: Path) -> None:
    spec = made.artifact.manifest.generator
    (case,) = golden_cases(made.artifact, batch_size=1)[:1]
    module = load_generator(made.release.checkpoint).module
    remove_spectral_norm(module)
    feeds = module_feeds(spec, case)
    with torch.no_grad():
        image = module(*(torch.from_numpy(array) for array in feeds.values())).numpy()
    np.testing.assert_allclose(image, made.artifact.golden().outputs[IMAGE][:1], atol=1e-4)
    write_plain_export(made.release.checkpoint, tmp_path / "plain.onnx")
    session = open_session(tmp_path / "plain.onnx", failed=lambda error: AssertionError(error))
    np.testing.assert_allclose(session.run(None, {SEGMAP: feeds[SEGMAP]})[0], image, atol=1e-4)
    (small,) = golden_cases(made.artifact, 1, (32, 48))[:1]
    assert small[FEATURES].shape == (1, 3, 32, 48)


def test_commands(made: Made, maps: tuple[NDArray[np.uint8], NDArray[np.int32]], photo: Path, tmp_path: Path) -> None:
    request = write_maps(tmp_path, maps)
    artifact = ["--artifact", str(made.artifact.path)]
    folders = [str(tmp_path / "labels"), str(tmp_path / "out"), "--instances", str(request.instances)]
    run: Callable[[list[str]], Any] = lambda words: CliRunner().invoke(app, words, catch_exceptions=False)  # noqa: E731
    done = run(["infer", *folders, *artifact, "--style-image", str(photo), "--backend", "cpu"])
    assert done.exit_code == 0, done.output
    assert_shows(photos_of(tmp_path / "out"), second_image(*maps, photo))
    done = run(["validate", str(made.artifact.path), "--labels", folders[0], "--instances", str(request.instances)])
    assert done.exit_code == 0, done.output
    done = run(["inspect", str(made.artifact.path)])
    assert "instance features" in done.output
