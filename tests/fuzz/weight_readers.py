"""Cases of weight files: imports, checkpoints, training states, VGG files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from spade_deploy.runs import read_checkpoint_info
from spade_deploy.runs.checkpoint import load_generator, load_training_state
from spade_deploy.training.perceptual import load_vgg

from .case import Case
from .corpus import TRAIN
from .json_damage import damage_json
from .weights_damage import damaged_npz, damaged_pth, damaged_safetensors, with_digest

STEP = "step_00000002"


def imported(case: Case) -> None:
    """A released generator's file, with and without a preset."""
    generator, encoder = case.corpus.states()
    if case.rng.random() < 0.8:
        path = case.write("latest_net_G.pth", damaged_pth(case.rng, generator))
        more: list[Any] = []
    else:
        path = case.copy(_saved(case, "latest_net_G.pth", generator))
        more = ["--encoder", case.write("latest_net_E.pth", damaged_pth(case.rng, encoder))]
    preset = case.rng.choice(((), ("--preset", "coco"), ("--num-labels", "150", "--dontcare", "--edges")))
    sized = ("--size", "256x256", "--upsampling", "normal") if "--num-labels" in preset else ()
    code = case.watch.command("import", path, *preset, *sized, *more, "--runs", case.runs)
    if (Path("executed")).exists():
        case.watch.fail("wrong", "import executed code of the file", "a file named 'executed' was made")
    if code == 0:
        _usable(case)


def _usable(case: Case) -> None:
    """What was imported is whole: finite numbers, and inspect shows it."""
    (checkpoint,) = case.runs.glob("*/checkpoints/*")
    loaded = case.watch.call("load_generator of an import", load_generator, checkpoint)
    if loaded is None or not all(torch.isfinite(p).all() for p in loaded.module.parameters()):
        case.watch.fail("wrong", "an import cannot be loaded, or is not finite", str(checkpoint))
    case.watch.command("inspect", checkpoint, codes=(0,))


def _saved(case: Case, name: str, state: dict[str, Any]) -> Path:
    path = case.folder / name
    torch.save(state, path)
    return path


def checkpoint_json(case: Case) -> None:
    """Of a run that is inspected, resolved, loaded."""
    run = case.copy(case.corpus.run, "runs/tiny")
    path = run / "checkpoints" / STEP / "checkpoint.json"
    damaged = damage_json(case.rng, json.loads(path.read_bytes()))
    case.write(str(path.relative_to(case.input)), damaged)
    checkpoint = path.parent
    case.watch.command("inspect", case.rng.choice((run, checkpoint, path)))
    info = case.watch.call("read_checkpoint_info", read_checkpoint_info, checkpoint)
    case.watch.call("load_generator", load_generator, checkpoint)
    if info is not None and case.rng.random() < 0.3:
        case.watch.call("load_training_state", load_training_state, checkpoint)
    if case.rng.random() < 0.05:
        _resume(case, run)


def _resume(case: Case, run: Path) -> None:
    """Training goes on in a copy of the run that it may write to."""
    import shutil

    shutil.copytree(run, case.runs / "tiny", symlinks=True)
    data = ("--labels", case.corpus.labels, "--images", case.corpus.images)
    case.watch.command("train", "--resume", case.runs / "tiny", "--steps", "3", *data, "--runs", case.runs)


def generator_file(case: Case) -> None:
    """With the old digest, which must refuse it, and with a new one, so that the parser is reached."""
    checkpoint = case.copy(case.corpus.run / "checkpoints" / STEP)
    name = case.rng.choice(("generator.safetensors", "generator.safetensors", "encoder.safetensors"))
    good = (checkpoint / name).read_bytes()
    path = case.write(f"{STEP}/{name}", damaged_safetensors(case.rng, good))
    must_fail = "weights that are not those of the digest" if path.read_bytes() != good else ""
    if case.rng.random() < 0.3:
        case.watch.call("load_generator", load_generator, checkpoint, must_fail=must_fail)
        case.watch.command("inspect", checkpoint)
        return
    facts = json.loads((checkpoint / "checkpoint.json").read_bytes())
    facts[name.split(".")[0] + "_sha256"] = with_digest(path, path.read_bytes())
    (checkpoint / "checkpoint.json").write_text(json.dumps(facts))
    case.watch.call("load_generator", load_generator, checkpoint)
    case.watch.command("inspect", case.rng.choice((checkpoint, path)))


