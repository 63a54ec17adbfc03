"""Compiled models on the disk, in the user's cache: the next start loads them instead of compiling.

OpenVINO has such a cache of its own (`CACHE_DIR`). It loads a file with damaged weights without a word, and needs the
whole ONNX file before it looks. So the files are written and found here: the name says all that a compiled model
depends on, and the last bytes are a digest of the others.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import mmap
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Artifact, Graph
from spade_deploy.engines.openvino.cut import Part
from spade_deploy.engines.openvino.library import DEVICE, capabilities, core, load_openvino, said_by
from spade_deploy.errors import ConfigError, reason_of
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.reading import sha256_of_bytes
from spade_deploy.files.user_cache import VARIABLE, make_private, user_cache
from spade_deploy.machine.processor import all_instruction_sets

_LOG = logging.getLogger(__name__)

MOST_BYTES = 4 << 30
"""How large the cache may become: of more, the files that were not used for longest go."""
CHANGES = 4
"""How a graph is changed before it is compiled (`exact_ids.py`, `exact_norms.py`, `pattern_sums.py`,
`winograd.py`). It is raised when that changes."""
_SUFFIX = ".blob"
_DIGEST_BYTES = hashlib.sha256().digest_size

Extent = tuple[int, ...]


@dataclass(frozen=True)
class StoredModel:
    """A file of the cache in memory. It must stay while the model that was loaded from it runs."""

    content: NDArray[np.uint8]
    """What OpenVINO wrote."""
    mapping: mmap.mmap
    """The file, mapped into memory."""

    def release(self) -> None:
        """Let go of the pages that were read. What is still needed of them is read again when it is needed.

        OpenVINO arranges most weights anew and never looks at the file's again.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class ModelCache:
    """The compiled models of one graph in one precision. Several processes may use it at once.

    Whatever goes wrong costs time alone: it is told as a warning, and the model is compiled.
    """

    folder: Path
    """Where the files lie."""
    key: str
    """The digest of all that a compiled model depends on, except its size."""

    def file(self, extent: Extent) -> Path:
        """The file for batch, height and width; the label side of a graph has none of them."""
        return self.folder / f"{self.key[:32]}-{'x'.join(map(str, extent))}{_SUFFIX}"

    def is_empty(self) -> bool:
        """Whether there is no file of this graph, of any size."""
        return not any(self.folder.glob(f"{self.key[:32]}-*{_SUFFIX}"))

    def load(self, extent: Extent) -> StoredModel | None:
        """A compiled model, mapped into memory; None where there is no file, or a damaged one."""
        path = self.file(extent)
        try:
            with path.open("rb") as file:
                # OpenVINO takes no memory that is read-only; nothing is written to it.
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # ValueError: an empty file
            self.discard(extent, reason_of(error))
            return None
        body = np.frombuffer(content, np.uint8, max(0, len(content) - _DIGEST_BYTES))
        if hashlib.sha256(body.data).digest() != content[len(body) :]:
            self.discard(extent, "it is damaged, its digest is another one")
            return None
        with suppress(OSError):
            os.utime(path)  # it was used now
        return StoredModel(body, content)

    def discard(self, extent: Extent, why: str) -> None:
        """Remove a file that cannot be used, and say so."""
        path = self.file(extent)
        _LOG.warning("%s is not used: %s; the model is compiled again", path, why)
        with suppress(OSError):
            path.unlink()

    def store(self, extent: Extent, export: Callable[[io.BytesIO], object]) -> bool:
        """Keep a compiled model, and say whether it is kept.

        export: writes the model to a stream, as `CompiledModel.export_model` does.
        """
        path = self.file(extent)
        try:
            with atomic_file(path, flush="nothing") as temporary:
                with temporary.open("wb") as file:
                    export(_FileStream(file))
                with temporary.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
                with temporary.open("ab") as file:
                    file.write(digest)
        except (OSError, RuntimeError) as error:
            _LOG.warning("%s cannot be stored, so the next start compiles the model again: %s", path, said_by(error))
            return False
        self._remove_oldest(path)
        return True

    def _remove_oldest(self, kept: Path) -> None:
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):  # another process may have removed it
                facts = path.stat()
                found.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= MOST_BYTES:
                break
            if path != kept:
                with suppress(OSError):
                    path.unlink()
                total -= size


def open_cache(
    artifact: Artifact, graph: Graph, settings: Mapping[str, Any], part: Part = Part.WHOLE
) -> ModelCache | None:
    """The cache of a graph's compiled models; None, with a warning, where its folder cannot be made or is not safe.

    settings: what OpenVINO is told, of which the precision counts. part: of the graph.
    """
    try:
        folder = user_cache("openvino")
        make_private(folder, f"${VARIABLE}")
    except ConfigError as error:
        _LOG.warning("compiled models are not stored: %s; %s", error.message, error.hint)
        return None
    facts = {
        "file": graph.file,
        "part": str(part),
        "files": {name: fact.sha256 for name, fact in artifact.manifest.files.items() if name.count("/") == 0},
        "openvino": str(load_openvino().__version__),
        "changes": CHANGES,
        "precision": settings["INFERENCE_PRECISION_HINT"],
        "cpu": core().get_property(DEVICE, "FULL_DEVICE_NAME"),
        "capabilities": sorted(capabilities()),
        "instructions": all_instruction_sets(),
        "machine": platform.machine(),
    }
    return ModelCache(folder, sha256_of_bytes(json.dumps(facts, sort_keys=True).encode()))


class _FileStream(io.BytesIO):
    """A file for OpenVINO, which writes to a `BytesIO` alone: a real one would hold the whole model once more."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def write(self, content: Any) -> int:
        return self._file.write(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()
