"""Where the user's cache lies, and who may write to it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from spade_deploy.errors import ConfigError
from spade_deploy.files.user_cache import VARIABLE, make_private, user_cache

SYSTEM = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"


def test_the_cache_lies_where_the_system_keeps_caches_or_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(SYSTEM, raising=False)
    assert user_cache("a") == Path.home() / ".cache" / "spade-deploy" / "a"
    monkeypatch.setenv(SYSTEM, str(tmp_path / "system"))
    assert user_cache("a") == tmp_path / "system" / "spade-deploy" / "a"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "own"))
    assert user_cache("a") == tmp_path / "own" / "a"
    assert not (tmp_path / "own").exists(), "to ask for it makes nothing"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no owners of files to check")
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make_private(folder, "`cache_folder`")
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0
    make_private(folder, "`cache_folder`")
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match=r"^`cache_folder`: other users may write"):
        make_private(folder, "`cache_folder`")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^\$SPADE_CACHE_DIR: .* cannot be made"):
        make_private(tmp_path / "file" / "b", "$SPADE_CACHE_DIR")


def test_a_user_without_a_home_folder_is_told_what_names_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(SYSTEM, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="no home folder") as caught:
        user_cache("a")
    assert VARIABLE in (caught.value.hint or "")