def training_state(case: Case) -> None:
    """optimizers.pt and the discriminator, their digests made right."""
    run = case.copy(case.corpus.run, "runs/tiny")
    checkpoint = run / "checkpoints" / STEP
    facts = json.loads((checkpoint / "checkpoint.json").read_bytes())
    if case.rng.random() < 0.7:
        rest = torch.load(checkpoint / "optimizers.pt", weights_only=True)
        tensors = {key: value for key, value in rest.items() if isinstance(value, torch.Tensor)}
        if tensors and case.rng.random() < 0.8:
            content, what = damaged_pth(case.rng, tensors)
        else:
            content, what = _odd_rest(case, rest)
        name, key = "optimizers.pt", "optimizers_sha256"
    else:
        content, what = damaged_safetensors(case.rng, (checkpoint / "discriminator.safetensors").read_bytes())
        name, key = "discriminator.safetensors", "discriminator_sha256"
    path = case.write(f"runs/tiny/checkpoints/{STEP}/{name}", (content, what))
    facts[key] = with_digest(path, content)
    (checkpoint / "checkpoint.json").write_text(json.dumps(facts))
    case.watch.call("load_training_state", load_training_state, checkpoint)
    if case.rng.random() < 0.3:
        _resume(case, run)


def _odd_rest(case: Case, rest: dict[str, Any]) -> tuple[bytes, str]:
    """One entry of the training state becomes something else."""
    import io

    key = case.rng.choice(list(rest))
    odd = case.rng.choice((None, 7, "x", [], {}, torch.zeros(3), torch.zeros(1, dtype=torch.complex64), -1, 10**30))
    if case.rng.random() < 0.3:
        del rest[key]
        what = f"{key} is missing"
    elif isinstance(rest[key], dict) and rest[key] and case.rng.random() < 0.6:
        inner = case.rng.choice(list(rest[key]))
        rest[key] = {**rest[key], inner: odd}
        what = f"{key}/{inner} is {str(odd)[:30]}"
    else:
        rest[key] = odd
        what = f"{key} is {str(odd)[:30]}"
    stream = io.BytesIO()
    torch.save(rest, stream)
    return stream.getvalue(), what


def perceptual_file(case: Case) -> None:
    """VGG weights as .pth, .npz or .safetensors: none of these is whole, so each is refused."""
    import io

    import numpy as np
    import safetensors.torch

    state = {f"features.{index}.{part}": torch.zeros(2) for index in (0, 2, 5, 16) for part in ("weight", "bias")}
    suffix = case.rng.choice((".pth", ".npz", ".safetensors"))
    if suffix == ".pth":
        damaged = damaged_pth(case.rng, state)
    elif suffix == ".npz":
        stream = io.BytesIO()
        np.savez(stream, **{f"conv{b}_1.{part}": np.zeros(4, np.float32) for b in range(1, 6) for part in "wb"})
        damaged = damaged_npz(case.rng, stream.getvalue())
    else:
        damaged = damaged_safetensors(case.rng, safetensors.torch.save(state))
    path = case.write(f"vgg{suffix}", damaged)
    case.watch.call("load_vgg", load_vgg, path, must_fail="VGG weights that are not whole")
    if case.rng.random() < 0.05:
        labels = ("--labels", case.corpus.labels, "--images", case.corpus.images)
        skipped = 7  # 'train' and the folders, which lie elsewhere
        case.watch.command(
            "train",
            *labels,
            *TRAIN[5:7],
            *TRAIN[skipped + 1 :],
            "--steps",
            "1",
            "--perceptual-file",
            path,
            "--runs",
            case.runs,
        )
