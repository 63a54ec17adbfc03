"""Imports against a second writing of the original (spade_by_the_facts): same tensors, same names, same image."""

from __future__ import annotations

import copy
import io
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.labels.sets import label_set
from spade_deploy.networks.encoder import StyleEncoder
from spade_deploy.networks.spade import make_segmap
from spade_deploy.runs import newest_checkpoint, read_checkpoint_info
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.runs.import_request import RELEASED, ImportRequest
from spade_deploy.runs.importer import import_checkpoint, read_encoder_file, read_generator_file
from spade_deploy.spec import LabelSpec, NormType, Upsampling
from tests.support.commands import spade
from tests.support.exactness import FLOAT32_EPS, TIMES, rounding_limit
from tests.support.generators import build_generator, random_inputs
from tests.support.spade_by_the_facts import generate

SMALL = {"base_channels": 4, "hidden_channels": 8}


def released(name: str, z_dim: int | None = None) -> Any:
    upsampling, height, width = RELEASED[name]
    return build_generator(
        labels=label_set(name),
        upsampling=upsampling,
        height=height,
        width=width,
        z_dim=z_dim,
        training_steps=1,
        **SMALL,
    )


def saved(state: Any, folder: Path) -> Path:
    path = folder / "latest_net_G.pth"
    torch.save(state, path)
    return path


