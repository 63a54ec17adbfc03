"""Open an artifact where it runs best. On a CPU that is what was measured to be the fastest there.

What is measured must have made the golden images rightly on this machine. A measurement is kept in the user's cache
(`record.py`). Without one, it is made at the first use if it pays: see `_Auto._pays`. Otherwise ONNX Runtime runs, or
another engine whose images were found right here before. On a GPU the order of `engines/open.py` holds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from spade_deploy.artifact import Artifact, one_by_one
from spade_deploy.engines import open as engines
from spade_deploy.engines.base import Backend, GraphChoice, Runtime, RuntimeRequest, parse_graph_choice
from spade_deploy.errors import ConfigError, SpadeError, ValidationFailedError
from spade_deploy.machine.cores import at_most_cores
from spade_deploy.progress import SILENT, Progress
from spade_deploy.settings import check_positive
from spade_deploy.spec import Precision, PrecisionChoice
from spade_deploy.tuning.choice import choose, described, is_good, measured_line, psnr_of
from spade_deploy.tuning.key import key_on_cpu
from spade_deploy.tuning.measure import FIRST_USE, measure
from spade_deploy.tuning.opened import Opened
from spade_deploy.tuning.record import EngineChoice, Notebook, Record, Session, read_record
from spade_deploy.tuning.timing import now
from spade_deploy.tuning.wish import Wish, engine_of, parse_precision

_LOG = logging.getLogger(__name__)

HOPED_GAIN = 1 / 3
"""The share of a job's time that a faster engine is hoped to save: it is that of an engine 1.5 times as fast."""


def open_runtime(
    artifact: Artifact,
    precision: Precision | PrecisionChoice | str | None = None,
    backend: Backend | str = Backend.AUTO,
    threads: int | None = None,
    graph: GraphChoice | str = GraphChoice.AUTO,
    *,
    min_psnr_db: float | None = None,
    images: int | None = None,
    progress: Progress = SILENT,
) -> Runtime:
    """Load an artifact in the engine where it runs best, or in the one that `backend` names.

    precision: 'fastest' takes the fastest whose PSNR against the reference is at least `min_psnr_db` (45 dB if left
    out) on this machine's CPU. None takes fp16 on a GPU if the artifact has it, else fp32. threads: of the CPU; None
    takes one a core. images: how many will be made; it decides whether measuring pays. None is for many, 0 measures
    nothing. progress: its `note` is told what was taken, and why. Raises as `engines.open.open_runtime` does, and
    ValidationFailedError where nothing that may be taken makes right images.
    """
    named, least = parse_precision(precision, min_psnr_db)
    name = engines.known_backend(str(backend))
    check_positive("threads", threads)
    threads = at_most_cores(threads, "threads")
    wish = Wish(artifact, named, least, name, threads, parse_graph_choice(str(graph)), images)
    note = ""
    if name == Backend.AUTO and named is not Precision.BF16:
        request = RuntimeRequest(artifact, name, named, threads, wish.graph)
        runtime, note = engines.open_first(request, engines.on_gpu())
        if runtime is not None:
            if least is None:
                return runtime
            runtime.close()
            raise ConfigError(
                f"`precision` fastest is measured only on a CPU, and {runtime.name} would run here",
                hint="name a `precision`, or add `backend` cpu or openvino",
            )
    elif name != Backend.AUTO:
        (engine,) = (engine for engine in engines.ENGINES if engine.backend == name)
        if least is not None and not engine.on_cpu:
            raise ConfigError(f"`precision` fastest is measured only on a CPU; `backend` {name} runs elsewhere")
        if least is None and named is not Precision.BF16:
            return engines.open_runtime(artifact, named, name, threads, wish.graph)
    auto = _Auto(wish, progress)
    try:
        runtime = auto.open()
    except BaseException:
        auto.close()
        raise
    runtime.name += note
    return runtime


