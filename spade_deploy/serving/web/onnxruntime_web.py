"""onnxruntime-web, which runs a model in a browser: its files, out of the npm package of one version.

The package is fetched once and kept in the user's cache. Its bytes are those that the npm registry vouches for: they
are compared with the SHA-512 below each time.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from spade_deploy.errors import ConfigError, MissingDependencyError, SpadeError, line_of, reason_of
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.user_cache import user_cache

VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The digest that the registry gives for that version."""
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
WASM_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What a browser loads that runs a model in WebAssembly."""
WEBGPU_FILES = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
"""What a browser loads that runs it on WebGPU."""
_TIMEOUT_S = 300


def runtime_files(given: Path | None = None) -> Mapping[str, bytes]:
    """The files of WASM_FILES and WEBGPU_FILES. given: the package, as a folder or a .tgz; else it is fetched.

    Raises ConfigError for a package of another version, MissingDependencyError where it cannot be fetched.
    """
    if given is None:
        return _of_package(_fetched())
    if given.is_dir():
        return _of_folder(given)
    try:
        content = given.read_bytes()
    except OSError as error:
        raise ConfigError(f"`onnxruntime_web`: {given} cannot be read: {reason_of(error)}", hint=_hint()) from error
    if not _is_right(content):
        raise ConfigError(f"`onnxruntime_web`: {given} is not onnxruntime-web {VERSION}, or damaged", hint=_hint())
    return _of_package(given)


def _hint() -> str:
    return f"npm pack onnxruntime-web@{VERSION}, on a machine with a network, then `onnxruntime_web` FILE"


def _of_folder(folder: Path) -> dict[str, bytes]:
    try:
        version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
        found = {name: (folder / "dist" / name).read_bytes() for name in (*WASM_FILES, *WEBGPU_FILES)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"`onnxruntime_web`: {folder} is not the npm package: {reason_of(error)}", hint=_hint()
        ) from error
    if version != VERSION:
        raise ConfigError(f"`onnxruntime_web`: {folder} has version {version}, but {VERSION} is needed", hint=_hint())
    return found


def _of_package(path: Path) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path) as archive:
        for name in (*WASM_FILES, *WEBGPU_FILES):
            stream = archive.extractfile(f"package/dist/{name}")
            assert stream is not None, name  # the digest vouches for the package's content
            found[name] = stream.read()
    return found


def _is_right(content: bytes) -> bool:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode() == INTEGRITY


def _fetched() -> Path:
    place = user_cache("onnxruntime-web") / f"onnxruntime-web-{VERSION}.tgz"
    if place.is_file() and _is_right(place.read_bytes()):
        return place
    reasons = []
    for name, fetch in (("npm", _by_npm), (URL, _by_https)):
        try:
            content = fetch()
        except (SpadeError, OSError, ValueError, subprocess.SubprocessError) as error:
            reasons.append(f"{name}: {reason_of(error)}")
            continue
        if _is_right(content):
            with atomic_file(place) as temporary:
                temporary.write_bytes(content)
            return place
        reasons.append(f"{name}: the downloaded file has another digest")
    raise MissingDependencyError(
        f"`web`: onnxruntime-web {VERSION} cannot be fetched ({'; '.join(reasons)})",
        hint="without a network, give the npm package by `onnxruntime_web`, as a folder or a .tgz",
    )


def _by_npm() -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"onnxruntime-web@{VERSION}"]  # writes the file into the folder that it runs in
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, cwd=folder)
        packed = next(Path(folder).glob("*.tgz"), None)
        if packed is None:
            raise OSError(line_of(done.stderr) or f"it ended with code {done.returncode}")
        return packed.read_bytes()


def _by_https() -> bytes:
    with urllib.request.urlopen(URL, timeout=_TIMEOUT_S) as answer:
        content: bytes = answer.read()
    return content
