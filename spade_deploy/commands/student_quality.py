"""What `spade export` of a student measures with the judges of `spade eval`: its photos and its teacher's."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands.console import command_line, note, stdout
from spade_deploy.commands.tables import print_table
from spade_deploy.errors import CheckpointError, ConfigError, DatasetError
from spade_deploy.printable import one_line

if TYPE_CHECKING:
    from spade_deploy.evaluation import EvalResult, JudgeRequest, Row
    from spade_deploy.evaluation.verdict import Verdict
    from spade_deploy.progress import Progress
    from spade_deploy.release.quality import Judged, Quality
    from spade_deploy.release.student import StudentReport

WITHOUT = "leave it out: without a judge, the report says what was not measured"


def judge_student(checkpoint: Path, judges: JudgeRequest, runs_dir: Path, progress: Progress) -> Quality:
    """The figures of a student and of its teacher on the held-out photos of their data.

    Raises ConfigError for a checkpoint that is no student's, CheckpointError where its teacher is not there,
    DatasetError without photos, and what `evaluate` raises.
    """
    from spade_deploy.evaluation import DataFlags, EvalRequest, evaluate
    from spade_deploy.release.quality import knows_photos
    from spade_deploy.release.student import teacher_of
    from spade_deploy.runs import read_checkpoint_info
    from spade_deploy.runs.layout import SHIPPED
    from spade_deploy.training.distillation.teacher import teacher_checkpoint

    info = read_checkpoint_info(checkpoint)
    facts = teacher_of(info)
    if facts is None:
        raise ConfigError(
            f"`{judges.first_judge}`: {checkpoint} is no student: the export judges a student beside its teacher",
            hint=f"leave it out; `spade eval` judges any model: {command_line('spade', 'eval', checkpoint)}",
        )
    is_shipped = facts.place in SHIPPED
    try:
        teacher = Path(facts.place) if is_shipped else teacher_checkpoint(facts, runs_dir)
    except CheckpointError as error:
        raise CheckpointError(error.message, hint=f"put it back, or {WITHOUT}") from error
    models = [checkpoint, teacher]
    other = command_line("spade", "eval", *models, "--labels", "LABELS", "--images", "PHOTOS")
    if not knows_photos(info):
        if not is_shipped and not knows_photos(read_checkpoint_info(teacher)):
            raise DatasetError(
                f"`{judges.first_judge}`: {checkpoint} was trained without photos, and so there is nothing to judge on",
                hint=f"{other} judges both on photos that you name",
            )
        models.reverse()  # the data is that of the first model
    given = {field.name: getattr(judges, field.name) for field in fields(judges)}
    size = (info.generator.height, info.generator.width)
    try:
        found = evaluate(
            EvalRequest(tuple(models), data=DataFlags(size=size), pictures=0, **given),
            runs_dir=runs_dir,
            progress=progress,
        )
    except DatasetError as error:
        raise DatasetError(error.message, hint=f"{other} judges both on photos that you name") from error
    rows = dict(zip(models, found.rows, strict=True))
    if rows[teacher].facts["generator_sha256"] != facts.sha256:  # a folder that has the name of a shipped model
        raise CheckpointError(
            f"{teacher}: here lies another model than the teacher with the SHA-256 {facts.sha256[:12]}",
            hint=f"rename it, or {WITHOUT}",
        )
    return _quality(found, rows[teacher], rows[checkpoint])


def _quality(result: EvalResult, teacher: Row, student: Row) -> Quality:
    """What a report of a student keeps of an evaluation of it and of its teacher."""
    from spade_deploy.evaluation.page import heading, shown
    from spade_deploy.release.quality import Figure, Judged, Quality

    def judged(row: Row, name: str) -> Judged | None:
        value = row.figure(name)
        return None if value is None else Judged(value, row.intervals.get(name), shown(row, name))

    figures = []
    for name in result.measured():
        wide, narrow = judged(teacher, name), judged(student, name)
        if wide is not None and narrow is not None:
            verdict = _verdict(name, result.verdicts.get(name), wide.value, narrow.value)
            figures.append(Figure(name, heading(result, name), result.names[name], wide, narrow, verdict))
    settings = result.settings
    data = f"{settings['data']['preset']} data, {settings['split']} split, {settings['height']} x {settings['width']}"
    left_out = result.all_skipped
    told = (f"{len(left_out)} files could not be used; the first: {left_out[0]}",) if left_out else ()
    return Quality(data, result.samples, tuple(figures), (*result.notes, *told))


def _verdict(name: str, found: Verdict | None, teacher: float, student: float) -> str:
    """Which of both leads by a figure, and whether that exceeds the noise; as `evaluation.verdict` found it."""
    from spade_deploy.evaluation.verdict import shown
    from spade_deploy.metrics import HIGHER_IS_BETTER

    if found is None:
        return ""
    if found.difference is None or found.noise is None:
        return found.reason
    leader = "teacher" if (teacher > student) == HIGHER_IS_BETTER[name] else "student"
    told = f"the {leader} leads by {shown(name, found.difference)} ± {shown(name, found.noise)}"
    return told if found.best is not None else f"{told}, within the noise"


def print_student(report: StudentReport) -> None:
    """Print a student's costs and figures beside its teacher's, and what was not measured."""
    from spade_deploy.release.student_table import student_rows

    if report.missing:
        note(f"the student could not be compared with its teacher: {report.missing}")
        return
    told = "identical images" if report.psnr_db is None else f"PSNR {report.psnr_db:.1f} dB, SSIM {report.ssim:.3f}"
    title = f"student of {one_line(report.teacher)}: {told} against the teacher's images"
    print_table(("", "teacher", "student"), student_rows(report), title=title)
    if report.quality is not None:
        stdout().print(f"  figures of {report.quality.photos} photos: {report.quality.data}")
    if report.unmeasured is not None:
        note(f"{report.unmeasured.why} This measures all of it: {report.unmeasured.command}")
