"""Find a network's tensors in the content of a file, where they may be nested, under a prefix, and beside others.

A network is recognised by its anchor, a tensor that no other network has. The text before the anchor's name is the
prefix of all names of the network. So no list of wrappers is needed, and every prefix that training code adds is read:
`netG.`, `generator_ema.`, `_orig_mod.`, `module.module.`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.errors import CheckpointError, ConfigError, quoted
from spade_deploy.runs.weight_files import load_weights

Network = TypeVar("Network", bound=nn.Module)

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_WRAPPING_SEGMENTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that torch.compile and others insert into the middle of a name."""
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.(original|0\._u|0\._v)")
_OF_PARAMETRIZED = {"original": "orig", "0._u": "u", "0._v": "v"}
_AVERAGE = re.compile(r"(^|[._])((?:net)?ema|averaged?|swa|shadow)([._]|$)|_ema", re.IGNORECASE)
_DEPTH = 5

ENCODER_HINT = "give the latest_net_E.pth that was trained with this generator"
"""What to do about an encoder that is another generator's."""


@dataclass(frozen=True)
class Part:
    """One network in a file."""

    place: str
    """The prefix of its names in the file, such as 'state_dict.netG.'; empty if it has none."""

    tensors: dict[str, Tensor]
    """Its tensors by the network's own names."""

    left_out: tuple[str, ...]
    """The names of other entries in the same dictionary, which do not belong to the network."""

    @property
    def described(self) -> str:
        """Its place, in words."""
        return f"'{self.place.rstrip('.')}'" if self.place else "the file's own level"


def find_parts(loaded: Any, anchors: tuple[str, ...]) -> list[Part]:
    """Every network in `loaded` that has one of the anchors, averages of weights first."""
    found: list[Part] = []
    seen: list[set[int]] = []
    for wrapper, entries in _dictionaries(loaded, "", _DEPTH):
        prefixes = {
            key[: -len(anchor)] for key in entries for anchor in anchors if key == anchor or key.endswith(f".{anchor}")
        }
        for prefix in sorted(prefixes):
            nested = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
            own = {
                key.removeprefix(prefix): value
                for key, value in entries.items()
                if key.startswith(prefix) and not (nested and key.startswith(nested))
            }
            tensors = {key: value for key, value in own.items() if isinstance(value, Tensor)}
            left_out = [key for key in entries if key.removeprefix(prefix) not in tensors or not key.startswith(prefix)]
            # The same tensors under two names, as {'model': s, 'state_dict': s}, are one network.
            identities = {id(value) for value in tensors.values()}
            if identities not in seen:
                seen.append(identities)
                found.append(Part(f"{wrapper}{prefix}", tensors, tuple(left_out)))
    return sorted(found, key=lambda part: _AVERAGE.search(part.place) is None)


