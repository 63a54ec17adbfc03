"""`spade data`: write the embedded demo data set as ordinary folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.commands import output
from spade_deploy.commands.console import line, print_next, stdout, styled
from spade_deploy.commands.options import MAIN, CommandGroup, command
from spade_deploy.commands.progress import count_bar
from spade_deploy.files.locks import locked
from spade_deploy.printable import one_line
from spade_deploy.settings import setting


@dataclass(frozen=True)
class DataFolder:
    """Where a data set is written."""

    out: Path = setting(help="Folder for train/, val/ and test/.", argument=True)


@command("earth", requests=lambda: (DataFolder,))
def earth(asked: DataFolder) -> None:
    """Write satellite photos and land-cover label maps: OUT/{train,val,test}/{labels,images}/."""
    from spade_deploy.labels.earth import write_earth

    out = asked.out
    with locked(out, "writing the Earth data set"), count_bar() as progress:
        counts = write_earth(out, progress)
    counted = ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test"))
    written = f": {counted} pairs ({counts['written']} files written now)"
    output.report({"folder": out, "pairs": counts})
    stdout().print(line("the Earth data set is in ", styled(one_line(out), "bold"), written))
    print_next("spade", "check-labels", out, "--preset", "earth")


data = CommandGroup(
    name="data",
    help="Write the embedded demo data set as ordinary folders.",
    commands={"earth": earth},
    no_args_is_help=True,
    rich_help_panel=MAIN,
    rich_markup_mode="rich",
)
