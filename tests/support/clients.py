"""What the example clients in other languages need, found or fetched into a cache folder; a test skips without it."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.paths import ROOT

CACHE = Path(os.environ.get("SPADE_TEST_CACHE", Path.home() / ".cache" / "spade-deploy-tests"))
"""Packages of other languages, which are large: they are kept between runs of the tests."""

INCLUDES = (Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime"))


def node_client() -> Path:
    """examples/node/client.mjs beside the packages that it imports. Skips without Node, npm or the packages."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    source = ROOT / "examples" / "node"
    wanted = (source / "package.json").read_text(encoding="utf-8")
    place = CACHE / "node"
    stamp = place / "installed.json"
    place.mkdir(parents=True, exist_ok=True)
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.copy(source / "package.json", place)
        # Its own script would fetch CUDA from another registry.
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            pytest.skip(f"npm cannot install onnxruntime-node: {done.stderr[-200:]}")
        for system in (place / "node_modules/onnxruntime-node/bin").glob("napi-v*/*"):
            if system.name in ("darwin", "win32"):  # 200 MB for other systems
                shutil.rmtree(system)
        stamp.write_text(wanted, encoding="utf-8")
    return Path(shutil.copy(source / "client.mjs", place))


def built_cpp_client(folder: Path) -> Path:
    """examples/cpp/client.cpp, compiled into `folder`. Skips without a compiler, the headers or a shared library."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("neither g++ nor clang++ is installed")
    package = find_spec("onnxruntime")
    assert package is not None
    assert package.origin is not None
    libraries = sorted((Path(package.origin).parent / "capi").glob("libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("the wheel of onnxruntime has no libonnxruntime.so here")
    made = folder / "client"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", _headers()]
    # Programs look for the library by its short name, which a wheel does not have.
    (folder / "libonnxruntime.so.1").symlink_to(libraries[-1])
    linked = [folder / "libonnxruntime.so.1", f"-Wl,-rpath,{folder}"]
    source = ROOT / "examples/cpp/client.cpp"
    subprocess.run([compiler, *flags, source, *linked, "-o", made], check=True, timeout=120)
    return made


def _headers() -> Path:
    place = CACHE / "onnxruntime-headers"
    named = os.environ.get("ONNXRUNTIME_INCLUDE")
    for folder in (Path(named),) if named else (*INCLUDES, place):
        if (folder / "onnxruntime_cxx_api.h").is_file():
            return folder
    script = ROOT / "scripts" / "fetch_onnxruntime_headers.sh"
    done = subprocess.run([script, place], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        pytest.skip(f"ONNX Runtime's C++ headers are not here (ONNXRUNTIME_INCLUDE names them): {done.stderr[-200:]}")
    return place