def _dictionaries(value: Any, place: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dictionary of tensors at any level, with its place. Insertions of wrappers are removed from its names."""
    if not isinstance(value, dict) or not depth:
        return
    named = {plain_name(key): entry for key, entry in value.items() if isinstance(key, str)}
    if any(isinstance(entry, Tensor) for entry in named.values()):
        yield place, named
    for key, entry in named.items():
        yield from _dictionaries(entry, f"{place}{key}.", depth - 1)


def plain_name(key: str) -> str:
    """A tensor's name without what torch.compile and FSDP add, and with parametrisations under their older names.

    Both spellings of spectral norm hold the same three tensors: weight_orig, weight_u, weight_v.
    """
    for segment in _WRAPPING_SEGMENTS:
        if segment in key:
            key = key.replace(f"{segment}.", "")
    return _PARAMETRIZED.sub(lambda match: f"{match[1]}_{_OF_PARAMETRIZED[match[2]]}", key)


def choose_part(parts: list[Part], wanted: str | None, path: Path, guesses: list[str], notes: list[str]) -> Part:
    """The network at the place `wanted`; without it the first one, which is a guess if there are several.

    guesses, notes: the lists that sentences are added to. Raises ConfigError for a place that does not exist.
    """
    if wanted is not None:
        named = [part for part in parts if part.place.strip(".") == wanted.strip(".")]
        if not named:
            there = ", ".join(part.described for part in parts[:8])
            hint = f"there is {there}" if len(parts) > 1 else f"leave `part` out: there is {there} alone"
            raise ConfigError(f"`part`: {quoted(wanted)} is not in {path}", hint=hint)
        chosen = named[0]
    else:
        chosen = parts[0]
    others = [part for part in parts if part is not chosen]
    if others and wanted is None:
        rest = ", ".join(part.described for part in others[:4])
        guesses.append(
            f"of {len(parts)} generators in the file {chosen.described} was taken, not {rest}; change it with `part`"
        )
    if chosen.place:
        notes.append(f"the network is in the file as {chosen.described}; that prefix was dropped")
    if chosen.left_out:
        groups = sorted({key.split(".")[0] for key in chosen.left_out})
        shown = ", ".join(quoted(group) for group in groups[:4]) + (", ..." if len(groups) > 4 else "")
        notes.append(f"{len(chosen.left_out)} entries beside it were left out: {shown}")
    return chosen


def encoder_tensors(path: Path, anchor: str, notes: list[str], *, is_not: str, expected: str) -> dict[str, Tensor]:
    """The checked tensors of the file of a generator's encoder. Nothing in the file is executed.

    anchor: a tensor that such an encoder has. is_not, expected: what messages say where it is missing, as 'not a style
    encoder' and 'a latest_net_E.pth'. notes: the list that sentences are added to. Raises CheckpointError.
    """
    loaded = load_weights(path, "latest_net_E.pth")
    parts = find_parts(loaded, (anchor,))
    if not parts:
        raise CheckpointError(
            f"{path}: tensor '{anchor}' is missing: this is {is_not}",
            hint=f"expected {expected}; this file begins with {first_names(loaded)}",
        )
    tensors = choose_part(parts, None, path, notes, notes).tensors
    check_values(tensors, path)
    return tensors


def check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises CheckpointError that names a tensor which is no plain array of real numbers."""
    for key, value in tensors.items():
        problem = _problem(value)
        if problem is None and key.endswith("num_batches_tracked"):
            problem = None if value.dtype in (torch.int64, torch.int32, *FLOAT_TYPES) else f"is {_type(value)}"
        elif problem is None and value.dtype not in FLOAT_TYPES:
            problem = f"is {_type(value)}"
        if problem is not None:
            raise CheckpointError(
                f"{path}: tensor {quoted(key)} {problem}; read are dense tensors of"
                f" {', '.join(str(kind).removeprefix('torch.') for kind in FLOAT_TYPES)}",
                hint="save the weights as ordinary float tensors",
            )


def _problem(value: Tensor) -> str | None:
    if type(value) not in (Tensor, torch.nn.Parameter):
        return f"is a {type(value).__name__}"
    if value.is_quantized:
        return "is quantised"
    if value.is_nested or value.layout is not torch.strided:
        return f"is {'nested' if value.is_nested else str(value.layout).removeprefix('torch.')}, not dense"
    if value.is_meta:
        return "has a shape but no values (it was saved from the device 'meta')"
    return None


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def filled(make: Callable[[], Network], state: dict[str, Tensor], path: Path, notes: list[str], hint: str) -> Network:
    """The network that `make` makes, with the file's tensors, whose shapes are compared before it takes any memory.

    notes: the list that sentences on what was changed on the way are added to. Raises CheckpointError, with `hint` if
    tensors are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        blueprint = make()
    given = _completed(blueprint, state, path, notes, hint)
    network = make()
    _fill(network, given, path, notes)
    return network


def _completed(
    blueprint: nn.Module, state: dict[str, Tensor], path: Path, notes: list[str], hint: str
) -> dict[str, Tensor]:
    """The file's tensors, which must have the names and shapes of those in `blueprint`.

    Tensors that older versions of PyTorch did not save are computed, and a sentence is added to `notes`. Raises
    CheckpointError with `hint` if tensors are missing, unknown or of another shape.
    """
    expected = blueprint.state_dict()
    given = dict(state)
    for key in [key for key in given if key.endswith(".weight") and f"{key}_orig" in given]:
        del given[key]  # files of PyTorch before 1.0 also carry the normalised weight, as a buffer
    unsolved = [
        key
        for key in expected
        if key.endswith("weight_v") and key not in given and {f"{key[:-2]}_orig", f"{key[:-2]}_u"} <= set(given)
    ]
    untold = [key for key in expected if key.endswith("num_batches_tracked") and key not in given]
    missing = sorted(set(expected) - set(given) - set(unsolved) - set(untold))
    unexpected = sorted(set(given) - set(expected))
    if missing or unexpected:
        parts = [f"lacks {missing[0]!r} ({len(missing)} tensors)"] if missing else []
        if unexpected:
            parts.append(f"has {quoted(unexpected[0])} ({len(unexpected)} tensors), which such a network does not have")
        raise CheckpointError(f"{path}: {' and '.join(parts)}", hint=hint)
    for key, tensor in expected.items():
        if key in given and given[key].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: tensor {key!r} is {quoted(tuple(given[key].shape))},"
                f" but the rest of the file implies {tuple(tensor.shape)}"
            )
    for key in unsolved:
        # Such files store only u; half a step of the power iteration makes v from it.
        matrix = given[f"{key[:-2]}_orig"].float().flatten(1)
        given[key] = functional.normalize(matrix.t() @ given[f"{key[:-2]}_u"].float(), dim=0, eps=1e-12)
    if unsolved:
        notes.append(
            f"the file is older than PyTorch 1.0: weight_v of {len(unsolved)} layers was computed from weight_u"
        )
    return {**given, **{key: torch.zeros((), dtype=torch.int64) for key in untold}}


def _fill(module: nn.Module, given: dict[str, Tensor], path: Path, notes: list[str]) -> None:
    """Put the tensors into the module, in the module's types. Raises CheckpointError for NaN and infinity."""
    own = module.state_dict()
    kinds = sorted({_type(given[key]) for key, tensor in own.items() if given[key].dtype != tensor.dtype})
    converted = {}
    for key, tensor in own.items():
        if not torch.isfinite(given[key]).all():
            raise CheckpointError(f"{path}: tensor {key!r} holds NaN or infinity")
        converted[key] = given[key].to(tensor.dtype)
        if not torch.isfinite(converted[key]).all():
            raise CheckpointError(f"{path}: tensor {key!r} has values that float32 cannot hold")
    if any(given[key].dtype != tensor.dtype for key, tensor in own.items() if tensor.is_floating_point()):
        notes.append(f"weights were converted to float32 from {', '.join(kinds)}")
    module.load_state_dict(converted)


def first_names(loaded: object) -> str:
    """The first names in a file, for an error about a file that holds something else."""
    names = list(loaded)[:3] if isinstance(loaded, dict) else []
    return ", ".join(quoted(name) for name in names) or "nothing"
