"""What `choosing.py` makes of its result: a plot that reads on light and on dark pages, a headline and a table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from spade_deploy.bench.entries import QUIET
from spade_deploy.files.atomic import atomic_file, write_text

BEGIN, END = "<!-- choosing:begin -->", "<!-- choosing:end -->"
EXACT_DB = 100.0
"""A PSNR of more than this is what float32's own rounding leaves: the same function."""
IDENTICAL_DB = 150.0
"""Where images without any difference stand in the plot."""
PEERS = {"eager": "PyTorch", "plain": "plain, ONNX Runtime", "openvino": "plain, OpenVINO"}
"""What stands beside the points that are no choices of ours."""

_INK, _GRID = "#80858c", "#9aa0a655"
_ENGINES = {"ONNX Runtime": "#3b82f6", "OpenVINO": "#f97316", "plain export": "#80858c"}
_STUDENTS = ("#16a34a", "#d946ef", "#0d9488", "#ca8a04", "#dc2626")
_MARKS = {"fp32": "o", "bf16": "s", "fp16": "D", "int8": "^"}

_TICKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)

Result = dict[str, Any]


def timed(result: Result) -> list[dict[str, Any]]:
    """The points that were measured."""
    return [point for point in result["points"] if "p50_ms" in point]


def draw(result: Result, path: Path) -> None:
    """Two panels over the milliseconds: PSNR against PyTorch, and the kernel distance from real photos."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colors: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "spade-deploy",
        "text.color": _INK,
        "axes.labelcolor": _INK,
    }
    colors |= {"axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "font.size": "10"}
    with mpl.rc_context(colors):
        figure = Figure(figsize=(9, 7.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for axes in (upper, lower):
            axes.grid(color=_GRID, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        for point in timed(result):
            color, is_lookup = _color(result, point), point["graph"] == "lookup"
            style = {
                "marker": _MARKS[point["precision"]],
                "color": color,
                "markerfacecolor": color if is_lookup else "none",
                "markersize": 8,
                "linestyle": "none",
            }
            upper.plot(point["p50_ms"], _db(point), **style)
            lower.plot(point["p50_ms"], point["kernel"], **style)
            if point["kind"] in PEERS:
                place = (point["p50_ms"], _db(point))
                upper.annotate(
                    PEERS[point["kind"]], place, (0, -14), textcoords="offset points", ha="center", fontsize=8
                )
        upper.set_ylabel("PSNR in dB, against PyTorch float32")
        lower.set_ylabel("kernel distance from real photos")
        lower.set_xlabel("milliseconds an image, median (logarithmic)")
        lower.axhline(result["reference"]["kernel"], color=_INK, linewidth=0.8, linestyle=":")
        upper.set_xscale("log")
        ticks = [tick for tick in _TICKS if _is_near(tick, result)]
        lower.set_xticks(ticks, [str(tick) for tick in ticks])
        lower.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        kernels = [result["reference"]["kernel"], *(point["kernel"] for point in timed(result))]
        lower.set_ylim(min(0.0, 1.15 * min(kernels)), max(0.0, 1.15 * max(kernels)))
        upper.set_ylim(top=IDENTICAL_DB + 5)
        figure.legend(handles=_legend(result), loc="outside lower center", ncols=4, frameon=False, labelcolor=_INK)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="svg", transparent=True, metadata={"Date": None})


def write_table(result: Result, page: Path) -> None:
    """Put the headline and the table between the page's two markers. Raises ValueError if they are missing."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page}: the lines {BEGIN} and {END} are missing, each once")
    body = f"{BEGIN}\n{shown(result)}\n{END}"
    write_text(page, re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: body, text, flags=re.DOTALL))


def shown(result: Result) -> str:
    """The headline and the table, as Markdown."""
    lines = [*headline(result), "", *table(result)]
    failed = [point for point in result["points"] if "p50_ms" not in point]
    lines += ["", *(f"Not measured: {point['model']}, {point['name']} ({point['reason']})." for point in failed)]
    return "\n".join(lines).rstrip() + "\n"


