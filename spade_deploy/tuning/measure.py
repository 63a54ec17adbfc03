"""Time candidates side by side, after each has made the golden images rightly.

The rule that gives each map to the lookup or to the dense graph belongs to an engine: what it costs to gather rows and
to convolve differs among engines and precisions. It is measured in each engine where that is cheap: for small models,
and by `spade bench --tune`. It needs the dense graph, too, and a map of noise, which together take several times as
long as an image. Otherwise the manifest's rule serves every engine. That is a mild loss: it was measured in ONNX
Runtime, so only maps between two engines' break-evens are given to the slower graph, and there both are about as fast.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from spade_deploy.artifact import Arrays, one_by_one
from spade_deploy.errors import SpadeError, reason_of
from spade_deploy.lookup.tables import unique_share
from spade_deploy.spec import GraphChoice, GraphKind
from spade_deploy.tuning.break_even import TimedMaps
from spade_deploy.tuning.opened import Opened
from spade_deploy.tuning.record import EngineChoice, Session, Time
from spade_deploy.tuning.timing import Pace, medians_ms, now
from spade_deploy.tuning.wish import Wish

_LOG = logging.getLogger(__name__)

CHEAP_IMAGE_S = 0.1
"""The break-even is measured at the first use if no candidate takes longer than this for an image."""


@dataclass(frozen=True)
class Effort:
    """How much time a measurement may take."""

    opening_s: float
    """After so many seconds no candidate is opened that is there only to be mentioned."""
    pace: Pace
    """The rounds in which the candidates run side by side."""
    rule_pace: Pace
    """The rounds in which the break-even of one candidate is measured."""
    is_careful: bool
    """Whether it is `spade bench --tune`, which measures the break-even of every candidate."""


FIRST_USE = Effort(8.0, Pace(fewest=3, most=15, seconds=4.0), Pace(fewest=3, most=15, seconds=0.5), is_careful=False)
"""Each candidate that may run is opened, makes the golden images and warms up. One that would only be mentioned is not
opened after 8 s. The rounds take 4 s, or as long as three of them take."""
CAREFUL = Effort(
    float("inf"), Pace(fewest=7, most=61, seconds=30.0), Pace(fewest=3, most=41, seconds=10.0), is_careful=True
)


def measure(wish: Wish, candidates: Sequence[Opened], effort: Effort) -> Session:
    """Open, check and time the candidates. One that fails is left out, and a warning says why.

    First all of them run side by side, each by the manifest's rule. Then the break-even of each is measured for itself,
    so that no two of them have both graphs open, and what it gains is credited to the time of the first measurement.
    What would only be mentioned, and is not opened for lack of time, is not in the session. Raises nothing for a
    candidate's errors.
    """
    golden = wish.artifact.golden().inputs
    usual = _usual_map(wish, golden)
    left_out: list[EngineChoice] = []
    ready, slowest_s = _open_all(candidates, usual, effort, left_out)
    ms = medians_ms([_by_rule(one, usual) for one in ready], effort.pace)
    found = {one.candidate: Time(one.candidate, value) for one, value in zip(ready, ms, strict=True)}
    has_both = [one for one in ready if one.has_both and wish.graph is GraphChoice.AUTO]
    if has_both and (effort.is_careful or slowest_s < CHEAP_IMAGE_S):
        maps = TimedMaps.of(wish.artifact.manifest.generator, golden)
        for one in has_both:
            by_rule = found.pop(one.candidate).ms
            try:
                found[one.candidate] = _with_rule(one, by_rule, usual, maps, effort.rule_pace)
            except Exception as error:  # an engine may raise anything; the others are measured all the same
                _leave_out(one, error, left_out)
    return Session(wish.graph, effort.is_careful, int(time.time()), tuple(found.values()), tuple(left_out))


def _open_all(
    candidates: Sequence[Opened], usual: Arrays, effort: Effort, left_out: list[EngineChoice]
) -> tuple[list[Opened], float]:
    """The candidates that are open and warm, and the seconds that an image takes on the slowest of them."""
    start, slowest_s = now(), 0.0
    ready: list[Opened] = []
    for one in candidates:
        if one.candidate.precision not in one.wish.precisions and now() - start > effort.opening_s:
            continue
        try:
            run = _by_rule(one, usual)
            run()
            before = now()
            run()
        except Exception as error:  # as in `measure`
            _leave_out(one, error, left_out)
            continue
        slowest_s = max(slowest_s, now() - before)
        ready.append(one)
    return ready, slowest_s


def _by_rule(one: Opened, usual: Arrays) -> Callable[[], object]:
    """What is timed side by side: an image on the graph that the manifest's rule gives it."""
    return partial(one.runtime(None).run, usual)


def _with_rule(one: Opened, ms: float, usual: Arrays, maps: TimedMaps, pace: Pace) -> Time:
    """The time of a candidate with its own break-even. ms: its time by the manifest's rule, beside the others."""
    spec = one.wish.artifact.manifest.generator
    lookup, dense = one.graph(GraphKind.LOOKUP), one.graph(GraphKind.DENSE)
    jobs = [_by_rule(one, usual), *maps.jobs(lookup, dense), maps.look(spec)]
    for job in jobs:
        job()
    before_ms, *times = medians_ms(jobs, pace)
    rule = maps.break_even(*times)
    own_ms = rule.expected_ms if rule.share else rule.dense_ms
    one.close(except_for=one.main_kind(rule.share))
    return Time(one.candidate, ms * own_ms / before_ms, rule.share)


def _usual_map(wish: Wish, golden: Arrays) -> Arrays:
    """The golden map in the middle by its share of unique patterns, batch 1."""
    maps, spec = list(one_by_one(golden)), wish.artifact.manifest.generator
    if GraphKind.LOOKUP not in spec.graph_kinds:
        return maps[0]
    return sorted(maps, key=lambda one: unique_share(spec, one))[(len(maps) - 1) // 2]


def _leave_out(one: Opened, error: Exception, left_out: list[EngineChoice]) -> None:
    reason = error.message if isinstance(error, SpadeError) else reason_of(error)
    _LOG.warning("auto leaves %s out: %s", one.name, reason)
    left_out.append(one.candidate)
    one.close()
