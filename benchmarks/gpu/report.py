"""What was found as a file and as a table, and the goals that it is held to."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gpu.records import Outcome, Row, Status
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.cuda.driver import Gpu

PACKAGES = (
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-lean", "tensorrt-dispatch", "tensorrt-rtx"),
    *("cuda-core", "cuda-bindings", "pycuda"),
)


@dataclass(frozen=True)
class Goal:
    """A figure to reach. value: None where it was not measured. Lower is better where `is_limit`."""

    name: str
    batch: int | None
    goal: float
    value: float | None
    is_limit: bool = False

    @property
    def is_reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.goal if self.is_limit else self.value >= self.goal

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_reached": self.is_reached}


def file_name(gpu: Gpu, is_quick: bool) -> str:
    """'gpu-CARD.json', where CARD is nvidia-h100-80gb-hbm3, for example.

    What --quick writes never takes the place of a real result.
    """
    card = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return f"gpu-{card}{'-quick' if is_quick else ''}.json"


def describe(gpu: Gpu) -> dict[str, Any]:
    """The machine, its card and driver, and the versions of what runs."""
    machine = describe_machine()
    found = {name: number for name in PACKAGES if (number := _version(name)) is not None}
    return {
        **machine,
        "packages": {**machine["packages"], **found},
        "gpu": {**asdict(gpu), "compute_capability": ".".join(map(str, gpu.compute_capability))},
        "driver": driver_version(),
    }


def driver_version() -> str | None:
    """NVIDIA's driver as nvidia-smi names it; None where there is no such program, as on a Jetson."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def goals_of(outcomes: Sequence[Outcome]) -> list[Goal]:
    """The goals of half precision, for every batch size that was measured, and for the best of its graphs."""
    found = []
    eager = _figure(outcomes, "numerics", "fp16 untouched", None, "mean_abs")
    for kind in ("dense", "lookup"):
        own = _figure(outcomes, "numerics", f"fp16 {kind}", None, "mean_abs")
        times = own / eager if own is not None and eager else None
        if own is not None:
            found.append(Goal(f"fp16 {kind}: error against PyTorch's fp16, times", None, 2.0, times, is_limit=True))
    for step, where in (("tensorrt", "engine"), ("onnxruntime", "in ONNX Runtime")):
        found += _goals_of_speed(outcomes, step, where)
    return found


def _goals_of_speed(outcomes: Sequence[Outcome], step: str, where: str) -> list[Goal]:
    """Of the fp16 graphs in one runtime, at the model's size: the best of their variants counts."""
    found = []
    rows = [row for outcome in outcomes if outcome.step == step for row in outcome.rows if " x " not in row.name]
    for batch in sorted({row.batch for row in rows if row.batch is not None}):
        ours = [row for row in rows if row.batch == batch and row.name.startswith(("fp16 dense", "fp16 lookup"))]
        for goal, figure, text in (
            (2.0, "faster_than_eager", "PyTorch fp16 eager channels last"),
            (1.3, "faster_than_plain_fp16", "a plain fp16 export"),
        ):
            best = max((value for row in ours if (value := row.figures.get(figure)) is not None), default=None)
            found.append(Goal(f"fp16 {where}: faster than {text}, times", batch, goal, best))
        floor = _figure(outcomes, "roofline", "fp16 dense", batch, "floor_ms")
        dense = [row.figures.get("device_p50_ms") for row in ours if row.name.startswith("fp16 dense")]
        least = min((value for value in dense if value is not None), default=None)
        over = least / floor if least is not None and floor else None
        found.append(Goal(f"fp16 dense {where}: over its floor, times", batch, 2.5, over, is_limit=True))
    return found


