"""Sphinx extension: fill in the pages that come from the code.

A page asks for a part with an HTML comment such as ``<!-- generate: commands -->``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

KBNET, BASICSR = "kbnet_plugin.cli", "basicsr_ext.__main__"
WIDTH = "88"
"""Columns of the usage lines."""


class Parsed(BaseException):
    """Stops a program once its arguments are parsed; no program catches it."""

    def __init__(self, parser: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
        super().__init__()
        self.parser, self.unknown = parser, unknown


def parse(module: str, arguments: Sequence[str], *, partial: bool = False) -> Parsed:
    """Parse arguments with a program's own parser, and do nothing else.

    Parameters
    ----------
    module : str
        Module whose ``main()`` is the program.
    arguments : sequence of str
        Without the program's name.
    partial : bool
        Accept a command line that lacks required arguments.

    Raises
    ------
    ValueError
        With the message of the parser, if it refuses the arguments.
    """
    original, depth = argparse.ArgumentParser.parse_known_args, 0

    def parse_known_args(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        required = [action for action in self._actions if action.required] if partial else []
        for action in required:
            action.required = False
        depth += 1
        try:
            namespace, unknown = original(self, *args, **kwargs)
        finally:
            depth -= 1
            for action in required:
                action.required = True
        if depth == 0:  # subparsers have returned
            raise Parsed(self, unknown)
        return namespace, unknown

    program = importlib.import_module(module)
    said = io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", parse_known_args),
        mock.patch.object(sys, "argv", [module, *arguments]),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),
    ):
        try:
            program.main()
        except Parsed as parsed:
            return parsed
        except SystemExit:
            pass
    raise ValueError(said.getvalue().strip().splitlines()[-1] if said.getvalue().strip() else "not parsed")


def commands() -> str:
    """Describe the commands `kbnet` and `basicsr`, from their parsers."""
    delegated = _subparsers(parse(BASICSR, ["options"]).parser)
    # `kbnet` loads only the options of the command that is called.
    own = [name for name in _subparsers(parse(KBNET, ["models"]).parser) if name not in delegated]
    found = {f"kbnet {name}": _subparsers(parse(KBNET, [name], partial=True).parser)[name] for name in own}
    found |= {f"basicsr {name}": parser for name, parser in delegated.items()}
    return "\n".join(line for name, parser in found.items() for line in _command(name, parser))


def options() -> str:
    """Describe the sections and keys of option files, from their JSON schema."""
    from basicsr_ext.schema import json_schema

    schema = json_schema()
    definitions = schema["$defs"]
    lines: list[str] = []

    def table(title: str, content: Mapping[str, Any], keys: Iterable[str]) -> None:
        lines.extend([f"## {title}", "", "| key | value | default | meaning |", "|---|---|---|---|"])
        for key in keys:
            field = content["properties"][key]
            inline = "default" in field and not any(_sections(field, definitions))
            default = f"`{json.dumps(field['default'])}`" if inline else ""
            if key in content.get("required", ()):
                default = "required"
            meaning = _escape(field.get("description", "see below"))
            lines.append(f"| `{key}` | {_values(field)} | {default} | {meaning} |")
        lines.append("")

    def section(title: str, content: Mapping[str, Any], without: Iterable[str] = ()) -> None:
        keys = [key for key in content["properties"] if key not in without]
        table(title, content, keys)
        for key in keys:
            parts = dict(_sections(content["properties"][key], definitions))
            path = _path(title, key)
            shared = _shared(list(parts.values()))
            if shared:
                table(f"{path}, every type", next(iter(parts.values())), shared)
            for name, part in parts.items():
                section(f"{path}, type {name}" if name else path, part, shared)

    section("Top level", schema["then"])
    return "\n".join(lines)


def cards() -> str:
    """Collect the cards of the shipped models."""
    from kbnet_plugin import zoo
    from tools.cards import read_card

    lines: list[str] = []
    for model in zoo.list_models():
        if model.shipped and model.card:
            _, text = read_card(model.card)
            body = re.sub(r"(?m)^(#+ )", r"#\1", text.strip().partition("\n")[2])
            lines += [f"## {model.name}", "", f"{model.title[:1].upper()}{model.title[1:]}.", ""]
            lines += [f"![Crops: input, result and truth](../models/{model.name}.jpg)", body, ""]
    return "\n".join(lines)


PARTS = {part.__name__: part for part in (commands, options, cards)}
_REQUEST = re.compile(r"<!-- generate: (\w+) -->")


def fill(text: str) -> str:
    """Replace every request by the part that it names."""
    return _REQUEST.sub(lambda found: PARTS[found[1]](), text)


def setup(app: Any) -> dict[str, Any]:
    """Connect to Sphinx."""

    def read(_app: Any, _name: str, source: list[str]) -> None:
        source[0] = fill(source[0])

    def flatten(_app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
        # numpydoc leaves the headings of modules, and two on a page would both be called References.
        if what == "module":
            lines[:] = re.sub(r"(?m)^(\S.*)\n-{3,}$", r".. rubric:: \1\n", "\n".join(lines)).split("\n")

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", flatten)
    return {"parallel_read_safe": True}


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(dict(a.choices) for a in parser._actions if isinstance(a, argparse._SubParsersAction))


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    with mock.patch.dict("os.environ", COLUMNS=WIDTH):
        usage = re.sub(r"(?m)^(usage:| {6}) ", "", parser.format_usage()).strip()
    yield from (f"## {name}", "", _escape(parser.description or ""), "", "```text", usage, "```", "")
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
        if action.choices is not None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        shown = [o if action.nargs == 0 else f"{o} {value}" for o in action.option_strings] or [value]
        text = (action.help or "") % {**vars(action), "prog": parser.prog}
        yield from (", ".join(f"`{each}`" for each in shown), f": {_escape(text)}" if text else ": n/f", "")
    if parser.epilog:
        yield from ("```text", parser.epilog.strip(), "```", "")


def _sections(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Sections that a key may hold, by the name of their type where there are several."""
    for each in (field, *field.get("anyOf", ())):
        if "$ref" in each:
            content = definitions[each["$ref"].rpartition("/")[2]]
            if not content.get("additionalProperties"):
                yield "", content
    several = [field, *field.get("patternProperties", {}).values(), field.get("additionalProperties")]
    names: dict[str, list[str]] = {}
    for each in several:
        for case in each.get("allOf", ()) if isinstance(each, dict) else ():
            name = case["if"]["properties"]["type"]["const"]
            names.setdefault(case["then"]["$ref"].rpartition("/")[2], []).append(name)
    yield from ((", ".join(alike), definitions[definition]) for definition, alike in names.items())


def _shared(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that mean the same in all of several sections, where these are worth a table."""
    first, *others = (part["properties"] for part in parts) if len(parts) > 1 else ({},)
    keys = [key for key, field in first.items() if all(other.get(key) == field for other in others)]
    return keys if len(keys) > 3 else []


def _path(title: str, key: str) -> str:
    path = key if title == "Top level" else f"{title}.{key}"
    return {"datasets": "datasets.*", "val.metrics": "val.metrics.*"}.get(path, path)


def _values(field: Mapping[str, Any]) -> str:
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_values(each) for each in field["anyOf"]))
    if "$ref" in field or any(key in field for key in ("allOf", "patternProperties", "additionalProperties")):
        return "section"
    kind = field.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"list of {_values(field.get('items', {}))}"
    return {"string": "text", "boolean": "true or false", "object": "section"}.get(kind, kind)


def _escape(text: str) -> str:
    """Escape what Markdown would take for markup, except in code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if i % 2 else re.sub(r"([*_<>\[\]|])", r"\\\1", p) for i, p in enumerate(parts))
