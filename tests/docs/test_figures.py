"""The figures that pages give by hand are those of the raw results: each row is made from its result again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from statistics import median
from typing import Any

import pytest

from tests.support.paths import ROOT

GB = 1e9


@cache
def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def judged(found: dict[str, Any]) -> list[str]:
    """Frechet and kernel distance, mIoU, pixels and L1 of a row of an evaluation; what it has not is empty."""
    frechet, kernel = (found[name] and found[name]["value"] for name in ("frechet", "kernel"))
    formats = (
        (frechet, "{:.1f}"),
        (kernel, "{:.3f}"),
        (found["miou"], "{:.3f}"),
        (found["accuracy"], "{:.1%}"),
        (found["l1"], "{:.3f}"),
    )
    return ["" if value is None else form.format(value).replace("%", " %") for value, form in formats]


def shipped_model() -> Iterable[str]:
    found = result("earth-model")
    names = ("shipped model", "240 steps of `--preset earth`", "real photos (test split)", "real photos (train split)")
    for name, one in zip(names, (*found["models"], *found["references"]), strict=True):
        yield row(name, *judged(one))


def students() -> Iterable[str]:
    for name in ("earth-students-widths", "earth-students"):
        models = result(name)["models"].values()
        for facts, one in zip(models, result(name)["evaluation"]["models"], strict=True):
            frechet, kernel, miou, pixels, l1 = judged(one)
            frechet += f" ± {one['intervals_95']['frechet']:.1f}"
            kernel += f" ± {one['intervals_95']['kernel']:.3f}"
            widths = f"{facts['base_channels']}, {facts['hidden_channels']}"
            yield row(
                f"{widths}, step {facts['step']}" if facts["step"] else f"teacher ({widths})",
                f"{facts['share_of_teacher']:.2f}" if facts["step"] else "1",
                *(frechet, kernel, miou, pixels, l1, f"{one['psnr']:.1f} dB"),
                *(f"{facts['parameters'] / 1e6:.2f} M", f"{facts['dense_macs'] / GB:.2f}"),
                f"{facts['lookup_macs'] / GB:.2f}",
            )


def searched_widths() -> Iterable[str]:
    found = result("width-search")
    (trained,) = found["training"]["runs"]
    uniform = next(one for one in found["search"]["rows"] if one["is_uniform"])
    best = min(found["search"]["rows"], key=lambda one: one["distance"])
    for name, key, one in (("narrowed alike", "uniform", uniform), ("searched widths", "searched", best)):
        fastest = (found["milliseconds"]["fastest_ms"][f"{key}, {engine}"] for engine in ("onnxruntime", "openvino"))
        yield row(
            name,
            *(",".join(str(width) for width in one[level]) for level in ("level_channels", "level_hidden")),
            *(f"{one['lookup_macs'] / GB:.3f}", f"{one['dense_macs'] / GB:.3f}", f"{one['parameters'] / 1e6:.2f} M"),
            *(f"{trained[key]['l1']:.4f}", f"{trained[key]['psnr_db']:.1f} dB", *(f"{value:.1f}" for value in fastest)),
        )
    last = trained["searched, from its slice"]
    yield f"| {last['l1']:.4f} | {last['psnr_db']:.1f} dB | | |"


def training_speed() -> Iterable[str]:
    names = {
        "fp32": "`spade train`",
        "fp32, lookup": "`--modulation lookup`",
        "bf16": "`--amp bf16`",
        "bf16, lookup": "both",
    }
    presets = [result(f"training-{preset}")["candidates"] for preset in ("ade20k", "earth")]
    for key, name in names.items():
        yield row(name, *(f"{found[key]['faster_than_plain']:.1f} x" for found in presets))
    yield " | ".join(f"{found['plain loop of 2019']['seconds_per_step']:.2f} s" for found in presets)


def training_memory() -> Iterable[str]:
    bytes_of = {
        (one["preset"], one["batch_size"], one["amp"]): one["bytes"]["total"]
        for one in result("training-memory")["presets"]
    }
    kinds = [(size, amp) for size in (1, 4) for amp in ("off", "bf16")]
    for preset in ("coco", "ade20k", "cityscapes", "facades", "earth"):
        yield row(preset, *(f"{bytes_of[preset, *kind] / GB:.1f}" for kind in kinds))


def winograd_layers() -> Iterable[str]:
    for one in result("winograd-layers")["layers"][:10]:
        gains = (f"{one[f'tiles_of_{side}']['is_faster_by']:.2f} x" for side in (2, 4))
        sides = f"{one['side']} x {one['side']}"
        yield row(f"{one['inputs']} to {one['outputs']}", sides, f"{median(one['direct_cpu_ms']):.0f}", *gains)


def sums_of_rows() -> Iterable[str]:
    for one in result("pattern-sums")["rows"]:
        sizes = ", ".join(f"{one[name]:,}" for name in ("windows", "patterns", "columns"))
        yield row(sizes, *(f"{one['cpu_ms'][how]:.1f}" for how in ("product", "sums of rows", "nine gathers")))


def peak_memory() -> Iterable[str]:
    points = result("memory")["points"]
    for point, pairs in (
        ("coco-256x256", (("fp32 lookup, ONNX Runtime", "plain export, ONNX Runtime", 2),
                          ("fp32 lookup, OpenVINO", "plain export, OpenVINO f32", 3),
                          ("bf16 lookup, OpenVINO", "plain export, OpenVINO's default", 2))),
        ("cityscapes-1024x2048", (("fp32 lookup, ONNX Runtime", "plain export, ONNX Runtime", 1),
                                  ("fp32 lookup, OpenVINO", "plain export, OpenVINO f32", 1))),
    ):  # fmt: skip
        candidates = points[point]["candidates"]
        for ours, plain, digits in pairs:
            both = (f"{candidates[name]['peak_memory_bytes'] / GB:.{digits}f} GB" for name in (ours, plain))
            yield "| " + " | ".join(both) + " |"


def workers() -> Iterable[str]:
    for case, name, digits in (("earth", "the small Earth generator", 1), ("coco", "a model of ADE20K's size", 2)):
        found = result("infer_workers")["cases"][case]["workers"]
        yield row(name, *(f"{found[count]['images_per_s']:.{digits}f}" for count in "123"))


def card() -> Iterable[str]:
    rows = result("gpu-nvidia-h200")["steps"]["onnxruntime"]["rows"]
    found = {(one["name"], one["batch"]): one["figures"] for one in rows}
    places = (("", 1), ("", 8), (", 512 x 512", 1))
    for name, key, time, mark in (
        ("PyTorch eager, channels last", "PyTorch fp16 eager, channels last", "end_to_end", ""),
        ("plain export in ONNX Runtime's CUDA provider", "plain export fp16", "end_to_end", ""),
        ("**dense graph there** (channels last, tuned, CUDA graph)",
         "fp16 dense, tuned, channels last, CUDA graph", "end_to_end", "**"),
        ("lookup graph there, patterns found on the CPU", "fp16 lookup, channels last", "end_to_end", ""),
        ("lookup graph there, tables and pixels on the card", "fp16 lookup, channels last", "device", ""),
    ):  # fmt: skip
        times = (found[f"{key}{ending}", batch][f"{time}_p50_ms"] for ending, batch in places)
        yield row(name, *(f"{mark}{value:.1f} ms{mark}" for value in times))


def edits() -> Iterable[str]:
    sizes = result("edit-latency")["sizes"]
    new_rows = [one["runtime"]["share_of_new_patterns_median"] for one in sizes.values()]
    yield f"has {100 * min(new_rows):.0f} to {100 * max(new_rows):.0f} % new rows"
    small, large = sizes["256x256"], sizes["512x512"]
    edit, full = (small["http"][what]["median_ms"] for what in ("edit", "full"))
    yield f"an edit over HTTP takes {edit:.0f} ms at 256 x 256 and a full request {full:.0f} ms"
    yield f"({small['http']['edit_is_faster_by']:.2f} times as long"
    yield f"{small['live']['edit_is_faster_by']:.2f} times over the WebSocket"
    yield "ratios are {:.2f} and {:.2f}".format(*(large[how]["edit_is_faster_by"] for how in ("http", "live")))
    yield "a factor of {:.2f}\n  and {:.2f}".format(*(one["runtime"]["edit_is_faster_by"] for one in (small, large)))


def winograd_model() -> Iterable[str]:
    found = result("cpu-graphs-winograd")["candidates"]
    plain = {name: one["is_faster_by"]["plain, ONNX Runtime"]["wall"] for name, one in found.items()}
    direct, tiles = plain["lookup, OpenVINO f32"], plain["lookup, OpenVINO f32, Winograd"]
    yield f"was {direct:.2f} times as fast with direct convolutions and {tiles:.2f} times"
    dense, dense_tiles = plain["dense, OpenVINO f32"], plain["dense, OpenVINO f32, Winograd"]
    yield f"the dense graph was {dense:.2f} and {dense_tiles:.2f} times as fast"
    yield f"{tiles / direct:.2f} times the lookup graph, {dense_tiles / dense:.2f} times the dense graph"
    decibels = [found[name]["psnr_db"] for name in ("lookup, OpenVINO f32", "lookup, OpenVINO f32, Winograd")]
    yield "the PSNR rises from {:.1f} to {:.1f} dB".format(*decibels)
    ours = result("peers-ade20k-256-amx")["over_maps"]["this artifact, fp32 lookup, OpenVINO"]
    yield f"**{ours['times_plain']:.1f} times** as fast as a plain export in ONNX Runtime"
    times = result("cpu-graphs-residual")["cpu_ms"]
    pairs = zip(times["new lookup, OpenVINO bf16"], times["lookup, OpenVINO bf16"], strict=True)
    yield f"{median(new / old for new, old in pairs):.2f} of the processor time of the lookup graph in bf16"


def styles() -> Iterable[str]:
    """The differences that the page calls noise, and the one that is more than it."""
    verdicts = result("earth-styles")["evaluation"]["verdicts"]
    assert [name for name in ("frechet", "kernel") if verdicts[name]["best"]] == []
    yield f"{verdicts['miou']['difference']:.3f} ± {verdicts['miou']['noise']:.3f}"
    moved = [one["of_pixels"] for name, one in result("earth-styles")["styles"].items() if name.startswith("seed")]
    yield f"moves a pixel by {min(moved):.3f} to {max(moved):.3f}"


@pytest.mark.parametrize(
    ("page", "rows"),
    [
        ("docs/models/earth.md", shipped_model),
        ("docs/metrics.md", shipped_model),
        ("docs/models/earth.md", styles),
        ("docs/students.md", students),
        ("docs/students.md", searched_widths),
        ("docs/training.md", training_speed),
        ("docs/training.md", training_memory),
        ("docs/cpu.md", winograd_layers),
        ("docs/cpu.md", winograd_model),
        ("docs/cpu.md", sums_of_rows),
        ("docs/lookup.md", peak_memory),
        ("docs/scale.md", workers),
        ("docs/serving.md", edits),
        ("docs/tensorrt.md", card),
    ],
)
def test_the_page_has_the_figures_of_its_result(page: str, rows: Callable[[], Iterable[str]]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    expected = list(rows())
    assert len(expected) > 1
    assert [one for one in expected if one not in text] == []
