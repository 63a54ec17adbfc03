"""`spade runs`: what a run is, where its curves end, and runs that differ only in their random seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spade_deploy import cli
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.runs.csv_log import CsvLog
from spade_deploy.runs.settings import as_text, differing, key_of
from spade_deploy.spec import LabelSpec
from spade_deploy.training.config import Setup, TrainConfig
from tests.support.generators import build_generator
from tests.support.training_runs import setup_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one setting with other seeds, one of another batch size, an import, and a damaged run."""
    runs = tmp_path_factory.mktemp("work") / "runs"
    generator = build_generator(labels=LabelSpec(5), base_channels=2)
    told = (("a0", 4, 0, 2.0), ("a1", 4, 1, 3.0), ("a2", 4, 2, 4.0), ("b0", 8, 0, 1.0))
    for number, (name, batch_size, seed, end) in enumerate(told):
        run = new_run(runs, name)
        base = setup_of(steps=20)
        train = TrainConfig(steps=20, batch_size=batch_size, seed=seed, log_every=1 + number)
        checkpoint = checkpoint_folder(run, 20)
        save_checkpoint(checkpoint, generator, step=20, origin="train", setup=Setup(train, base.generator, base.data))
        info = json.loads((checkpoint / "checkpoint.json").read_text())
        (checkpoint / "checkpoint.json").write_text(json.dumps({**info, "created_unix_ns": number}))
        log = CsvLog(run / "losses.csv", ("step", "l1", "lr_generator", "lr_discriminator", "seconds"), 0)
        for step in range(1, 21):  # the last tenth are two steps, around `end`
            value = {19: end - 0.5, 20: end + 0.5}.get(step, 100.0)
            log.write({"step": step, "l1": value, "lr_generator": 1.0, "lr_discriminator": 1.0, "seconds": 0.25})
        log.close()
        metrics = CsvLog(run / "metrics.csv", ("step", "psnr", "seconds"), 0)
        for step, psnr in ((10, 10.0), (20, 20.0 + end), (21, float("nan"))):
            metrics.write({"step": step, "psnr": psnr, "seconds": 1})
        metrics.close()
    save_checkpoint(checkpoint_folder(new_run(runs, "imported"), 0), generator, step=0, origin="import")
    broken = new_run(runs, "broken") / "checkpoints" / "step_00000001"
    broken.mkdir(parents=True)
    (broken / "checkpoint.json").write_text("{")
    (runs / "segmenter-earth").mkdir()
    return runs


def spade(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(one) for one in arguments], env={"COLUMNS": "200"})


def test_the_list_is_by_date_and_a_damaged_run_is_told(folder: Path) -> None:
    done = spade("runs", "--runs", folder, "--json")
    assert done.exit_code == 1
    assert "broken: has no usable checkpoint" in done.stderr
    value = json.loads(done.stdout)["result"]
    assert [run["name"] for run in value["runs"]] == ["a0", "a1", "a2", "b0", "imported"]
    first = value["runs"][0]
    assert (first["step"], first["total_steps"], first["seed"], first["seconds"]) == (20, 20, 0, 0.25)
    assert (first["losses"], first["metrics"]) == ({"l1": 2.0}, {"psnr": 22.0})
    assert first["settings"]["train.batch_size"] == 4
    assert value["runs"][4]["seed"] is None
    (group,) = value["seeds_averaged"]
    assert (group["runs"], group["seeds"]) == (["a0", "a1", "a2"], [0, 1, 2])
    assert group["figures"]["l1"] == {"mean": 3.0, "std": 1.0, "seeds": 3}
    shown = spade("runs", "list", "--runs", folder)
    assert "a0, a1, a2 differ only in their random seed (0, 1, 2)" in shown.stdout
    assert "l1 3 ± 1, psnr 23 ± 1" in shown.stdout
    assert [line for line in shown.stdout.splitlines() if line.split()[:2] == ["imported", "import"]]
    assert f"next: spade runs compare {folder / 'b0'} {folder / 'imported'}" in shown.stdout


def test_a_comparison_names_what_differs_and_where_curves_end(folder: Path) -> None:
    done = spade("runs", "compare", "a0", folder / "b0", "--runs", folder, "--json")
    assert done.exit_code == 0
    value = json.loads(done.stdout)["result"]
    assert value["what_differs"] == {"train.batch_size": [4, 8], "train.log_every": [1, 4]}
    assert value["losses_at_the_end"] == {"l1": [2.0, 1.0]}
    assert value["metrics_at_the_end"] == {"psnr": [22.0, 21.0]}
    assert value["seeds_averaged"] == []
    shown = spade("runs", "compare", "a0", "a1", "--runs", folder).stdout
    lines = [line.split() for line in shown.splitlines()]
    assert ["train.seed", "0", "1"] in lines
    assert ["l1", "(loss)", "2", "3"] in lines
    assert ["psnr", "22", "23"] in lines
    assert "a0, a1 differ only in their random seed (0, 1)" in shown
    assert ["l1", "(loss)", "2", "-"] in [line.split() for line in
        spade("runs", "compare", "a0", "imported", "--runs", folder).stdout.splitlines()]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "arguments", "said"),
    [
        (2, ("compare", "a0"), "two different runs or more are needed"),
        (2, ("compare", "a0", "a0"), "two different runs or more are needed"),
        (1, ("compare", "a0", "nowhere"), "nowhere: is not a run"),
        (1, ("compare", "a0", "broken"), "broken: has no usable checkpoint"),
    ],
)
def test_what_cannot_be_compared(folder: Path, code: int, arguments: tuple[str, ...], said: str) -> None:
    done = spade("runs", *arguments, "--runs", folder)
    assert done.exit_code == code
    assert said in done.stderr
    assert "next:" in done.stderr


def test_an_empty_folder_says_how_to_make_a_run(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        done = spade("runs", "--runs", place)
        assert done.exit_code == 1
        assert "spade train" in done.stderr


def test_settings_as_a_table() -> None:
    one = {"train.seed": 0, "train.workers": 4, "train.batch_size": 4}
    assert key_of(one, 7) == key_of({**one, "train.seed": 1, "train.workers": 0}, 7)
    assert key_of(one, 7) != key_of(one, 8)
    assert key_of(one) != key_of({**one, "train.batch_size": 8})
    assert differing([one, {**one, "data.root": "x"}, one]) == ["data.root"]
    told = [as_text(value) for value in (None, True, [256, 512], [0.0, 0.9], list(range(9)), 1e-4, "a")]
    assert told == ["-", "on", "256 x 512", "0, 0.9", "9 values", "0.0001", "a"]
