"""Cases of run folders: their small files, links and pipes in place of files, odd names."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from spade_deploy.runs import best_checkpoint, newest_artifact, newest_checkpoint, read_best, resolve_checkpoint
from spade_deploy.runs.csv_log import read_columns

from .bytes_damage import damage_bytes
from .case import Case
from .image_damage import damaged_image
from .json_damage import damage_json

OUTSIDE = "outside"
"""Beside the case's folder: links lead there, nothing may be written to it."""


def best_json(case: Case) -> None:
    """Which checkpoint was the best."""
    run = case.copy(case.corpus.run, "runs/tiny")
    case.write("runs/tiny/best.json", damage_json(case.rng, json.loads((run / "best.json").read_bytes())))
    case.watch.call("read_best", read_best, run)
    case.watch.call("best_checkpoint", best_checkpoint, run)
    if case.rng.random() < 0.6:
        case.watch.command("inspect", run)
    case.watch.call("resolve_checkpoint", resolve_checkpoint, run, case.runs, best=True)


def small_files(case: Case) -> None:
    """config.json, classes.json, losses.csv, metrics.csv, sample grids: what animations, plots and resuming read."""
    run = case.copy(case.corpus.run, "runs/tiny")
    name = case.rng.choice(("config.json", "config.json", "classes.json", "losses.csv", "metrics.csv", "sample"))
    if name == "sample":
        case.write("runs/tiny/samples/step_00000002.png", damaged_image(case.rng, 255))
    elif name.endswith(".json"):
        case.write(f"runs/tiny/{name}", damage_json(case.rng, json.loads((run / name).read_bytes())))
    else:
        case.write(f"runs/tiny/{name}", damage_bytes(case.rng, (run / name).read_bytes()))
    if name in ("config.json", "sample"):
        case.watch.command("animate", run, "--out", case.out / "film.gif")
    if name == "losses.csv":
        case.watch.call("read_columns", _read_table, run / name)
    if name != "sample":
        case.watch.command("inspect", run)
    if name in ("classes.json", "losses.csv", "metrics.csv") and case.rng.random() < 0.25:
        from .weight_readers import _resume

        _resume(case, run)


def _read_table(path: Path) -> object:
    """What a plot reads; the trainer calls it behind a guard for OSError and ValueError."""
    try:
        return read_columns(path)
    except (OSError, ValueError):
        return None


def odd_node(case: Case) -> None:
    """A pipe, device, folder, socket, or a link to one, in place of any file that is read."""
    what = case.rng.choice(("run", "artifact", "labels", "single"))
    if what == "single":
        _odd_single(case)
        return
    source = {"run": case.corpus.run, "artifact": case.corpus.plain, "labels": case.corpus.labels}[what]
    folder = case.copy(source, f"runs/{what}" if what != "labels" else "labels")
    path = case.rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    _put(case, path)
    checkpoint = case.input / "runs/run/checkpoints/step_00000002"
    tries: dict[str, list[Callable[[], object]]] = {
        "run": [
            lambda: case.watch.command("inspect", folder),
            lambda: case.watch.command("inspect", checkpoint),
            lambda: case.watch.call("newest_checkpoint", newest_checkpoint, case.input / "runs"),
            lambda: case.watch.call("resolve best", resolve_checkpoint, folder, case.runs, best=True),
            lambda: case.watch.command("animate", folder, "--out", case.out / "film.gif"),
            lambda: _load(case, checkpoint),
        ],
        "artifact": [
            lambda: case.watch.command("inspect", folder),
            lambda: case.watch.call("newest_artifact", newest_artifact, case.input / "runs"),
            lambda: case.watch.command(
                "infer", case.corpus.labels, case.out / "p", "--artifact", folder, "--threads", "1"
            ),
            lambda: case.watch.command("validate", folder, "--runs", case.runs),
            lambda: case.watch.command(
                "infer", case.corpus.labels, case.out, "--artifact", folder, "--backend", "tensorrt"
            ),
        ],
        "labels": [
            lambda: case.watch.command("check-labels", folder, "--num-labels", "5"),
            lambda: case.watch.command("check-labels", folder, "--num-labels", "5", "--fix", case.out / "fixed"),
            lambda: case.watch.command(
                "infer", folder, case.out / "p", "--artifact", case.corpus.plain, "--threads", "1"
            ),
            lambda: case.watch.command(
                "check-labels", case.corpus.labels, "--num-labels", "5", "--images", folder, "--instances", folder
            ),
            lambda: case.watch.command("infer", path, case.out / "x.png", "--artifact", case.corpus.plain),
        ],
    }
    for attempt in case.rng.sample(tries[what], 2):
        attempt()


def _load(case: Case, checkpoint: Path) -> object:
    from spade_deploy.runs.checkpoint import load_generator, load_training_state

    case.watch.call("load_training_state", load_training_state, checkpoint)
    return case.watch.call("load_generator", load_generator, checkpoint)


