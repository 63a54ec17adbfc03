"""From a laptop to 64 GPUs: measured times of the parts of an image, and a simulation of what they add up to.

    python benchmarks/cluster_sums.py --measure            # the times and the check on this machine, then the rest
    python benchmarks/cluster_sums.py                      # the sums again, of the times that the result has
    python benchmarks/cluster_sums.py --figure FILE.svg    # draw the result

1. On this machine: decoding, running, encoding and counting an image and starting a worker are timed one by one, each
   alone. The simulation then says how many images/s 1, 2 and 3 workers make, and `spade infer` is measured with them,
   round by round. This is the check of the simulation: no time in it is fitted.
2. On cards: the times of the model are those of `results/gpu-nvidia-h200.json`, of one card, and finding patterns is
   that of `results/patterns.json`; decoding, encoding and counting are timed here. What stands in `ASSUMED` is an
   assumption. Nothing was measured with more than one card: those figures are arithmetic.

The simulation is a network of queues (`cluster_model.py`, `queueing.py`).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from cluster_model import CardTimes, Fleet, capacities, on_cards
from cluster_parts import RESULTS, check, parts_at_256

from spade_deploy.bench.machine import describe_machine
from spade_deploy.files.atomic import atomic_file, write_json

OUT = RESULTS / "cluster-sums.json"
CARDS = (1, 2, 4, 8, 16, 32, 64)
GRAPHS = {"dense": "fp16 dense, tuned, channels last, CUDA graph", "lookup": "fp16 lookup, channels last"}
"""The rows of ONNX Runtime in the result of the card, batch 8."""
BATCH = 8
ASSUMED = {
    "cards in a machine": 8,
    "cores for each card": 16,
    "network of a machine, bytes/s": 25e9 / 8,
    "bucket: seconds until the first byte of a read": 0.03,
    "bucket: seconds until a write is confirmed": 0.05,
    "bucket: reads/s of one prefix": 5500,
    "bucket: writes/s of one prefix": 3500,
    "shared disk: seconds of a read": 0.001,
    "shared disk: seconds of a write": 0.002,
    "shared disk: reads/s and writes/s": 200_000,
    "price of a card with its cores, for an hour": 2.0,
}
"""Nothing here was measured. The requests/s of a bucket are those that Amazon states for S3; the rest is round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    if arguments.measure:
        checked = check(arguments.rounds)
        parts = parts_at_256(checked["times"]["count_s"])
        found = {"machine": describe_machine(), "check": checked, "parts": parts}
    else:
        found = json.loads(arguments.out.read_text())
    write_json(arguments.out, {**found, "assumed": ASSUMED, "cards": sums(found["parts"])})
    result = json.loads(arguments.out.read_text())
    print(check_table(result), cards_table(result), sep="\n\n")
    if arguments.figure is not None:
        draw(result, arguments.figure)


# --- on cards


def fleets(cards: int) -> dict[str, Fleet]:
    """The places that files may lie in, for that many cards."""
    usual = Fleet(
        cards=cards,
        cards_per_node=int(ASSUMED["cards in a machine"]),
        cores_per_card=int(ASSUMED["cores for each card"]),
        workers_per_card=1,
        threads=4,
        ahead=2 * BATCH + 4,
        get_s=ASSUMED["shared disk: seconds of a read"],
        put_s=ASSUMED["shared disk: seconds of a write"],
        gets_per_s=ASSUMED["shared disk: reads/s and writes/s"],
        puts_per_s=ASSUMED["shared disk: reads/s and writes/s"],
        node_bytes_per_s=ASSUMED["network of a machine, bytes/s"],
    )
    bucket = replace(
        usual,
        threads=16,
        ahead=2 * BATCH + 16,
        get_s=ASSUMED["bucket: seconds until the first byte of a read"],
        put_s=ASSUMED["bucket: seconds until a write is confirmed"],
        gets_per_s=ASSUMED["bucket: reads/s of one prefix"],
        puts_per_s=ASSUMED["bucket: writes/s of one prefix"],
    )
    return {
        "dense, shared disk": usual,
        "dense, bucket": bucket,
        "dense, bucket, 2 workers a card": replace(bucket, workers_per_card=2),
        "lookup, shared disk": usual,
        "lookup, shared disk, 4 workers a card": replace(usual, workers_per_card=4),
    }


def card_times(parts: dict[str, float], graph: str) -> CardTimes:
    rows = json.loads((RESULTS / "gpu-nvidia-h200.json").read_text())["steps"]["onnxruntime"]["rows"]
    by_name = {(row["name"], row["batch"]): row["figures"] for row in rows}
    found, dense = by_name[GRAPHS[graph], BATCH], by_name[GRAPHS["dense"], BATCH]
    return CardTimes(
        decode_s=parts["decode_s"],
        patterns_s=parts["patterns_s"] if graph == "lookup" else 0.0,
        run_s=found["device_p50_ms"] / BATCH / 1000,
        # Of the dense graph: with lookup, what is more than the device's time is mostly the search for patterns.
        copy_s=(dense["end_to_end_p50_ms"] - dense["device_p50_ms"]) / BATCH / 1000,
        encode_s=parts["encode_s"],
        count_s=parts["count_s"],
        label_bytes=parts["label_bytes"],
        photo_bytes=parts["photo_bytes"],
    )


