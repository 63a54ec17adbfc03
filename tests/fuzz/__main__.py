"""`python -m tests.fuzz --cases 10000 --seed 0 --jobs 2 [--reader NAME]`, or `--case N` for one case again."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from .readers import READERS
from .run import run_cases


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, action="append", help="this case alone; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--reader", choices=list(READERS), action="append", help="this reader alone; may be repeated")
    parser.add_argument("--work", type=Path, help="folder of the corpus and of failing inputs; kept")
    asked = parser.parse_args()
    work = asked.work or Path(tempfile.mkdtemp(prefix="spade-fuzz-"))
    indices = asked.case or list(range(asked.first, asked.first + asked.cases))
    started = time.monotonic()

    def on_case(done: int) -> None:
        if done % 250 == 0:
            print(f"{done} of {len(indices)} cases, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    jobs = min(asked.jobs, len(indices))
    summary = run_cases(indices, asked.seed, work.resolve(), jobs=jobs, only=asked.reader or (), on_case=on_case)
    print(summary.table())
    if not summary.passed:
        print(f"\nfailing inputs are in {work / 'failures'}, each with reproduce.txt")
    return 0 if summary.passed else 1


if __name__ == "__main__":
    sys.exit(main())
