"""What there is to choose from: plug-ins, packaged recipes, models to fetch."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmcl import __version__
from mmcl.cli_output import print_table
from mmcl.errors import UserError
from mmcl.recipe import registry
from mmcl.recipe.suggest import did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

KINDS = (*registry.KINDS, "recipes", "models")


def entries(kind: str) -> list[registry.Entry]:
    """Everything of a kind, without importing plug-ins.

    Raises:
        UserError: there is no such kind.
    """
    if kind == "recipes":
        return [
            registry.Entry(path.stem, kind, leading_comment(path.read_text("utf-8")), "mmcl", __version__, str(path))
            for path in recipe_files()
        ]
    if kind == "models":
        from mmcl.fetch import MODELS

        return [registry.Entry(name, kind, MODELS[name].summary, "mmcl", __version__, name) for name in sorted(MODELS)]
    if kind not in KINDS:
        raise UserError(f"there is no kind `{kind}`", where=kind, hint=did_you_mean(kind, KINDS))
    return registry.entries(kind)


def recipe_files() -> list[Path]:
    """The packaged recipes: `mmcl/recipes` where mmcl is installed, `recipes` beside `mmcl` in a checkout."""
    package = Path(__file__).parent
    folders = (folder / "recipes" for folder in (package, package.parent))
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return sorted(folder.glob("*.yaml")) if folder else []


def recipe_path(text: str) -> Path:
    """The file of a recipe given as a path or as the name of a packaged recipe.

    Raises:
        UserError: it is neither.
    """
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    packaged = {file.stem: file for file in recipe_files()}
    if text in packaged:
        return packaged[text]
    hint = did_you_mean(text, packaged) or "Give the path of a YAML file."
    raise UserError(
        f"there is no recipe `{text}`, neither as a file nor among the packaged ones", where=text, hint=hint
    )


def leading_comment(text: str) -> str:
    """The first paragraph of the comment that a YAML file begins with, on one line."""
    words: list[str] = []
    for line in text.splitlines():
        content = line.removeprefix("#").strip()
        if not line.startswith("#") or not content:
            break
        words.append(content)
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class Description:
    """Everything about one plug-in, recipe or model.

    Attributes:
        entry: name, kind and origin.
        doc: the docstring; the text of a recipe.
        options: what a recipe may set.
    """

    entry: registry.Entry
    doc: str
    options: Sequence[registry.Option] = ()

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **entry_document(self.entry),
            "target": self.entry.target,
            "doc": self.doc,
            "options": [
                {
                    "name": option.name,
                    "type": option.type,
                    "required": option.required,
                    "default": _plain(option.default),
                    "doc": option.doc,
                }
                for option in self.options
            ],
        }

    def show(self, console: Console) -> None:
        """For people."""
        entry = self.entry
        console.print(f"{entry.name} ({entry.kind[:-1]})", style="bold", markup=False)
        console.print(f"from {entry.distribution} {entry.version}: {entry.target}\n", markup=False)
        console.print(_without_options(self.doc) or "(no description)", markup=False)
        if self.options:
            console.print("\nOptions in a recipe:", style="bold")
        for option in self.options:
            default = "required" if option.required else f"default {_plain(option.default)}"
            console.print(f"  {option.name}: {option.type}, {default}", markup=False)
            if option.doc:
                console.print(textwrap.indent(textwrap.fill(option.doc, 94), "      "), markup=False)


def entry_document(entry: registry.Entry) -> dict[str, Any]:
    """One row of `mmcl list KIND --json`."""
    return {
        "name": entry.name,
        "kind": entry.kind,
        "summary": entry.summary,
        "distribution": entry.distribution,
        "version": entry.version,
    }


def show_entries(found: Sequence[registry.Entry], console: Console) -> None:
    """A table for people."""
    rows = [{**entry_document(entry), "from": f"{entry.distribution} {entry.version}"} for entry in found]
    print_table(console, ("name", "summary", "from"), rows)


class Shown(Protocol):
    """What `mmcl describe` prints."""

    def document(self) -> dict[str, Any]:
        """For `--json`."""

    def show(self, console: Console) -> None:
        """For people."""


def describe(text: str, folder: Path) -> Shown:
    """A description by `name` or `kind:name`.

    Args:
        text: such as `mlp`, `projectors:mlp`, `encoders:./mine.py:Mine` or `vlm:llava-hf/llava-1.5-7b-hf`.
        folder: where `./file.py` starts.

    Raises:
        UserError: nothing or several things have that name.
    """
    wanted, _, rest = text.partition(":")
    if wanted == "vlm":
        from mmcl.cli_vlm import describe_vlm

        return describe_vlm(rest, folder)
    kind = next((kind for kind in KINDS if wanted in (kind, kind[:-1])), None)
    name = rest if kind else text
    if ".py:" in name:
        if kind not in registry.KINDS:
            hint = f"Write kind:{name}; kinds are {', '.join(registry.KINDS)}."
            raise UserError("a file needs the kind of the plug-in", where=text, hint=hint)
        entry = registry.Entry(name, kind, "", str(folder), "", name)
        return _describe_plugin(entry, folder)
    pool = [entry for each in ((kind,) if kind else KINDS) for entry in entries(each)]
    found = [entry for entry in pool if entry.name == name]
    if not found:
        raise UserError(f"nothing has the name `{name}`", where=text, hint=did_you_mean(name, [e.name for e in pool]))
    kinds = sorted({entry.kind for entry in found})
    if len(kinds) > 1:
        names = " or ".join(f"{kind}:{name}" for kind in kinds)
        raise UserError(f"several things have the name `{name}`", where=text, hint=f"Write {names}.")
    if kinds == ["recipes"]:
        return Description(found[0], Path(found[0].target).read_text("utf-8").strip())
    if kinds == ["models"]:
        return Description(found[0], f"{found[0].summary}\n\nGet it with: mmcl fetch {name}")
    return _describe_plugin(found[0], folder)


def _describe_plugin(entry: registry.Entry, folder: Path) -> Description:
    plugin = registry.load(entry.kind, entry.name, folder)
    return Description(entry, inspect.getdoc(plugin) or "", registry.options(entry.kind, plugin))


def _without_options(doc: str) -> str:
    """A docstring without `Args:`, which the options show."""
    before, marker, after = f"\n{doc}\n".partition("\nArgs:\n")
    if not marker:
        return doc
    rest = after.splitlines()
    end = next((k for k, line in enumerate(rest) if line and not line.startswith(" ")), len(rest))
    return "\n".join([before.strip(), "", *rest[end:]]).strip()


def _plain(default: Any) -> Any:
    """A default as JSON has it; as text where JSON has nothing like it."""
    if isinstance(default, (tuple, list)):
        return [_plain(item) for item in default]
    return default if default is None or isinstance(default, (bool, int, float, str, dict)) else str(default)
