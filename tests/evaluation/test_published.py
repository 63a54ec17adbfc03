"""FID's network and LPIPS, against the implementations that published them, on weights that a test can make.

The published files are not in the repository. Networks of the same names and shapes with made weights are compared:
with torchmetrics' LPIPS and its real learned weights, and with numbers that torch-fidelity 0.4.0 computed.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchmetrics.functional.image import lpips as of_torchmetrics

from spade_deploy.errors import CheckpointError, ConfigError, NotFoundError
from spade_deploy.evaluation import DataFlags, EvalRequest, evaluate, write_report
from spade_deploy.evaluation.published import files, inception, lpips
from spade_deploy.evaluation.published.files import BACKBONES, INCEPTION, INCEPTION_SCRIPT, Published, find
from spade_deploy.files.reading import sha256_of
from tests.support.stand_in import EDGES, stand_in_artifact

OF_TORCH_FIDELITY = {
    0: [0.0015822440618649125, 0.24404358863830566, 0.0, 0.23748470842838287, 0.02174193039536476],
    1: [0.0015681866789236665, 0.24372990429401398, 0.0, 0.23784714937210083, 0.021743005141615868],
}
"""Every 256th feature of two images, by torch_fidelity.feature_extractor_inceptionv3 with the weights of `made`."""


def made(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights that keep the scale of the features, the same ones on every machine."""
    found = {}
    names = sorted(name for name in network.state_dict() if not name.endswith("tracked"))
    for index, name in enumerate(names):
        random, shape = np.random.default_rng(index), tuple(network.state_dict()[name].shape)
        if name.endswith("running_var"):
            values = 1 + random.random(shape)
        elif len(shape) == 4:
            values = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        else:
            values = 0.1 * random.normal(size=shape) + name.endswith("weight")
        found[name] = torch.from_numpy(values.astype(np.float32))
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.save(made(inception.Inception()), folder / INCEPTION.names[1])
    for net, one in BACKBONES.items():
        torch.save(made(lpips.Backbone(net)), folder / one.names[0])
    return folder


@pytest.fixture
def known(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of made weights, whose digests count as the published ones."""
    for net, one in BACKBONES.items():
        monkeypatch.setitem(BACKBONES, net, replace(one, sha256=sha256_of(weights / one.names[0])))
    monkeypatch.setattr(inception, "INCEPTION", replace(INCEPTION, sha256=sha256_of(weights / INCEPTION.names[1])))
    return weights


class Features(nn.Module):
    """The interface of the published program; feature n is the mean of a colour, plus n."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        means = img.to(torch.float32).mean([2, 3])
        found = means.repeat(1, 683)[:, :2048] + torch.arange(2048)
        return found[:, :, None, None] if return_features else found[:, :1008]


def write_program(path: Path) -> Published:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Features()).save(str(path))
    return replace(INCEPTION_SCRIPT, sha256=sha256_of(path))


