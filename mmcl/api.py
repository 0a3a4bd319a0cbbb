"""The Python API: what a recipe says, as keywords; and the results of a run as an object.

from mmcl.api import run

result = run(
model={"encoder": MyEncoder(), "projector": "mlp",
"language": {"weights": "smollm2-135m-instruct", "lora": {"rank": 16}}},
stream={"name": "easy_vqa", "train_size": 400, "test_size": 100},
methods=["replay", "projector_experts"],
out="runs/mine",
)
print(result.matrix().values, result.metrics()["FM"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mmcl.errors import UserError
from mmcl.evaluation.matrix import Matrix
from mmcl.experiment import Experiment
from mmcl.files import read_json
from mmcl.progress import Progress
from mmcl.recipe.load import recipe_from_dict

Plugin = str | Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        experiment: what was run.
    """

    experiment: Experiment

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.experiment.folder

    def matrix(self, variant: str | None = None) -> Matrix:
        """The performance matrix of a variant; default: the first."""
        return Matrix.read(self._home(variant) / "matrix.json")

    def metrics(self, variant: str | None = None) -> dict[str, Any]:
        """Continual-learning metrics by name, such as `ACC`, `FM` and `BWT`; None where undefined."""
        found: dict[str, Any] = read_json(self._home(variant) / "metrics.json")["metrics"]
        return found

    def ask(self, question: str, image: Path | str | None = None, stage: str = "last") -> list[dict[str, str]]:
        """Ask the model as it was after a stage, or after each (`all`): see `mmcl.revisit.ask`."""
        from mmcl.revisit import ask_experiment

        path = Path(image) if image is not None else None
        return ask_experiment(self.experiment, question=question, image=path, stage=stage)

    def report(self) -> Path:
        """Write the page; returns its path."""
        from mmcl.report import write

        return write(self.folder)

    def _home(self, variant: str | None) -> Path:
        return self.experiment.home(self.experiment.variant(variant))


def run(
    *,
    model: Mapping[str, Any],
    stream: Plugin,
    methods: Sequence[Plugin] = ("finetune",),
    out: Path | str | None = None,
    name: str = "run",
    progress: bool = True,
    **more: Any,
) -> Result:
    """Train and evaluate; the keywords are the recipe's keys.

    Args:
        model: as in a recipe; `encoder` may be an `nn.Module` that follows `mmcl.protocols.Encoder`.
        stream: name, or mapping with `name` and options.
        methods: in order.
        out: folder of the run; default: `runs/NAME`.
        name: of the run.
        progress: show bars.
        **more: `seed`, `stages`, `train`, `evaluate`, `variants`.

    Raises:
        UserError: everything that is wrong, at once, before weights load.
    """
    parts = dict(model)
    encoder = None
    if isinstance(parts.get("encoder"), nn.Module):
        encoder = parts["encoder"]
        # Only to have a complete recipe to check: the object is used, its class is recorded, its fingerprint hashed.
        parts["encoder"] = "tiny"
    data = {"name": name, "model": parts, "stream": stream, "methods": list(methods), **more}
    recipe = recipe_from_dict(data, Path.cwd())
    if encoder is not None and not hasattr(encoder, "info"):
        raise UserError(
            f"{type(encoder).__name__} has no `info`", where="model.encoder", hint="see mmcl.protocols.Encoder"
        )
    folder = Path(out) if out is not None else Path("runs") / name
    shown = Progress() if progress else Progress.silent()
    experiment = Experiment(recipe, folder, progress=shown, encoder=encoder)
    experiment.run()
    return Result(experiment)
