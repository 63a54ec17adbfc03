"""Below the commands texts name a setting by its field, in backticks: the command that runs puts its flag there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from typer.core import TyperGroup

from spade_deploy.cli import COMMANDS
from spade_deploy.commands.flags import in_flags, use_flags
from spade_deploy.commands.options import RequestCommand
from tests.support.paths import ROOT

PACKAGE = ROOT / "spade_deploy"
FLAG = re.compile(r"(?<![\w-])--(?!(?:help|gpus|upgrade|force-reinstall|logdir)\b)[a-z]")
"""A flag of ours; --help is every command's, and the others are those of docker, pip and tensorboard."""

COMMAND_LINE = re.compile(
    r"`(?:spade|torchrun|python|pip|docker|trtexec) [^`]*`|(?:^|[;:,(] ?)(?:spade|torchrun|python|docker) [^;:,()]*"
)
"""A whole command line, in backticks or where a clause begins, is a next step to type, flags and all."""

OPTIONS_OF_EXPORT = {"--keep-fp32 {}", "{} overflows (--keep-fp32 {})"}
"""What is to be added to a `spade export`, whichever command says so: no setting of the command that runs."""


def texts_with_flags(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every string in a module that holds a flag outside of a whole command line."""
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            # What is filled in may stand inside of a command line: `spade train --resume {run}`.
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        else:
            continue
        if text not in OPTIONS_OF_EXPORT and FLAG.search(COMMAND_LINE.sub("", " ".join(text.split()))):
            yield node.lineno, text


def test_no_text_below_the_commands_has_a_flag() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text[:100]!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE / "commands" and path.name not in ("cli.py", "__main__.py")
        for line, text in texts_with_flags(path.read_text(encoding="utf-8"))
    ]
    assert not found, "name the field in backticks:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('raise ConfigError(f"--seed: {seed} is no number")', 1),
        ('"""Where --init looks."""', 1),
        ('hint = "take fewer samples, or --size 64"', 1),
        ('hint = f"continue with `spade train --resume {run}`"', 0),
        ('hint = "`spade export\\n --fp16` makes it, `pip install --upgrade x` that"', 0),
        ('hint = "`spade export` and --fp16"', 1),
        ('hint = "spade build --target rtx"', 0),
        ('hint = "spade check-labels DIR --fix OUT converts them; --ignore mask hides them"', 1),
        ('hint = "pip install --upgrade onnxruntime, or run it with --gpus all"', 0),
        ('text = "`seed`: -- and a--b, 3 --- 4"', 0),
    ],
)
def test_the_check_finds_flags_and_leaves_command_lines(source: str, count: int) -> None:
    assert len(list(texts_with_flags(source))) == count


PYTHON_ALONE = {
    "cache_folder",
    "contexts",
    "conv_search",
    "cuda_graph",
    "ema_batches",
    "features",
    "fp32",
    "most_trials",
    "with_architecture",
    "z_dim",
}
"""Settings that no command has: a text that names them reaches who calls from Python alone."""

HTTP_FIELDS = {
    "base",
    "drawing",
    "id",
    "patches",
    "format",
    "instance",
    "label",
    "model",
    "quality",
    "runs",
    "size",
    "style",
    "style_photo",
}
"""Fields of a request over HTTP: a text in `serving` that names them reaches its client."""


RAY_ARGUMENTS = {"max_ongoing_requests", "max_replicas", "min_replicas", "target_ongoing_requests"}
"""Arguments of the Ray Serve application."""


def names_in_texts(source: str) -> Iterator[str]:
    """The names in backticks in the strings of a module that are no docstrings."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from re.findall(r"`([a-z_][a-z0-9_.]*)`", node.value)


def test_every_name_in_a_text_is_a_setting_of_some_command() -> None:
    known = {name for command in commands() for name in command.flags}
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE / "commands" and path.name != "cli.py"
        for name in names_in_texts(path.read_text(encoding="utf-8"))
        if name not in known | PYTHON_ALONE | (HTTP_FIELDS | RAY_ARGUMENTS if path.parent.name == "serving" else set())
    }
    assert not found
    assert not known & PYTHON_ALONE


def commands() -> list[RequestCommand]:
    groups = [group for group in COMMANDS if isinstance(group, TyperGroup)]
    every = [*COMMANDS, *(command for group in groups for command in group.commands.values())]
    return [command for command in every if isinstance(command, RequestCommand)]


def test_the_names_of_a_data_set_in_python_become_the_flags_of_train() -> None:
    (train,) = (command for command in commands() if command.name == "train")
    text = "`labels_dir` `images_dir` `instances_dir` `crop_size` `runs_dir` `root`"
    assert in_flags(text, train.flags) == "--labels --images --instances --size --runs --data"


def test_names_in_backticks_become_flags_and_all_else_stays() -> None:
    table = {"batch_size": "--batch-size", "data.root": "--data", "no_flip": "--no-flip"}
    text = "`batch_size`: 3 and `data.root`, `no_flip`; `spade train --seed 1`, `unknown`, batch_size, `Batch_Size`"
    assert in_flags(text, table) == (
        "--batch-size: 3 and --data, --no-flip; `spade train --seed 1`, `unknown`, batch_size, `Batch_Size`"
    )
    use_flags(table)
    assert in_flags("`batch_size`") == "--batch-size"
    use_flags({})
    assert in_flags("`batch_size`") == "`batch_size`"