def require_equal(state: dict[str, torch.Tensor], module: Any, within: float = 1e-12) -> None:
    """The module computes what the second writing does, in float64 to the last digits, in float32 up to rounding.

    within: the limit in float64, of an image in -1..1. Measured worst 4e-15, and 2e-14 of instance norm on noise.
    """
    exact, image = images(state, copy.deepcopy(module), torch.float64)
    assert (image - exact).abs().max() < within
    expected, image = images(state, module)
    spec = module.spec
    label, instance, z = drawn(spec)
    segmap = make_segmap(label, instance, spec.labels).float()

    def compute(x: torch.Tensor) -> torch.Tensor:
        styles = None if z is None else z.repeat(len(x) // len(z), 1)
        found: torch.Tensor = module(x, styles)
        return found

    # What this machine makes of the module in float32, and the second writing's own rounding, in its other order.
    limit = rounding_limit(compute, segmap, exact) + TIMES * float((expected.double() - exact).abs().max())
    assert (image - expected).abs().max() < limit
    assert limit < 1e-3


def drawn(spec: Any) -> Any:
    torch.manual_seed(11)
    return random_inputs(spec, 1)


def images(
    state: dict[str, torch.Tensor], module: Any, kind: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """The image of the second writing, and of the module, for the same random input."""
    spec = module.spec
    label, instance, z = drawn(spec)
    state = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    with torch.no_grad():
        expected = generate(
            state,
            label,
            instance if spec.labels.has_edges else None,
            None if z is None else z.to(kind),
            num_ids=spec.labels.num_ids,
            upsampling=str(spec.upsampling),
            latent=(spec.latent_height, spec.latent_width),
        )
        module = module.to(kind)
        found = module(make_segmap(label, instance, spec.labels).to(kind), None if z is None else z.to(kind))
    return expected, found


@pytest.mark.parametrize("z_dim", [None, 256])
@pytest.mark.parametrize("name", list(RELEASED))
def test_equals_the_original(name: str, z_dim: int | None, tmp_path: Path) -> None:
    generator = released(name, z_dim)
    state = generator.state_dict()
    found = read_generator_file(saved(state, tmp_path), ImportRequest(preset=name))
    assert found.spec == generator.spec
    require_equal(state, found.module)


def test_a_wiring_mistake_would_be_seen(tmp_path: Path) -> None:
    # The counter-test: ids shifted by one, as a reader of ADE20K's labels might think right.
    generator = released("ade20k")
    torch.manual_seed(11)
    label, _, _ = random_inputs(generator.spec, 1)
    with torch.no_grad():
        expected = generator(make_segmap(label, None, generator.spec.labels))
        wrong = generator(make_segmap((label.int() - 1).clamp(min=0), None, generator.spec.labels))
    assert (wrong - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", list(RELEASED))
def test_the_preset_is_told_by_the_channels_and_said(name: str, tmp_path: Path) -> None:
    found = read_generator_file(saved(released(name).state_dict(), tmp_path), ImportRequest())
    assert found.spec.labels == label_set(name)
    said = " | ".join(found.guesses)
    upsampling, height, width = RELEASED[name]
    for guess in (
        rf"the \d+ segmap channels are {name}'s .* change it with `preset`, or `num_labels`",
        rf"upsampling {upsampling}, as in the released {name} model; .* change it with `upsampling`",
        rf"{height} x {width} pixels, .* change it with `size`",
    ):
        assert re.search(guess, said), said
    assert len(found.guesses) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": NormType.INSTANCE},
        {"spectral_norm": False},
        {"kernel_size": 1},
        {"level_channels": (62, 30, 13, 8, 3)},
        {"level_hidden": (8, 8, 5, 8, 1)},
        {
            "level_channels": (64, 30, 13, 8, 3, 2),
            "level_hidden": (8, 2, 3, 4, 5, 6),
            "upsampling": Upsampling.MOST,
            "height": 128,
            "width": 128,
        },
        {"upsampling": Upsampling.MOST, "height": 128, "width": 128},
        {"upsampling": Upsampling.MORE, "height": 64, "width": 128},
    ],
    ids=str,
)
def test_the_spec_is_in_the_shapes(fields: dict[str, Any], tmp_path: Path) -> None:
    labels = LabelSpec(9, has_dontcare=True)
    generator = build_generator(labels=labels, **{**SMALL, **fields})
    spec = generator.spec
    request = ImportRequest(labels=labels, upsampling=spec.upsampling, size=(spec.height, spec.width))
    found = read_generator_file(saved(generator.state_dict(), tmp_path), request)
    assert found.spec == spec
    require_equal(generator.state_dict(), found.module)


def test_files_older_than_pytorch_1_lack_weight_v(tmp_path: Path) -> None:
    generator = build_generator(labels=LabelSpec(9), **SMALL)
    state = {key: value for key, value in generator.state_dict().items() if not key.endswith(("_v", "_tracked"))}
    state["up_0.conv_0.weight"] = state["up_0.conv_0.weight_orig"] / 2  # those files hold it as a buffer
    found = read_generator_file(
        saved(state, tmp_path), ImportRequest(labels=LabelSpec(9), upsampling=Upsampling.NORMAL, size=(64, 64))
    )
    # The vector that is missing is computed again, in float32: measured 6e-8.
    require_equal(state, found.module, within=64 * FLOAT32_EPS)
    assert any("weight_v" in note for note in found.notes)


def test_a_number_or_a_file_of_classes_says_what_the_channels_are(tmp_path: Path) -> None:
    generator = build_generator(labels=LabelSpec(3, has_dontcare=True), **SMALL)
    path = saved(generator.state_dict(), tmp_path)
    asked = {"upsampling": Upsampling.NORMAL, "size": (64, 64)}
    plain = read_generator_file(path, ImportRequest(num_labels=3, has_dontcare=True, **asked))
    assert plain.spec.labels == LabelSpec(3, has_dontcare=True)
    (tmp_path / "classes.txt").write_text("1 1 1 grass\n2 2 2 water\n3 3 3 sand\n0 0 0 void\n")
    named = read_generator_file(path, ImportRequest(classes=tmp_path / "classes.txt", ignore_id=3, **asked)).spec.labels
    assert (named.num_labels, named.names, named.palette[1]) == (3, ("grass", "water", "sand", "void"), (2, 2, 2))
    assert named.ignore_id == 3
    with pytest.raises(ConfigError, match="`classes` contradicts `preset` coco"):
        ImportRequest(preset="coco", classes=tmp_path / "classes.txt")


def test_the_format_before_zip_files(tmp_path: Path) -> None:
    # What PyTorch 1.0 wrote, and NVIDIA's files are.
    generator = released("ade20k")
    path = tmp_path / "latest_net_G.pth"
    torch.save(generator.state_dict(), path, _use_new_zipfile_serialization=False)
    found = read_generator_file(path, ImportRequest()).module.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in generator.state_dict().items())


