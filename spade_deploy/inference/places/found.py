"""What a source holds: its samples by their ids, and what of it cannot be used. Names that would harm are refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from spade_deploy.errors import LabelMapError, quoted
from spade_deploy.inference.jobs import Failure, Origin, failure
from spade_deploy.inference.places.names import check_id
from spade_deploy.spec import Naming


@dataclass(frozen=True)
class Item:
    """A label map, and the instance map that belongs to it."""

    id: str
    """The name of the sample, and of its result."""
    label: Origin
    """The label map."""
    instance: Origin | None = None
    """The instance map; None if there is none."""


@dataclass(frozen=True)
class Found:
    """The content of a source."""

    items: tuple[Item, ...]
    """The samples, in the order of the source."""
    failures: tuple[Failure, ...] = ()
    """What cannot be used."""
    left_out: tuple[str, ...] = ()
    """A sentence for each photo that lies beside its label map."""
    naming: Naming = Naming.STEM
    """PATH if the ids may have folders in them, else STEM."""


@dataclass
class Finder:
    """Collects the items of a source, and refuses the ids that cannot name a result."""

    kept: dict[str, list[Item]] = field(default_factory=dict)
    """The items by their ids in lower case."""
    failures: list[Failure] = field(default_factory=list)
    """What was refused."""
    left_out: list[str] = field(default_factory=list)
    """Photos beside label maps."""
    naming: Naming | None = None
    """How the ids of files were made; None where the source itself has ids."""

    def add(self, name: str, label: Origin, instance: Origin | None = None) -> None:
        """A sample of the source."""
        try:
            check_id(name, label)
        except LabelMapError as error:
            self.failures.append(failure(label, error, name))
            return
        self.kept.setdefault(name.casefold(), []).append(Item(name, label, instance))

    def refuse(self, label: Origin, reason: str, hint: str | None = None, name: str = "") -> None:
        """A part of the source that cannot be used. name: the id, if it has one."""
        self.failures.append(failure(label, LabelMapError(f"{label}: {reason}", hint=hint), name))

    def found(self) -> Found:
        """Everything; ids that several samples share are refused, as any of them could be meant."""
        items = []
        hint = "give each sample a name of its own, or make the images of one source at a time"
        if self.naming is Naming.STEM:
            hint = "`names` path keeps the folders of the label maps; the results then need a folder of their own"
        for alike in self.kept.values():
            if len(alike) == 1:
                items.append(alike[0])
                continue
            for item in alike:
                other = next(one for one in alike if one is not item)
                if str(other.label) == str(item.label):
                    self.refuse(item.label, "it is named more than once", "name each label map once", item.id)
                    continue
                how = "" if other.id == item.id else ", but for upper and lower case"
                self.refuse(
                    item.label,
                    f"its result would be named {quoted(item.id)}, like that of {other.label}{how}",
                    hint,
                    item.id,
                )
        has_folders = any("/" in item.id for item in items)
        naming = Naming.PATH if has_folders or self.naming is Naming.PATH else Naming.STEM
        return Found(tuple(items), tuple(self.failures), tuple(self.left_out), naming)
