"""What a machine with a GPU makes of all this: one run, one table, one file.

    python benchmarks/gpu_check.py [--step STEP] [--quick] [--batch N] [--precision P] [--graph KIND] [--work FOLDER]

Steps, each in a process of its own, so that one that fails, or that the driver kills, leaves the others alone:

    prepare      what other steps share: the generator and the exported graphs, kept in --work
    tests        the tests that need a GPU
    roofline     what the card could reach at best
    lookup       lookup with its patterns found on the card, against dense, as CUDA graphs
    onnxruntime  ONNX Runtime's CUDA provider beside a plain export
    torch        the graphs' latency in PyTorch
    numerics     folds, lookup and half precision in PyTorch on the card against the untouched module
    training     a training step: float32 as `spade train` computes it, and what half precision would change
    lookup_ort   finding and lookup as one graph in ONNX Runtime's CUDA provider, as a CUDA graph
    tensorrt     engines of all graphs against PyTorch, torch.compile and a plain export

Each step has its own time limit; --part 1 and --part 2 are at most seven minutes each, for a card that is lent for
minutes. A step whose library is missing is skipped and says what installs it. Generator: of ADE20K's size, 256 x 256;
its weights are random. The result is benchmarks/results/gpu-CARD.json; --step replaces that step in it. Exit code: 0;
1 where a step failed; 3 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu.records import Book, Outcome, read_outcome, run_step
from gpu.report import describe, exit_code, file_name, merged, table, to_json

from spade_deploy.engines.cuda.driver import require_gpu
from spade_deploy.errors import MissingDependencyError, SpadeError, line_of
from spade_deploy.files.atomic import write_json
from spade_deploy.spec import GraphKind, Precision

RESULTS = Path(__file__).resolve().parent / "results"
NO_GPU = 3
PARTS = {
    1: {"prepare": 120, "tests": 70, "roofline": 15, "lookup": 85, "onnxruntime": 130},
    2: {"torch": 60, "numerics": 40, "training": 60, "lookup_ort": 60, "tensorrt": 200},
}
"""The steps of each part, with their limits in seconds."""
LIMITS_S = {step: limit for part in PARTS.values() for step, limit in part.items()}
STEPS = tuple(LIMITS_S)
NEED_NO_CUDA_IN_TORCH = ("prepare", "tests")


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    if asked.worker:
        return work(asked)
    try:
        gpu = require_gpu()
    except SpadeError as error:
        print(f"gpu-check: nothing was measured: {error.message}", file=sys.stderr)
        print(
            "  hint: `spade doctor` says what is seen of a GPU; in a container, `docker run --gpus all`",
            file=sys.stderr,
        )
        return NO_GPU
    setting = setting_json(asked)
    machine, target = describe(gpu), asked.out / file_name(gpu, asked.quick)
    print(f"{gpu.name}, compute capability {machine['gpu']['compute_capability']}, driver {machine['driver']}")
    before = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else None
    outcomes = {outcome.step: outcome for outcome in merged(before, machine, setting)}
    steps = steps_of(asked)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for step in steps:
            print(f"{step} ...", flush=True)
            outcomes[step] = run_apart(step, folder, asked)
            ordered = [outcomes[name] for name in STEPS if name in outcomes]
            write_json(target, to_json(machine, setting, ordered))  # after each: a run that is stopped leaves the rest
    print(table(ordered))
    print(f"written to {target}")
    return exit_code([outcomes[step] for step in steps])


def steps_of(asked: argparse.Namespace) -> tuple[str, ...]:
    """The steps that were asked for, by name or by part; all of them by default."""
    named = [*(asked.step or ()), *(step for part in asked.part or () for step in PARTS[part])]
    return tuple(dict.fromkeys(named)) or STEPS


def run_apart(step: str, folder: Path, asked: argparse.Namespace) -> Outcome:
    """A step in a process of its own; what it had found stays, however it ends."""
    book = folder / f"{step}.json"
    book.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--worker", step, "--book", str(book), "--work", str(folder), *_passed(asked)]
    limit = LIMITS_S[step] if asked.limit is None else asked.limit
    start = time.perf_counter()
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=limit, check=False)
        died = how_it_died(done.returncode, done.stderr)
    except subprocess.TimeoutExpired:
        died = f"it was not done after {limit:g} s (--limit)"
    outcome = read_outcome(step, book, died)
    outcome.seconds = round(time.perf_counter() - start, 1)
    return outcome


def how_it_died(code: int, said: str) -> str:
    """Why a step's process ended without a result, '' where it ended well."""
    if code == 0:
        return ""
    last = line_of(said, last=True) or "it said nothing"
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"its process {how}: {last}"


