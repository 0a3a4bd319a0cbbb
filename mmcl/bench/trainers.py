"""One repetition of training on each side, timed: mmcl's loop, Hugging Face's Trainer, TRL's SFTTrainer."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcl.bench.options import Cell
from mmcl.bench.sides import LlavaPeer, Rows, objective_of_answers, train_spec
from mmcl.data.types import Sample, Samples, Task
from mmcl.model.assembly import Assembly
from mmcl.model.quiet import quiet
from mmcl.progress import Progress
from mmcl.training.loop import make_optimiser, make_schedule, plan_steps, train_task
from mmcl.training.methods import Methods


@dataclass(frozen=True, slots=True)
class Run:
    """A repetition.

    Attributes:
        seconds: of all steps, data preparation included.
        losses: of each optimiser step.
        tokens: positions that went through the language model, padding not counted.
        positions: the same with padding.
    """

    seconds: float
    losses: tuple[float, ...]
    tokens: int = 0
    positions: int = 0


def as_task(samples: Samples) -> Task:
    """The samples as a task to train on."""
    return Task(name="bench", train=samples)


def step_plan(model: Assembly, samples: Samples, cell: Cell) -> list[list[Sample]]:
    """The samples of every optimiser step, as mmcl's loop draws them."""
    return plan_steps(model, Methods({}), as_task(samples), train_spec(cell), random.Random(cell.seed))


def synchronise(device: str) -> None:
    """Wait for the accelerator, so that a clock can be read."""
    if device == "cuda":
        torch.cuda.synchronize()


class Start:
    """The values of all that trains at the start, to begin each repetition from.

    Args:
        model: an Assembly or a peer.
    """

    def __init__(self, model: Assembly | LlavaPeer) -> None:
        self._model = model
        self._values = {name: parameter.detach().clone() for name, parameter in model.trainable().items()}

    def restore(self) -> None:
        """Put them back."""
        with torch.no_grad():
            for name, parameter in self._model.trainable().items():
                parameter.copy_(self._values[name])
                parameter.grad = None


class Ours:
    """mmcl's own loop (`train_task`), packed rows.

    Args:
        model: the Assembly.
        cell: what is measured.
    """

    def __init__(self, model: Assembly, cell: Cell) -> None:
        from accelerate import Accelerator

        self.model, self.cell = model, cell
        self.start = Start(model)
        self.objective = objective_of_answers()
        self.accelerator = Accelerator(cpu=cell.device == "cpu")

    def run(self, samples: Samples) -> Run:
        """Train on the samples, from the start."""
        self.start.restore()
        synchronise(self.cell.device)
        begin = time.perf_counter()
        cost = train_task(
            self.model,
            Methods({}),
            as_task(samples),
            train_spec(self.cell),
            self.objective,
            accelerator=self.accelerator,
            rng=random.Random(self.cell.seed),
            progress=Progress.silent(),
            label="bench",
        )
        synchronise(self.cell.device)
        return Run(time.perf_counter() - begin, tuple(cost.losses), cost.tokens)


class Theirs:
    """A trainer of others over padded rows of the same samples, in the same optimiser steps.

    Args:
        peer: the model.
        rows: the samples of all steps, tokenised, one step after another.
        cell: what is measured.
        kind: `hf` or `trl`.
    """

    def __init__(self, peer: LlavaPeer, rows: Rows, cell: Cell, kind: str) -> None:
        # TRL replaces the model's forward: it gets a shell of its own around the same modules.
        self.peer = LlavaPeer(peer.encoder, peer.projector, peer.language, peer.tokenizer)
        self.rows, self.cell, self.kind = rows, cell, kind
        self.start = Start(self.peer)

    def run(self) -> Run:
        """Train on the rows, from the start."""
        self.start.restore()
        spec = train_spec(self.cell)
        counted = [0, 0]

        def collate(examples: list[dict[str, int]]) -> dict[str, Tensor]:
            batch = self.rows.collate([example["row"] for example in examples])
            counted[0] += int(batch["attention_mask"].sum())
            counted[1] += batch["attention_mask"].numel()
            return batch

        optimiser = make_optimiser(self.peer.trainable(), spec)
        schedule = make_schedule(optimiser, spec, self.cell.steps)
        with tempfile.TemporaryDirectory() as folder, quiet(), _no_output():
            trainer = _trainer(
                self.kind,
                model=self.peer,
                args=_arguments(self.kind, self.cell, folder, spec.clip),
                train_dataset=_dataset(len(self.rows.items)),
                data_collator=collate,
                optimizers=(optimiser, schedule),
                **({"processing_class": self.peer.tokenizer} if self.kind == "trl" else {}),
            )
            synchronise(self.cell.device)
            trainer.train()
        losses = torch.stack(trainer.step_losses).float().view(self.cell.steps, -1).sum(1)
        return Run(trainer.ended - trainer.begun, tuple(losses.tolist()), *counted)


def trl_missing() -> str:
    """What to do about it if TRL is not installed; empty if it is."""
    return "" if importlib.util.find_spec("trl") else "TRL is not installed: pip install 'mmcl[bench]'"


def order_rows(plan: Sequence[Sequence[Sample]], seed: int) -> list[Sample]:
    """The samples of the plan in the order of padded rows: shuffled within each step, as people's loaders do."""
    rng = random.Random(seed)
    ordered: list[Sample] = []
    for step in plan:
        rows = list(step)
        rng.shuffle(rows)
        ordered += rows
    return ordered


def _dataset(size: int) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"row": list(range(size))})


def _arguments(kind: str, cell: Cell, folder: str, clip: float) -> Any:
    keywords: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": cell.steps,
        "per_device_train_batch_size": cell.micro_batch,
        "gradient_accumulation_steps": cell.batch_size // cell.micro_batch,
        "max_grad_norm": clip,
        "bf16": False,  # the base's weights have the wanted type already
        "use_cpu": cell.device == "cpu",
        "train_sampling_strategy": "sequential",  # the rows lie in the order of the optimiser steps
        "remove_unused_columns": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": cell.seed,
    }
    from transformers import TrainingArguments

    # Renamed in transformers 5. TRL's default is on, which saves memory and costs time: off for both.
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    keywords[("activation" if "activation_checkpointing" in names else "gradient") + "_checkpointing"] = False
    if kind == "hf":
        return TrainingArguments(**keywords)
    from trl import SFTConfig

    return SFTConfig(**keywords, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None)


def _trainer(kind: str, **keywords: Any) -> Any:
    """The trainer, which also keeps the loss of each micro-batch and reads the clock around its steps."""
    import transformers

    base: Any = transformers.Trainer
    if kind == "trl":
        import trl

        base = trl.SFTTrainer

    device = "cpu" if keywords["args"].use_cpu else "cuda"

    class Timed(base):  # type: ignore[misc]
        def __init__(self, **keywords: Any) -> None:
            self.step_losses: list[Tensor] = []
            self.begun = self.ended = 0.0
            super().__init__(**keywords)

        def training_step(self, *arguments: Any, **more: Any) -> Tensor:
            loss: Tensor = super().training_step(*arguments, **more)
            self.step_losses.append(loss.detach())
            return loss

    trainer = Timed(**keywords)

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            synchronise(device)
            trainer.begun = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            synchronise(device)
            trainer.ended = time.perf_counter()

    trainer.add_callback(Clock())
    return trainer


@contextlib.contextmanager
def _no_output() -> Iterator[None]:
    """Trainers print a summary on standard output, where a JSON document may be wanted."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