def sums(parts: dict[str, float]) -> dict[str, Any]:
    """For each place and number of cards: images/s of the simulation, the two narrowest parts, and the cost."""
    found: dict[str, Any] = {}
    for name in fleets(1):
        times = card_times(parts, name.partition(",")[0])
        found[name] = {"times": asdict(times), "cards": {}}
        for cards in CARDS:
            fleet = fleets(cards)[name]
            limits = sorted(capacities(times, fleet).items(), key=lambda item: item[1])
            rate = on_cards(times, fleet)
            price = ASSUMED["price of a card with its cores, for an hour"] * cards
            found[name]["cards"][str(cards)] = {
                "images_per_s": rate,
                "bottleneck": limits[0][0],
                "bottleneck_images_per_s": limits[0][1],
                "next": limits[1][0],
                "next_images_per_s": limits[1][1],
                "cost_of_a_million_images": price * 1e6 / (3600 * rate),
            }
    return found


def check_table(result: dict[str, Any]) -> str:
    """The check, as Markdown."""
    earlier = json.loads((RESULTS / "infer_workers.json").read_text())["cases"]["earth"]["workers"]
    lines = ["| workers | simulated, images/s | measured beside it | measured before |", "|---|---|---|---|"]
    for count, entry in result["check"]["workers"].items():
        rates = [run["infer"][count]["images_per_s"] for run in result["check"]["rounds"]]
        here = f"{entry['measured_images_per_s']:.1f} ({min(rates):.1f} to {max(rates):.1f})"
        lines.append(
            f"| {count} | {entry['simulated_images_per_s']:.1f} | {here} | {earlier[count]['images_per_s']:.1f} |"
        )
    return "\n".join(lines)


def cards_table(result: dict[str, Any]) -> str:
    """1, 8 and 64 cards in each place, as Markdown."""
    lines = [
        "| cards | images/s | narrowest part | the next, images/s | cost of a million |",
        "|---|---|---|---|---|",
    ]
    for name, place in result["cards"].items():
        lines.append(f"| **{name}** | | | | |")
        for cards in ("1", "8", "64"):
            entry = place["cards"][cards]
            following = f"{entry['next']}, {rounded(entry['next_images_per_s'])}"
            rate, cost = rounded(entry["images_per_s"]), f"{entry['cost_of_a_million_images']:.2f}"
            lines.append(f"| {cards} | {rate} | {entry['bottleneck']} | {following} | {cost} |")
    return "\n".join(lines)


def rounded(value: float) -> str:
    """Two digits that count: more would be more than is known."""
    return f"{float(f'{value:.2g}'):,.0f}"


# --- the figure


COLORS = {
    "dense, shared disk": "#3b82c4",
    "dense, bucket": "#d9822b",
    "dense, bucket, 2 workers a card": "#c94f4f",
    "lookup, shared disk": "#8a63c9",
    "lookup, shared disk, 4 workers a card": "#2e9e6b",
}
INK = "#7d8590"
"""A grey that can be read on white and on black."""


def draw(result: dict[str, Any], path: Path) -> None:
    """Three plots beside each other, without a background, in colours for light and dark pages."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    # Without a date and with fixed ids, so that the same result makes the same file.
    style: dict[Any, Any] = {**dict.fromkeys(colours, INK), "svg.hashsalt": "spade", "font.size": 9.5}
    with rc_context(style):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        figure.patch.set_alpha(0)
        checked, rates, costs = figure.subplots(1, 3)
        _draw_check(checked, result["check"]["workers"])
        for name, place in result["cards"].items():
            cards = [int(one) for one in place["cards"]]
            for axes, key in ((rates, "images_per_s"), (costs, "cost_of_a_million_images")):
                values = [entry[key] for entry in place["cards"].values()]
                axes.plot(cards, values, "o-", color=COLORS[name], label=name, markersize=4)
        for axes, title in ((rates, "images/s (arithmetic)"), (costs, "cost of a million images (arithmetic)")):
            axes.set(title=title, xlabel="cards", xscale="log", yscale="log")
            axes.set_xticks(CARDS, [str(cards) for cards in CARDS])
            axes.minorticks_off()
        rates.set_yticks([100, 1000, 10_000, 50_000], ["100", "1,000", "10,000", "50,000"])
        ticks = [0.5, 1, 2, 5, 10, 20]
        costs.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        for axes in (checked, rates, costs):
            axes.set_facecolor("none")
            axes.set_axisbelow(True)
            axes.grid(alpha=0.3, color=INK)
            axes.title.set_fontsize(10.5)
        handles, names = rates.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="svg", transparent=True, metadata={"Date": None})


def _draw_check(axes: Any, workers: dict[str, Any]) -> None:
    places = np.arange(len(workers))
    earlier = json.loads((RESULTS / "infer_workers.json").read_text())["cases"]["earth"]["workers"]
    bars = {
        "simulated": ([entry["simulated_images_per_s"] for entry in workers.values()], "#d9822b"),
        "measured": ([entry["measured_images_per_s"] for entry in workers.values()], "#3b82c4"),
        "measured before": ([earlier[count]["images_per_s"] for count in workers], "#8ab8de"),
    }
    for number, (name, (heights, color)) in enumerate(bars.items()):
        drawn = axes.bar(places + 0.27 * (number - 1), heights, 0.25, color=color, label=name)
        axes.bar_label(drawn, fmt="%.0f", padding=1, fontsize=8.5)
    axes.set(title="images/s on two cores: the check", xlabel="workers")
    axes.set_xticks(places, list(workers))
    axes.set_ylim(0, 1.2 * max(height for heights, _ in bars.values() for height in heights))
    axes.legend(frameon=False, loc="upper center", ncols=3, fontsize=8, columnspacing=1, handlelength=1)


if __name__ == "__main__":
    main()