def work(asked: argparse.Namespace) -> int:
    """Inside a step's process."""
    book = Book(asked.worker, asked.book)
    run_step(book, lambda book: _run(asked, book))
    return 0


def _run(asked: argparse.Namespace, book: Book) -> None:
    if asked.worker not in NEED_NO_CUDA_IN_TORCH:
        require_cuda_torch()
    try:
        from gpu.setting import make_setting
    except ImportError as error:  # whatever step it is: the graphs are exported first
        raise MissingDependencyError(
            f"an export needs what is not installed: {error}", hint="pip install 'spade-deploy[export]'"
        ) from error
    setting = make_setting(
        asked.quick,
        asked.work,
        batches=tuple(asked.batch or ()),
        rounds=asked.rounds,
        precisions=tuple(Precision(name) for name in asked.precision or ()),
        kinds=tuple(GraphKind(name) for name in asked.graph or ()),
        optimization_level=asked.optimization_level,
    )
    book.note("generator", setting.spec.to_json())
    book.note("maps", "COCO-Stuff samples" if setting.has_samples else "synthetic")
    book.note("rounds", setting.rounds)
    step_named(asked.worker)(setting, book)


def step_named(name: str) -> Callable[[Any, Book], None]:
    """The function of a step; imported here, since each needs other libraries."""
    if name == "prepare":
        from gpu.prepare import run_prepare as found
    elif name == "tests":
        from gpu.gpu_tests import run_gpu_tests as found
    elif name == "training":
        from gpu.training_step import run_training_step as found
    elif name == "numerics":
        from gpu.numerics import run_numerics as found
    elif name == "torch":
        from gpu.torch_latency import run_torch_latency as found
    elif name == "lookup":
        from gpu.lookup_on_card import run_lookup as found
    elif name == "onnxruntime":
        from gpu.ort_cuda import run_ort_cuda as found
    elif name == "lookup_ort":
        from gpu.lookup_in_ort import run_lookup_in_ort as found
    elif name == "tensorrt":
        from gpu.trt_engines import run_trt_engines as found
    else:
        from gpu.roofline import run_roofline as found
    return found


def require_cuda_torch() -> None:
    """Raise MissingDependencyError where PyTorch is not here, or is not built for CUDA, or finds no card.

    Where it is, it tries all of cuDNN's algorithms from here on.
    """
    hint = "pip install 'spade-deploy[export]', with a PyTorch for your driver's CUDA: https://pytorch.org/get-started"
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(f"PyTorch cannot be imported: {error}", hint=hint) from error
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise MissingDependencyError(f"PyTorch {torch.__version__} {built} and sees no GPU here", hint=hint)
    torch.backends.cudnn.benchmark = True  # every convolution by its fastest algorithm: a fair baseline


def setting_json(asked: argparse.Namespace) -> dict[str, Any]:
    """What decides the figures, as it was asked for; None where a default was taken."""
    names = ("quick", "batch", "rounds", "precision", "graph", "optimization_level")
    return {name: getattr(asked, name) for name in names}


def _passed(asked: argparse.Namespace) -> list[str]:
    passed = ["--quick"] if asked.quick else []
    for flag in ("batch", "precision", "graph"):
        for value in getattr(asked, flag) or ():
            passed += [f"--{flag}", str(value)]
    for flag in ("rounds", "optimization_level"):
        if getattr(asked, flag) is not None:
            passed += [f"--{flag.replace('_', '-')}", str(getattr(asked, flag))]
    return passed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=STEPS, action="append", help="may be repeated; all by default")
    parser.add_argument("--part", type=int, choices=list(PARTS), action="append", help="half of the steps")
    parser.add_argument("--quick", action="store_true", help="a small generator and few rounds: figures mean nothing")
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; 1 and 8 by default")
    parser.add_argument("--rounds", type=int, help="of every comparison; 50 by default")
    parser.add_argument("--precision", choices=list(Precision), action="append", help="of our graphs; all by default")
    parser.add_argument("--graph", choices=list(GraphKind), action="append", help="dense, lookup; both by default")
    parser.add_argument("--optimization-level", type=int, choices=range(6), help="of TensorRT's builder")
    parser.add_argument("--limit", type=float, help="seconds a step may take; each has its own by default")
    parser.add_argument("--work", type=Path, help="keeps exports and engines between runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--book", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # the steps that were done are written
        sys.exit(130)
