"""A candidate in a process of its own: `python -m spade_deploy.bench.worker JOB.json`.

Every message is one line of JSON. At first the worker reports, without being asked, that it has imported its
libraries, loaded the model and made a first image. Then it answers {"do": "golden"}, {"do": "run", "case": 0}, with
"image_to" where the image is to be written to a file, and {"do": "stop"}. An error is a message too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from spade_deploy.errors import SpadeError, reason_of
from spade_deploy.machine.memory import memory_bytes, peak_memory_bytes


def main() -> int:
    """Answer messages until one says stop. Returns the exit code, which is 1 after an error."""
    answers = _take_stdout()
    try:
        _serve(Path(sys.argv[1]), answers)
    except SpadeError as error:
        _say(answers, error=error.message, hint=error.hint)
    except Exception as error:  # a library may raise anything; the other candidates are measured all the same
        _say(answers, error=f"{type(error).__name__}: {reason_of(error)}", hint=None)
    else:
        return 0
    return 1


def _serve(job_file: Path, answers: IO[str]) -> None:
    from spade_deploy.bench import runners
    from spade_deploy.bench.job import Job, read_arrays

    job = Job.read(job_file)
    runners.import_libraries(job.candidate, job.backend)
    _say(answers, memory_bytes=memory_bytes())
    runner = runners.load(job)
    _say(answers, runtime=runner.name, precision=runner.precision)
    runner.run(runner.prepare(read_arrays(job.cases[0])))
    _say(answers)
    for line in sys.stdin:
        message = json.loads(line)
        if message["do"] == "stop":
            break
        if message["do"] == "golden":
            _answer_golden(runner, job)
            _say(answers)
        else:
            image_to = None if message.get("image_to") is None else Path(message["image_to"])
            _say(answers, **_timed(runner, read_arrays(job.cases[message["case"]]), image_to))
    _say(answers, peak_memory_bytes=peak_memory_bytes())


def _timed(runner: Any, inputs: Any, image_to: Path | None = None) -> dict[str, Any]:
    """Run once and time it, by the clock and by processor time. image_to: where the float image is written, untimed.

    `all_cpu_s` includes what is not timed, as it tells this process's work from that of others.
    """
    cpu = time.process_time()
    prepared = runner.prepare(inputs)
    start, start_cpu = time.perf_counter(), time.process_time()
    made = runner.run(prepared)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    if image_to is not None:
        _write_image(image_to, runner.image(prepared, made))
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "patterns_s": runner.patterns_s,
        "graph": runner.graph,
        "all_cpu_s": time.process_time() - cpu,
    }


def _write_image(path: Path, image: Any) -> None:
    from spade_deploy.artifact import IMAGE
    from spade_deploy.bench.job import write_arrays

    write_arrays(path, {IMAGE: image})


def _answer_golden(runner: Any, job: Any) -> None:
    from spade_deploy.artifact import IMAGE, PIXELS, joined
    from spade_deploy.bench.job import read_arrays, write_arrays

    found = [runner.answers(read_arrays(path)) for path in job.golden]
    outputs = joined(found)
    write_arrays(job.golden_outputs, {name: outputs[name] for name in (IMAGE, PIXELS)})


def _take_stdout() -> IO[str]:
    """Keep stdout for the answers alone, and return it. Whatever libraries print goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers: IO[str], **message: Any) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
