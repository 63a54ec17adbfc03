"""docs/training.md: every option on it is one, every option of `spade train` is on it, its presets are the presets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from spade_deploy.cli import app
from spade_deploy.training.presets import PRESETS, preset
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
TABLE = "## Every option of the 2019 code"
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w])")
ELSEWHERE = {"--help", "--logdir"}
"""Options on the page that other programs have."""


def test_every_option_on_the_page_is_one_and_none_of_train_is_missing() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = {
        name: {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands.items()
    }
    prose, table = PAGE.split(TABLE)
    ours = "".join("|".join(row.split("|")[2:]) for row in table.splitlines() if row.startswith("| `--"))
    used = set(FLAG.findall(prose + ours + table[table.index("These options are new") :]))
    assert used - set().union(*options.values()) - ELSEWHERE - set(re.findall(r"`(--ngf)`", ours)) == set()
    said_by_the_other = {"--flip", "--ttur", "--no-channels-last", "--no-dontcare"}
    assert options["train"] - used - said_by_the_other - {"--help", "--json", "--quiet", "--log-file"} == set()


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_has_the_settings_of_each_preset(name: str) -> None:
    lines = PAGE[PAGE.index("## Presets") :].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:14]]
    column = rows[0].index(name)
    said = {row[0]: row[column] for row in rows[2:]}
    setup = preset(name, root=None if name == "earth" else Path("ROOT"))
    config, generator, labels = setup.train, setup.generator, setup.generator.labels
    assert said["labels + dontcare + edges"] == f"{labels.num_labels} + {labels.has_dontcare:d} + {labels.has_edges:d}"
    length = f"{config.epochs} epochs" if config.epochs else f"{config.steps} steps"
    assert said["length"] == length
    assert said["batch size"] == str(config.batch_size)
    rates = [float(rate) for rate in said["learning rate of generator, discriminator"].split(",")]
    assert rates == [config.lr_generator, config.lr_discriminator]
    assert said["base channels, hidden channels"] == f"{generator.base_channels}, {generator.hidden_channels}"
    assert said["doublings (`--upsampling`)"] == f"{generator.doublings} ({generator.upsampling})"
    found = config.discriminator
    assert said["discriminator: scales, layers, channels"] == f"{found.scales}, {found.layers}, {found.base_channels}"
    assert float(said["weight of the pixels' L1"]) == config.weight_l1
    falls = re.sub(r"\D", "", said["learning rates fall linearly to 0 from"])
    total = config.epochs or config.steps
    assert total is not None
    assert (int(falls) if falls else total) == int(total * config.decay_start)
