"""Instance maps in a folder, a glob or behind a URL, found by the names of their label maps."""

from __future__ import annotations

from pathlib import Path

from spade_deploy.errors import LabelMapError
from spade_deploy.inference.jobs import Origin
from spade_deploy.inference.places.listing import expanded, is_pattern, list_url, origin_of
from spade_deploy.inference.places.names import before_wildcards, below, pure, stem, whole
from spade_deploy.inference.places.urls import shown
from spade_deploy.labels.files import is_image_name
from spade_deploy.spec import Naming


class InstanceMaps:
    """Finds the instance map of a label map. Without a source there are none."""

    def __init__(self, source: Path | str | None, naming: Naming) -> None:
        """List them. naming: STEM pairs by stems; PATH by paths below the folder, or below that of the pattern.

        Raises NotFoundError, PlaceError.
        """
        self._source = source
        self._known: dict[str, list[Path | str]] = {}
        if source is None:
            return
        in_folders = naming is Naming.PATH
        if is_pattern(source):
            base, places = before_wildcards(source), expanded(source, "instance maps")
        else:
            base = whole(source)
            places = list(list_url(source, in_folders=in_folders)) if isinstance(source, str) else []
            if isinstance(source, Path):
                places += sorted(source.rglob("*") if in_folders else source.iterdir())
        for place in places:
            if is_image_name(Path(whole(place))):
                path = whole(place)
                name = below(pure(path), base) if in_folders else stem(path)
                self._known.setdefault(name, []).append(place)

    def of(self, name: str) -> Origin | None:
        """The instance map of an id; None without a source. Raises LabelMapError if there is none, or more than one."""
        if self._source is None:
            return None
        found = self._known.get(name, [])
        if len(found) != 1:
            count = "no instance map" if not found else f"{len(found)} instance maps"
            raise LabelMapError(
                f"there is {count} for it in {shown(self._source)}",
                hint="its path there is that of the label map; a list (.txt) may name each after a tab"
                if "/" in name
                else None,
            )
        return origin_of(found[0])
