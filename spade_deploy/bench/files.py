"""The files that baselines load: found or made when the first baseline asks for them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from spade_deploy.artifact import Artifact
from spade_deploy.bench.candidates import Candidate, Kind
from spade_deploy.bench.convert import MODEL, Conversion
from spade_deploy.bench.job import Job, read_arrays
from spade_deploy.bench.process import Worker, WorkerError
from spade_deploy.bench.request import BenchPlan
from spade_deploy.errors import MissingDependencyError, NotFoundError, line_of
from spade_deploy.fields import digest_of
from spade_deploy.files.atomic import atomic_file, atomic_folder
from spade_deploy.files.reading import sha256_of_bytes
from spade_deploy.progress import Progress
from spade_deploy.runs.folders import find_checkpoint_by_digest, resolve_checkpoint

CALIBRATION_MAPS = 16
"""A quantiser calibrates on the label maps that are timed, but on no more than these."""
CONVERSION_LIMIT_S = 900.0
_PEERS = "pip install 'spade-deploy[peers]'"
_NEEDS = {
    Kind.PLAIN: ("torch", "onnx", "onnxscript"),
    Kind.PLAIN_INT8: ("onnxruntime", "onnx"),
    Kind.OPENVINO_INT8: ("openvino", "nncf"),
    Kind.NCNN: ("torch", "ncnn", "pnnx"),
}
"""The packages that make the files of a baseline: their versions are part of the name under which files are kept."""
_STEPS = {
    Kind.PLAIN: "plain export of the trained module",
    Kind.PLAIN_INT8: "int8 by onnxruntime.quantization",
    Kind.OPENVINO_INT8: "int8 by NNCF",
    Kind.NCNN: "conversion by pnnx",
}


@dataclass
class BaselineFiles:
    """The files of one bench."""

    artifact: Artifact
    """The artifact that is measured."""

    folder: Path
    """The folder of files that are not kept."""

    plan: BenchPlan
    """The plan, which says where files are looked for and kept."""

    progress: Progress
    """It is told of each step."""

    checkpoint: Path | None = None
    """The checkpoint, once it was found."""

    def give(self, job: Job) -> Job:
        """The job with the paths of its files. Raises SpadeError if a file of a baseline cannot be found or made."""
        kind = job.candidate.kind
        if kind in (Kind.PLAIN, Kind.OPENVINO, Kind.OPENVINO_F32):
            return replace(job, model=self._plain(job))
        if kind is Kind.PLAIN_INT8:
            return replace(job, model=self._converted(kind, job, job.cases, self._plain(job)) / MODEL)
        if kind is Kind.OPENVINO_INT8:
            return replace(job, model=self._converted(kind, job, job.cases, self._plain(job)) / "model.xml")
        if kind is Kind.NCNN:
            return replace(job, model=self._converted(kind, job, (job.golden[0], job.cases[0])))
        if job.candidate.is_baseline or kind is Kind.REFERENCE:
            return replace(job, checkpoint=self._found_checkpoint())
        return job

    def reference_images(self, job: Job) -> tuple[Path, ...]:
        """An .npz file for each case with the `image` of the untouched module. job: any job of this bench.

        Raises SpadeError where the checkpoint or PyTorch is missing.
        """
        reference = Candidate(Kind.REFERENCE, "PyTorch reference")
        job = self.give(replace(job, candidate=reference))
        keys = [self._key(Kind.REFERENCE, job, (case,)) for case in job.cases]
        images = [self._kept / f"{key}.npz" for key in keys]
        missing = [number for number, image in enumerate(images) if not image.exists()]
        if missing:
            self.progress.step(f"images of the PyTorch reference: {len(missing)}")
            with Worker(job, self.folder / "reference") as worker:
                worker.start()
                for number in missing:
                    made = self.folder / "image.npz"
                    worker.ask(do="run", case=number, image_to=str(made))
                    with atomic_file(images[number], flush="nothing") as temporary:
                        shutil.copyfile(made, temporary)
        return tuple(images)

    @property
    def _kept(self) -> Path:
        folder = self.plan.kept or self.folder
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _plain(self, job: Job) -> Path:
        return self._converted(Kind.PLAIN, job, ()) / MODEL

    def _converted(self, kind: Kind, job: Job, cases: tuple[Path, ...], plain: Path | None = None) -> Path:
        """The folder of a conversion. It is made in a process of its own, unless it is there."""
        for name in _NEEDS[kind]:
            if importlib.util.find_spec(name) is None:
                is_peer = name in ("ncnn", "pnnx", "nncf")
                hint = _PEERS if is_peer else "pip install 'spade-deploy[export,cpu,openvino]'"
                raise MissingDependencyError(f"{name} is not installed", hint=hint)
        cases = cases[:CALIBRATION_MAPS]
        target = self._kept / self._key(kind, job, cases)
        if target.exists():
            return target
        checkpoint = self._found_checkpoint()
        self.progress.step(_STEPS[kind])
        with atomic_folder(target) as temporary:
            # The child works in a folder of its own, since some tools leave files in the current one.
            checkpoint, plain = checkpoint.absolute(), None if plain is None else plain.absolute()
            asked = Conversion(kind, job.spec, checkpoint, plain, cases, temporary.absolute())
            place = self.folder / f"make-{target.name}"
            place.mkdir()
            asked.write(place / "conversion.json")
            _run(place)
        return target

    def _key(self, kind: Kind, job: Job, cases: tuple[Path, ...]) -> str:
        """A name that changes with the weights, the label maps and the versions of what makes the files."""
        arrays = [sorted(read_arrays(case).items()) for case in cases]
        facts = {
            "generator": self.artifact.manifest.source.generator_sha256,
            "versions": {name: version(name) for name in _NEEDS.get(kind, ("torch",))},
            "cases": [
                [[name, str(array.dtype), list(array.shape), sha256_of_bytes(array.tobytes())] for name, array in one]
                for one in arrays
            ],
        }
        return f"{kind}-{digest_of(facts)[:16]}"

    def _found_checkpoint(self) -> Path:
        if importlib.util.find_spec("torch") is None:
            raise MissingDependencyError("PyTorch is not installed", hint="pip install 'spade-deploy[export]'")
        if self.checkpoint is None:
            self.checkpoint = self._look_for_checkpoint()
        return self.checkpoint

    def _look_for_checkpoint(self) -> Path:
        runs_dir = self.plan.runs_dir
        if self.plan.checkpoint is not None:
            return resolve_checkpoint(self.plan.checkpoint, runs_dir)
        digest = self.artifact.manifest.source.generator_sha256
        found = find_checkpoint_by_digest(digest, near=self.artifact.path, runs_dir=runs_dir)
        if found is None:
            raise NotFoundError(f"the checkpoint that was exported is not in {runs_dir}", hint="give `checkpoint`")
        return found


def _run(place: Path) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "spade_deploy.bench.convert", "conversion.json"],
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=CONVERSION_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WorkerError(f"the conversion took longer than {CONVERSION_LIMIT_S:.0f} s") from None
    if done.returncode != 0:
        raise WorkerError(f"the conversion failed: {line_of(done.stderr, last=True) or done.returncode}")