def pixels(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


class TestInception:
    def test_features_are_those_of_torch_fidelity(self, known: Path) -> None:
        images = np.random.default_rng(5).integers(0, 256, (2, 3, 40, 72), dtype=np.uint8).transpose(0, 2, 3, 1)
        found = inception.InceptionFeatures(known).maps(images)
        assert found.shape == (2, 2048)
        for row, values in OF_TORCH_FIDELITY.items():
            np.testing.assert_allclose(found[row, ::256][:5], values, rtol=1e-4, atol=1e-6)  # measured 1.2e-7

    def test_it_resizes_as_tensorflow_1(self) -> None:
        """Three pixels to six, by hand: output n is read at n / 2, and the last pixel repeats."""
        image = torch.tensor([0.0, 10.0, 40.0]).view(1, 1, 1, 3)
        assert inception.resized(image, 1, 6).flatten().tolist() == [0, 5, 10, 25, 40, 40]
        assert inception.resized(image, 1, 2).flatten().tolist() == [0, 25]

    def test_without_the_file_the_error_says_which_and_where(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match=r"`fid`: .* has no weights-inception-2015-12-05-6726825d") as caught:
            inception.InceptionFeatures(tmp_path)
        hint = str(caught.value.hint)
        for one in (INCEPTION, INCEPTION_SCRIPT):
            assert f"{one.url} (sha256 {one.sha256}) to {tmp_path / one.names[0]}" in hint
        assert "`judge_weights` DIR" in hint

    def test_the_program_of_stylegan_and_clean_fid_is_run_as_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = write_program(tmp_path / INCEPTION_SCRIPT.names[0])
        monkeypatch.setattr(inception, "INCEPTION_SCRIPT", program)
        images = pixels(7, 11, 40, 72)
        extractor = inception.InceptionFeatures(tmp_path)
        means = images.reshape(11, -1, 3).mean(1)
        expected = np.stack([means[:, number % 3] + number for number in range(2048)], axis=1)
        np.testing.assert_allclose(extractor.maps(images), expected, rtol=1e-5)
        facts = extractor.describe()
        assert (facts["file"], facts["sha256"]) == ("inception-2015-12-05.pt", program.sha256)
        assert (extractor.frechet_name, extractor.kernel_name) == ("FID", "KID")

    def test_one_good_file_is_enough(self, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = write_program(tmp_path / INCEPTION_SCRIPT.names[0])
        monkeypatch.setattr(inception, "INCEPTION_SCRIPT", program)
        (tmp_path / INCEPTION.names[0]).write_bytes(b"cut short")
        assert inception.InceptionFeatures(tmp_path).sha256 == program.sha256
        (tmp_path / program.names[0]).write_bytes(b"another program")
        with pytest.raises(CheckpointError, match=r"weights-inception-2015-12-05-6726825d\.pth: has the sha256"):
            inception.InceptionFeatures(tmp_path)
        (tmp_path / INCEPTION.names[0]).unlink()
        with pytest.raises(CheckpointError, match=r"inception-2015-12-05\.pt: has the sha256"):
            inception.InceptionFeatures(tmp_path)

    def test_a_program_that_is_swapped_after_its_digest_was_compared_is_never_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = write_program(tmp_path / INCEPTION_SCRIPT.names[0])
        monkeypatch.setattr(files, "sha256_of", lambda path: program.sha256)
        (tmp_path / program.names[0]).write_bytes(b"another program")
        with pytest.raises(CheckpointError, match="changed while it was read"):
            inception.InceptionFeatures(tmp_path, [program])

    def test_a_program_that_pytorch_does_not_load(self, tmp_path: Path) -> None:
        (tmp_path / "a.pt").write_bytes(b"no archive")
        told = Published(("a.pt",), "https://example.org/a.pt", sha256_of(tmp_path / "a.pt"))
        with pytest.raises(CheckpointError, match="is not loaded by PyTorch") as caught:
            inception.InceptionFeatures(tmp_path, [told])
        assert INCEPTION.url in str(caught.value.hint)

    def test_a_file_of_another_digest_is_refused(self, weights: Path) -> None:
        with pytest.raises(CheckpointError, match=r"has the sha256 .* the published file has 6726825d"):
            find("fid", [INCEPTION], weights)

    def test_a_file_that_lacks_a_weight_is_refused(self, tmp_path: Path) -> None:
        torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "a.pth")
        told = Published(("a.pth",), "https://example.org/a.pth", sha256_of(tmp_path / "a.pth"))
        with pytest.raises(CheckpointError, match=r"Conv2d_1a_3x3\.conv\.weight is missing"):
            inception.InceptionFeatures(tmp_path, [told])


class TestLpips:
    @pytest.mark.parametrize("net", ["alex", "vgg"])
    def test_distances_are_those_of_torchmetrics(self, known: Path, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its own arithmetic and learned weights, on a backbone of torch's layers: torchvision is not needed."""
        ours = lpips.Lpips(net, known)
        monkeypatch.setattr(of_torchmetrics, "_get_tv_model_features", lambda name, pretrained: _torchvisions(ours))
        theirs = of_torchmetrics._LPIPS(net=net, pretrained=True).eval()
        a, b = pixels(0, 3, 64, 48), pixels(1, 3, 64, 48)
        b[1] = a[1]
        found = ours.distances(a, b)
        images = [torch.from_numpy(one).permute(0, 3, 1, 2) / 127.5 - 1 for one in (a, b)]
        with torch.no_grad():
            expected = theirs(*images).flatten().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert found[1] == 0
        assert found[0] > 0.01

    def test_the_learned_weights_come_with_a_package_or_are_named(
        self, known: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (place,) = find("lpips", [files.LINEAR["alex"]], known)
        assert "torchmetrics" in place.parts
        monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(NotFoundError, match=r"has no alexnet-owt-7be5be79.pth and alex.pth") as caught:
            lpips.Lpips("alex", tmp_path)
        assert "pip install 'spade-deploy[lpips]'" in str(caught.value.hint)

    def test_tiny_images_are_refused(self, known: Path) -> None:
        with pytest.raises(ConfigError, match="`lpips`: images of 16 x 30 are smaller than 31 pixels"):
            lpips.Lpips("alex", known).distances(pixels(0, 1, 16, 30), pixels(1, 1, 16, 30))


def _torchvisions(ours: lpips.Lpips) -> nn.Sequential:
    """The layers as torchvision lays them out: a ReLU after each convolution, and the poolings between them."""
    layers: list[nn.Module] = []
    for index, *_, is_pooled, _ in ours._backbone.layers:
        if is_pooled:
            layers.append(nn.MaxPool2d(*ours._backbone.pooling))
        assert len(layers) == index
        layers += [ours._backbone.features[str(index)], nn.ReLU()]
    return nn.Sequential(*layers)


def test_an_evaluation_with_both(known: Path, tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "artifact", EDGES)
    for folder, shape in (("labels", ()), ("instances", ()), ("photos", (3,))):
        (tmp_path / folder).mkdir()
        for n in range(2):
            values = np.random.default_rng(n).integers(0, 5, (32, 64, *shape)).astype(np.uint8)
            Image.fromarray(values).save(tmp_path / folder / f"{n}.png")
    flags = DataFlags(labels=tmp_path / "labels", images=tmp_path / "photos", instances=tmp_path / "instances")
    request = EvalRequest((artifact.path,), data=flags, fid=True, lpips="alex", judge_weights=known)
    result = evaluate(request, runs_dir=tmp_path / "runs")
    assert result.measured() == ["frechet", "kernel", "lpips", "l1", "psnr"]
    assert (result.names["frechet"], result.names["kernel"]) == ("FID", "KID")
    assert result.names["lpips"] == "LPIPS (alex, version 0.1) to the photo"
    assert result.rows[0].lpips is not None
    assert result.rows[0].lpips > 0.01
    page = write_report(result, tmp_path / "out")[1].read_text()
    assert '<th class="n">FID ↓</th>' in page
    assert "bilinear as TensorFlow 1" in page


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"fid": True, "extractor": Path("e")}, "`fid` contradicts `extractor` e"),
        ({"lpips": "squeeze"}, "`lpips`: 'squeeze' is not one of alex, vgg"),
        ({"judge_weights": Path("w")}, "`judge_weights` w: works only with `fid` or `lpips`"),
    ],
)
def test_settings_that_contradict(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EvalRequest(**fields)
