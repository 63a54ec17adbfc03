"""`python -m tests.kills --kills 50 --seed 0 [--scenario train]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from .run import Result, kill_all
from .scenarios import scenarios


def main() -> int:
    known = {scenario.name: scenario for scenario in scenarios()}
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenario", choices=list(known), action="append", help="may be repeated; all if left out")
    parser.add_argument("--work", type=Path, help="folder of the chains; those in which something broke are kept")
    asked = parser.parse_args()
    work = (asked.work or Path(tempfile.mkdtemp(prefix="spade-kills-"))).resolve()
    started = time.monotonic()

    def on_chain(result: Result) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {result.scenario:<7} {', '.join(result.kills)}", flush=True)
        for problem in result.problems:
            print(f"          {problem}", flush=True)

    chosen = [known[name] for name in asked.scenario or known]
    results = kill_all(chosen, asked.kills, asked.seed, work, on_chain=on_chain)
    broken = [result for result in results if result.problems]
    killed = sum(len(result.kills) for result in results)
    print(f"{killed} kills in {len(results)} chains: {len(broken)} chains have problems; {work}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
