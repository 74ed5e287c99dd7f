"""Writes the references of settings and commands from the code: `make docs`, or `python docs/reference.py FOLDER`."""

import dataclasses
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.settings import PROFILES, Settings, profiles
from serving.gateway import settings as gateway
from serving.page import settings as page

_HERE = Path(__file__).resolve().parent
_WRITTEN_BY = "<!-- Written by `make docs` from {}; a test compares. Edit those. -->\n\n"
_BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}
_LENGTHS = {"min_length": "at least {} of them", "max_length": "at most {} of them"}


def configuration() -> str:
    """The page of settings: a table for each section, a row for each key."""
    given = {name: yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8")) for name in profiles()}
    return "".join(
        [
            _WRITTEN_BY.format("`pipeline/profiles/` and the modules `settings` of pipeline, gateway and page"),
            "# Settings\n\n"
            "A run takes its settings from a profile, then from environment variables, then from `--set`; the later\n"
            "wins. All three name the same keys:\n\n"
            "| where | how |\n|---|---|\n"
            "| profile: `--profile`, a name or a YAML file of your own | `tuner: {max_epochs: 5}` |\n"
            "| environment: `CATBREEDS_`, capitals, two underscores for a dot | `CATBREEDS_TUNER__MAX_EPOCHS=5` |\n"
            "| command line | `--set tuner.max_epochs=5` |\n\n"
            "Values are written as in YAML: `--set 'tuner.units=[0, 50]'`. `catbreeds run --print-config` shows the\n"
            "result, and its output is itself a profile. A section that is given whole, `--set 'gate={margin: 0}'`,\n"
            "keeps the keys that are not named. What is unknown or impossible is refused with the key and what is\n"
            "allowed.\n\n"
            f"The profiles that come with the package are {_listed(f'`{name}`' for name in given)}. A profile sets\n"
            "only what differs from the defaults.\n\n",
            *_section(Settings(), "", given, None),
            *_variables("gateway", gateway.PREFIX, gateway.Settings.model_fields),
            *_variables(
                "page", page.PREFIX, {field.name: _field(field) for field in dataclasses.fields(page.Settings)}
            ),
        ]
    )


def _variables(program: str, prefix: str, fields: dict[str, FieldInfo]) -> Iterator[str]:
    """The settings of a program that takes them from its environment alone."""
    yield f"## The {program}\n\nEnvironment variables of `python -m serving.{program}`.\n\n"
    yield "| variable | default | what it is | allowed |\n|---|---|---|---|\n"
    for name, field in fields.items():
        default = _value(field.default or None)
        yield f"| `{prefix}{name.upper()}` | {default} | {_cell(field.description)} | {_cell(_allowed(field))} |\n"
    yield "\n"


def _field(field: dataclasses.Field) -> FieldInfo:
    """As pydantic has it, of a dataclass whose annotations hold the descriptions."""
    return FieldInfo(annotation=field.type.__origin__, default=field.default, description=field.type.__metadata__[0])


def _section(defaults: BaseModel, key: str, given: dict[str, dict], described: str | None) -> Iterator[str]:
    """A section as a table, then the sections in it.

    Args:
        defaults: the section as it is without profiles.
        key: its dotted name and a dot; "" at the top.
        given: profile -> what it sets in this section.
        described: what the section above says of it.
    """
    fields, values = type(defaults).model_fields, defaults.model_dump(mode="json")
    nested = [name for name, field in fields.items() if _is_section(field.annotation)]
    here = f"\n\nHere: {described}." if described else ""
    yield f"## {f'`{key[:-1]}`' if key else 'Top level'}\n\n{_plain_text(type(defaults).__doc__)}{here}\n\n"
    if len(nested) < len(fields):
        yield "| key | default | what it is | allowed |\n|---|---|---|---|\n"
    for name, field in fields.items():
        if name not in nested:
            other = {p: keys[name] for p, keys in given.items() if name in keys and keys[name] != values[name]}
            default = _value(values[name]) + "".join(f"<br>{p}: {_value(value)}" for p, value in other.items())
            cells = (f"`{key}{name}`", default, _cell(field.description or ""), _cell(_allowed(field)))
            yield f"| {' | '.join(cells)} |\n"
    yield "\n"
    for name in nested:
        deeper = {profile: keys[name] for profile, keys in given.items() if name in keys}
        yield from _section(getattr(defaults, name), f"{key}{name}.", deeper, fields[name].description)


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _value(value: object) -> str:
    """As it is written in YAML on one line."""
    if value is None or value == "":
        return "none"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return f"`{_cell(text.removesuffix('...' + chr(10)).strip())}`"


def _allowed(field: FieldInfo) -> str:
    kind = _kind(field.annotation)
    lengths = {"min_length": "not empty"} if kind.startswith("text") else _LENGTHS
    words = [
        form.format(getattr(constraint, name))
        for constraint in field.metadata
        for name, form in (_BOUNDS | lengths).items()
        if getattr(constraint, name, None) is not None
    ]
    words += [f"matches `{c.pattern}`" for c in field.metadata if getattr(c, "pattern", None)]
    return f"{kind}; {', '.join(words)}" if words else kind


def _kind(annotation: object) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _allowed(FieldInfo.from_annotation(annotation))
    if origin is typing.Literal:
        return _listed((f"`{choice}`" for choice in inner), " or ")
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if kind is type(None) else _kind(kind) for kind in inner)
    if origin is tuple:
        each = [_kind(kind) for kind in inner if kind is not Ellipsis]
        return f"list, each {each[0]}" if Ellipsis in inner else f"list of {len(each)}, each {each[0]}"
    if origin is list:
        return f"list with commas between, each {_kind(inner[0])}"
    if origin is dict:
        return f"mapping of {_kind(inner[0])} to {_kind(inner[1])}"
    if _is_section(annotation):
        return f"mapping with {', '.join(f'`{name}`' for name in annotation.model_fields)}"
    return {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}[annotation]


