"""Settings in a YAML file: `--config FILE` reads what `--print-config` prints, and a flag wins over the file.

A value in the file is what would be typed after the flag, and is checked in the same way: `batch_size: 4` is
`--batch-size 4`. So numbers, switches and sizes mean the same in both places. `null` means that a setting is not given.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import RequestCommand
from spade_deploy.commands.request_options import Option, options_of
from spade_deploy.errors import ConfigError, SpadeError, quoted, reason_of
from spade_deploy.files.reading import read_regular
from spade_deploy.printable import one_line, printable
from spade_deploy.settings import as_typed, setting

MAX_CONFIG_BYTES = 1 << 16
"""The largest file of settings that is read; one with every setting and its comment has 8 kB."""


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """Where settings are read from, and whether they are printed."""

    config: Path | None = setting(
        None, help="Settings from a YAML file, as `print_config` prints them; flags win.", metavar="FILE"
    )
    print_config: bool = setting(False, help="Print all effective settings as YAML, then exit.")


@dataclass(frozen=True)
class Entry:
    """A setting in a file."""

    text: Any
    """The text that would be typed after the flag, or a list of such texts."""
    line: int
    """The number of its line in the file, from 1 on."""


class ConfigCommand(RequestCommand):
    """A command with `--config`: the options of its first request may stand in a file, too."""

    _file: Path | None = None
    _entries: Mapping[str, Entry] = {}

    @property
    def settings(self) -> list[Option]:
        """The options that may stand in the file."""
        names = {option.key for option in options_of(self.requests()[0])}
        return [option for option in self.options if option.key in names]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self.begin(ctx, args)
        args = self.with_bare_values(args)
        typed, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        self._file, self._entries = None, {}
        if typed.get("config") is not None:
            self._file = Path(typed["config"])
            self._entries = read_settings(self._file, self.settings, f"spade {self.name}")
            self._check_types(ctx)
            ctx.default_map = {key: entry.text for key, entry in self._entries.items()}
        return super().parse_args(ctx, args)

    def _check_types(self, ctx: Any) -> None:
        for param in self.params:
            entry = self._entries.get(param.name)
            if entry is None:
                continue
            try:
                param.process_value(ctx, entry.text)
            except typer.BadParameter as error:
                takes = next(option.takes for option in self.settings if option.key == param.name)
                told = ConfigError(f"{self._place(param.name)}: {quoted(entry.text)} is not {takes}")
                told.hint = f"{self._hint(told, ())}"
                raise told from error

    def flags_in(self, ctx: Any) -> dict[str, str]:
        """How messages name each setting: by its key and line if the file gave it, else by its flag."""
        flags = super().flags_in(ctx)
        from_file = {option.flag: self._place(option.key) for option in self._from_file(ctx)}
        return {name: from_file.get(flag, flag) for name, flag in flags.items()}

    def _from_file(self, ctx: Any) -> list[Option]:
        """The options whose values are the file's."""
        return [
            option
            for option in self.settings
            if option.key in self._entries and ctx.get_parameter_source(option.key).name == "DEFAULT_MAP"
        ]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SpadeError as error:
            if self._file is not None:
                error.hint = self._hint(error, self._from_file(ctx))
            raise

    def _hint(self, error: SpadeError, from_file: Sequence[Option]) -> str | None:
        """The error's own next step, and that the value is to be corrected in the file, if it came from there."""
        file = one_line(self._file)
        correct = f"correct it in {file}, or give the flag, which wins"
        if f"({file}, line" not in in_flags(error.message) + in_flags(error.hint or ""):
            named = next((option.key for option in from_file if self._is_named(option, error.message)), None)
            if named is None:
                return error.hint
            line = self._entries[named].line
            correct = f"{named} is in {file}, line {line}: correct it there, or give the flag, which wins"
        if error.hint is None and error.next_step == error.usual_hint and isinstance(error, ConfigError):
            return f"{correct}; `spade {self.name} --help` tells what each setting means"
        # The message has the line; the hint says what to write there.
        keys = {name: option.key for option in from_file for name in (option.field, option.key)}
        return f"{in_flags(error.next_step, keys)}; {correct}"

    def _is_named(self, option: Option, message: str) -> bool:
        """Whether a message, such as that of a missing file, names the path that the file gives for an option."""
        text = self._entries[option.key].text
        if option.value_kind not in (Path, str):
            return False
        begin = r"(^|[\s'\"/])" if option.value_kind is Path else "^"
        paths = "|".join(re.escape(str(Path(one))) for one in (text if option.is_list else [text]))
        return re.search(rf"{begin}({paths})($|[\s:;,'\"/])", message) is not None

    def _place(self, key: str) -> str:
        return f"{key} ({one_line(self._file)}, line {self._entries[key].line})"


