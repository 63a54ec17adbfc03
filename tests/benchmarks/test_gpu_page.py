"""docs/tensorrt.md and docker/Dockerfile.gpu: every command, flag, extra, target and message that they name exists."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spade_deploy.cli import app
from spade_deploy.engines.tensorrt.builder import RTX_CAPABILITIES
from spade_deploy.engines.tensorrt.key import EngineKey
from spade_deploy.engines.tensorrt.library import EXTRAS, OLDEST
from spade_deploy.spec import Flavour, ShapeProfile
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "docker" / "Dockerfile.gpu").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def shell_lines(text: str) -> list[str]:
    """The lines of shell blocks, continued ones joined, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line) for line in lines if line.strip()]


def spade_commands(text: str) -> list[list[str]]:
    """Every `spade ...` of blocks and sentences, and what containers are told, as arguments without 'spade'."""
    found = [line for line in [*shell_lines(text), *re.findall(r"`(spade [^`]+)`", text)] if line.startswith("spade ")]
    inside = [line.split(" spade-gpu ")[1] for line in shell_lines(text) if line.startswith("docker run")]
    return [shlex.split(line)[1:] for line in [*found, *(f"spade {line}" for line in inside)]]


@functools.cache
def help_of(*command: str) -> str:
    """What `spade COMMAND --help` prints into a file; '' where there is no such command."""
    done = CliRunner().invoke(app, [*command, "--help"])
    return done.stdout if done.exit_code == 0 else ""


def flags_of(command: str) -> dict[str, list[str]]:
    """A command's flags, each with the values that it is restricted to, if it is."""
    found = re.findall(r"^  (--[a-z][a-z0-9-]*)(?: ([\w-]+\|[\w|-]+)|.*\[([\w-]+\|[\w|-]+)\])?", help_of(command), re.M)
    return {flag: (word or choices).split("|") if word or choices else [] for flag, word, choices in found}


def problem_with(arguments: list[str]) -> str | None:
    """What is wrong with a command line, as far as names of commands, flags and their choices go."""
    if not arguments or not help_of(arguments[0]):
        return f"no command {arguments[:1]}"
    flags = flags_of(arguments[0])
    for position, argument in enumerate(arguments):
        if not argument.startswith("--"):
            continue
        if argument not in flags:
            return f"{arguments[0]} has no {argument}"
        value = arguments[position + 1] if position + 1 < len(arguments) else ""
        if flags[argument] and value not in flags[argument]:
            return f"{argument} {value}: {flags[argument]}"
    return None


def test_every_command_of_the_page_exists() -> None:
    commands = spade_commands(PAGE)
    assert len(commands) > 12
    assert flags_of("build")["--target"] == ["tensorrt", "rtx"]
    for arguments in commands:
        assert problem_with(arguments) is None, arguments
    assert {"doctor", "export", "build", "validate", "infer", "bench"} <= {arguments[0] for arguments in commands}


@pytest.mark.parametrize("wrong", ["compile", "build --fast", "build --target cuda", "infer a b --backend gpu"])
def test_a_command_that_does_not_exist_is_seen(wrong: str) -> None:
    assert problem_with(shlex.split(wrong))


def test_flags_in_sentences_are_of_the_builder() -> None:
    known = {flag for arguments in spade_commands(PAGE) for flag in flags_of(arguments[0])}
    others = {"--onnx", "--stronglyTyped", "--gpus", "--upgrade", "--build-arg", "--quick", "--step", "--batch"}
    others |= {"--file", "--tag", "--rm", "--user", "--volume", "--work", "--part"}
    for flag in re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", PAGE):
        assert flag in known | others, flag


def seen() -> list[list[str]]:
    """The rows of the page's last table: section, statement, what was seen without a card, on which card."""
    (_, last) = PAGE.split("## What was seen, and where\n")
    rows = [line.strip("| ").split(" | ") for line in last.splitlines() if line.startswith("| ")]
    return rows[1:]


def test_every_section_says_what_of_it_was_seen_on_a_card() -> None:
    sections = set(re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE))
    rows = seen()
    assert all(len(row) == 4 for row in rows)
    assert {row[0] for row in rows} == sections - {"Errors, and what they mean", "What was seen, and where"}


def test_a_card_that_is_named_has_its_result() -> None:
    for _, statement, _, where in seen():
        results = re.findall(r"\]\(\.\./(benchmarks/results/gpu-[\w-]+\.json)\)", where)
        assert where == "not yet" or results, statement
        assert all((ROOT / result).is_file() for result in results), statement


