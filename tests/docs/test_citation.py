"""CITATION.cff is valid, and says what the package says."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from spade_deploy.version import __version__
from tests.support.paths import ROOT

FILE = ROOT / "CITATION.cff"


def is_valid(folder: Path) -> bool:
    """Whether cffconvert, which has the schema, takes the CITATION.cff of a folder."""
    command = [sys.executable, "-c", "from cffconvert.cli.cli import cli; cli()", "--validate"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def test_it_is_valid_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    text = FILE.read_text(encoding="utf-8")
    for content, expected in ((text, True), (text.replace("title:", "titel:", 1), False)):
        (tmp_path / "CITATION.cff").write_text(content, encoding="utf-8")
        assert is_valid(tmp_path) is expected


def test_version_and_licence_are_those_of_the_package() -> None:
    said = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (said["title"], said["version"], said["license"]) == (project["name"], __version__, project["license"])
