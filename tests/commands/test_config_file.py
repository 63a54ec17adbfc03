"""Settings in a YAML file: what is printed is read back, flags win, and what is wrong is named with its line."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.testing import CliRunner

from spade_deploy.cli import app
from spade_deploy.commands import train as training_command
from spade_deploy.commands.config_file import MAX_CONFIG_BYTES, ConfigCommand, as_yaml
from spade_deploy.commands.evaluate import evaluate
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import command
from spade_deploy.commands.request_options import options_of, request_from
from spade_deploy.errors import ConfigError
from spade_deploy.evaluation.request import EvalRequest
from spade_deploy.printable import printable
from spade_deploy.spec import Architecture, NormType, Upsampling
from spade_deploy.training.config import Amp, GanMode, Modulation, PerceptualNetwork, Setup
from spade_deploy.training.presets import PRESETS, preset
from spade_deploy.training.request import DataRequest, TrainRequest
from spade_deploy.training.resolve import complete, new_setup

pytest.importorskip("torch", reason="presets are training's")

SETTINGS = training_command.train.settings


def read(*arguments: str | Path) -> TrainRequest:
    """What `spade train` with these arguments would be asked."""
    got: list[TrainRequest] = []

    @command("train", requests=training_command._requests, kind=ConfigCommand)
    def handler(asked: TrainRequest, *_: object) -> None:
        """Take what is asked."""
        got.append(asked)

    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as ended:
        TyperGroup(name="spade", commands={"train": handler}).main(["train", *map(str, arguments)])
    assert ended.value.code == 0, said.getvalue()
    return got[0]


def refused(tmp_path: Path, text: str | bytes, *arguments: str) -> ConfigError:
    """The error of a file with that content."""
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read("--config", path, *arguments)
    return caught.value


def setup_of(asked: TrainRequest) -> Setup:
    return new_setup(asked, downloads=False)


def written(tmp_path: Path, asked: TrainRequest) -> Path:
    path = tmp_path / "whole.yaml"
    path.write_text(as_yaml(SETTINGS, complete(asked, setup_of(asked))), encoding="utf-8")
    return path


class TestRoundTrip:
    @pytest.mark.parametrize("name", PRESETS)
    def test_every_preset(self, name: str, tmp_path: Path) -> None:
        asked = TrainRequest(DataRequest(name, root=None if name == "earth" else tmp_path / "a b: #c"))
        again = read("--config", written(tmp_path, asked))
        assert setup_of(again) == setup_of(asked)
        assert setup_of(again) == preset(name, asked.data.root)
        wants_vgg = name != "earth"
        assert again.perceptual == (PerceptualNetwork.VGG19 if wants_vgg else None)

    @pytest.mark.parametrize(
        "asked",
        [
            TrainRequest(vae=True, train={"weight_kl": 1e-7, "betas": (0.5, 0.999)}),
            TrainRequest(first_input="noise"),  # type: ignore[arg-type]
            TrainRequest(ttur=False, train={"epochs": 3}),
            TrainRequest(generator={"architecture": Architecture.PIX2PIXHD}, discriminator={"base_channels": 7}),
            TrainRequest(generator={"architecture": Architecture.CRN, "upsampling": Upsampling.MORE}),
            TrainRequest(generator={"norm": NormType.INSTANCE, "spectral_norm": False}),
            TrainRequest(
                train={
                    "amp": Amp.BF16,
                    "gan_mode": GanMode.LS,
                    "modulation": Modulation.LOOKUP,
                    "ema_decay": 0.999,
                    "init": "earth",
                    "eval_every": 5,
                    "best_by": "psnr",
                    "extractor": Path("null"),
                    "segmenter": Path("a, [b] \u202e\n\\'\"é"),
                    "deterministic": True,
                    "device": "cuda:1",
                }
            ),
            TrainRequest(train={"perceptual_file": Path("~/vgg.npz"), "decay_start": 1.0}),
            TrainRequest(
                DataRequest(
                    labels=Path("l"),
                    images=Path("i"),
                    instances=Path("1"),
                    num_labels=5,
                    has_dontcare=False,
                    size=(64, 128),
                    load_size=(70, 140),
                    flip=False,
                )
            ),
            TrainRequest(DataRequest(root=Path("yes"), num_labels=5, has_dontcare=True)),
        ],
    )
    def test_what_was_changed(self, asked: TrainRequest, tmp_path: Path) -> None:
        whole = written(tmp_path, asked)
        again = read("--config", whole)
        assert setup_of(again) == setup_of(asked)
        assert again.ttur == asked.ttur
        text = whole.read_text(encoding="utf-8")
        assert printable(text) == text, "it may be printed on a terminal"

    def test_what_is_printed_is_every_setting_with_its_help(self, tmp_path: Path) -> None:
        text = written(tmp_path, TrainRequest()).read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        assert list(values) != sorted(values)
        assert set(values) == {option.key for option in options_of(TrainRequest)}
        assert values["batch_size"] == 4
        assert values["size"] == "128x128"
        assert values["epochs"] is None
        assert values["flip"] is True
        assert "# Batch size (samples per step).\nbatch_size: 4\n" in text
        assert "# Weight of the KL divergence of a VAE's encoder.\nweight_kl: 0.05\n" in text
        assert "\n## Network\n" in text

    def test_the_commands_print_and_read_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        first = CliRunner().invoke(app, ["train", "--no-ttur", "--batch-size", "8", "--print-config"])
        assert first.exit_code == 0
        assert "batch_size: 8\n" in first.stdout
        Path("a.yaml").write_text(first.stdout)
        again = CliRunner().invoke(app, ["train", "--config", "a.yaml", "--print-config"])
        assert again.stdout == first.stdout
        judged = CliRunner().invoke(app, ["eval", "a", "b c", "--dontcare", "--extractor", "e", "--print-config"])
        Path("b.yaml").write_text(judged.stdout)
        assert "models: [a, b c]\n" in judged.stdout
        assert CliRunner().invoke(app, ["eval", "--config", "b.yaml", "--print-config"]).stdout == judged.stdout
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yaml", "b.yaml"], "nothing else is written"

    def test_what_eval_is_asked_for(self) -> None:
        asked = EvalRequest(
            (Path("a"),), extractor=Path("e"), extractor_facts={"mean": (1.0, 2.0, 3.5), "size": [3, 4]}
        )
        values = yaml.safe_load(as_yaml(evaluate.settings, asked))
        assert (values["extractor_mean"], values["extractor_size"]) == ("1.0,2.0,3.5", "3x4")
        typed = {option.key: values[option.key] for option in options_of(EvalRequest)}
        assert request_from(EvalRequest, {**typed, "models": [Path("a")], "extractor": Path("e")}) == asked


class TestPrecedence:
    def test_the_flag_wins_over_the_file_and_the_file_over_the_preset(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("batch_size: 8\nseed: 3\nflip: false\nttur: false\nworkers: null\n")
        asked = read("--config", tmp_path / "a.yaml", "--seed", "5", "--flip", "--ttur")
        assert asked.train == {"batch_size": 8, "seed": 5}
        assert (asked.data.flip, asked.ttur) == (True, True)
        setup = setup_of(asked)
        assert (setup.train.batch_size, setup.train.seed, setup.train.steps) == (8, 5, 300)

    def test_a_file_says_what_flags_say(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(
            "lr_generator: 1e-3\nsize: 64\nbetas: 0,0.9\nvae: yes\n"
            "generator: spade\ndata: ~\nnum_labels: 012\ndontcare: 'on'\npreset: custom\n"
        )
        asked = read("--config", tmp_path / "a.yaml")
        flags = ("--lr-generator", "1e-3", "--size", "64", "--betas", "0,0.9", "--vae", "--generator", "spade")
        assert asked == read(*flags, "--num-labels", "012", "--dontcare", "--preset", "custom")
        assert asked.train == {"lr_generator": 0.001, "betas": (0.0, 0.9)}
        assert asked.data.num_labels == 12

    @pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeffseed: 3\n", "{seed: 3}"])
    def test_little_or_nothing_is_a_file_too(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
        assert read("--config", tmp_path / "a.yaml").train == ({"seed": 3} if "seed" in text else {})


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "said", "hint"),
        [
            (
                "steps: 3\nbatchsize: 3\n",
                "a.yaml, line 2: 'batchsize' is not a setting of `spade train`",
                "batch_size?",
            ),
            ("xyzzy: 3\n", "a.yaml, line 1: 'xyzzy' is not a setting", "known are preset, data,"),
            ("resume: newest\n", "line 1: 'resume' is not a setting", ""),
            ("? [a]\n: 3\n", "line 1: '' is not a setting", "known are"),
            ("seed: 1\nsteps: 2\nseed: 3\n", "line 3: seed occurs twice, first in line 1", "leave one out"),
            ("seed: !!int 1\n", "line 1: the tag 'tag:yaml.org,2002:int' is not taken", "the value alone"),
            ("seed: !!python/object/apply:os.system ['true']\n", "line 1: the tag", "the value alone"),
            ("seed: [3]\n", "line 1: seed is a list; it takes a single value", "an integer"),
            ("\nsteps: {a: 1}\n", "line 2: steps is a mapping", "an integer"),
            ("- seed\n", "line 1: holds no settings", "one a line"),
            ("seed: 1\n---\nseed: 2\n", "line 2 is not valid YAML: but found another document", "--print-config"),
            ("seed: [1\n", "is not valid YAML: expected ',' or ']'", "--print-config"),
            ("seed: *b\n", "line 1 is not valid YAML: found undefined alias", "--print-config"),
            (b"seed: \xff\n", "byte 6 is not UTF-8", "save it as UTF-8"),
            ("seed: \x07\n", "is not valid YAML", "--print-config"),
            ("seed: " + "[" * 5000 + "]" * 5000, "is nested too deeply", "--print-config"),
            ("#" * (MAX_CONFIG_BYTES + 1), "is larger than 65,536 bytes", "--print-config"),
        ],
    )
    def test_a_file_that_is_none_of_settings(self, text: str | bytes, said: str, hint: str, tmp_path: Path) -> None:
        error = refused(tmp_path, text)
        assert error.message.startswith(f"`config`: {tmp_path}/a.yaml")
        assert said in error.message
        assert hint in str(error.hint)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("batch_size: abc", "batch_size ({}, line 1): 'abc' is not an integer"),
            ("batch_size: 1.5", "batch_size ({}, line 1): '1.5' is not an integer"),
            ("\nweight_l1: much", "weight_l1 ({}, line 2): 'much' is not a number"),
            ("flip: maybe", "flip ({}, line 1): 'maybe' is not true or false"),
            ("amp: fp8", "amp ({}, line 1): 'fp8' is not one of off, bf16, fp16"),
            ("size: 3xy", "size ({}, line 1): '3xy' is not HEIGHTxWIDTH in pixels, such as 256x512"),
            ("betas: 3", "betas ({}, line 1): '3' is not two numbers with a comma, such as 0,0.9"),
        ],
    )
    def test_a_value_of_another_type_is_named_with_its_line(self, text: str, said: str, tmp_path: Path) -> None:
        error = refused(tmp_path, text)
        assert in_flags(error.message) == said.format(tmp_path / "a.yaml")
        help_too = "; `spade train --help` tells what each setting means"
        assert error.hint == f"correct it in {tmp_path / 'a.yaml'}, or give the flag, which wins{help_too}"

    def test_a_range_or_a_contradiction_names_the_file_where_the_file_has_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("a.yaml").write_text("# here\nbatch_size: 5000\naccumulate: 3\nema: 2\n")
        for arguments, said in (
            ((), "batch_size (a.yaml, line 2): 5000 is not in 1..4096"),
            (("--batch-size", "6000"), "--batch-size: 6000 is not in 1..4096"),
            (("--batch-size", "4"), "accumulate (a.yaml, line 3): 3 does not divide --batch-size 4"),
            (("--batch-size", "3"), "ema (a.yaml, line 4): 2.0 is not from 0 to below 1"),
        ):
            done = CliRunner().invoke(app, ["train", "--config", "a.yaml", *arguments, "--print-config"])
            assert done.exit_code == 2
            assert f"error: {said}" in done.stderr.replace("\n", " ")
            told = "next: correct it in a.yaml, or give the flag, which wins" in done.stderr
            assert told is ("a.yaml" in said)
        Path("a.yaml").write_text("vae: true\n")
        done = CliRunner().invoke(app, ["train", "--config", "a.yaml", "--first-input", "noise", "--print-config"])
        assert "error: vae (a.yaml, line 1) contradicts --first-input noise" in done.stderr
        told = "next: leave one of the two out; correct it in a.yaml, or give the flag, which wins"
        assert told in done.stderr.replace("\n", " "), "the hint of its own stays"

    @pytest.mark.parametrize(
        ("text", "typed", "code", "hint"),
        [
            (
                "preset: moon",
                "",
                2,
                "with --labels DIR --images DIR --num-labels N; correct it in a.yaml, or give the flag, which wins",
            ),
            (
                "load_size: 64x64",
                "",
                2,
                "give a smaller --size, or a larger load_size; correct it in a.yaml, or give the flag, which wins",
            ),
            (
                "holdout: 0.2",
                "",
                2,
                "leave one of them out; correct it in a.yaml, or give the flag, which wins",
            ),
            (
                "seed: 3\ndata: nowhere",
                "--preset coco",
                1,
                "no folder; data is in a.yaml, line 2: correct it there, or give the flag, which wins",
            ),
            (
                "init: nowhere",
                "",
                1,
                "for a released model; init is in a.yaml, line 1: correct it there, or give the flag, which wins",
            ),
            ("seed: 3", "--init nowhere", 1, "for a released model"),
            ("init: nowhere", "--init elsewhere", 1, "for a released model"),
            ("data: nowhere", "--preset coco --data elsewhere", 1, "is no folder"),
            ("seed: 3", "--holdout 0.2", 2, "leave one of them out; `spade train --help` tells what each option takes"),
        ],
    )
    def test_a_hint_says_what_to_do_and_in_which_file(
        self, text: str, typed: str, code: int, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A value of the file is named with it, whatever kind of error it is; a flag that was typed is not."""
        monkeypatch.chdir(tmp_path)
        Path("a.yaml").write_text(f"{text}\n")
        done = CliRunner().invoke(app, ["train", "--config", "a.yaml", *typed.split()])
        assert done.exit_code == code
        (step,) = (line for line in done.stderr.splitlines() if line.startswith("next: "))
        assert step.endswith(hint)

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda path: None, "does not exist"),
            (Path.mkdir, "is a folder, not a regular file"),
            (os.mkfifo, "is a pipe, not a regular file"),
            (lambda path: path.symlink_to("/dev/zero"), "is a device, not a regular file"),
        ],
    )
    def test_what_is_no_file(self, make: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
        make(tmp_path / "a.yaml")
        with pytest.raises(ConfigError) as caught:
            read("--config", tmp_path / "a.yaml")
        assert in_flags(caught.value.message).startswith(f"--config: {tmp_path}/a.yaml")
        assert said in caught.value.message

    def test_a_file_of_a_run_before_says_nothing_of_the_next(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("seed: 3\n")
        assert read("--config", tmp_path / "a.yaml").train == {"seed": 3}
        assert read().train == {}
        assert read() == TrainRequest()
