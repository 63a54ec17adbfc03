"""Imports of pix2pixHD with instance features, generator and encoder, each against the second writing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from spade_deploy.artifact import input_rule, input_tensors
from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.export.build import build_model, model_inputs
from spade_deploy.networks.build import build_encoder
from spade_deploy.networks.encoder import StyleEncoder
from spade_deploy.networks.spade import make_segmap
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.runs.import_request import ImportRequest
from spade_deploy.runs.importer import import_checkpoint, read_encoder_file, read_generator_file
from spade_deploy.runs.layout import ENCODER_FILE
from spade_deploy.spec import Architecture, GeneratorSpec, GraphKind, LabelSpec
from tests.support import pix2pixhd_by_the_facts as pix2pixhd
from tests.support.exactness import in_float64
from tests.support.generators import random_inputs

DEPTH = {"halvings": 3, "blocks": 1}
ASKED = ImportRequest(num_labels=5, has_edges=True, size=(64, 96))


def file_of(state: dict[str, torch.Tensor], folder: Path, name: str = "latest_net_G.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


def wide(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def features_spec(tmp_path: Path) -> GeneratorSpec:
    return read_generator_file(file_of(pix2pixhd.state_dict(9, 4, **DEPTH), tmp_path), ASKED).spec


@pytest.mark.parametrize("local_blocks", [0, 2])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_network_and_the_dense_graph_equal_the_second_writing(local_blocks: int, norm: str, tmp_path: Path) -> None:
    depth = {**DEPTH, "local_blocks": local_blocks}
    state = pix2pixhd.state_dict(9, 4, norm=norm, **depth)
    found = read_generator_file(file_of(state, tmp_path), ASKED)
    spec, generator = found.spec, in_float64(found.module)
    assert spec.has_features
    assert spec.graph_kinds == (GraphKind.DENSE,)
    torch.manual_seed(3)
    label, instance, _ = random_inputs(spec, 2)
    features = torch.rand(2, 3, spec.height, spec.width, dtype=torch.float64) * 2 - 1
    expected, without = (
        pix2pixhd.generate(wide(state), label, instance, seen, num_ids=5, **depth)
        for seen in (features, torch.zeros_like(features))
    )
    assert (expected - without).abs().max() > 0.01, "features have to matter, or nothing is compared"
    # Biases before a batch norm go into its mean, which is rounded to float32 once.
    limit = 2e-6 if norm == "batch" else 2e-11
    segmap = make_segmap(label, instance, spec.labels).double()
    with torch.no_grad():
        assert (generator(torch.cat([segmap, features], dim=1)) - expected).abs().max() < limit
        assert (generator(segmap) - without).abs().max() < limit, "without features they are zeros"
        model = build_model(generator, dtype=torch.float64)
        given = {"label": label.numpy(), "instance": instance.numpy(), "features": features.numpy()}
        assert (model(*model_inputs(model, given))[1] - expected).abs().max() < limit


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_encoder_equals_the_second_writing(norm: str, tmp_path: Path) -> None:
    spec = read_generator_file(file_of(pix2pixhd.state_dict(9, 4, norm=norm, **DEPTH), tmp_path), ASKED).spec
    state = pix2pixhd.encoder_state_dict(4, halvings=2, norm=norm)
    notes: list[str] = []
    encoder = read_encoder_file(file_of({f"module.{name}": one for name, one in state.items()}, tmp_path), spec, notes)
    assert not encoder.training
    own = build_encoder(spec, encoder.state_dict()).double().eval()
    own.load_state_dict(encoder.state_dict())
    torch.manual_seed(5)
    photo = torch.rand(2, 3, 64, 96, dtype=torch.float64) * 2 - 1
    each_pixel = torch.arange(64 * 96).view(1, 64, 96).expand(2, -1, -1)  # so that no mean is taken
    expected = pix2pixhd.encode(wide(state), photo, each_pixel, halvings=2)
    assert expected.std() > 0.1
    with torch.no_grad():
        assert (own(photo) - expected).abs().max() < (2e-6 if norm == "batch" else 2e-11)
    assert any("the biases of 5 convolutions went into the norm" in note for note in notes)
    assert any("in the file as 'module'" in note for note in notes)


def test_a_released_cityscapes_with_features_is_told_by_its_shapes(tmp_path: Path) -> None:
    path = file_of(pix2pixhd.state_dict(39, 2, local_blocks=3), tmp_path)
    found = read_generator_file(path, ImportRequest())
    spec = found.spec
    assert (spec.architecture, spec.labels.num_channels) == (Architecture.PIX2PIXHD, 36)
    assert spec.has_features
    assert (spec.height, spec.width) == (1024, 2048)
    assert "the 39 segmap channels are cityscapes' (35 labels, edges)" in found.guesses[0]
    assert spec.depth == "4 halvings, 9 residual blocks, local enhancer of 3, instance features"
    assert GeneratorSpec.from_json(spec.to_json()) == spec
    assert "has_features" not in replace(spec, has_features=False).to_json()  # versions without it read the others
    assert [(one.name, one.shape) for one in input_tensors(spec)] == [
        ("label", ("N", "H", "W")),
        ("instance", ("N", "H", "W")),
        ("features", ("N", 3, "H", "W")),
    ]
    assert input_rule(spec)["features"]["input"] == "features"
    with pytest.raises(ConfigError, match="`architecture` spade contradicts `has_features` True"):
        GeneratorSpec(LabelSpec(3), has_features=True)


@pytest.mark.parametrize("has_encoder", [True, False])
def test_an_import_says_what_its_features_are(has_encoder: bool, tmp_path: Path) -> None:
    generator = file_of(pix2pixhd.state_dict(9, 4, **DEPTH), tmp_path)
    state = pix2pixhd.encoder_state_dict(4, halvings=3)
    encoder = file_of(state, tmp_path, "latest_net_E.pth") if has_encoder else None
    result = import_checkpoint(generator, replace(ASKED, encoder=encoder), runs_dir=tmp_path / "runs")
    assert "3 halvings, 1 residual blocks, instance features," in result.described
    assert ("an encoder of photos" in result.described) == has_encoder
    said = "where no photo is given they are zeros" if has_encoder else "no photo can be encoded without `encoder`"
    assert any("instance features (netE)" in note and said in note for note in result.notes)
    loaded = load_generator(result.checkpoint)
    assert loaded.spec.has_features
    assert (loaded.encoder is not None) == has_encoder
    if loaded.encoder is not None:
        kept = loaded.encoder.state_dict()
        assert torch.equal(kept["up_2.conv.weight"], state["model.19.weight"])
        assert torch.equal(kept["conv_img.bias"], state["model.23.bias"])


def test_what_contradicts_a_generator_with_features_is_named(tmp_path: Path) -> None:
    path = file_of(pix2pixhd.state_dict(9, 4, **DEPTH), tmp_path)
    with pytest.raises(CheckpointError, match=r"9 segmap channels, but these labels need 7"):
        read_generator_file(path, replace(ASKED, num_labels=6))
    with pytest.raises(ConfigError, match=r"a segmap of 9 channels .*cityscapes 36, and 3 more with instance features"):
        read_generator_file(path, ImportRequest())
    alone = file_of(pix2pixhd.encoder_state_dict(4, halvings=2), tmp_path, "latest_net_E.pth")
    with pytest.raises(CheckpointError, match="this is pix2pixHD's encoder of instance features") as caught:
        read_generator_file(alone, ASKED)
    assert "`encoder`" in (caught.value.hint or "")


def test_what_contradicts_an_encoder_is_named(tmp_path: Path) -> None:
    spec = features_spec(tmp_path)
    right = pix2pixhd.encoder_state_dict(4, halvings=2)
    cases: dict[str, dict[str, Any]] = {
        "makes 5 features a pixel, its generator sees 3": pix2pixhd.encoder_state_dict(4, halvings=2, features=5),
        "halves a photo 4 times, its generator the label map 3 times": pix2pixhd.encoder_state_dict(2, halvings=4),
        "has weights of batch norm, its generator has instance": pix2pixhd.encoder_state_dict(
            4, halvings=2, norm="batch"
        ),
        r"is \(4, 9, 7, 7\), and not of 3 channels of a photo": {**right, "model.1.weight": torch.zeros(4, 9, 7, 7)},
        "lacks 'up_1.conv.weight'": {key: one for key, one in right.items() if key != "model.13.weight"},
        r"'down_1.conv.weight' is \(9, 8, 3, 3\)": {**right, "model.7.weight": torch.zeros(9, 8, 3, 3)},
        "the last convolution is step 18 of the sequence": {**right, "model.18.weight": torch.zeros(3, 4, 7, 7)},
        "has residual blocks: this is a generator": pix2pixhd.state_dict(9, 4, **DEPTH),
        "'model.1.weight' is missing: this is no encoder": StyleEncoder(4, 2).state_dict(),
        "'model.4.weight' is sparse_coo, not dense": {**right, "model.4.weight": torch.ones(8, 4, 3, 3).to_sparse()},
        "holds NaN or infinity": {**right, "model.4.weight": torch.full((8, 4, 3, 3), torch.nan)},
    }
    for message, state in cases.items():
        with pytest.raises(CheckpointError, match=message):
            read_encoder_file(file_of(state, tmp_path, "latest_net_E.pth"), spec)
    batch = read_generator_file(file_of(pix2pixhd.state_dict(9, 4, norm="batch", **DEPTH), tmp_path), ASKED).spec
    path = file_of(right, tmp_path, "latest_net_E.pth")
    with pytest.raises(CheckpointError, match="has no weights of batch norm, its generator has batch norm"):
        read_encoder_file(path, batch)
    with pytest.raises(
        CheckpointError, match="has no style vector and no instance features, so it cannot use an encod"
    ):
        read_encoder_file(path, replace(spec, has_features=False))


def test_a_damaged_encoder_of_a_checkpoint_is_named(tmp_path: Path) -> None:
    generator = file_of(pix2pixhd.state_dict(9, 4, **DEPTH), tmp_path)
    encoder = file_of(pix2pixhd.encoder_state_dict(4, halvings=2), tmp_path, "latest_net_E.pth")
    result = import_checkpoint(generator, replace(ASKED, encoder=encoder), runs_dir=tmp_path / "runs")
    path = result.checkpoint / ENCODER_FILE
    with pytest.raises(KeyError):
        build_encoder(load_generator(result.checkpoint).spec, {})
    save_file({**load_file(path), "other": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors"):
        load_generator(result.checkpoint)
