"""Style in deployment: the encoder's graph and its proof, the artifact that carries it, and `infer` with a photo."""

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from spade_deploy.artifact import (
    ENCODER_ONNX,
    FORMAT_VERSION,
    LABEL,
    LOGVAR,
    MANIFEST,
    MU,
    PHOTO,
    PIXELS,
    Artifact,
    EncoderGraph,
    Source,
    Z,
    encoder_tensors,
    rewrite_manifest,
    write_style_directions,
)
from spade_deploy.artifact.manifest import manifest_digest, read_manifest
from spade_deploy.cli import app
from spade_deploy.errors import (
    ArtifactError,
    ConfigError,
    ExportError,
    LabelMapError,
    MissingDependencyError,
    ValidationFailedError,
)
from spade_deploy.export import encoder as encoder_graph
from spade_deploy.export.encoder import DeployEncoder, proof_photos, prove_encoder, write_encoder
from spade_deploy.export.exact_norm import standardized
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.images.image_file import read_photo
from spade_deploy.inference import InferRequest, encode_photo, infer
from spade_deploy.inference import style as module
from spade_deploy.inference.style import moved_style
from spade_deploy.labels.files import label_dtype
from spade_deploy.networks.encoder import StyleEncoder
from spade_deploy.networks.spade import initialize
from spade_deploy.spec import GeneratorSpec, GraphKind, LabelSpec, Precision
from tests.support.generators import build_generator
from tests.support.listener import Listener
from tests.support.stand_in import PLAIN, STYLED, expected, random_inputs, stand_in_artifact, with_stand_in_encoder

WIDE = replace(STYLED, height=32, width=64)


def small_encoder(spec: GeneratorSpec = STYLED, seed: int = 0) -> StyleEncoder:
    """With weights and biases of a size that training ends with, and a settled spectral norm."""
    torch.manual_seed(seed)
    assert spec.z_dim is not None
    encoder = StyleEncoder(spec.z_dim, spec.base_channels)
    initialize(encoder, 1.0)
    for linear in (encoder.fc_mu, encoder.fc_var):
        torch.nn.init.normal_(linear.bias, std=0.2)
    encoder.train()
    with torch.no_grad():
        for _ in range(3):
            encoder(torch.rand(1, 3, 64, 64) * 2 - 1)
    return encoder.eval()


def encoded(encoder: StyleEncoder, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """By the PyTorch module, of pixels scaled as the training loader scales them."""
    image = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    with torch.no_grad():
        mu, logvar = encoder(image)
    return mu.numpy(), logvar.numpy()


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `small_encoder(WIDE)`."""
    path = tmp_path_factory.mktemp("encoder") / ENCODER_ONNX
    write_encoder(small_encoder(WIDE), WIDE, path)
    return path


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A stand-in generator, whose blue follows its style, with a real encoder."""
    folder = tmp_path_factory.mktemp("styled")
    stand_in_artifact(folder, STYLED)
    return with_encoder(folder)


def with_encoder(folder: Path) -> Artifact:
    fact = write_encoder(small_encoder(), STYLED, folder / ENCODER_ONNX)
    rewrite_manifest(folder, replace(read_manifest(folder), encoder=fact))
    return Artifact.open(folder)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo that is larger than the model and of another aspect."""
    small = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(small).resize((120, 90), Image.Resampling.BICUBIC).save(path)
    return path


def write_label(folder: Path) -> NDArray[Any]:
    label = random_inputs(STYLED, 1)[LABEL][0]
    folder.mkdir()
    Image.fromarray(label.astype(np.uint16)).save(folder / "a.png")
    return label.astype(label_dtype(STYLED.labels))


# --- The graph and its proof -----------------------------------------------------------------------------------------


def test_the_file_computes_what_the_module_computes(wide_file: Path) -> None:
    """On photos and in batches that the proof did not see."""
    session = onnxruntime.InferenceSession(str(wide_file), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(7)
    fact = prove_encoder(small_encoder(WIDE), WIDE, wide_file)
    for count in (1, 5):
        pixels = np.repeat(np.repeat(rng.integers(0, 256, (count, 8, 16, 3), dtype=np.uint8), 4, 1), 4, 2)
        found = session.run([MU, LOGVAR], {PHOTO: pixels})
        for output, right in zip(found, encoded(small_encoder(WIDE), pixels), strict=True):
            assert output.dtype == np.float32
            # Measured 1.7e-6; the proof itself found 1.7e-6 and allows 6.0e-6.
            assert np.abs(output - right).max() <= fact.tolerance
    assert 0 < fact.max_error <= fact.tolerance < 1e-4
    assert (fact.file, fact.opset) == (ENCODER_ONNX, 18)


def test_photos_larger_than_the_encoder_takes_are_made_smaller_as_pytorch_does(tmp_path: Path) -> None:
    """ONNX's Resize had eight times the error that is allowed here, so that such a model could not be exported."""
    large = replace(WIDE, height=320, width=448)
    fact = write_encoder(small_encoder(large), large, tmp_path / ENCODER_ONNX)
    assert fact.max_error <= 0.5 * fact.tolerance  # measured 0.33


def test_the_file_has_the_tensors_that_are_declared_and_no_paths_of_this_machine(wide_file: Path) -> None:
    session = onnxruntime.InferenceSession(str(wide_file), providers=["CPUExecutionProvider"])
    for tensors, found in zip(encoder_tensors(WIDE), (session.get_inputs(), session.get_outputs()), strict=True):
        assert [tensor.name for tensor in tensors] == [tensor.name for tensor in found]
        assert [tensor.shape[1:] for tensor in tensors] == [tuple(tensor.shape[1:]) for tensor in found]
        assert all(isinstance(tensor.shape[0], str) for tensor in found), "the batch is dynamic"
    content = wide_file.read_bytes()
    assert b"spade_deploy/" not in content
    assert b"site-packages" not in content


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[StyleEncoder], None]:
    def apply(encoder: StyleEncoder) -> None:
        tensor = encoder.state_dict()[name]
        tensor.copy_(change(tensor))

    return apply


