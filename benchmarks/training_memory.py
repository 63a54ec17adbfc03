"""The memory of a training step, preset by preset, as `spade train --estimate` estimates it from the tensors' shapes.

Nothing is computed and nothing timed, so it may run beside anything. With the perceptual loss (VGG19) but for earth.

    python benchmarks/training_memory.py [--out FILE]
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from models import RESULTS

from spade_deploy.bench.machine import describe_machine
from spade_deploy.files.atomic import write_json
from spade_deploy.training.config import Amp
from spade_deploy.training.presets import PRESETS, preset
from spade_deploy.training.step_memory import cpu_bytes, estimate_memory

BATCHES = (1, 4)
"""Samples a process; the paper trained with 4 on each of 8 GPUs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, action="append", help="all by default")
    parser.add_argument("--out", type=Path, default=RESULTS / "training-memory.json")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in asked.preset or PRESETS:
        for batch_size in BATCHES:
            for amp in (Amp.OFF, Amp.BF16):
                rows.append(row(name, batch_size, amp))
                print(
                    f"{name:<11} batch {batch_size} {amp:<5} {rows[-1]['bytes']['total'] / (1 << 30):6.2f} GiB",
                    flush=True,
                )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(asked.out, {"machine": describe_machine(), "presets": rows})


def row(name: str, batch_size: int, amp: Amp) -> dict[str, Any]:
    setup = preset(name, None if name == "earth" else Path("data"))
    # The file is never read: that there is one counts VGG19 in.
    perceptual = None if name == "earth" else Path("vgg19")
    memory = estimate_memory(
        replace(setup, train=replace(setup.train, batch_size=batch_size, amp=amp, perceptual_file=perceptual))
    )
    return {
        "preset": name,
        "size": [setup.generator.height, setup.generator.width],
        "batch_size": batch_size,
        "amp": str(amp),
        "bytes": {**asdict(memory), "total": memory.total, "process_on_cpu": cpu_bytes(memory)},
    }


if __name__ == "__main__":
    main()
