"""The VGG loss: which network a file holds, what it reads, the original weights, and where a file comes from."""

import copy
import hashlib
import pickle
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.training import perceptual
from spade_deploy.training.perceptual import (
    CAFFE_MEAN_RGB,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LAYER_WEIGHTS,
    PerceptualLoss,
    Published,
    VggFeatures,
    fetch_vgg,
    load_vgg,
)
from tests.support.exactness import rounding_limit

ROOT = Path(__file__).resolve().parents[2]
NPZ = ROOT.parent / "shared" / "weights" / "vgg16_imagenet_fp16.npz"

# Indices of the convolutions in torchvision's `features`, up to relu5_1.
PUBLISHED = {
    "VGG16": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24],
    "VGG19": [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28],
}


@pytest.fixture(scope="module")
def networks() -> dict[str, VggFeatures]:
    torch.manual_seed(0)
    return {name: VggFeatures(name).eval() for name in PUBLISHED}


@pytest.mark.parametrize("architecture", list(PUBLISHED))
def test_keys_are_torchvisions(networks: dict[str, VggFeatures], architecture: str) -> None:
    keys = {f"features.{index}.{part}" for index in PUBLISHED[architecture] for part in ("weight", "bias")}
    assert set(networks[architecture].state_dict()) == keys


@pytest.mark.parametrize("architecture", list(PUBLISHED))
def test_features_are_those_of_the_plain_sequence(networks: dict[str, VggFeatures], architecture: str) -> None:
    """Written again as torchvision lays it out: convolution, ReLU, and a pooling where an index is left out."""
    state = networks[architecture].state_dict()
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    x = ((image + 1) / 2 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    expected, previous = [], -2
    for index in PUBLISHED[architecture]:
        begins_block = index - previous != 2
        if begins_block:
            x = functional.max_pool2d(x, 2)
        x = functional.relu(
            functional.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1)
        )
        if begins_block or index == 0:
            expected.append(x)
        previous = index
    found = networks[architecture](image)
    assert [f.shape[1] for f in found] == [64, 128, 256, 512, 512]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("architecture", list(PUBLISHED))