def test_wrappers_prefixes_and_half_precision_are_said(tmp_path: Path) -> None:
    generator = released("ade20k")
    state = {f"module.{key}": value.half() if value.is_floating_point() else value
             for key, value in generator.state_dict().items()}  # fmt: skip
    found = read_generator_file(saved({"state_dict": state}, tmp_path), ImportRequest())
    assert any("'state_dict.module'" in note for note in found.notes)
    assert any("float32" in note for note in found.notes)
    assert {tensor.dtype for tensor in found.module.parameters()} == {torch.float32}


def test_contradictions_are_named(tmp_path: Path) -> None:
    generator = released("ade20k")
    path = saved(generator.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="151 segmap channels, but coco need 184"):
        read_generator_file(path, ImportRequest(preset="coco"))
    with pytest.raises(CheckpointError, match="no block up_4"):
        read_generator_file(path, ImportRequest(labels=LabelSpec(151), upsampling=Upsampling.MOST, size=(128, 128)))
    with pytest.raises(ConfigError, match="`size` is needed"):
        read_generator_file(path, ImportRequest(labels=LabelSpec(151)))
    with pytest.raises(ConfigError, match="`upsampling` is needed"):
        read_generator_file(path, ImportRequest(labels=LabelSpec(151), size=(256, 256)))
    vae = saved(released("coco", 256).state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="64 places, but size 256x512"):
        read_generator_file(vae, ImportRequest(preset="coco", size=(256, 512)))
    odd = saved(build_generator(labels=LabelSpec(9), **SMALL).state_dict(), tmp_path)
    with pytest.raises(ConfigError, match="9 channels matches none of the released"):
        read_generator_file(odd, ImportRequest())
    with pytest.raises(ConfigError, match="contradicts `preset`"):
        ImportRequest("coco", 5)
    with pytest.raises(ConfigError, match="`num_labels`"):
        ImportRequest(has_dontcare=True)


def test_damaged_states_are_named(tmp_path: Path) -> None:
    state = released("ade20k").state_dict()
    request = ImportRequest(preset="ade20k")
    lacking = {key: value for key, value in state.items() if key != "up_2.conv_1.bias"}
    with pytest.raises(CheckpointError, match=r"lacks 'up_2.conv_1.bias'"):
        read_generator_file(saved(lacking, tmp_path), request)
    with pytest.raises(CheckpointError, match=r"'extra\.weight'"):
        read_generator_file(saved({**state, "extra.weight": torch.zeros(1)}, tmp_path), request)
    with pytest.raises(CheckpointError, match=r"'up_2.conv_1.bias' is \(3,\)"):
        read_generator_file(saved({**state, "up_2.conv_1.bias": torch.zeros(3)}, tmp_path), request)
    bad = {**state, "conv_img.bias": torch.full((3,), float("nan"))}
    with pytest.raises(CheckpointError, match="NaN"):
        read_generator_file(saved(bad, tmp_path), request)
    with pytest.raises(CheckpointError, match="discriminator"):
        read_generator_file(saved({"discriminator_0.model0.0.weight": torch.zeros(1)}, tmp_path), request)
    with pytest.raises(CheckpointError, match="encoder"):
        read_generator_file(saved({"fc_mu.weight": torch.zeros(1)}, tmp_path), request)
    with pytest.raises(CheckpointError, match="not a SPADE generator"):
        read_generator_file(saved({"layer1.weight": torch.zeros(1)}, tmp_path), request)


