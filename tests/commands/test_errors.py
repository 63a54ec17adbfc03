"""A table of errors that users provoke: each says what is wrong, and each has its next step.

Where the message says what is allowed, the next step of its kind is enough: `another` value.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from spade_deploy import errors
from spade_deploy.cli import app
from spade_deploy.errors import SpadeError
from tests.support.stand_in import PLAIN, STYLED, stand_in_artifact


def another(command: str) -> str:
    """The next step of a value that is not allowed, where the message says which are."""
    return f"give another value; `spade {command} --help` tells what each option takes"


TABLE = [
    # The command line itself: these are typer's, in our words.
    ("trian", 2, "'trian' is not a command of `spade`", "did you mean `spade train`?"),
    ("fly", 2, "'fly' is not a command of `spade`", "it has train, distill, import"),
    ("--fast", 2, "--fast is not an option of `spade`", "`spade --help`"),
    ("data eart", 2, "'eart' is not a command of `spade data`", "did you mean `spade data earth`?"),
    ("train --stepz 3", 2, "--stepz is not an option of `spade train`", "did you mean --steps?"),
    ("train --steps many", 2, "--steps: 'many' is not an integer", "`spade train --help`"),
    ("train --lr-g fast", 2, "is not an option of `spade train`", "`spade train --help`"),
    ("train --steps", 2, "--steps needs a value: an integer", "`spade train --help`"),
    ("train extra", 2, "extra: `spade train` takes no such argument", "usage: spade train"),
    ("infer", 2, "LABELS is missing: Label maps: a folder, a file", "usage: spade infer LABELS OUT"),
    ("infer labels", 2, "OUT is missing", "usage: spade infer LABELS OUT"),
    ("infer labels out more", 2, "more: `spade infer` takes no such argument", "quotes"),
    ("infer labels out --resize no", 2, "--resize: 'no' is not one of model, never", "`spade infer --help`"),
    ("infer labels out --overwrite=3", 2, "--overwrite takes no value", "leave the part after = out"),
    ("infer labels out --threads two", 2, "--threads: 'two' is not an integer", "`spade infer --help`"),
    ("inspect", 2, "PATH is missing", "usage: spade inspect PATH"),
    ("bench --json --lala", 2, "--lala is not an option of `spade bench`", "`spade bench --help`"),
    ("export --fp16 --fp61", 2, "--fp61 is not an option of `spade export`", "did you mean --fp16?"),
    # Settings.
    ("train --steps 0", 2, "--steps: 0 is not in 1..", "`spade train --help`"),
    ("train --size 100x", 2, "--size: '100x' is not HEIGHTxWIDTH", another("train")),
    ("train --size 100x100", 2, "--size: height 100 is not", another("train")),
    (
        "train --load-size 64x64",
        2,
        "--size (not given, so it has its default): the crop",
        "give a smaller --size, or a larger --load-size",
    ),
    (
        "train --preset moon",
        2,
        "--preset: 'moon' is not one of",
        "for your own data there is --preset custom with --labels DIR --images DIR --num-labels N",
    ),
    ("train --steps 3 --epochs 3", 2, "contradicts --epochs", "leave one of them out"),
    ("train --device tpu", 2, "--device: 'tpu' is not auto, cpu, cuda", another("train")),
    ("train --kernel-size 4", 2, "--kernel-size: 4 is not 1, 3 or 5", another("train")),
    ("train --betas 1", 2, "--betas: '1' is not two numbers", another("train")),
    (
        "train --num-labels 3",
        2,
        "--num-labels",
        "leave one of them out; `spade train --help` tells what each option takes",
    ),
    (
        "train --name ../outside",
        2,
        "--name: '../outside' is not a valid name",
        "give a plain name such as run-1: it becomes a folder among the runs",
    ),
    (
        "train --accumulate 5 --batch-size 8",
        2,
        "--accumulate: 5 does not divide",
        another("train"),
    ),
    ("train --config nothing.yaml", 2, "--config: nothing.yaml does not exist", "`spade train --print-config`"),
    ("train --config odd.yaml", 2, "'speed' is not a setting of `spade train`", "did you mean seed?"),
    ("train --config text.txt", 2, "text.txt", "`spade train --print-config` prints a file to begin with"),
    (
        "train --resume nowhere",
        1,
        "nowhere",
        "check the path, or make one with `spade train`, or `spade import FILE` for a released model",
    ),
    (
        "train --init nowhere",
        1,
        "nowhere",
        "check the path, or make one with `spade train`, or `spade import FILE` for a released model",
    ),
    ("train --log-file text.txt/log", 1, "--log-file: text.txt/log cannot be written", "name another file"),
    ("infer labels out --artifact artifact --instances a --no-instances", 2, "contradict each other", "leave one"),
    ("infer labels out --artifact artifact --ray-workers 2", 2, "--ray-workers 2 is for a Ray cluster", "add --ray"),
    (
        "infer labels out --artifact artifact --id-column key",
        2,
        "--id-column key: labels has no columns",
        "leave it out",
    ),
    ("infer labels out --artifact artifact --no-instances", 2, "has no edge channel", "leave the flag out"),
    (
        "infer labels out --artifact artifact --seed 3",
        2,
        "--seed: this model has no style vector",
        "leave it out",
    ),
    ("infer labels out --artifact styled --seed -3", 2, "--seed: -3 is negative", "give 0 or more"),
    ("infer labels out --artifact styled --style-image a.png", 2, "has no style encoder", "--seed N"),
    ("infer labels out --artifact artifact --size 65x32", 2, "--size: 65 of 65x32", "it was trained at 64x32"),
    (
        "infer labels out --artifact artifact --format gif",
        2,
        "--format: 'gif' is not one of png, jpg",
        another("infer"),
    ),
    (
        "infer labels out --artifact artifact --precision fp16",
        1,
        "fp16",
        "`spade export --fp16` makes one, or leave --precision out",
    ),
    ("infer labels out --artifact artifact --batch-size 0", 2, "--batch-size: 0 is not in 1..", another("infer")),
    ("infer labels out --artifact artifact --resize never --size 64x32", 2, "contradict", "leave one of them out"),
    (
        "infer labels out --artifact artifact --min-psnr 40",
        2,
        "min-psnr",
        "add --precision fastest, or leave --min-psnr out",
    ),
    ("check-labels labels --preset earth --num-labels 5", 2, "--num-labels contradicts --preset earth", "leave one"),
    (
        "check-labels labels --classes nothing.txt",
        2,
        "--classes: nothing.txt cannot be read",
        "check the path of the file",
    ),
    ("check-labels labels --classes odd.yaml", 2, "--classes: odd.yaml", another("check-labels")),
    ("train --holdout 0.2", 2, "--holdout contradicts --preset earth", "leave one of them out"),
    (
        "train --labels labels --images empty --num-labels 3 --holdout 2",
        2,
        "--holdout: 2.0 is not in 0..0.9",
        another("train"),
    ),
    ("train --labels labels --images empty", 2, "--num-labels is needed", "spade check-labels labels"),
    ("train --labels labels --images empty --num-labels 3 --val-images kept", 2, "needs --val-labels", "give both"),
    ("train --paper", 2, "--paper is for data of your own", "leave --paper out"),
    ("check-labels labels --preset moon", 2, "moon", another("check-labels")),
    (
        "check-labels labels --num-labels 5 --ignore nonsense",
        2,
        "--ignore: 'nonsense' is not one of",
        another("check-labels"),
    ),
    ("import broken.pth --preset moon", 2, "moon", another("import")),
    ("bench artifact --tune --rounds 3", 2, "--tune measures every engine", "leave one of them out"),
    ("bench artifact --baseline magic", 2, "magic", another("bench")),
    ("build artifact --precision int4", 2, "--precision: 'int4' is not one of fp32, fp16, int8", another("build")),
    ("build artifact --precision bf16", 2, "--precision: 'bf16' is not one of", "`spade infer --precision bf16`"),
    ("eval --styles 1 runs", 2, "--styles: 1 is not 0 or from 2", another("eval")),
    # Servers and packages.
    ("serve nowhere --port 0", 1, "nowhere: does not exist", "check the path, or make one with `spade export`"),
    ("serve artifact --port 99999", 2, "--port: 99999 is not in 0..65535", another("serve")),
    (
        "serve artifact --host 0.0.0.0",
        2,
        "everyone who can reach 0.0.0.0 could use",
        "give a --token-file, or --insecure",
    ),
    ("serve artifact --token-file nothing", 2, "--token-file: nothing cannot be read", "secrets.token_urlsafe(32)"),
    ("serve artifact --token-file text.txt", 2, "is not a token of at least 16", "secrets.token_urlsafe(32)"),
    ("serve artifact --cors example.org", 2, "'example.org' is not an origin", "give scheme, host and port"),
    ("serve a=artifact a=styled --port 0", 2, "two artifacts have the name a: artifact and styled", "a-2=styled"),
    ("serve artifact --workers 0", 2, "--workers: 0 is not in 1..64", another("serve")),
    ("serve artifact --min-psnr 40", 2, "min-psnr", "add --precision fastest"),
    ("package artifact --triton text.txt", 2, "text.txt", "name another folder"),
    ("package artifact --triton models --name ../x", 2, "'../x' cannot name a model", "use at most 100 letters"),
    ("package artifact --triton models --precision fp16", 1, "there is no fp16 dense graph", "`spade export --fp16`"),
    ("package artifact --triton models --device tpu", 2, "is not one of auto, cpu, gpu", "`spade package --help`"),
    # Sources and targets.
    ("infer labels out --artifact artifact --workers 0", 2, "--workers: 0 is not at least 1", another("infer")),
    ("infer *.none out --artifact artifact", 1, "*.none: there are no files", "check the folder"),
    ("infer a.tar.gz out --artifact artifact", 1, "a.tar.gz", "unpack it"),
    ("infer labels foo://bucket/x --artifact artifact", 1, "foo://bucket/x: Protocol not known", "address"),
    (
        "infer labels out/{0..}.tar --artifact artifact --overwrite",
        2,
        "in shards are not replaced",
        "name other shards",
    ),
    (
        "infer labels out --artifact artifact --ray x:1 --cpus-per-worker 0",
        2,
        "takes a CPU or a part of a GPU",
        "such as 1 or 0.5",
    ),
    ("train --ray nowhere:1 --ray-workers 0", 2, "--ray-workers: 0 is not at least 1", another("train")),
    # Files and folders.
    ("infer nowhere out --artifact artifact", 1, "nowhere", "give a folder of label maps, or one label map"),
    (
        "infer empty out --artifact artifact",
        1,
        "empty",
        "`spade data earth OUT` writes label maps to try; --preset NAME says which data set it is",
    ),
    ("infer labels labels --artifact artifact", 2, "labels is an input", "choose another folder"),
    ("infer labels text.txt --artifact artifact", 2, "text.txt is a file", "name a folder"),
    ("infer labels/a.png out.gif --artifact artifact", 2, "results are written as .png", "name it out.png"),
    ("infer labels kept --artifact artifact", 2, "no record of what made them", "--overwrite makes them again"),
    ("infer labels out --artifact text.txt", 1, "text.txt", "name the artifact's folder"),
    ("infer labels out", 1, "runs: no artifact in any run", "`spade export`"),
    ("export", 1, "runs", "`spade train`"),
    (
        "export nowhere",
        1,
        "nowhere",
        "check the path, or make one with `spade train`, or `spade import FILE` for a released model",
    ),
    ("validate", 1, "no artifact", "`spade export`"),
    ("validate nowhere", 1, "nowhere", "check the path, or make one with `spade export`"),
    ("import nothing.pth", 1, "no such file", "give the path of a latest_net_G.pth"),
    ("import broken.pth", 1, "broken.pth", "give a latest_net_G.pth"),
    (
        "inspect nowhere",
        1,
        "nowhere does not exist",
        "give an artifact's folder, a checkpoint's, or a run's; `spade train` and `spade export` make them",
    ),
    (
        "inspect text.txt",
        1,
        "text.txt",
        "give an artifact's folder, a checkpoint's, or a run's; `spade train` and `spade export` make them",
    ),
    ("animate nowhere", 1, "nowhere", "check the path of the run"),
    ("distill nowhere --base-channels 8", 1, "TEACHER: nowhere: does not exist", "or a shipped model: earth"),
    ("distill earth", 2, "it is not said how wide the student is to be", "at most 16, or --mac-budget, such as 20G"),
    (
        "distill earth --mac-budget 1G --search-widths --ray",
        2,
        "--search-widths contradicts --ray: the search runs in one process",
        "search with --estimate and without --ray",
    ),
    ("distill earth --mac-budget 1M", 2, "--mac-budget: 0.001 GMAC is less than the cheapest", "give more"),
    ("animate", 1, "runs", "`spade train`"),
    (
        "check-labels nowhere --num-labels 5",
        1,
        "nowhere",
        "check the path; a relative path begins in the current folder",
    ),
    ("data earth text.txt", 1, "text.txt", "something else is in that place: remove it, or choose another folder"),
    (
        "train --labels nowhere --images nowhere --num-labels 3",
        1,
        "nowhere",
        "put the photos into a folder of their own, paired by the same file stem",
    ),
    (
        "train --labels empty --images empty --num-labels 3",
        1,
        "empty",
        "put the photos into a folder of their own, paired by the same file stem",
    ),
    ("train --preset coco --data nowhere", 1, "nowhere", "nowhere is no folder"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the table names."""
    folder = tmp_path_factory.mktemp("errors")
    for name, spec in (("artifact", PLAIN), ("styled", STYLED)):
        stand_in_artifact(folder / name, spec)
    for name in ("labels", "kept", "empty"):
        (folder / name).mkdir()
    for name in ("labels", "kept"):
        Image.fromarray(np.zeros((64, 32), np.uint8)).save(folder / name / "a.png")
    (folder / "kept" / "a.png").write_bytes((folder / "labels" / "a.png").read_bytes())
    (folder / "broken.pth").write_bytes(b"no weights")
    (folder / "a.tar.gz").write_bytes(b"compressed")
    (folder / "text.txt").write_text("a text: [")
    (folder / "odd.yaml").write_text("speed: 3\n")
    return folder


