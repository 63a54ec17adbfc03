"""Train runs that are killed at one point each; a program, since a killed process cannot test itself.

`python -m tests.support.killed_runs FOLDER POINT...` leaves FOLDER/POINT for every point, and prints those
that were not reached. The processes are forked before PyTorch computes anything, so its import is paid for once.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.loop import train
from spade_deploy.training.records import measurements, recorder, run_folder
from spade_deploy.training.records.measurements import Measures
from tests.support.training_runs import Noise, setup_of

KILLED = 9


def setup() -> Setup:
    """A checkpoint every second step, a grid and a measurement too, each checkpoint's rest due in one step."""
    return setup_of(steps=4, save_every=2, sample_every=2, eval_every=2, keep_checkpoints=1, best_by="brightness")


class Measured(Noise, Measures):
    """Measures how bright the images are: another value for other weights."""

    def evaluator(self, setup: Setup) -> Measures:
        return self

    def evaluate(self, generate: Callable[[Batch], torch.Tensor]) -> dict[str, float]:
        return {"brightness": float(generate(self.samples(4)).double().mean())}

    def unfit(self) -> dict[str, str]:
        return {}

    def direction(self, name: str) -> str:
        return "higher"


POINTS: dict[str, tuple[Any, str, str]] = {
    "before pruning": (recorder, "prune", "before"),
    "while pruning": (run_folder.shutil, "rmtree", "before"),
    "before the counts of classes": (recorder.ClassCounts, "write", "before"),
    "before the plot of losses": (recorder, "plot_losses", "before"),
    "before the grid": (recorder, "save_pixels", "before"),
    "after the grid": (recorder, "save_pixels", "after"),
    "before measuring": (Measured, "evaluate", "before"),
    "after measuring": (Measured, "evaluate", "after"),
    "before the mark of the best": (recorder.Recorder, "_keep_if_best", "before"),
    "after the mark of the best": (recorder.Recorder, "_keep_if_best", "after"),
    "before the plot of metrics": (measurements, "plot_metrics", "before"),
    "before the timeline": (recorder, "save_timeline", "before"),
    "before the animation": (recorder, "save_gif", "before"),
}
"""Name: whose attribute is called there, its name, and whether the kill comes before or after the call."""


def kill_in_call(owner: Any, name: str, when: str, number: int) -> None:
    """End this process at once in call `number` of a function, as SIGKILL would: nothing is cleaned up."""
    real, calls = getattr(owner, name), 0

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os._exit(KILLED)
        result = real(*args, **kwargs)
        if calls == number:
            os._exit(KILLED)
        return result

    setattr(owner, name, killing)


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)  # as in the tests: another number rounds otherwise
    for name in names:
        child = os.fork()
        if child == 0:
            point, _, number = name.rpartition(" ")
            kill_in_call(*POINTS[point], int(number))
            run = folder / name
            run.mkdir(parents=True)
            train(setup(), run=run, source=Measured())
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != KILLED:
            print(name, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