def _listed(words: Iterator[str], last: str = " and ") -> str:
    *most, end = words
    return f"{', '.join(most)}{last}{end}" if most else end


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _plain_text(docstring: str) -> str:
    return re.sub(r"\n\s*", "\n", docstring).strip()


def commands() -> str:
    """The page of commands, by Typer's own generator."""
    generate = [sys.executable, "-m", "typer", "pipeline.cli", "utils", "docs", "--name", "catbreeds"]
    done = subprocess.run([*generate, "--title", "Commands"], capture_output=True, text=True, check=True)
    # Escaped for HTML; Markdown wants only its angle brackets so.
    page = (
        done.stdout.replace("&#x27;", "'")
        .replace("&quot;", '"')
        .replace("* `--help`: Show this message and exit.\n", "")
    )
    page = re.sub(r"\*\*Options\*\*:\n\n(?!\* )\n?", "", page)
    # The generator cuts what a command does after a few words; the command's own section has the sentence.
    told = dict(re.findall(r"^#+ `(.*)`\n\n(.*)$", page, re.MULTILINE))
    lines, group = [], "catbreeds"
    for line in page.rstrip().splitlines():
        if heading := re.fullmatch(r"#+ `(.*)`", line):
            group = heading[1]
        if listed := re.fullmatch(r"\* `([a-z][a-z-]*)`: .*", line):
            command = f"{group} {listed[1]}"
            line = f"* [`{command}`](#{command.replace(' ', '-')}): {told[command]}"
        lines.append(line)
    return _WRITTEN_BY.format("`pipeline/cli.py` and the modules that it registers") + "\n".join(lines) + "\n"


def main(folder: Path) -> None:
    """Writes both pages into `folder`."""
    for name, text in {"configuration.md": configuration(), "cli.md": commands()}.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _HERE)
