"""What a run's initial weights learned before: its held-out samples are called so only where they are new to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spade_deploy import runs
from spade_deploy.evaluation.data import learned_from
from spade_deploy.release.example_inputs import golden_inputs
from spade_deploy.runs import CheckpointInfo
from spade_deploy.runs.learned import Learned, learned_before
from spade_deploy.training.config import Setup
from spade_deploy.training.request import DataRequest, TrainRequest
from spade_deploy.training.resolve import new_setup
from spade_deploy.training.source import FolderSource
from tests.support.own_photos import write_own_photos

LEARNED = (
    "the weights that `init` names learned from 2 of the 2 samples that metrics and sample grids are of: they are not"
    " held out, and the figures are too good"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    labels, images = write_own_photos(tmp_path_factory.mktemp("own"), 20)
    return {"labels": labels, "images": images}


def setup_of(folders: dict[str, Path], init: str = "", **changes: Any) -> Setup:
    setup = new_setup(TrainRequest(DataRequest(**{**folders, "num_labels": 4, "size": (32, 32), **changes})))
    return replace(setup, train=replace(setup.train, init=init))


def info_of(setup: Setup, origin: str = "train") -> CheckpointInfo:
    saved = {"train": setup.train.to_json(), "data": setup.data.to_json()} if origin == "train" else {}
    return CheckpointInfo(0, 1, origin, setup.generator, "0" * 64, **saved)


def run_of(setup: Setup, run: Path, origin: str = "train") -> str:
    """The files of a run that tell what it learned from; returns the path of its checkpoint."""
    checkpoint = runs.checkpoint_folder(run, 1)
    checkpoint.mkdir(parents=True)
    (checkpoint / runs.CHECKPOINT_JSON).write_text(json.dumps(info_of(setup, origin).to_json()))
    if origin == "train":
        FolderSource(setup).record().write(run)
    return str(checkpoint)


def told(setup: Setup) -> tuple[bool | None, int | None, str, str]:
    """held_out and learned_before of the record, the one note, and what an export says of its label maps."""
    source = FolderSource(setup)
    measured_on = source.record().measured_on
    (note,) = source.notes
    described = golden_inputs(setup.generator, info_of(setup), None, None, 1).described
    return measured_on["held_out"], measured_on["learned_before"], note, described


def judged(setup: Setup) -> int | None:
    return learned_from(setup.data, setup.data, "val", setup.train.init)


def test_photos_that_the_initial_weights_learned_are_not_called_held_out(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    first = run_of(setup_of(folders, holdout=0), tmp_path / "first")
    second = run_of(setup_of(folders, first), tmp_path / "second")
    for init in (first, second):  # the third run learns from the first one's photos through the second one's weights
        setup = setup_of(folders, init)
        assert told(setup) == (
            False,
            2,
            LEARNED,
            "label maps of the data set's val split (2 of its 2 samples were learned in an earlier run)",
        )
        assert judged(setup) == 2


def test_only_the_photos_that_were_learned_are_counted(folders: dict[str, Path], tmp_path: Path) -> None:
    first = run_of(setup_of(folders, holdout=0.5), tmp_path / "first")
    learned = {name for name, _ in learned_before(first).samples}
    setup = setup_of(folders, first, holdout=0.5, holdout_seed=1)
    measured = set(FolderSource(setup).record().measured_on["samples"])
    assert 0 < len(learned & measured) < 10
    assert (told(setup)[:2], judged(setup)) == ((False, len(learned & measured)), len(learned & measured))


def test_what_each_run_of_a_chain_learned_counts(folders: dict[str, Path], tmp_path: Path) -> None:
    first = run_of(setup_of(folders, holdout=0.5), tmp_path / "first")
    other = setup_of(folders, holdout=0.5, holdout_seed=1)
    alone = run_of(other, tmp_path / "alone")
    second = run_of(replace(other, train=replace(other.train, init=first)), tmp_path / "second")
    each = [learned_before(path).samples for path in (first, alone)]
    assert [len(one) for one in each] == [10, 10]
    assert each[0] != each[1]
    assert learned_before(second).samples == each[0] | each[1]


def test_the_same_share_stays_held_out(folders: dict[str, Path], tmp_path: Path) -> None:
    first = run_of(setup_of(folders), tmp_path / "first")
    for init in (first, "earth", ""):
        setup = setup_of(folders, init)
        held_out, count, note, described = told(setup)
        assert (held_out, count, judged(setup)) == (True, 0, 0)
        assert note.startswith("2 of 20 samples are held out")
        assert described == "label maps of the data set's held-out samples"


def test_other_photos_of_the_same_names_were_not_learned(folders: dict[str, Path], tmp_path: Path) -> None:
    others = {**folders, "images": write_own_photos(tmp_path, 20, size=(40, 64), seed=1)[1]}
    first = run_of(setup_of(others, holdout=0), tmp_path / "first")
    assert told(setup_of(folders, first))[:2] == (True, 0)


def test_what_is_not_known_is_not_called_held_out(folders: dict[str, Path], tmp_path: Path) -> None:
    imported = run_of(setup_of(folders), tmp_path / "imported", origin="import")
    unrecorded = run_of(setup_of(folders), tmp_path / "unrecorded")
    (tmp_path / "unrecorded" / "data.json").unlink()
    after_import = run_of(setup_of(folders, imported), tmp_path / "after")
    for init in (imported, unrecorded, after_import, str(tmp_path / "gone")):
        setup = setup_of(folders, init)
        held_out, count, note, described = told(setup)
        assert (held_out, count, judged(setup)) == (None, None, None)
        assert note.startswith("it is not known what the weights that `init` names learned from")
        assert described.endswith("(it is not known whether the run's initial weights learned from them)")
    # What is known to have been learned is told, even where more may have been.
    partly = run_of(setup_of(folders, imported, holdout=0), tmp_path / "partly")
    assert told(setup_of(folders, partly))[:2] == (False, 2)
    assert not learned_before(partly).is_complete


def test_another_checkpoint_of_the_run_stands_in_for_one_that_was_removed(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    first = Path(run_of(setup_of(folders, holdout=0), tmp_path / "first"))
    (first / runs.GENERATOR_FILE).touch()
    first.rename(first.parent / "step_00000002")
    assert len(learned_before(str(first)).samples) == 20
    assert learned_before(str(first)).is_complete


def test_runs_that_name_each_other_end(folders: dict[str, Path], tmp_path: Path) -> None:
    path = str(runs.checkpoint_folder(tmp_path / "one", 1))
    setup = setup_of(folders)
    run_of(replace(setup, train=replace(setup.train, init=path)), tmp_path / "one")
    assert not learned_before(path).is_complete
    assert learned_before("") == Learned()
