"""Every command and its requests: what is refused is named by its field, and shown by its flag."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.bench.request import BenchPlan, BenchRequest
from spade_deploy.cli import COMMANDS
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import RequestCommand
from spade_deploy.commands.request_options import options_of, request_from
from spade_deploy.engines.tensorrt.key import BuildOptions
from spade_deploy.errors import ConfigError
from spade_deploy.inference import InferRequest
from spade_deploy.release.request import Int8Options, ReleaseRequest
from spade_deploy.runs.import_request import ImportRequest
from spade_deploy.spec import Backend, GraphChoice, LabelSpec, ShapeProfile
from spade_deploy.validation.request import ValidationRequest

MADE = {made.name or "": made for made in COMMANDS if isinstance(made, RequestCommand)}
PLACE = Path("labels"), Path("out")


@pytest.mark.parametrize("name", sorted(MADE))
def test_every_option_has_a_help_text_and_a_flag_for_its_field(name: str) -> None:
    command = MADE[name]
    for option in command.options:
        assert option.setting.help, option.flag
        shown = in_flags(f"`{option.field}`", command.flags)
        # Two requests of a command may have a field of the same name (labels of data and of a network).
        assert "`" not in shown, option.field
        assert in_flags(f"`{option.key}`", command.flags) == option.flag


@pytest.mark.parametrize("name", sorted(MADE))
def test_no_help_text_names_a_field(name: str) -> None:
    command = MADE[name]
    for option in command.options:
        assert "`" not in in_flags(option.setting.help, command.flags), option.flag


@pytest.mark.parametrize(
    ("command", "make", "said"),
    [
        *(
            (
                command,
                lambda request=request: request(instances=Path("i")),
                "--instances without --labels: the golden inputs have their own",
            )
            for command, request in (
                ("bench", BenchRequest),
                ("export", ReleaseRequest),
                ("validate", ValidationRequest),
            )
        ),
        ("infer", lambda: InferRequest(*PLACE, batch_size=0), "--batch-size: 0 is not in 1..4096"),
        ("infer", lambda: InferRequest(*PLACE, image_format="gif"), "--format: 'gif' is not one of png, jpg"),
        ("infer", lambda: InferRequest(*PLACE, resize="crop"), "--resize: 'crop' is not one of model, never"),
        (
            "infer",
            lambda: InferRequest(*PLACE, resize="never", size=(64, 64)),
            "--size and --resize never contradict each other",
        ),
        (
            "infer",
            lambda: InferRequest(*PLACE, instances=Path("i"), no_instances=True),
            "--instances and --no-instances contradict each other",
        ),
        (
            "infer",
            lambda: InferRequest(*PLACE, seed=1, style_image=Path("p")),
            "--seed and --style-image contradict each other",
        ),
        ("infer", lambda: InferRequest(*PLACE, graph="sparse"), "--graph: 'sparse' is not one of auto, dense, lookup"),
        ("infer", lambda: InferRequest(*PLACE, backend="tpu"), "--backend: 'tpu' is not one of"),
        ("bench", lambda: BenchRequest(rounds=0), "--rounds: 0 is not in 1..1000000"),
        ("bench", lambda: BenchRequest(batch_size=0), "--batch-size: 0 is not in 1..4096"),
        ("bench", lambda: BenchRequest(threads=0), "--threads: 0 is not a positive number"),
        ("bench", lambda: BenchRequest(backend="tpu"), "--backend: 'tpu' is not one of"),
        ("bench", lambda: BenchRequest(instances=Path("i")), "--instances without --labels"),
        ("export", lambda: ReleaseRequest(keep_fp32=("up_1",)), "--keep-fp32: belongs to --fp16"),
        ("export", lambda: Int8Options(min_psnr_db=40.0), "--min-psnr: belongs to --int8"),
        ("export", lambda: Int8Options(True, min_psnr_db=0.0), "--min-psnr: 0 is not a positive number of decibels"),
        ("export", lambda: Int8Options(True, calibration_count=0), "--calibration-count: 0 is not a positive number"),
        (
            "export",
            lambda: Int8Options(True, calibrate_instances=Path("i")),
            "--calibrate-instances: needs --calibrate, the label maps",
        ),
        ("import", lambda: ImportRequest("moon"), "--preset: 'moon' is not one of coco, ade20k, cityscapes"),
        ("import", lambda: ImportRequest("coco", 5), "--num-labels contradicts --preset coco"),
        (
            "import",
            lambda: ImportRequest(has_edges=True),
            "--dontcare and --edges need --num-labels, the number of classes",
        ),
        ("build", lambda: BuildOptions(optimization_level=9), "--optimization-level: 9 is not in 0..5"),
        ("build", lambda: BuildOptions(workspace_bytes=4), "--workspace: 4 bytes are less than 1 MiB"),
        ("build", lambda: ShapeProfile.parse("1x64"), "--profile: '1x64' is not MIN:OPT:MAX"),
    ],
)
def test_a_request_is_refused_when_it_is_made(command: str, make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    for text in filter(None, (caught.value.message, caught.value.hint)):
        assert not re.search(r"(^|\s)--[a-z]", text), "fields are named below the commands, not flags"
    assert in_flags(caught.value.message, MADE[command].flags).startswith(said)


def test_requests_that_no_flag_can_make() -> None:
    with pytest.raises(ConfigError, match="`fp32` and `fp16` are both off"):
        ReleaseRequest(fp32=False)
    with pytest.raises(ConfigError, match="`num_labels` contradicts `labels`"):
        ImportRequest(num_labels=3, labels=LabelSpec(3))
    with pytest.raises(ConfigError, match="nothing to measure"):
        BenchPlan((), ())


def test_the_labels_of_an_import_are_those_that_were_given() -> None:
    assert ImportRequest().label_spec is None
    assert ImportRequest(num_labels=3, has_edges=True).label_spec == LabelSpec(3, has_edges=True)
    named = LabelSpec(1, names=("sea",))
    assert ImportRequest(labels=named).label_spec == named


def test_texts_of_an_older_typer_become_paths_and_choices() -> None:
    """typer 0.20 leaves them to a conversion of its own, which a command that is invoked directly does not run."""
    values = {option.key: option.default for option in options_of(InferRequest)}
    values |= {"labels": "maps", "out": "images", "backend": "cpu", "graph": "lookup"}
    asked = request_from(InferRequest, values)
    assert (asked.labels, asked.out) == (Path("maps"), Path("images"))
    assert (asked.backend, asked.graph) == (Backend.CPU, GraphChoice.LOOKUP)
    assert type(asked.backend) is Backend
