"""The request for a web folder: where it is written, and where onnxruntime-web comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import ConfigError
from spade_deploy.settings import setting

_GROUP = "In the browser"


@dataclass(frozen=True)
class WebRequest:
    """Whether a folder is written that paints without a server."""

    web: Path | None = setting(
        None,
        help="Also write a static folder: a page on which the browser runs the model. If an artifact is given instead"
        " of a checkpoint, nothing is exported.",
        group=_GROUP,
    )
    onnxruntime_web: Path | None = setting(
        None, help="The npm package for `web`, a folder or a .tgz, if there is no network.", group=_GROUP
    )

    def __post_init__(self) -> None:
        if self.onnxruntime_web is not None and self.web is None:
            raise ConfigError("`onnxruntime_web`: it is only used with `web`", hint="add `web`, or leave it out")
