"""The parts of a description: facts by name and tables; and how figures are written in their cells."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from spade_deploy.printable import printable
from spade_deploy.spec import GeneratorSpec, LabelSpec

Rows = tuple[tuple[str, str], ...]
"""Facts: pairs of a name and a value."""

SHOWN_NAMES = 4
_MOST_IN_A_CELL = 500
_MOST_OF_A_VALUE = 80


@dataclass(frozen=True)
class Table:
    """One table of a description; cells are text."""

    title: str
    """The heading of the table."""
    columns: tuple[str, ...]
    """The heads of its columns."""
    rows: tuple[tuple[str, ...], ...]
    """Its cells, row by row."""


@dataclass(frozen=True)
class Description:
    """The description of a path."""

    title: str
    """The kind of the path, such as 'artifact'."""
    rows: Rows
    """Facts by name."""
    tables: tuple[Table, ...] = ()
    """Tables of what it has several of, such as graphs."""


def for_a_terminal(found: Description) -> Description:
    """The same description, safe to print: names in files may hold control codes, or megabytes."""

    def cell(text: str) -> str:
        text = printable(str(text)).replace("\n", " ")
        return text if len(text) <= _MOST_IN_A_CELL else f"{text[: _MOST_IN_A_CELL - 3]}..."

    tables = tuple(
        replace(table, title=cell(table.title), rows=tuple(tuple(map(cell, row)) for row in table.rows))
        for table in found.tables
    )
    return Description(found.title, tuple((cell(name), cell(fact)) for name, fact in found.rows), tables)


def spec_rows(spec: GeneratorSpec, parameters: str) -> Rows:
    """The facts about a generator: architecture, labels, size, layers, and how many parameters it has, in words."""
    labels = spec.labels
    extra = [name for name, there in (("unknown (255)", labels.has_dontcare), ("edges", labels.has_edges)) if there]
    sizes = f"any {spec.side_rule}" if spec.is_dynamic else "this size alone"
    style = "none" if spec.z_dim is None else f"{spec.z_dim} numbers ({'noise' if spec.noise_channels else 'VAE'})"
    return (
        ("architecture", spec.title),
        ("labels", f"{labels.num_labels}{''.join(f' + {name}' for name in extra)}"),
        ("names", _names(labels)),
        ("size", f"{spec.height} x {spec.width} (height x width), runs at {sizes}"),
        *_shape_rows(spec),
        ("norm", f"{spec.norm}{', spectral norm' if spec.spectral_norm else ''}"),
        *((("style vector", style),) if spec.has("z_dim") else ()),
        ("parameters", parameters),
    )


def _shape_rows(spec: GeneratorSpec) -> Rows:
    """Widths and doublings, as far as the architecture has them."""
    width = f"{spec.base_channels} base"
    if spec.has("hidden_channels"):
        width += f", {spec.hidden_channels} hidden, kernel {spec.kernel_size}"
    if spec.level_text:
        width += f"; {spec.level_text}"
    doublings = ("upsampling", f"{spec.upsampling}: {spec.doublings} doublings")
    depth = () if spec.depth is None else (("depth", spec.depth),)
    return (*((doublings,) if spec.has("upsampling") else ()), *depth, ("channels", width))


def _names(labels: LabelSpec) -> str:
    """The first class names, with their colours if known: 'water #1c4b7a, urban #ff0000, ... (17 in all)'."""
    if not labels.names:
        return "none"
    shown = list(labels.names[:SHOWN_NAMES])
    if labels.palette:
        shown = [f"{name} #{bytes(color).hex()}" for name, color in zip(shown, labels.palette, strict=False)]
    rest = f", ... ({len(labels.names)} in all)" if len(labels.names) > SHOWN_NAMES else ""
    return ", ".join(shown) + rest


def when(unix_ns: int) -> str:
    """Local time in ISO form: '2026-03-01 14:05:09+01:00'."""
    try:
        return datetime.fromtimestamp(unix_ns // 1_000_000_000, UTC).astimezone().isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):
        return f"{unix_ns} ns after 1970"


def millions(count: int) -> str:
    """93100000 -> '93.10 M'."""
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count}"


def size_text(count: int) -> str:
    """1500000 -> '1.5 MB'."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def number_text(value: Any) -> str:
    """A number with three digits; '-' for any other value."""
    return f"{value:.3g}" if isinstance(value, int | float) else "-"


def shortened(value: Any) -> str:
    """A setting or a name, cut to 80 characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MOST_OF_A_VALUE else f"{text[: _MOST_OF_A_VALUE - 3]}..."