def test_a_file_tells_which_network_it_is(networks: dict[str, VggFeatures], architecture: str, tmp_path: Path) -> None:
    state = {**networks[architecture].state_dict(), "classifier.0.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "vgg.pth")
    save_file(state, tmp_path / "vgg.safetensors")
    for name in ("vgg.pth", "vgg.safetensors"):
        loaded = load_vgg(tmp_path / name)
        assert loaded.architecture == architecture
        assert torch.equal(loaded.state_dict()["features.0.weight"], state["features.0.weight"])


def test_the_loss_weighs_the_layers_and_pulls_the_fake_alone(networks: dict[str, VggFeatures]) -> None:
    loss = PerceptualLoss(networks["VGG16"])
    fake = (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_()
    real = (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_()
    value = loss(fake, real)
    pairs = zip(LAYER_WEIGHTS, loss.network(fake), loss.network(real), strict=True)
    assert value.item() == pytest.approx(sum(w * (a - b).abs().mean().item() for w, a, b in pairs), rel=1e-5)
    value.backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    assert real.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert loss(real, real).item() == 0


def test_files_that_are_no_vgg(networks: dict[str, VggFeatures], tmp_path: Path) -> None:
    state = networks["VGG16"].state_dict()
    short = {key: value for key, value in state.items() if key != "features.24.bias"}
    cases = {
        "features.24.bias is missing": short,
        "features.0.weight has the shape": {**state, "features.0.weight": torch.zeros(64, 1, 3, 3)},
        "batch norm": {**state, "features.1.weight": torch.zeros(64)},
        "no key begins with 'features.'": {"conv1.weight": torch.zeros(1)},
        "neither features.16.weight": {"features.0.weight": torch.zeros(1)},
    }
    for message, wrong in cases.items():
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_vgg(tmp_path / "wrong.safetensors")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_vgg(tmp_path / "absent.pth")
    (tmp_path / "harmful.pth").write_bytes(pickle.dumps(print, protocol=2))
    (tmp_path / "noise.pth").write_bytes(b"noise")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name, message in (
        ("harmful.pth", "is a pickle, but not one that torch.save wrote"),
        ("noise.pth", "is a text file"),
        ("noise.safetensors", "is a text file"),
        ("empty.pth", "is empty"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_vgg(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="state dict"):
        load_vgg(tmp_path / "list.pth")


# --- The network as it was first published ---------------------------------------------------------------------------


def caffe_names(architecture: str) -> list[str]:
    counts = (2, 2, 3, 3, 1) if architecture == "VGG16" else (2, 2, 4, 4, 1)
    return [f"conv{block}_{k}" for block, count in enumerate(counts, 1) for k in range(1, count + 1)]


def as_published(network: VggFeatures) -> dict[str, np.ndarray[Any, Any]]:
    """A network's weights under the first names, as if they were that network's."""
    arrays = {}
    for name, convolution in zip(caffe_names(network.architecture), network.features.values(), strict=True):
        weight, bias = convolution.weight, convolution.bias
        assert isinstance(weight, torch.Tensor)
        assert isinstance(bias, torch.Tensor)
        # The input of that network is a hundred times larger.
        factor = 0.01 if name == "conv1_1" else 1
        arrays[f"{name}.w"], arrays[f"{name}.b"] = factor * weight.detach().numpy(), bias.detach().numpy()
    return arrays


def caffe_features(
    original: dict[str, Any], image: torch.Tensor, architecture: str, *, around: float = 0.0
) -> list[torch.Tensor]:
    """relu1_1..relu5_1 in float64 as that network has it: BGR in 0..255 minus the mean, zeros around it.

    around: 1 puts round the image what zeros mean to a network that normalises as torchvision's do: ImageNet's mean.
    """
    weights = {name: torch.from_numpy(np.asarray(array, np.float64)) for name, array in original.items()}
    mean_bgr = torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64).view(3, 1, 1)
    other_bgr = 255 * torch.tensor([0.406, 0.456, 0.485], dtype=torch.float64).view(3, 1, 1)
    x = (image.double().flip(1) + 1) / 2 * 255 - mean_bgr
    padded = around * (other_bgr - mean_bgr) + torch.zeros(x.shape[0], 3, x.shape[2] + 2, x.shape[3] + 2)
    padded[..., 1:-1, 1:-1] = x
    taps = []
    for name in caffe_names(architecture):
        weight, bias = weights[f"{name}.w"], weights[f"{name}.b"]
        begins_block = name.endswith("_1")
        if name == "conv1_1":
            x = functional.relu(functional.conv2d(padded, weight, bias))
        else:
            x = functional.max_pool2d(x, 2) if begins_block else x
            x = functional.relu(functional.conv2d(x, weight, bias, padding=1))
        if begins_block:
            taps.append(x)
    return taps


def smooth_image(size: int) -> torch.Tensor:
    noise = torch.rand(1, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(noise, size=size, mode="bilinear") * 2 - 1


def worst(found: torch.Tensor, expected: torch.Tensor, border: int = 0) -> float:
    """The largest error inside the border, as a share of the largest activation."""
    inner = [slice(border, -border or None)] * 2
    error = (found - expected)[..., *inner].abs().max() / expected.abs().max()
    return float(error)


def own_rounding(network: VggFeatures, image: torch.Tensor) -> float:
    """The limit of a float32 network's error: a multiple of what this machine makes of such a network, at any tap."""
    wide = copy.deepcopy(network).double()
    limits = []
    with torch.no_grad():
        taps = wide(image.double())
    for tap, exact in enumerate(taps):

        def compute(x: torch.Tensor, tap: int = tap) -> torch.Tensor:
            return network(x)[tap]

        limits.append(rounding_limit(compute, image, exact) / float(exact.abs().max()))
    return max(limits)


@pytest.fixture(scope="module")
def npz_files(networks: dict[str, VggFeatures], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with VGG16.npz and VGG19.npz, the fixture's networks as they would have been published."""
    folder = tmp_path_factory.mktemp("npz")
    for architecture, network in networks.items():
        np.savez(folder / f"{architecture}.npz", **as_published(network))
    return folder


@pytest.mark.parametrize("architecture", list(PUBLISHED))
def test_original_weights_compute_what_they_did(
    networks: dict[str, VggFeatures], npz_files: Path, architecture: str
) -> None:
    network = load_vgg(npz_files / f"{architecture}.npz")
    assert network.architecture == architecture
    image = smooth_image(48)
    expected = caffe_features(as_published(networks[architecture]), image, architecture, around=1)
    # fp32 rounding alone, to the last row.
    errors = [worst(a, b) for a, b in zip(network(image), expected, strict=True)]
    limit = own_rounding(networks[architecture], image)
    assert max(errors) < limit
    weights = as_published(networks[architecture])
    weights["conv3_1.w"] = weights["conv3_1.w"] * np.float32(1 + 1e-4)
    changed = caffe_features(weights, image, architecture, around=1)
    assert worst(network(image)[2], changed[2]) > own_rounding(networks[architecture], image), (
        "a ten-thousandth is seen"
    )
    assert worst(network(image.flip(1))[0], expected[0]) > 0.01, "BGR for RGB is seen"
    zeros_around = caffe_features(as_published(networks[architecture]), image, architecture)
    assert worst(network(image)[0], zeros_around[0]) > 1e-4, "and so is the other padding"


def test_the_two_means_differ_by_less_than_half_a_grey_level() -> None:
    """The only thing that is not exact: what zero padding means, a colour of -0.005, -0.499, -0.409 of 255."""
    differences = [255 * mu - mean for mu, mean in zip(IMAGENET_MEAN, CAFFE_MEAN_RGB, strict=True)]
    assert differences == pytest.approx([-0.005, -0.499, -0.409], abs=1e-9)


# Pixels of a tap's map that the padding of the first convolution reaches; relu5_1 of a 96 x 96 image is all border.
REACH = (1, 2, 3, 4)


@pytest.mark.shared
@pytest.mark.skipif(not NPZ.is_file(), reason="../shared/weights/vgg16_imagenet_fp16.npz is not here")
def test_the_oxford_weights_compute_what_they_did() -> None:
    network = load_vgg(NPZ)
    assert network.architecture == "VGG16"
    with np.load(NPZ) as archive:
        original = dict(archive)
    image = smooth_image(96)
    found, expected = network(image), caffe_features(original, image, "VGG16")
    # Away from the border fp32 rounding alone.
    limit = own_rounding(network, image)
    assert max(worst(a, b, border) for a, b, border in zip(found, expected, REACH, strict=False)) < limit
    # At the border the padding's half grey level: measured 2e-3 in relu1_1, 7e-4 at most after it.
    at_border = [worst(a, b) for a, b in zip(found, expected, strict=True)]
    assert 1e-5 < at_border[0] < 0.01
    assert max(at_border) < 0.01
    assert worst(network(image.flip(1))[0], expected[0], 1) > 0.01, "BGR for RGB is seen"


def test_npz_files_that_are_no_vgg(networks: dict[str, VggFeatures], tmp_path: Path) -> None:
    whole = as_published(networks["VGG16"])
    cases: dict[str, dict[str, Any]] = {
        "conv5_1.b is missing": {name: array for name, array in whole.items() if name != "conv5_1.b"},
        "conv1_1.w is missing": {"a": np.zeros(1)},
        "features.0.weight has the shape": {**whole, "conv1_1.w": np.zeros((64, 1, 3, 3))},
        "features.0.bias has the shape": {**whole, "conv1_1.b": np.zeros(3)},
        "cannot be read as weights": {**whole, "conv1_1.w": np.array([print])},
    }
    for message, wrong in cases.items():
        np.savez(tmp_path / "wrong.npz", **wrong)
        with pytest.raises(CheckpointError, match=message):
            load_vgg(tmp_path / "wrong.npz")
    (tmp_path / "noise.npz").write_bytes(b"noise")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_vgg(tmp_path / "noise.npz")


# --- Where a file comes from -----------------------------------------------------------------------------------------

CONTENT = b"the weights, as far as a download cares"


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/cut.pth":
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:10])
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves CONTENT as vgg.pth; returns its address."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vgg.pth").write_bytes(CONTENT)
    Quiet.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site"))) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def publish(monkeypatch: pytest.MonkeyPatch, url: str, content: bytes = CONTENT) -> None:
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setitem(perceptual.PUBLISHED, "vgg19", Published(url, hashlib.sha256(content).hexdigest()))


def test_the_published_names_carry_the_start_of_their_digest() -> None:
    for published in perceptual.PUBLISHED.values():
        assert published.file_name.removesuffix(".pth").rsplit("-", 1)[1] == published.sha256[:8]
        assert len(published.sha256) == 64


def test_a_download_is_kept_and_not_repeated(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, f"{server}/vgg.pth")
    path = fetch_vgg("vgg19", tmp_path / "cache")
    assert path == tmp_path / "cache" / "vgg.pth"
    assert path.read_bytes() == CONTENT
    assert fetch_vgg("vgg19", tmp_path / "cache") == path
    assert Quiet.asked == ["/vgg.pth"]
    assert socket.getdefaulttimeout() is None


def test_the_default_place_is_torch_hubs(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, f"{server}/vgg.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    assert fetch_vgg("vgg19") == tmp_path / "home" / "hub" / "checkpoints" / "vgg.pth"


def test_a_dead_address_says_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/vgg.pth"
        publish(monkeypatch, url)
        with pytest.raises(CheckpointError, match="cannot be downloaded") as caught:
            fetch_vgg("vgg19", tmp_path / "cache")
    place = str(tmp_path / "cache" / "vgg.pth")
    assert "Connection refused" in caught.value.message
    for part in (url, place, "`perceptual_file`", "`weight_perceptual` 0"):
        assert part in (caught.value.hint or "")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("page", "content", "message"),
    [
        ("absent.pth", CONTENT, "cannot be downloaded.*404"),
        ("vgg.pth", b"another file", "the downloaded file is not the published one"),
        ("cut.pth", CONTENT, "the downloaded file is not the published one"),
    ],
)
def test_what_a_server_gets_wrong(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, content: bytes, message: str
) -> None:
    publish(monkeypatch, f"{server}/{page}", content)
    with pytest.raises(CheckpointError, match=message):
        fetch_vgg("vgg19", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [], "nothing half-downloaded is left"


def test_a_damaged_copy_is_not_used(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, f"{server}/vgg.pth")
    (tmp_path / "vgg.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(CheckpointError, match="its SHA-256 begins") as caught:
        fetch_vgg("vgg19", tmp_path)
    assert "delete it" in (caught.value.hint or "")
    assert Quiet.asked == []


def test_a_place_that_cannot_be_written_and_a_name_that_is_none(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, f"{server}/vgg.pth")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        fetch_vgg("vgg19", tmp_path / "file" / "cache")
    with pytest.raises(ConfigError, match="'vgg11' is not one of vgg16, vgg19"):
        fetch_vgg("vgg11", tmp_path)
