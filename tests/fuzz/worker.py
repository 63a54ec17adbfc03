"""A process that runs cases: each line it is given is a number, each line it answers is what became of that case."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path


def main() -> None:
    """`python -m tests.fuzz.worker WORK SEED [READER...]`"""
    work, seed, only = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    home = work / "home"
    home.mkdir(exist_ok=True)
    os.environ |= {"HOME": str(home), "MPLCONFIGDIR": str(home), "TORCHINDUCTOR_CACHE_DIR": str(home)}
    os.environ |= {"SPADE_CACHE_DIR": str(home / "cache")}  # a measurement and compiled models are kept there
    os.environ |= {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
    warnings.simplefilter("ignore")
    import onnxruntime
    import torch

    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(4)
    from .corpus import open_corpus
    from .readers import run_case
    from .watch import limit_addresses

    corpus = open_corpus(work.parent / "corpus")
    limit_addresses()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        outcome = run_case(seed, int(line), work, corpus, only)
        print(json.dumps(outcome.to_json()), file=answers, flush=True)


if __name__ == "__main__":
    main()