def _odd_single(case: Case) -> None:
    """The file that a flag names."""
    from spade_deploy.metrics import OnnxExtractor
    from spade_deploy.training.perceptual import load_vgg

    name = case.rng.choice(
        ("latest_net_G.pth", "palette.txt", "vgg.pth", "vgg.npz", "x.onnx", "x.json", "style.png", "vgg.safetensors")
    )
    path = case.input / name
    _put(case, path)
    labels = case.corpus.labels
    if name.endswith(".pth") and name.startswith("latest"):
        case.watch.command("import", path, "--runs", case.runs)
    elif name.startswith("palette"):
        case.watch.command("check-labels", labels, "--num-labels", "5", "--palette", path)
    elif name.startswith("vgg"):
        case.watch.call("load_vgg", load_vgg, path)
    elif name == "style.png":
        flags = ("--artifact", case.corpus.styled, "--style-image", path, "--threads", "1")
        case.watch.command("infer", labels, case.out / "p", *flags)
    else:
        if name == "x.json":
            case.copy(case.corpus.extractor, "x.onnx")
        case.watch.call("OnnxExtractor", OnnxExtractor, case.input / "x.onnx")


def _put(case: Case, path: Path) -> None:
    """Put an odd node in place of `path`."""
    path.unlink(missing_ok=True)
    outside = case.folder.parent / OUTSIDE
    kinds: dict[str, Callable[[], object]] = {
        "a pipe": lambda: os.mkfifo(path),
        "a link to a pipe": lambda: (os.mkfifo(case.folder / "pipe"), path.symlink_to(case.folder / "pipe")),
        "a link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "a link to /dev/urandom": lambda: path.symlink_to("/dev/urandom"),
        "a link to /dev/null": lambda: path.symlink_to("/dev/null"),
        "a link to /dev/stdin": lambda: path.symlink_to("/dev/tty"),
        "a dangling link": lambda: path.symlink_to(path.with_name("gone")),
        "a loop of links": lambda: path.symlink_to(path),
        "a link to another file": lambda: path.symlink_to(outside / "secret.txt"),
        "a link to a folder": lambda: path.symlink_to(outside),
        "a folder": path.mkdir,
        "a socket": lambda: _socket(path),
        "an empty file": path.touch,
        "a link to /proc/self/mem": lambda: path.symlink_to("/proc/self/mem"),
        "an unreadable file": lambda: (path.write_bytes(b"x"), path.chmod(0)),
    }
    what = case.rng.choice(list(kinds))
    kinds[what]()
    case.damages.append(f"{path.relative_to(case.input)} is {what}")


def _socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's path has 107 letters at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


_NAMES = (
    *("[/red]", "[bold]x", "a\x1b[31mred", "a\nb", "a\rb", "a\tb", "\x7f", "\x01"),
    *(
        " ",
        " x ",
        "-x",
        "--out",
        "*",
        "?",
        "~",
        "%s",
        "{0}",
        "$HOME",
        "a'b\"c",
        "a;b",
        "\\",
        "a\\b",
        "..x",
        "con",
        "a.b.c",
    ),
    *("é" * 100, "名" * 80, "x" * 240, "x" * 250, "🎨" * 60),
    *("\u202eabc", "a\u2028b", "\u200b", "e\u0301", "\ufeffx"),
    *(os.fsdecode(b"\xff\xfe"), os.fsdecode(b"caf\xe9")),
)


def odd_name(case: Case) -> None:
    """Files and folders of names that a file system takes and a terminal, or a markup, may not."""
    stem = case.rng.choice(_NAMES)
    suffix = ".png"
    folder_name = case.rng.choice(_NAMES) if case.rng.random() < 0.4 else "labels"
    folder = case.input / folder_name
    content = (case.corpus.labels / "0.png").read_bytes()
    if case.rng.random() < 0.4:
        content, _ = damaged_image(case.rng, 4)
    try:
        folder.mkdir(parents=True)
        (folder / f"{stem}{suffix}").write_bytes(content)
    except OSError:
        return  # this file system does not take the name
    case.damages.append(f"{folder_name!r} / {stem + suffix!r}")
    case.watch.names_are_odd = True
    out = case.out / (case.rng.choice(_NAMES) if case.rng.random() < 0.3 else "photos")
    which = case.rng.random()
    if which < 0.5:
        code = case.watch.command("infer", "--artifact", case.corpus.plain, "--threads", "1", "--", folder, out)
        if code == 0 and not [path for path in out.glob("*.png") if path.is_file()]:
            case.watch.fail("wrong", "infer: exit 0 without a result", repr(stem))
    elif which < 0.8:
        fixing = ["--fix", case.out / "fixed"] if case.rng.random() < 0.5 else []
        case.watch.command("check-labels", "--num-labels", "5", *fixing, "--", folder)
    elif which < 0.9:
        run = case.copy(case.corpus.run, f"{folder_name}-runs/{stem[:90]}")
        case.watch.command("inspect", "--", run)
    else:
        artifact = case.copy(case.corpus.plain, f"{folder_name[:90]}-artifact")
        case.watch.command("inspect", "--", artifact)