def test_other_files_get_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_generator_file(tmp_path / "missing.pth", ImportRequest())
    for content in (b"", b"not a checkpoint", b"PK\x03\x04broken", bytes(range(256))):
        path = tmp_path / "broken.pth"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"broken\.pth"):
            read_generator_file(path, ImportRequest())
    tar = tmp_path / "legacy.pth"
    with tarfile.open(tar, "w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(CheckpointError, match="legacy tar format") as caught:
        read_generator_file(tar, ImportRequest())
    assert "torch.save" in str(caught.value.hint)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    path = saved({"fc.weight": Hostile()}, tmp_path)
    with pytest.raises(CheckpointError, match="of the kind getattr"):
        read_generator_file(path, ImportRequest())
    assert not marker.exists()


def test_an_import_is_a_run_of_its_own_and_the_newest(tmp_path: Path) -> None:
    generator = released("cityscapes")
    path = saved(generator.state_dict(), tmp_path)
    first = import_checkpoint(path, ImportRequest(), runs_dir=tmp_path / "runs")
    second = import_checkpoint(path, ImportRequest(), runs_dir=tmp_path / "runs")
    assert first.checkpoint != second.checkpoint
    assert newest_checkpoint(tmp_path / "runs") == second.checkpoint
    info = read_checkpoint_info(second.checkpoint)
    assert (info.origin, info.source) == ("import", "latest_net_G.pth")
    loaded = load_generator(second.checkpoint).module.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in generator.state_dict().items())


# --- The style encoder -----------------------------------------------------------------------------------------------


def encoder_state(z_dim: int = 6, base_channels: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return StyleEncoder(z_dim, base_channels).state_dict()


def write_pair(folder: Path, encoder: dict[str, Any], z_dim: int | None = 6) -> tuple[Path, Path]:
    torch.save(released("ade20k", z_dim).state_dict(), folder / "latest_net_G.pth")
    torch.save(encoder, folder / "latest_net_E.pth")
    return folder / "latest_net_G.pth", folder / "latest_net_E.pth"


def test_an_encoder_is_imported_beside_its_generator(tmp_path: Path) -> None:
    """As a file of a PyTorch before 1.0, saved from a DataParallel: v is computed from u."""
    state = encoder_state()
    old = {f"module.{key}": tensor for key, tensor in state.items() if not key.endswith("weight_v")}
    generator, encoder = write_pair(tmp_path, old)
    result = import_checkpoint(generator, ImportRequest("ade20k", encoder=encoder), runs_dir=tmp_path / "runs")
    assert "style vector and its encoder" in result.described
    loaded = load_generator(result.checkpoint).encoder
    assert loaded is not None
    assert not loaded.training
    for key, tensor in loaded.state_dict().items():
        if not key.endswith("weight_v"):
            assert torch.equal(tensor, state[key]), key
    matrix, u = state["layer2.0.weight_orig"].flatten(1), state["layer2.0.weight_u"]
    right = torch.nn.functional.normalize(matrix.T @ u, dim=0)
    torch.testing.assert_close(loaded.state_dict()["layer2.0.weight_v"], right)
    without = import_checkpoint(generator, ImportRequest("ade20k"), runs_dir=tmp_path / "runs")
    assert load_generator(without.checkpoint).encoder is None
    assert "style vector, " in without.described


def test_files_that_are_not_this_generators_encoder(tmp_path: Path) -> None:
    state = encoder_state()
    spec = released("ade20k", 6).spec
    cases: dict[str, dict[str, Any]] = {
        "this is not a style encoder": {"conv.weight": torch.zeros(1)},
        r"'fc_mu.weight' is \(5, 512\); the encoder of this generator": encoder_state(5),
        r"'fc_mu.weight' is \(6, 256\); the encoder of this generator": encoder_state(6, 2),
        "lacks 'layer3.0.weight_orig'": {k: v for k, v in state.items() if k != "layer3.0.weight_orig"},
        "has 'layer7.0.weight'": {**state, "layer7.0.weight": torch.zeros(1)},
        "holds NaN": {**state, "fc_var.bias": torch.full((6,), torch.nan)},
        "'fc_var.bias' is sparse_coo, not dense": {**state, "fc_var.bias": torch.ones(6).to_sparse()},
    }
    for message, wrong in cases.items():
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError, match=message):
            read_encoder_file(tmp_path / "wrong.pth", spec)
    with pytest.raises(CheckpointError, match="no style vector"):
        read_encoder_file(tmp_path / "wrong.pth", replace(spec, z_dim=None))
    with pytest.raises(CheckpointError, match="no such file") as caught:
        read_encoder_file(tmp_path / "absent.pth", spec)
    assert "latest_net_E.pth" in (caught.value.hint or "")