# What a wrong export could have got wrong. The least of them is the sigma, which the instance norm takes away but for
# its eps: 2.1e-5, where 1.1e-5 is allowed. The others are 6e-4 or more.
WRONG: Mapping[str, Callable[[StyleEncoder], None]] = {
    "BGR for RGB": changed("layer1.0.weight_orig", lambda w: w.flip(1)),
    "a bias forgotten": changed("fc_var.bias", torch.zeros_like),
    "mu and logvar exchanged": lambda e: setattr(e, "fc_mu", e.fc_var),
    "sigma a tenth too large in one layer": changed("layer1.0.weight_u", lambda u: 1.1 * u),
    "one weight of 2,304 off by a hundredth": changed(
        "layer6.0.weight_orig", lambda w: w * (1 + 0.01 * (torch.arange(w.numel()) == 7).view(w.shape))
    ),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_the_proof_finds_what_is_wrong(wide_file: Path, what: str) -> None:
    """The file is held against a module that it is not: the same as a wrong file against the right module."""
    other = small_encoder(WIDE)
    WRONG[what](other)
    with pytest.raises(ValidationFailedError, match="does not equal the trained style encoder"):
        prove_encoder(other, WIDE, wide_file)


@pytest.mark.parametrize("wrong", ["corners aligned", "LEAKY_SLOPE", "no epsilon", "pixels in 0..1"])
def test_a_wrong_export_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    if wrong == "corners aligned":
        monkeypatch.setattr(
            encoder_graph, "_places", lambda size, wanted: torch.linspace(0, size - 1, wanted, dtype=torch.float64)
        )
    elif wrong == "pixels in 0..1":
        monkeypatch.setattr(encoder_graph, "to_image", lambda photo: photo.permute(0, 3, 1, 2).float() / 255)
    elif wrong == "no epsilon":
        monkeypatch.setattr(encoder_graph, "instance_norm", lambda x: standardized(x, (2, 3), 0.0))
    else:
        monkeypatch.setattr(encoder_graph, wrong, 0.1)
    with pytest.raises(ValidationFailedError):
        write_encoder(small_encoder(), STYLED, tmp_path / ENCODER_ONNX)


def test_the_proof_covers_flat_shaded_and_noisy_photos() -> None:
    photos = proof_photos(WIDE)
    assert photos.shape == (3, 32, 64, 3)
    variety = [len(np.unique(one.reshape(-1, 3), axis=0)) for one in photos]
    assert variety[0] <= 12 < variety[1] < variety[2]


def test_an_encoder_that_cannot_be_exported(wide_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="train mode"):
        DeployEncoder(small_encoder().train(), 32, 64)
    diverged = small_encoder(WIDE)
    diverged.fc_mu.weight.data[0, 0] = torch.nan
    with pytest.raises(ExportError, match="not finite"):
        prove_encoder(diverged, WIDE, wide_file)
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(ExportError, match="cannot load"):
        prove_encoder(small_encoder(), STYLED, tmp_path / "noise.onnx")


# --- The artifact ----------------------------------------------------------------------------------------------------


def test_an_export_carries_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = build_generator(labels=LabelSpec(5), base_channels=2, hidden_channels=4, height=32, width=32, z_dim=2)
    label = np.zeros((1, 32, 32), np.uint8)
    seen = Listener()
    arguments: dict[str, Any] = {
        "precisions": (Precision.FP32,),
        "kinds": (GraphKind.DENSE,),
        "golden_inputs": {LABEL: label, Z: np.zeros((1, 2), np.float32)},
        "source": Source("tiny-001", 4, "train", "0" * 64),
        "encoder": small_encoder(generator.spec),
    }
    monkeypatch.setattr(encoder_graph, "ERROR_FACTOR", 0.0)
    monkeypatch.setattr(encoder_graph, "ERROR_FLOOR", 0.0)
    (tmp_path / "failed").mkdir()
    with pytest.raises(ValidationFailedError):
        export_artifact(generator, tmp_path / "failed", ExportRequest(**arguments), seen)
    assert not (tmp_path / "failed" / MANIFEST).exists(), "a failed proof leaves no artifact"
    monkeypatch.undo()
    (tmp_path / "a").mkdir()
    exported = export_artifact(generator, tmp_path / "a", ExportRequest(**arguments), seen)
    artifact = Artifact.open(tmp_path / "a")
    assert artifact.manifest.encoder == exported.manifest.encoder
    assert artifact.manifest.encoder is not None
    assert ENCODER_ONNX in artifact.manifest.files
    assert any("proving" in step for step in seen.steps)


def test_the_manifest_names_and_vouches_for_the_encoder(styled: Artifact, tmp_path: Path) -> None:
    found = styled.manifest.encoder
    assert found is not None
    assert styled.path_of(found.file).is_file()
    value = json.loads((styled.path / MANIFEST).read_text())
    assert [tensor["name"] for tensor in value["encoder"]["inputs"]] == [PHOTO]
    assert [tensor["name"] for tensor in value["encoder"]["outputs"]] == [MU, LOGVAR]
    assert rewrite_manifest(styled.path, styled.manifest).encoder == found, "adding a report keeps it"
    damaged = tmp_path / "damaged"
    stand_in_artifact(damaged, STYLED)
    with_encoder(damaged)
    (damaged / ENCODER_ONNX).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"encoder\.onnx is damaged"):
        Artifact.open(damaged)


def test_older_readers_and_older_artifacts(styled: Artifact, tmp_path: Path) -> None:
    """An older reader ignores the field it does not know; an artifact without it reads as one without an encoder."""
    assert (FORMAT_VERSION, styled.manifest.format_version) == (1, 1)
    plain = stand_in_artifact(tmp_path / "a", STYLED)
    assert plain.manifest.encoder is None
    assert "encoder" not in json.loads((plain.path / MANIFEST).read_text())


def test_a_manifest_that_contradicts_itself(tmp_path: Path) -> None:
    def refuse(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
        original = (folder / MANIFEST).read_text()
        value = json.loads(original)
        change(value)
        value["manifest_sha256"] = manifest_digest(value)
        (folder / MANIFEST).write_text(json.dumps(value))
        with pytest.raises(ArtifactError, match=message):
            Artifact.open(folder)
        (folder / MANIFEST).write_text(original)

    styled, plain = tmp_path / "styled", tmp_path / "plain"
    stand_in_artifact(styled, STYLED)
    whole = json.loads((with_encoder(styled).path / MANIFEST).read_text())["encoder"]
    refuse(styled, lambda v: v["encoder"].update(file="other.onnx"), "files lacks 'other.onnx'")
    refuse(styled, lambda v: v["encoder"]["inputs"][0].update(dtype="float32"), "encoder: inputs contradicts")
    refuse(styled, lambda v: v["encoder"]["outputs"].pop(), "encoder: outputs contradicts")
    refuse(styled, lambda v: v["encoder"].pop("tolerance"), "'tolerance' is missing")
    refuse(styled, lambda v: v.update(encoder=None), "encoder: None is of type NoneType")
    stand_in_artifact(plain, PLAIN)
    (plain / ENCODER_ONNX).write_bytes(b"x")
    rewrite_manifest(plain, read_manifest(plain))
    refuse(plain, lambda v: v.update(encoder=whole), "has no style vector")


# --- infer -----------------------------------------------------------------------------------------------------------


def test_a_photo_gives_the_image_its_style(styled: Artifact, photo: Path, tmp_path: Path) -> None:
    label = write_label(tmp_path / "labels")
    infer(styled, InferRequest(tmp_path / "labels", tmp_path / "out", style_image=photo))
    mu = encoded(small_encoder(), read_photo(photo, (32, 32))[None])[0]
    right = expected(STYLED, {LABEL: label[None], Z: mu})[PIXELS][0]
    mean = expected(STYLED, {LABEL: label[None], Z: np.zeros_like(mu)})[PIXELS][0]
    with Image.open(tmp_path / "out" / "a.png") as image:
        found = np.asarray(image)
    # A rounding error of mu may carry a value across a truncation.
    assert np.abs(found.astype(int) - right.astype(int)).max() <= 1
    assert np.abs(found.astype(int) - mean.astype(int)).max() > 5, "the mean style is another"


def test_the_encoded_photo_is_the_modules(styled: Artifact, photo: Path) -> None:
    mu, logvar = encode_photo(styled, photo)
    right = encoded(small_encoder(), read_photo(photo, (32, 32))[None])
    assert mu.shape == logvar.shape == (1, 2)
    assert styled.manifest.encoder is not None
    for found, other in zip((mu, logvar), right, strict=True):
        assert np.abs(found - other).max() <= 2 * styled.manifest.encoder.tolerance
    assert np.abs(mu - logvar).max() > 0.1


def test_a_photo_is_resized_to_height_and_width_of_the_model(photo: Path, tmp_path: Path) -> None:
    spec = replace(STYLED, height=32, width=96)
    artifact = with_stand_in_encoder(stand_in_artifact(tmp_path / "wide", spec).path, spec)
    mu, _ = encode_photo(artifact, photo)
    np.testing.assert_allclose(mu, np.full((1, 2), read_photo(photo, (32, 96)).mean()), rtol=1e-5)


def test_an_encoder_is_opened_once_whatever_many_threads_want(
    styled: Artifact, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, opened = module.open_session, []

    def counted(*args: Any, **named: Any) -> Any:
        opened.append(args)
        time.sleep(0.05)  # so that all of the others come meanwhile
        return usual(*args, **named)

    monkeypatch.setattr(module, "open_session", counted)
    encoder = module.StyleEncoder(styled)
    assert not opened, "nothing is opened before a photo comes"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(encoder.encode, [photo] * 8))
    assert len(opened) == 1
    right = encode_photo(styled, photo)
    for mu, logvar in found:
        np.testing.assert_array_equal(mu, right[0])
        np.testing.assert_array_equal(logvar, right[1])


@pytest.mark.parametrize(
    ("origin", "why"),
    [("train", "trained without one"), ("import", "holds no encoder"), ("other", "none was exported")],
)
def test_a_model_without_an_encoder_says_why_and_what_to_do(tmp_path: Path, photo: Path, origin: str, why: str) -> None:
    artifact = stand_in_artifact(tmp_path / "a", STYLED)
    manifest = replace(artifact.manifest, source=replace(artifact.manifest.source, origin=origin))
    with pytest.raises(ConfigError, match=f"`style_image`: .* no style encoder .*{why}") as caught:
        encode_photo(replace(artifact, manifest=manifest), photo)
    assert "`seed` N" in (caught.value.hint or "")


def test_styles_that_are_refused(styled: Artifact, tmp_path: Path, photo: Path) -> None:
    write_label(tmp_path / "labels")
    plain = stand_in_artifact(tmp_path / "plain", PLAIN)
    for artifact, arguments, message in (
        (plain, {"style_image": photo}, "`style_image`: this model has no style vector"),
        (plain, {"seed": 3}, "`seed`: this model has no style vector"),
        (styled, {"style_image": photo, "seed": 3}, "`seed` and `style_image` contradict"),
        (styled, {"seed": -1}, "`seed`: -1 is negative"),
    ):
        with pytest.raises(ConfigError, match=message):
            infer(artifact, InferRequest(tmp_path / "labels", tmp_path / "out", **arguments))  # type: ignore[arg-type]
    with pytest.raises(LabelMapError, match=r"`style_image`: .*there is no such file"):
        infer(styled, InferRequest(tmp_path / "labels", tmp_path / "out", style_image=tmp_path / "absent.jpg"))
    (tmp_path / "noise.jpg").write_bytes(b"noise")
    with pytest.raises(LabelMapError, match=r"`style_image`: .*the photo is not an image file"):
        infer(styled, InferRequest(tmp_path / "labels", tmp_path / "out", style_image=tmp_path / "noise.jpg"))
    assert not (tmp_path / "out").exists(), "all of it before anything is written"


def test_an_encoder_file_that_does_not_load_or_is_another_graph(tmp_path: Path, photo: Path) -> None:
    folder = tmp_path / "a"
    stand_in_artifact(folder, STYLED)
    for content, message in (
        (b"noise", "cannot load the style encoder"),
        ((folder / "generator.fp32.onnx").read_bytes(), "its tensors are"),
    ):
        (folder / ENCODER_ONNX).write_bytes(content)
        fact = EncoderGraph(ENCODER_ONNX, 18, 1e-6, 1e-5)
        rewrite_manifest(folder, replace(read_manifest(folder), encoder=fact))
        with pytest.raises(ArtifactError, match=message):
            encode_photo(Artifact.open(folder), photo)


def test_without_onnx_runtime(styled: Artifact, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="`style_image`") as caught:
        encode_photo(styled, photo)
    assert "spade-deploy[cpu]" in (caught.value.hint or "")
    with pytest.raises(MissingDependencyError, match="proved in ONNX Runtime"):
        prove_encoder(small_encoder(), STYLED, styled.path_of(ENCODER_ONNX))


def test_the_command(styled: Artifact, photo: Path, tmp_path: Path) -> None:
    write_label(tmp_path / "labels")
    command = ["infer", str(tmp_path / "labels"), str(tmp_path / "out"), "--artifact", str(styled.path)]
    done = CliRunner().invoke(app, [*command, "--style-image", str(photo)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "a.png").is_file()


def test_the_main_directions_are_those_that_change_the_first_layer_most(tmp_path: Path) -> None:
    generator = build_generator(labels=LabelSpec(3), z_dim=8, height=32, width=32)
    export_artifact(
        generator, tmp_path, ExportRequest(random_inputs(generator.spec), Source("tiny", 1, "train", "0" * 64))
    )
    found = Artifact.open(tmp_path).style_directions()
    assert found is not None
    np.testing.assert_allclose(found @ found.T, np.eye(6), atol=1e-6)
    weight = generator.fc.weight.detach().double().numpy()
    strongest = np.linalg.svd(weight)[1][:6]  # by another algorithm than the export's
    np.testing.assert_allclose(np.linalg.norm(weight @ found.T.astype(float), axis=0), strongest, rtol=1e-5)
    assert (found[np.arange(6), np.abs(found).argmax(axis=1)] > 0).all()


def test_a_style_is_moved_along_them(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "styled", STYLED)
    style = np.float32([[1, 2]])
    with pytest.raises(ConfigError, match="no main directions"):
        moved_style(artifact, style, [1.0])
    with pytest.raises(ConfigError, match="no style vector"):
        moved_style(stand_in_artifact(tmp_path / "plain"), None, [1.0])
    write_style_directions(artifact.path, np.array([[0.6, 0.8], [-0.8, 0.6]]))
    rewrite_manifest(artifact.path, artifact.manifest)
    artifact = Artifact.open(artifact.path)
    np.testing.assert_allclose(moved_style(artifact, style, [2.0, -1.0]), [[1 + 1.2 + 0.8, 2 + 1.6 - 0.6]], rtol=1e-6)
    np.testing.assert_allclose(moved_style(artifact, style, [2.0]), [[2.2, 3.6]], rtol=1e-6)
    for steps in ([1.0, 2.0, 3.0], [float("nan")], [1e300]):
        with pytest.raises(ConfigError, match="takes up to 2 finite ones"):
            moved_style(artifact, style, steps)


@pytest.mark.parametrize("rows", [[], [[1.0]], [[1.0, 1.0]], [[float("inf"), 0.0]], "x", [["a", "b"]]])
def test_damaged_directions_are_refused(tmp_path: Path, rows: Any) -> None:
    artifact = stand_in_artifact(tmp_path, STYLED)
    (tmp_path / "style_directions.json").write_text(json.dumps({"directions": rows}))
    rewrite_manifest(tmp_path, artifact.manifest)
    with pytest.raises(ArtifactError, match=r"style_directions\.json: "):
        Artifact.open(tmp_path).style_directions()
