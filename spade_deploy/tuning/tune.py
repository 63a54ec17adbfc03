"""Measure carefully what is fastest on this machine's CPU, and keep it: `spade bench --tune`."""

from __future__ import annotations

from dataclasses import dataclass

from spade_deploy.artifact import Artifact
from spade_deploy.engines.base import Backend, GraphChoice
from spade_deploy.machine.cores import at_most_cores
from spade_deploy.progress import SILENT, Progress
from spade_deploy.settings import check_positive
from spade_deploy.tuning.choice import choose, measured_line, psnr_of
from spade_deploy.tuning.key import key_on_cpu
from spade_deploy.tuning.measure import CAREFUL, measure
from spade_deploy.tuning.opened import Opened
from spade_deploy.tuning.record import EngineChoice, Notebook, Record, Session, Time
from spade_deploy.tuning.wish import ON_A_CPU, Wish, name_of


@dataclass(frozen=True)
class Tuned:
    """What a careful measurement found."""

    record: Record
    """The checks and times."""
    session: Session
    """The measurement."""
    line: str
    """What `auto` takes from now on, in one sentence."""
    hint: str
    """A lower precision that would be faster; empty if there is none."""

    def psnr_db(self, time: Time) -> float:
        """The PSNR of a candidate against the reference, in dB; infinite where the images are the same."""
        return psnr_of(self.record, time.candidate)

    def name(self, candidate: EngineChoice) -> str:
        """A candidate for people: 'OpenVINO bf16'."""
        return name_of(candidate)


def tune(artifact: Artifact, threads: int | None = None, progress: Progress = SILENT) -> Tuned:
    """Measure every engine and precision on the CPU, with the break-even of each, and keep what was found.

    Everything is checked again, also what was found wrong before. threads: of the CPU; None takes one a core. It takes
    a minute or two, and memory for all of the models at once. Raises errors of the artifact.
    """
    check_positive("threads", threads)
    threads = at_most_cores(threads, "threads")
    wish = Wish(artifact, None, None, Backend.AUTO, threads, GraphChoice.AUTO, None)
    notebook = Notebook(Record(key_on_cpu(artifact, threads)))
    candidates = wish.candidates(dict.fromkeys((wish.usual, *ON_A_CPU)))
    opened = [Opened(wish, one, notebook) for one in candidates]
    try:
        progress.step(f"measuring {', '.join(one.name for one in opened)}")
        session = measure(wish, opened, CAREFUL)
        notebook.add(session)
        record = notebook.record
        choice = choose(wish, record, session)
        if not choice.ranked:
            return Tuned(record, session, f"auto: no engine makes right {wish.usual} images here", "")
        best = choice.ranked[0]
        kind = next(one for one in opened if one.candidate == best.candidate).main_kind(best.break_even_share)
        return Tuned(record, session, measured_line(choice, best, record, kind, notebook.kept), choice.hint)
    finally:
        for one in opened:
            one.close()
