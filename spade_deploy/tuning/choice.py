"""Which candidate `auto` takes by what is known, and the lines that tell of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from spade_deploy.spec import GraphKind, Precision
from spade_deploy.tuning.record import EngineChoice, Record, Session, Time
from spade_deploy.tuning.wish import Wish, engine_of, name_of

AS_FAST = 1.03
"""Two candidates whose times differ by less than this ratio are called equally fast."""
WORTH_A_HINT = 1.1
"""A lower precision is mentioned if it is faster by this ratio."""


@dataclass(frozen=True)
class Choice:
    """What was chosen among candidates that were measured side by side."""

    session: Session
    """The measurement."""
    ranked: tuple[Time, ...]
    """The candidates that may be taken, the fastest first; empty if there is none."""
    hint: str
    """A line about a lower precision that would be faster; empty if there is none."""


def choose(wish: Wish, record: Record, session: Session) -> Choice:
    """Rank the candidates of a session that the wish allows: their images are right, and as good as was asked."""
    right = [one for one in session.times if not record.failures_of(one.candidate)]
    allowed = [one for one in right if wish.allows(one.candidate) and is_good(wish, record, one.candidate)]
    ranked = tuple(sorted(allowed, key=lambda one: one.ms))
    return Choice(session, ranked, _hint(wish, record, right, ranked[0]) if ranked else "")


def is_good(wish: Wish, record: Record, candidate: EngineChoice) -> bool:
    """Whether a candidate reaches the PSNR that the wish asks for, if it asks for one."""
    return wish.min_psnr_db is None or psnr_of(record, candidate) >= wish.min_psnr_db


def psnr_of(record: Record, candidate: EngineChoice) -> float:
    """The least PSNR of a candidate's graphs against the reference, in dB; infinite where the images are the same."""
    found = [one.psnr_db for one in record.checks if one.candidate == candidate]
    return min((math.inf if psnr is None else psnr for psnr in found), default=math.inf)


def measured_line(choice: Choice, taken: Time, record: Record, kind: GraphKind, kept: str) -> str:
    """The line that tells what was taken, by how much it is faster than what else could have run, and where that is.

    kind: the graph that it begins with. kept: where the measurement is kept; empty if it was there before.
    """
    session = choice.session
    precisions = {one.candidate.precision for one in choice.ranked}
    others = [one for one in choice.ranked if one is not taken]
    rivals = [one for one in others if one.candidate.backend != taken.candidate.backend] or others
    if rivals:
        rival = min(rivals, key=lambda one: one.ms)
        name = rival.candidate if len(precisions) > 1 else rival.candidate.backend
        said = f"measured {_faster(rival.ms / taken.ms)} than {_named(name)} here"
        said = said if rival.ms / taken.ms >= AS_FAST else f"measured as fast as {_named(name)} here"
    else:
        said = "the only one that can be used here"
    if not kept:
        said += f" on {time.strftime('%Y-%m-%d', time.localtime(session.unix_s))}"
    quality = _quality(psnr_of(record, taken.candidate)) if len(precisions) > 1 else ""
    return f"auto: {described(taken.candidate, kind)}{quality}, {said}{f' ({kept})' if kept else ''}"


def described(candidate: EngineChoice, kind: GraphKind) -> str:
    """A candidate with its graph, for people: 'OpenVINO fp32 lookup'."""
    graph = "" if kind is GraphKind.DENSE else f" {kind}"
    return f"{_named(candidate)}{graph}"


def _hint(wish: Wish, record: Record, right: Sequence[Time], taken: Time) -> str:
    lower = [one for one in right if one.candidate.precision in wish.hints and one.ms * WORTH_A_HINT < taken.ms]
    if not lower:
        return ""
    best = min(lower, key=lambda one: one.ms)
    precision: Precision = best.candidate.precision
    faster, psnr = _faster(taken.ms / best.ms), _quality(psnr_of(record, best.candidate))
    return f"`precision` {precision} ({engine_of(best.candidate).title}) would be {faster} here{psnr}"


def _faster(ratio: float) -> str:
    return f"{ratio:.1f} x faster" if ratio >= 1.1 else f"{ratio:.2f} x faster"


def _quality(psnr_db: float) -> str:
    return "" if math.isinf(psnr_db) else f", at {psnr_db:.1f} dB against the reference"


def _named(what: EngineChoice | str) -> str:
    if isinstance(what, str):
        return engine_of(EngineChoice(what, Precision.FP32)).title
    return name_of(what)