@pytest.mark.parametrize(("typed", "code", "said", "step"), TABLE, ids=[row[0] for row in TABLE])
def test_an_error_says_what_is_wrong_and_what_to_do(
    place: Path, typed: str, code: int, said: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    done = CliRunner().invoke(app, typed.split())
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    error = re.search(r"^error: (.*)\nnext: (.*)$", done.stderr, re.MULTILINE)
    assert error is not None, done.output
    assert said in error[1]
    assert done.exit_code == code, done.stderr
    assert step in error[2]
    assert len(error[2]) >= 9
    assert "`" not in re.sub(r"`[^`]* [^`]*`|`spade`", "", done.stderr), "every field became its flag"
    left = {path.name for path in place.iterdir()} - set(before)
    assert left <= {"runs", "out", ".text.txt.lock"}, "an error leaves nothing"


def test_the_table_is_long() -> None:
    assert len(TABLE) > 61
    assert len({row[0] for row in TABLE}) == len(TABLE)


def kinds() -> list[type[SpadeError]]:
    found = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, SpadeError)]
    assert len(found) > 15
    return found


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_error_has_a_next_step_and_a_hint_wins(kind: type[SpadeError]) -> None:
    assert len(kind("it broke").next_step) > 10
    assert kind("it broke", hint="mend it").next_step == "mend it"
