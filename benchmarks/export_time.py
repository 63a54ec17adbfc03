"""How long an export takes, step by step: a small and a full-size model with made weights, here and in other checkouts.

    python benchmarks/export_time.py                                  # small: about a minute
    python benchmarks/export_time.py --size full --source ../before   # full size: about a quarter of an hour

Each checkout exports the same checkpoint in a process of its own, one after the other: fp32 and fp16, dense and lookup,
with validation and break-evens. Processor time (user and system) is the figure to trust on a machine that others use.
The full size is that of COCO-Stuff: 182 labels and edges, 64 base channels, 256 x 256 pixels.
--source: another checkout of this project, such as a git worktree of an earlier commit; it may be repeated.
--add: keep the exports that the result file holds, so that checkouts can be measured one by one.
--work: a folder in which the checkpoint is kept; a new temporary one if left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

WORKER = """
import json, sys, time
from pathlib import Path
from spade_deploy.progress import Silent
from spade_deploy.release.release import export_checkpoint
from spade_deploy.release.request import ReleaseRequest

import spade_deploy

source, run, out, found = map(Path, sys.argv[1:])
assert Path(spade_deploy.__file__).is_relative_to(source), f"{spade_deploy.__file__} is not of {source}"
steps = []

class Listener(Silent):
    def step(self, what):
        steps.append([what, time.perf_counter(), time.process_time()])

release = export_checkpoint(ReleaseRequest(checkpoint=run, out=out, fp16=True), progress=Listener())
steps.append(["end", time.perf_counter(), time.process_time()])
found.write_text(json.dumps([
    {"step": one[0].replace(str(run), "RUN"), "wall_s": two[1] - one[1], "processor_s": two[2] - one[2]}
    for one, two in zip(steps, steps[1:])
]))
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--source", type=Path, action="append", default=[])
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        work = asked.work or Path(scratch)
        run = made_run(work, asked.size)
        found = [measured(source.resolve(), run, work) for source in (*asked.source, ROOT)]
    out = asked.out or RESULTS / f"export-time-{asked.size}.json"
    if asked.add and out.exists():
        found = [*json.loads(out.read_text(encoding="utf-8"))["exports"], *found]
    result = {"size": asked.size, "threads": os.environ.get("OMP_NUM_THREADS"), "exports": found}
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for one in found:
        print(f"{one['commit']}: {one['processor_s']:.1f} s of processor time, {one['wall_s']:.1f} s")
    return 0


def made_run(work: Path, size: str) -> Path:
    """A run folder with a checkpoint of made weights; one that is there is kept."""
    from models import COCO, SMALL, make_generator

    from spade_deploy.runs import checkpoint_folder
    from spade_deploy.runs.checkpoint import save_checkpoint

    run = work / f"run-{size}"
    if not run.exists():
        spec = COCO if size == "full" else SMALL
        save_checkpoint(checkpoint_folder(run, 0), make_generator(spec), step=0, origin="import")
    return run


def measured(source: Path, run: Path, work: Path) -> dict[str, object]:
    """The steps of one export by the checkout in `source`, each with wall and processor seconds."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        steps = Path(folder) / "steps.json"
        command = [
            sys.executable,
            "-P",
            "-c",
            WORKER,
            str(source),
            str(run),
            str(Path(folder) / "artifact"),
            str(steps),
        ]
        began, before = time.perf_counter(), os.times()
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(source)})
        wall, after = time.perf_counter() - began, os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        told = json.loads(steps.read_text(encoding="utf-8"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=source, capture_output=True, text=True, check=True
    ).stdout.strip()
    return {"commit": commit, "wall_s": wall, "processor_s": spent, "steps": told}


if __name__ == "__main__":
    raise SystemExit(main())