def headline(result: Result) -> list[str]:
    """What was measured, and the fastest of each kind of choice."""
    machine, teacher = result["machine"], next(iter(result["models"]))
    of_teacher = [point for point in timed(result) if point["model"] == teacher and point["kind"] == "graph"]
    where = f"{machine['cpu_model']} ({machine['cpu_kind']}), {result['threads']} threads"
    shares = result["others_share"]
    quiet = sum(share <= QUIET for share in shares)
    what = f"{len(result['tiles'])} held-out tiles of 128 x 128 pixels, {len(shares)} rounds ({quiet} undisturbed)"
    lines = [f"{where}, {what}:", ""]
    exact = [point for point in of_teacher if _db(point) > EXACT_DB]
    lossy = [point for point in of_teacher if _db(point) <= EXACT_DB]
    students = [point for point in timed(result) if point["model"] != teacher]
    for name, found in (("Exact", exact), ("Lower precision", lossy), ("Student", students)):
        if found:
            lines.append(f"- {name}: the fastest is {_described(min(found, key=lambda one: one['p50_ms']), teacher)}.")
    return lines


def table(result: Result) -> list[str]:
    """A row for each point, the fastest first."""
    lines = [
        "| model | engine | precision | graph | ms | again | times as fast | PSNR | kernel distance |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for point in sorted(timed(result), key=lambda one: one["p50_ms"]):
        engine = point["name"] if point["kind"] != "graph" else point["engine"]
        again = point.get("again_ms")
        ratio = f"{point['times_as_fast_as_plain']:.2f}" if "times_as_fast_as_plain" in point else ""
        db = "identical" if point["psnr_db"] is None else f"{point['psnr_db']:.1f} dB"
        lines.append(
            f"| {point['model']} | {engine} | {point['precision']} | {point['graph'] or ''} | {point['p50_ms']:.1f}"
            f" | {'' if again is None else f'{again:.1f}'} | {ratio} | {db} | {point['kernel']:.3f} |"
        )
    return lines


def _described(point: dict[str, Any], teacher: str) -> str:
    whose = "" if point["model"] == teacher else f"{point['model']}, "
    ratio = point.get("times_as_fast_as_plain")
    fast = "" if ratio is None else f", {ratio:.2f} times as fast as a plain export in ONNX Runtime"
    db = "no difference" if point["psnr_db"] is None else f"{point['psnr_db']:.0f} dB"
    return f"{whose}{point['name']}: {point['p50_ms']:.1f} ms{fast}; {db}, kernel distance {point['kernel']:.3f}"


def _db(point: dict[str, Any]) -> float:
    return IDENTICAL_DB if point["psnr_db"] is None else min(point["psnr_db"], IDENTICAL_DB)


def _color(result: Result, point: dict[str, Any]) -> str:
    teacher, *students = result["models"]
    if point["model"] == teacher:
        return _ENGINES[point["engine"]]
    return _STUDENTS[students.index(point["model"]) % len(_STUDENTS)]


def _is_near(tick: float, result: Result) -> bool:
    found: list[float] = [point["p50_ms"] for point in timed(result)]
    return min(found) / 1.6 <= tick <= max(found) * 1.6


def _legend(result: Result) -> list[Any]:
    from matplotlib.lines import Line2D

    def mark(label: str, color: str, marker: str, *, is_filled: bool = True) -> Any:
        face = color if is_filled else "none"
        return Line2D([], [], color=color, marker=marker, markerfacecolor=face, linestyle="none", label=label)

    teacher, *students = result["models"]
    found = [mark(f"{teacher}, {engine}" if engine != "plain export" else "the same weights, others' tools", color, "o")
             for engine, color in _ENGINES.items()]  # fmt: skip
    found += [mark(name, _STUDENTS[number % len(_STUDENTS)], "o") for number, name in enumerate(students)]
    precisions = {point["precision"] for point in timed(result)}
    found += [mark(name, _INK, marker) for name, marker in _MARKS.items() if name in precisions]
    return [*found, mark("lookup graph", _INK, "o"), mark("dense graph", _INK, "o", is_filled=False)]
