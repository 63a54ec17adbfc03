"""Feature extractors: what they are fed, who says how, what their figures are called, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.errors import ConfigError, NotFoundError
from spade_deploy.metrics import OnnxExtractor, Preprocessing, extractor, frechet_distance, kernel_distance
from spade_deploy.metrics.extractor import pooled
from spade_deploy.metrics.onnx_images import number_triple
from tests.support.onnx_judges import FACTS, extractor_file


def images(count: int = 3, size: tuple[int, int] = (6, 4), seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


class TestFeatures:
    def test_pixels_are_normalised_channel_by_channel(self, tmp_path: Path) -> None:
        facts = {"mean": [10, 20, 30], "std": [2, 4, 8]}
        found = OnnxExtractor(extractor_file(tmp_path / "a.onnx", facts=facts))
        pixels = images(19)  # more than are run at a time
        x = (pixels.astype(np.float64) - (10, 20, 30)) / (2, 4, 8)
        expected = np.concatenate([x.mean((1, 2)), (x**2).mean((1, 2))], axis=1)
        np.testing.assert_allclose(found.features(pixels), expected, rtol=1e-6)  # measured 4e-8
        swapped = np.concatenate([x[..., ::-1].mean((1, 2)), (x[..., ::-1] ** 2).mean((1, 2))], axis=1)
        assert not np.allclose(swapped, expected, rtol=1e-2)

    def test_images_are_resized_as_pillow_does(self, tmp_path: Path) -> None:
        found = OnnxExtractor(extractor_file(tmp_path / "a.onnx", as_map=True), {"size": [3, 5]})
        pixels = images(2, (12, 9))
        expected = np.stack(
            [np.asarray(Image.fromarray(image).resize((5, 3), Image.Resampling.BICUBIC)) for image in pixels]
        )
        maps = found.maps(pixels)
        assert maps.shape == (2, 3, 3, 5)
        np.testing.assert_allclose(maps.transpose(0, 2, 3, 1) * 127.5 + 127.5, expected, atol=1e-4)  # measured 2e-6
        np.testing.assert_array_equal(found.features(pixels), pooled(maps))
        assert "bicubic, antialiased" in json.dumps(found.describe())

    def test_maps_and_vectors(self) -> None:
        maps = np.arange(24.0).reshape(2, 3, 2, 2)
        np.testing.assert_array_equal(pooled(maps), maps.reshape(2, 3, 4).mean(2))
        np.testing.assert_array_equal(pooled(maps[:, :, 0, 0]), maps[:, :, 0, 0])


class TestFacts:
    def test_flags_before_the_file_beside_it_before_metadata(self, tmp_path: Path) -> None:
        path = extractor_file(tmp_path / "a.onnx", facts={"mean": 1, "std": 2, "size": [3, 3]})
        assert OnnxExtractor(path)._model.preprocessing == Preprocessing((1, 1, 1), (2, 2, 2), (3, 3))
        path.with_suffix(".json").write_text(json.dumps({"mean": 5, "size": [4, 4]}))
        assert OnnxExtractor(path)._model.preprocessing == Preprocessing((5, 5, 5), (2, 2, 2), (4, 4))
        told = OnnxExtractor(path, {"mean": (7, 8, 9), "std": None})
        assert told._model.preprocessing == Preprocessing((7, 8, 9), (2, 2, 2), (4, 4))
        assert told.describe()["preprocessing"]["told_by"] == f"flags, {tmp_path / 'a.json'}, the file's metadata"

    def test_nothing_is_guessed(self, tmp_path: Path) -> None:
        path = extractor_file(tmp_path / "a.onnx", facts=None)
        with pytest.raises(ConfigError, match="normalised is not known: mean and std missing") as caught:
            OnnxExtractor(path)
        assert "`extractor_mean`" in str(caught.value.hint)
        assert str(tmp_path / "a.json") in str(caught.value.hint)
        assert OnnxExtractor(path, FACTS).output == "features"

    def test_a_known_file_is_recognised_by_its_content(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = extractor_file(tmp_path / "any-name.onnx", facts=None)
        digest = OnnxExtractor(path, FACTS).describe()["sha256"]
        known: dict[str, Any] = {digest: {"name": "known", **FACTS, "is_inception": False}}
        monkeypatch.setattr(extractor, "KNOWN", known)
        found = OnnxExtractor(path)
        assert found.name == "known features"
        assert (found.frechet_name, found.kernel_name) == (
            "Frechet distance (known features)",
            "kernel distance (known features)",
        )
        known[digest]["is_inception"] = True
        assert (OnnxExtractor(path).frechet_name, OnnxExtractor(path).kernel_name) == ("FID", "KID")

    def test_a_file_cannot_call_itself_inception(self, tmp_path: Path) -> None:
        facts = {**FACTS, "is_inception": True, "name": "inception"}
        path = extractor_file(tmp_path / "inception.onnx", facts=facts)
        assert OnnxExtractor(path).frechet_name == "Frechet distance (inception features)"
        assert not any(known.get("is_inception") for known in extractor.KNOWN.values())

    @pytest.mark.parametrize(
        ("facts", "said"),
        [
            ({"mean": "x", "std": 1}, "mean is 'x'"),
            ({"mean": [1, 2], "std": 1}, "mean is"),
            ({"mean": 0, "std": 0}, "not positive"),
            ({"mean": 0, "std": [1, -1, 1]}, "not positive"),
            ({"mean": 0, "std": 1, "size": 224}, "size is 224"),
            ({"mean": 0, "std": 1, "size": [0, 4]}, "size"),
            ({"mean": True, "std": 1}, "mean is"),
            ({"mean": 0, "std": 1, "output": "logits"}, "'logits' is not one of features"),
        ],
    )
    def test_wrong_facts(self, tmp_path: Path, facts: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            OnnxExtractor(extractor_file(tmp_path / "a.onnx", facts=facts))

    def test_numbers_of_flags(self) -> None:
        assert number_triple("127", "m") == (127, 127, 127)
        assert number_triple("1,2.5,3", "m") == (1, 2.5, 3)
        for text in ("", "1,2", "a", "1,2,3,4"):
            with pytest.raises(ConfigError, match="`m`"):
                number_triple(text, "m")


class TestFiles:
    def test_what_is_no_image_network(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="does not exist"):
            OnnxExtractor(tmp_path / "none.onnx")
        (tmp_path / "device.onnx").symlink_to("/dev/zero")
        with pytest.raises(NotFoundError, match="is a device, not a regular file"):
            OnnxExtractor(tmp_path / "device.onnx")
        (tmp_path / "noise.onnx").write_bytes(b"\x00noise" * 100)
        with pytest.raises(ConfigError, match="cannot load"):
            OnnxExtractor(tmp_path / "noise.onnx", FACTS)
        for shape in (("n", 224, 224, 3), ("n", 3), (1, 4, 8, 8)):
            path = extractor_file(tmp_path / f"{len(shape)}{shape[1]}.onnx", as_map=True, shape=shape)
            with pytest.raises(ConfigError, match="N x 3 x H x W"):
                OnnxExtractor(path)
        beside = extractor_file(tmp_path / "b.onnx").with_suffix(".json")
        beside.write_text("[1]")
        with pytest.raises(ConfigError, match=r"b\.json: .*holds list"):
            OnnxExtractor(tmp_path / "b.onnx")
        beside.write_text("{")
        with pytest.raises(ConfigError, match="as JSON"):
            OnnxExtractor(tmp_path / "b.onnx")

    def test_several_outputs(self, tmp_path: Path) -> None:
        assert OnnxExtractor(extractor_file(tmp_path / "a.onnx", outputs=("x", "features"))).output == "features"
        two = extractor_file(tmp_path / "b.onnx", outputs=("x", "y"))
        with pytest.raises(ConfigError, match="which one is not known of x, y") as caught:
            OnnxExtractor(two)
        assert "`extractor_output`" in str(caught.value.hint)
        assert OnnxExtractor(two, {"output": "y"}).output == "y"

    def test_a_fixed_size_is_taken_from_the_file(self, tmp_path: Path) -> None:
        path = extractor_file(tmp_path / "a.onnx", as_map=True, shape=("n", 3, 5, 7))
        assert OnnxExtractor(path).maps(images(2)).shape == (2, 3, 5, 7)
        with pytest.raises(ConfigError, match="takes only images of 5 x 7 pixels"):
            OnnxExtractor(path, {"size": [5, 6]})

    def test_features_that_are_no_numbers(self, tmp_path: Path) -> None:
        path = extractor_file(tmp_path / "a.onnx", scale=float("inf"))
        with pytest.raises(ConfigError, match="not finite"):
            OnnxExtractor(path).features(images())


@pytest.mark.shared
def test_efficientnet_is_known_and_tells_photos_from_noise(shared_folder: Path) -> None:
    from spade_deploy.labels.earth import cut, earth_tiles

    found = OnnxExtractor(shared_folder / "weights" / "efficientnet_lite0.onnx")
    assert found.frechet_name == "Frechet distance (efficientnet_lite0 features)"
    preprocessing = found.describe()["preprocessing"]
    assert (preprocessing["mean"], preprocessing["std"]) == ((127.0,) * 3, (128.0,) * 3)
    tiles = earth_tiles("train")[::24][:14]
    photos = np.stack([cut(tile)[1] for tile in tiles])
    features = found.features(photos)
    assert features.shape == (14, 1280)
    blurred = np.stack(
        [
            np.asarray(Image.fromarray(photo).resize((8, 8)).resize((128, 128), Image.Resampling.BILINEAR))
            for photo in photos
        ]
    )
    among = kernel_distance(features[::2], features[1::2])
    against = kernel_distance(found.features(blurred)[::2], features[1::2])
    assert against.value > among.value + 0.1  # measured 0.48 against -0.02
    assert frechet_distance(features[::2], features[1::2]).caveat is not None


class TestWeightsInOtherFiles:
    """The file names them, and it may be anybody's."""

    def file(self, folder: Path, location: str) -> Path:
        path = extractor_file(folder / "a.onnx")
        model = onnx.load(str(path))
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "scale")
        (folder / "weights").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        path.write_bytes(model.SerializeToString())
        return path

    def test_beside_the_file_they_are_read(self, tmp_path: Path) -> None:
        expected = OnnxExtractor(extractor_file(tmp_path / "whole.onnx")).features(images())
        np.testing.assert_array_equal(OnnxExtractor(self.file(tmp_path, "weights")).features(images()), expected)

    def test_elsewhere_they_are_not(self, tmp_path: Path) -> None:
        for location in (str(tmp_path / "weights"), "../weights", "folder/weights"):
            with pytest.raises(ConfigError, match="not the name of a file beside it"):
                OnnxExtractor(self.file(tmp_path, location))

    def test_an_endless_device_is_no_file_of_weights(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, "endless")
        (tmp_path / "endless").symlink_to("/dev/zero")
        with pytest.raises(ConfigError, match="weights in 'endless': is a device, not a regular file"):
            OnnxExtractor(path)