class _Auto:
    """Opens what the wish asks for on the CPU, with what is known and what is learned on the way."""

    def __init__(self, wish: Wish, progress: Progress) -> None:
        self._wish, self._progress = wish, progress
        self._notebook = Notebook(read_record(key_on_cpu(wish.artifact, wish.threads)))
        self._opened: dict[EngineChoice, Opened] = {}

    @property
    def _record(self) -> Record:
        return self._notebook.record

    def open(self) -> Runtime:
        wish = self._wish
        wanted = wish.candidates(wish.precisions)
        if not wanted:
            return self._refuse()
        if wish.min_psnr_db is None and len(wanted) == 1 and engine_of(wanted[0]).is_automatic:
            return self._open_unchecked(wanted[0])  # there is no choice
        session = self._record.session_for(wish.graph, wanted)
        if session is None and len(wanted) > 1 and self._pays(wanted):
            session = self._measure(wanted)
        return self._take_unmeasured(wanted) if session is None else self._take_fastest(session)

    def close(self) -> None:
        """Close whatever is open."""
        for one in self._opened.values():
            one.close()

    def _pays(self, wanted: Sequence[EngineChoice]) -> bool:
        """Whether measuring costs less time than a faster engine is hoped to save in this job.

        Each candidate is opened, makes the golden images and a few more. Where the images alone are too many, nothing
        is opened to find out more. Otherwise the first candidate is opened and timed, and stands for the others.
        """
        wish, images = self._wish, self._wish.images
        if images is None or wish.min_psnr_db is not None:
            return True
        maps = list(one_by_one(wish.artifact.golden().inputs)) if images else []
        count, rounds = len(wanted) + len(wish.hints), FIRST_USE.pace.fewest
        if images * HOPED_GAIN < count * (len(maps) + rounds) or not images:
            return False
        start = now()
        try:
            runtime = self._open(wanted[0]).runtime(None)
            taken_s, start = now() - start, now()
            runtime.run(maps[0])
        except SpadeError:
            return True  # the measurement says what it is
        image_s = now() - start
        return images * image_s * HOPED_GAIN >= count * (taken_s + rounds * image_s)

    def _measure(self, wanted: Sequence[EngineChoice]) -> Session:
        wish = self._wish
        candidates = [*wanted, *wish.candidates(wish.hints)]
        names = " and ".join(dict.fromkeys(engine_of(one).title for one in candidates))
        self._progress.note(f"auto: measuring once what is fastest here, {names}; this takes some seconds")
        session = measure(wish, [self._open(one) for one in candidates], FIRST_USE)
        self._notebook.add(session)
        return session

    def _take_fastest(self, session: Session) -> Runtime:
        wish = self._wish
        choice = choose(wish, self._record, session)
        for taken in choice.ranked:
            one = self._open(taken.candidate)
            try:
                runtime = one.runtime(taken.break_even_share)
            except SpadeError as error:
                _LOG.warning("auto leaves %s out: %s", one.name, error.message)
                continue
            kind = one.main_kind(taken.break_even_share)
            self._close_others(one)
            one.close(except_for=kind)
            self._tell(measured_line(choice, taken, self._record, kind, self._notebook.kept))
            if choice.hint and taken is choice.ranked[0]:
                self._tell(choice.hint)
            return runtime
        raise self._nothing_right()

    def _take_unmeasured(self, wanted: Sequence[EngineChoice]) -> Runtime:
        """What runs without a measurement: an engine that was checked here before, else the usual one.

        Where only other engines can run what was asked for, the first of them is checked now.
        """
        wish, record = self._wish, self._record
        right = [one for one in wanted if not record.failures_of(one)]
        usual = [one for one in right if engine_of(one).is_automatic]
        others = [one for one in right if one not in usual]
        checked = [one for one in others if record.check_of(one, self._open(one).main_kind(None)) is not None]
        order = list(dict.fromkeys([*checked, *usual, *others]))
        for candidate in order:
            one = self._open(candidate)
            try:
                is_free = wish.min_psnr_db is None and candidate in usual and not one.is_open
                runtime = self._open_unchecked(candidate) if is_free else one.runtime(None)
            except SpadeError as error:
                if candidate == order[-1] and not isinstance(error, ValidationFailedError):
                    raise
                _LOG.warning("auto leaves %s out: %s", one.name, error.message)
                continue
            if not is_good(wish, self._record, candidate):
                continue
            self._close_others(one)
            name = described(candidate, one.main_kind(None))
            self._tell(f"auto: {name}, {self._why_unmeasured(candidate, wanted)}")
            return runtime
        raise self._nothing_right()

    def _why_unmeasured(self, candidate: EngineChoice, wanted: Sequence[EngineChoice]) -> str:
        psnr = psnr_of(self._record, candidate)
        right = "" if psnr == float("inf") else f" ({psnr:.1f} dB)"
        if len(wanted) == 1:
            kept = f" ({self._notebook.kept})" if self._notebook.kept else ""
            return f"the only engine for it here; its golden images are right on this machine{right}{kept}"
        checked = "" if engine_of(candidate).is_automatic else f"whose golden images are right here{right}, "
        if not self._wish.images:
            return f"{checked}not measured yet: `spade bench --tune` measures what is fastest"
        count = f"{self._wish.images} image{'s' if self._wish.images > 1 else ''}"
        return f"{checked}not measured: for {count} that takes longer than it saves; `spade bench --tune` measures it"

    def _open(self, candidate: EngineChoice) -> Opened:
        """The candidate; nothing of it is opened yet, unless it was before."""
        if candidate not in self._opened:
            self._opened[candidate] = Opened(self._wish, candidate, self._notebook)
        return self._opened[candidate]

    def _open_unchecked(self, candidate: EngineChoice) -> Runtime:
        wish = self._wish
        return engines.open_runtime(wish.artifact, candidate.precision, candidate.backend, wish.threads, wish.graph)

    def _close_others(self, kept: Opened) -> None:
        for one in self._opened.values():
            if one is not kept:
                one.close()

    def _tell(self, line: str) -> None:
        _LOG.info("%s", line)
        self._progress.note(line)

    def _refuse(self) -> Runtime:
        """Raise the error of the engine that was asked for, which says why it cannot run."""
        wish, name = self._wish, self._wish.backend
        if name == Backend.AUTO:
            bf16 = wish.precision is Precision.BF16
            able = (one for one in engines.ENGINES if one.on_cpu and (one.has_bf16 if bf16 else one.is_automatic))
            name = next(able).backend
        return engines.open_runtime(wish.artifact, wish.precision, name, wish.threads, wish.graph)

    def _nothing_right(self) -> SpadeError:
        wish, record = self._wish, self._record
        wanted = wish.candidates(wish.precisions)
        checked = {one.candidate for one in record.checks}
        right = [one for one in wanted if one in checked and not record.failures_of(one)]
        if wish.min_psnr_db is not None and right:
            best = max(right, key=lambda one: psnr_of(record, one))
            return ConfigError(
                f"`min_psnr_db` {wish.min_psnr_db:g}: no precision reaches it here; the best is {best.precision} with"
                f" {psnr_of(record, best):.1f} dB",
                hint="ask for less, or leave `precision` out",
            )
        why = "; ".join(f"{one.backend} {one.precision}: {text}" for one in wanted for text in record.failures_of(one))
        return ValidationFailedError(
            f"no engine that may run {wish.artifact.path} makes right images on this machine: {why or 'none opens'}",
            hint="`spade validate` says more; `backend` cpu runs it anyway",
        )
