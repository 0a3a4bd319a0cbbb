"""What a plug-in's constructor says about its options: keywords, annotations, documentation. Standard library only."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from mmcl.errors import UserError

# By name: whoever annotates with one of these has imported `mmcl.protocols`, and with it torch; a listing has not.
_CONTRACTS: Mapping[str, str] = {
    "Encoder": "encoders",
    "Projector": "projectors",
    "Method": "methods",
    "Stream": "streams",
    "Format": "formats",
    "Metric": "metrics",
    "Objective": "objectives",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A keyword that takes plug-ins: annotated with a contract of `mmcl.protocols`, or with a list of one.

    Attributes:
        kind: of the plug-ins.
        many: it takes a list of them.
        optional: null will do as well.
    """

    kind: str
    many: bool
    optional: bool


def part_of(hint: Any) -> Part | None:
    """Which plug-ins an annotation asks for: `Encoder`, `tuple[Encoder, ...]`, `Sequence[Encoder]`, each `| None`."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    wanted = [member for member in members if member is not type(None)]
    if len(wanted) != 1:
        return None
    origin, arguments = get_origin(wanted[0]), get_args(wanted[0])
    many = (origin is tuple and arguments[1:] == (Ellipsis,)) or origin is Sequence
    entry = arguments[0] if many else wanted[0]
    if getattr(entry, "__module__", "") != "mmcl.protocols" or entry.__name__ not in _CONTRACTS:
        return None
    return Part(_CONTRACTS[entry.__name__], many, optional=len(members) > 1)


def parameters(plugin: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    """The constructor's keywords with their annotations.

    Raises:
        UserError: an annotation can't be resolved.
    """
    function = plugin.__init__ if inspect.isclass(plugin) else plugin
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise UserError(
            f"an annotation of its constructor can't be resolved: {error}",
            where=getattr(plugin, "__name__", ""),
            hint="Import the type outside `if TYPE_CHECKING`.",
        ) from error
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        (parameter, hints.get(parameter.name, Any))
        for parameter in inspect.signature(plugin).parameters.values()
        if parameter.kind in named
    ]


def option_docs(plugin: Callable[..., Any]) -> dict[str, str]:
    """The `Args:` of the class's or the constructor's Google docstring."""
    docs: dict[str, str] = {}
    for owner in (plugin, getattr(plugin, "__init__", None)):
        lines = inspect.cleandoc(getattr(owner, "__doc__", None) or "").splitlines()
        inside, name = False, ""
        for line in lines:
            if line.rstrip() == "Args:":
                inside = True
            elif inside and line and not line.startswith(" "):
                inside = False
            elif inside and line.startswith("    ") and line[4:5].strip():
                name, _, text = line.strip().partition(":")
                name = name.partition(" ")[0]
                docs[name] = text.strip()
            elif inside and name and line.strip():
                docs[name] = f"{docs[name]} {line.strip()}"
    return docs