def read_settings(path: Path, options: Sequence[Option], command: str) -> dict[str, Entry]:
    """Read the settings of a file, by their names.

    The file must be a flat mapping without tags, in which every name is that of an option and stands once. Raises
    ConfigError, which names the file and, if it is known, the line.
    """
    import yaml

    known = {option.key: option for option in options}
    try:
        text = read_regular(path, MAX_CONFIG_BYTES).decode("utf-8-sig")
        tagged = next((event for event in yaml.parse(text, yaml.SafeLoader) if getattr(event, "tag", None)), None)
        if tagged is not None:
            raise _refused(path, tagged, f"the tag {quoted(tagged.tag)} is not taken", "write the value alone")
        root = yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"`config`: {path} {_unreadable(error)}", hint=_FIRST_STEP.format(command)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"`config`: {path}: byte {error.start} is not UTF-8", hint="save it as UTF-8") from error
    except RecursionError as error:
        raise ConfigError(f"`config`: {path} is nested too deeply", hint=_FIRST_STEP.format(command)) from error
    except yaml.YAMLError as error:
        where = f", line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) is not None else ""
        problem = getattr(error, "problem", None) or reason_of(error)
        raise ConfigError(
            f"`config`: {path}{where} is not valid YAML: {problem}", hint=_FIRST_STEP.format(command)
        ) from error
    if root is None or root.tag == _NULL:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise _refused(path, root, "holds no settings", "write one a line, such as `batch_size: 4`")
    found: dict[str, Entry] = {}
    for key, value in root.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise _refused(path, key, f"{quoted(name)} is not a setting of `{command}`", hint)
        if name in found:
            raise _refused(path, key, f"{name} occurs twice, first in line {found[name].line}", "leave one out")
        found[name] = Entry(_text(path, name, value, known[name]), key.start_mark.line + 1)
    return {name: entry for name, entry in found.items() if entry.text is not None}


def _text(path: Path, name: str, node: Any, option: Option) -> Any:
    """The text that would be typed for a node of the file; None for null."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == _NULL else [node.value] if option.is_list else node.value
    parts: list[Any] = node.value if option.is_list and isinstance(node, yaml.SequenceNode) else [None]
    if all(isinstance(part, yaml.ScalarNode) for part in parts):
        return [part.value for part in parts]
    what = "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
    takes = "a list of values" if option.is_list else "a single value"
    raise _refused(path, node, f"{name} is {what}; it takes {takes}", f"it is {option.takes}")


def as_yaml(options: Sequence[Option], request: Any) -> str:
    """Every setting of a request as YAML that `read_settings` reads, with its help in a comment above it."""
    table = {name: option.key for option in options for name in (option.field, option.key)}
    lines: list[str] = []
    for group in dict.fromkeys(["", *(option.setting.group for option in options)]):
        members = [option for option in options if option.setting.group == group]
        if members and group:
            lines += ["", f"## {group}"]
        for option in members:
            lines += [f"# {in_flags(option.setting.help, table)}", _yaml_line(option, _value_in(request, option))]
    return "\n".join(lines) + "\n"


def _value_in(request: Any, option: Option) -> Any:
    """The value of an option in a request; None if it is not asked for."""
    for name in option.path:
        request = request.get(name) if isinstance(request, Mapping) else getattr(request, name)
    return request


def _yaml_line(option: Option, value: Any) -> str:
    import yaml

    if value in (None, "", ()):
        return f"{option.key}: null"
    if option.is_list:
        plain: Any = [as_typed(part) for part in value]
    else:
        plain = value if isinstance(value, (bool, float)) or type(value) is int else as_typed(value)
    is_plain = printable(str(plain)) == str(plain)
    # The value is written inside a list: YAML would put the mark of a document's end after a text alone.
    text: str = yaml.safe_dump([plain], default_flow_style=True, allow_unicode=is_plain, width=2**20)
    return f"{option.key}: {text.strip()[1:-1]}"


def _refused(path: Path, node: Any, problem: str, hint: str) -> ConfigError:
    return ConfigError(f"`config`: {path}, line {node.start_mark.line + 1}: {problem}", hint=hint)


def _unreadable(error: OSError) -> str:
    return "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason_of(error)})"


_NULL = "tag:yaml.org,2002:null"
_FIRST_STEP = "`{} --print-config` prints a file to begin with"
