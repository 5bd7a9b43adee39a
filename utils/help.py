"""What --help prints: texts without the line breaks of the source, and names of the values."""

from __future__ import annotations

import os
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

import docstring_parser
import tyro

ROOT = Path(__file__).resolve().parents[1]
# The names of texts; the other options of type str are paths.
METAVARS = {"gpu_ids": "IDS", "common": "OPTIONS", "note": "TEXT"}
METAVARS |= dict.fromkeys(("backbone", "class_names", "variants"), "NAME")


def with_help(kind: type) -> type:
    """Return a dataclass with the fields of another one, annotated with what --help prints.

    Args:
        kind: A dataclass whose fields have a default that cannot be changed, and a docstring.
    """
    params = docstring_parser.parse_from_object(kind).params
    texts = {param.arg_name: " ".join((param.description or "").split()) for param in params}
    types, annotations = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    annotated = []
    for option in fields(kind):
        metavar, name = None, METAVARS.get(option.name, "PATH")
        if types[option.name] == tuple[str, ...]:
            metavar = f"[{name} ...]"
        elif types[option.name] in (str, str | None):
            metavar = name
        argument = tyro.conf.arg(
            help=texts.get(option.name), metavar=metavar, help_behavior_hint=_default_hint
        )
        annotation = Annotated[annotations[option.name], argument]
        annotated.append((option.name, annotation, field(default=option.default)))
    return make_dataclass(kind.__name__, annotated)


def _default_hint(default: str) -> str:
    """Return a default as --help prints it: nothing for an empty one, relative paths."""
    is_empty = default in ("", "''", "None")
    return "" if is_empty else f"(default: {default.replace(f'{ROOT}{os.sep}', '')})"