def to_json(machine: dict[str, Any], setting: dict[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The whole result; every raw time is in it."""
    return {
        "machine": machine,
        "setting": setting,
        "goals": [goal.to_json() for goal in goals_of(outcomes)],
        "steps": {outcome.step: outcome.to_json() for outcome in outcomes},
    }


def merged(before: dict[str, Any] | None, machine: dict[str, Any], setting: dict[str, Any]) -> list[Outcome]:
    """The steps of an earlier result that stay: all, where it is of this very machine and setting, else none."""
    if before is None or before.get("machine") != machine or before.get("setting") != setting:
        return []
    return [Outcome.from_json(value) for value in before["steps"].values()]


def table(outcomes: Sequence[Outcome]) -> str:
    """A line a candidate and batch size, under its step; then the goals."""
    lines = []
    for outcome in outcomes:
        took = f", {outcome.seconds:.0f} s" if outcome.seconds is not None else ""
        lines.append(f"{outcome.step}: {outcome.status}{took}{': ' + outcome.reason if outcome.reason else ''}")
        if outcome.hint:
            lines.append(f"  hint: {outcome.hint}")
        lines += [_line(row, outcomes) for row in outcome.rows]
    goals = goals_of(outcomes)
    if goals:
        lines.append("goals")
    for goal in goals:
        sign = "at most" if goal.is_limit else "at least"
        verdict = {True: "reached", False: "MISSED", None: "not measured"}[goal.is_reached]
        value = "" if goal.value is None else f"{goal.value:.2f}, "
        batch = "" if goal.batch is None else f", batch {goal.batch}"
        lines.append(f"  {goal.name}{batch}: {value}{sign} {goal.goal:g}: {verdict}")
    return "\n".join(lines)


def _line(row: Row, outcomes: Sequence[Outcome]) -> str:
    name = row.name if row.batch is None else f"{row.name}, batch {row.batch}"
    if row.failures:
        return f"  {name:<46} FAILED: {row.failures[0]}"
    figures = row.figures
    floor = _figure(outcomes, "roofline", row.name, row.batch, "floor_ms")
    device = figures.get("device_p50_ms")
    parts = [
        _part(figures, "device_p50_ms", "{:.3f} ms"),
        "" if device is None or floor is None else f"{device / floor:.2f} x floor",
        _part(figures, "end_to_end_p50_ms", "{:.3f} ms end to end"),
        _part(figures, "images_per_s", "{:.1f} images/s"),
        _part(figures, "faster_than_untouched", "{:.2f} x faster than untouched"),
        _part(figures, "faster_than_dense", "{:.2f} x dense"),
        _part(figures, "end_to_end_faster_than_dense", "{:.2f} x dense end to end"),
        _part(figures, "faster_than_eager", "{:.2f} x eager"),
        _part(figures, "faster_than_eager_graph", "{:.2f} x eager as a CUDA graph"),
        _part(figures, "faster_than_plain_fp16", "{:.2f} x plain"),
        _part(figures, "steps_per_s", "{:.2f} steps/s"),
        _part(figures, "peak_memory_bytes", "{:,.0f} bytes"),
        _part(figures, "floor_ms", "floor {:.3f} ms"),
        _part(figures, "by_layer_ms", "layer by layer {:.3f} ms"),
        _part(figures, "mean_abs", "mean error {:.2e}"),
        _part(figures, "psnr_db", "{:.1f} dB"),
    ]
    return f"  {name:<46} {', '.join(filter(None, parts)) or row.note}".rstrip()


def _part(figures: dict[str, float | None], name: str, form: str) -> str:
    value = figures.get(name)
    return "" if value is None else form.format(value)


def _figure(outcomes: Sequence[Outcome], step: str, name: str, batch: int | None, figure: str) -> float | None:
    for outcome in outcomes:
        for row in outcome.rows if outcome.step == step else []:
            if row.name == name and row.batch == batch and not row.failures:
                return row.figures.get(figure)
    return None


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """1 where a step failed. One that was skipped is no failure: it says what is missing."""
    return int(any(outcome.status is Status.FAILED for outcome in outcomes))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