def test_every_extra_exists() -> None:
    extras = re.findall(r"(?:spade-deploy|\.)\[([\w,]+)\]", PAGE + DOCKERFILE) + re.findall(r"EXTRAS=(\S+)", DOCKERFILE)
    named = {name for group in extras for name in group.strip("`.").split(",")}
    assert {"trt", "rtx", "gpu"} <= named <= set(PROJECT["optional-dependencies"])
    assert set(EXTRAS.values()) <= named


def test_versions_of_the_page_are_those_of_the_package() -> None:
    (wanted,) = [entry for entry in PROJECT["optional-dependencies"]["trt"] if entry.startswith("tensorrt")]
    (oldest,) = re.findall(r"\*\*TensorRT 10\*\* \(from (\d+\.\d+) on\)", PAGE)
    assert wanted == f"tensorrt>={oldest}"
    assert tuple(map(int, oldest.split("."))) >= OLDEST[Flavour.TENSORRT]
    assert PROJECT["requires-python"] == ">=3.11"
    (bindings,) = [entry for entry in PROJECT["optional-dependencies"]["trt"] if entry.startswith("cuda-bindings")]
    assert bindings in PAGE.replace(",<13", "")


def test_compute_capabilities_of_the_page_can_be_built_for() -> None:
    rows = re.findall(r"^\| RTX \d0 \|(.*)\|$", PAGE, flags=re.MULTILINE)
    named = {number for row in rows for number in re.findall(r"\d+\.\d", row)}
    assert len(rows) == 4
    assert named <= set(RTX_CAPABILITIES)
    assert not {"9.0", "10.0"} & set(RTX_CAPABILITIES)


def test_profiles_of_the_page_are_profiles() -> None:
    for text in re.findall(r"--profile (\d\S*)", PAGE):
        assert str(ShapeProfile.parse(text)).count(":") == 2


def test_every_message_of_the_page_is_one_of_the_code() -> None:
    section = PAGE.split("## Errors")[1].split("\n## ")[0]
    said = re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
    assert len(said) > 12
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "spade_deploy").rglob("*.py"))
    # Strings go on over several lines, and an f-string begins anywhere.
    joined = re.sub(r'"\s*\n\s*f?"', "", code)
    for message in said:
        assert message in joined, message
    assert "a message that nobody says" not in joined


def test_the_key_is_described_whole() -> None:
    section = " ".join(PAGE.split("## What an engine is")[1].split("\n## ")[0].split("\n- ")[0].split())
    words = {
        "onnx_sha256": "sha256 of the ONNX graph",
        "flavour": "TensorRT",
        "version": "version",
        "gpu": "the card",
        "compute_capability": "compute capability",
        "system": "the operating system",
        "precision": "precision",
        "kind": "graph",
        "profile": "profile",
        "options": "builder options",
    }
    assert set(words) == set(EngineKey.__dataclass_fields__)
    for word in words.values():
        assert word in section, word


def test_the_image_follows_the_page() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, flags=re.MULTILINE)
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", DOCKERFILE, flags=re.MULTILINE)
    assert base.startswith("nvcr.io/nvidia/cuda:13.")
    assert f"`{base}`" in PAGE
    assert f"pip install '.[{extras}]'" in PAGE
    assert "docker build --file docker/Dockerfile.gpu" in PAGE
    assert f"EXTRAS={extras.replace('trt', 'rtx')}" in PAGE


def test_an_image_holds_the_package_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    assert all((ROOT / name).exists() for name in let_in)
    # What building the package reads.
    assert {"spade_deploy", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= set(let_in)
    used = re.findall(r"/src/(\S+\.txt)", DOCKERFILE)
    assert used == ["constraints.txt"]
    assert set(used) <= set(let_in)


def test_make_has_the_target() -> None:
    def would_run(*arguments: str) -> str:
        command = ["make", "--dry-run", "gpu-check", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    assert ".venv/bin/python benchmarks/gpu_check.py --quick" in would_run("GPU_CHECK=--quick")
    bare = would_run("GPU_PYTHON=python3")
    assert " python3 benchmarks/gpu_check.py" in bare
    assert "pip install" not in bare  # nothing can be installed there
    assert f'PYTHONPATH="{ROOT}' in bare
    assert "make gpu-check" in PAGE


def test_links_of_the_page_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert link.startswith("https://") or (Path(ROOT / "docs") / link).exists(), link