def test_what_is_asked_for_is_no_guess(tmp_path: Path) -> None:
    state = released("cityscapes").state_dict()
    path = saved(state, tmp_path)
    named = read_generator_file(path, ImportRequest(preset="cityscapes"))
    assert named.guesses == ()
    assert any("upsampling more, as in the released" in note and "`upsampling`" in note for note in named.notes)
    assert any("256 x 512 pixels" in note and "`size`" in note for note in named.notes)
    told = read_generator_file(path, ImportRequest(preset="cityscapes", upsampling=Upsampling.NORMAL, size=(256, 512)))
    assert told.guesses == ()
    assert told.spec.upsampling is Upsampling.NORMAL


def test_a_norm_without_statistics_is_a_guess(tmp_path: Path) -> None:
    """Instance norm, or batch norm whose buffers were not saved: both leave no tensor."""
    generator = build_generator(labels=LabelSpec(9), norm=NormType.INSTANCE, **SMALL)
    path = saved(generator.state_dict(), tmp_path)
    request = ImportRequest(labels=LabelSpec(9), upsampling=Upsampling.NORMAL, size=(64, 64))
    (guess,) = read_generator_file(path, request).guesses
    assert re.search("instance norm, since .* no running statistics; .* change it with `norm`", guess)
    assert read_generator_file(path, replace(request, norm=NormType.INSTANCE)).guesses == ()
    with pytest.raises(CheckpointError, match="`norm` batch needs the running statistics"):
        read_generator_file(path, replace(request, norm=NormType.BATCH))
    batch = build_generator(labels=LabelSpec(9), **SMALL)
    path = saved(batch.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="contradicts `norm` instance"):
        read_generator_file(path, replace(request, norm=NormType.INSTANCE))
    assert read_generator_file(path, replace(request, norm=NormType.BATCH)).spec.norm is NormType.BATCH


def test_guesses_are_kept_with_the_checkpoint_and_printed(tmp_path: Path) -> None:
    path = saved(released("cityscapes").state_dict(), tmp_path)
    said = spade("import", path, cwd=tmp_path).stdout
    checkpoint = newest_checkpoint(tmp_path / "runs")
    told = spade("inspect", checkpoint, cwd=tmp_path).stdout
    guesses = read_checkpoint_info(checkpoint).guesses
    assert guesses is not None
    assert len(guesses) == 3
    for guess in guesses:
        assert "guessed: " + guess[:40] in said
        assert guess[:40] in told


def test_an_import_that_fails_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(build_generator().state_dict(), tmp_path / "latest_net_G.pth")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr("spade_deploy.runs.importer.save_checkpoint", full)
    labels = LabelSpec(7, has_dontcare=True, has_edges=True)
    request = ImportRequest(labels=labels, upsampling=Upsampling.NORMAL, size=(64, 64))
    with pytest.raises(OSError, match="No space left"):
        import_checkpoint(tmp_path / "latest_net_G.pth", request, runs_dir=tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []
