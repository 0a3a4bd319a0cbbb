"""Modality-aware experience replay, with distillation from the previous model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmcl.data.types import IMAGE_PLACEHOLDER, ImageSource, Sample, Samples, Task, Turn
from mmcl.errors import Problem, UserError
from mmcl.memory.intake import FeatureSource, LogitSource
from mmcl.memory.memory import ReplayMemory
from mmcl.memory.quota import QuotaName, parse_bytes
from mmcl.memory.records import REPLAY_KEY, FeatureType, Record, StoreName, TopLogits, without_images
from mmcl.methods.distillation import evaluating, excerpt, feature_sums, kl_divergence, supervised, teach, uses
from mmcl.protocols import BASE, Batch, LossSum, Method, Model, Output, Route

DEFAULT_BUDGET = "2MB"
T = TypeVar("T")


class Replay(Method):
    """Replay: rows of earlier tasks, kept within a byte or row budget per modality, are mixed into every batch.

    What is kept of a row, how the budget is divided over tasks and modalities, and how replayed rows are held to the
    previous model are options of their own. The defaults are experience replay with equal quotas per (task, modality,
    group), as in VQACL (CVPR 2023) with the modality added, a reservoir in each cell, and cells drawn in turn.

    - `store: question` keeps past questions only and pairs them with the current images; the model before the task
      writes the answers (QUAD, 2502.04469). Deviations: its greedy answers are targets too, no attention distillation.
    - `store: text` drops the image: cross-entropy and distillation on the text alone (instruction-only distillation,
      MoInCL, 2412.13050).
    - `store: features` keeps the frozen encoder's output in place of pixels.
    - `distill_features` holds hidden states at image and at text positions to the previous model's, with a weight for
      each modality (MAFED, 2406.19297, on replayed rows only). Deviation: no gradient-norm ("adaptive") weights.
    - `teacher: stored` holds logits to those at the end of the row's own task, kept with the row as its `top_k` largest
      and the rest (in the spirit of dark experience replay, 2004.07211): no second forward pass, but more bytes.

    Args:
        budget: bytes of the memory, such as "2MB" (the default), "500KB", or a number.
        rows: budget in rows instead.
        ratio: share of replayed rows in what is trained on, in [0, 1); it holds in every window of the samples.
        store: what is kept of a row.
        feature_dtype: of stored features; `fp16` rounds by at most 2^-11 of a value.
        quota: what has an equal share of the budget, or `proportional`: shares by rows seen, rows drawn uniformly.
        selection: which rows of a cell stay: `reservoir`, `ring` (the newest), `drift` (those whose loss rose most).
        distill_logits: weight of KL(teacher || student) at the answers of replayed rows; by default 1 for `store:
            question`, `store: text` and `teacher: stored`, else 0.
        teacher: whose logits: the `previous` model's, or those `stored` with the row.
        top_k: entries of the vocabulary kept per position for `teacher: stored`.
        temperature: of logit distillation; the loss is multiplied by its square.
        distill_features: weight of feature distillation.
        balance: of the modalities in feature distillation: `balanced` by `vision_weight`; `equal` by token share.
        vision_weight: weight of image positions when balanced, in [0, 1]; text positions have the rest.
        gamma: discount of feature distillation per layer below the top, in (0, 1].
        seed: of the choice of rows, and of the pairs of questions and images.
    """

    owns: ClassVar[frozenset[str]] = frozenset({"training data"})

    def __init__(
        self,
        *,
        budget: str | int | None = None,
        rows: int | None = None,
        ratio: float = 0.25,
        store: StoreName = "full",
        feature_dtype: FeatureType = "fp32",
        quota: QuotaName = "task+modality+group",
        selection: Literal["reservoir", "ring", "drift"] = "reservoir",
        distill_logits: float | None = None,
        teacher: Literal["previous", "stored"] = "previous",
        top_k: int = 32,
        temperature: float = 2.0,
        distill_features: float = 0.0,
        balance: Literal["balanced", "equal"] = "balanced",
        vision_weight: float = 0.5,
        gamma: float = 0.9,
        seed: int = 0,
    ) -> None:
        if distill_logits is None:
            distill_logits = 1.0 if store in ("question", "text") or teacher == "stored" else 0.0
        wrong = [
            ("budget", budget is not None and rows is not None, "give `budget` (bytes) or `rows`, not both"),
            ("rows", rows is not None and rows < 1, "must be at least 1"),
            ("ratio", not 0 <= ratio < 1, "must be in [0, 1): the share of replayed rows"),
            ("distill_logits", distill_logits < 0, "must not be negative"),
            ("top_k", top_k < 1, "must be at least 1"),
            ("temperature", temperature <= 0, "must be positive"),
            ("distill_features", distill_features < 0, "must not be negative"),
            ("vision_weight", not 0 <= vision_weight <= 1, "must be in [0, 1]"),
            ("gamma", not 0 < gamma <= 1, "must be in (0, 1]"),
            ("selection", selection == "drift" and store == "question", "`drift` needs answers, `question` keeps none"),
            ("teacher", teacher == "stored" and store == "question", "`stored` needs answers, `question` keeps none"),
        ]
        problems = [Problem(f"replay.{option}", message) for option, bad, message in wrong if bad]
        if problems:
            raise UserError(problems=problems)
        self.ratio = ratio
        self.distill_logits = distill_logits
        self.teacher = teacher
        self.top_k = top_k
        self.temperature = temperature
        self.distill_features = distill_features
        self.balance = balance
        self.vision_weight = vision_weight
        self.gamma = gamma
        self.seed = seed
        size = None if rows is not None else parse_bytes(budget or DEFAULT_BUDGET, where="replay.budget")
        self.memory = ReplayMemory(
            budget_bytes=size,
            budget_rows=rows,
            quota=quota,
            selection=selection,
            store=store,
            feature_dtype=feature_dtype,
            seed=seed,
        )
        # Rows alone are replayed on any stream; a teacher is the model as it was before a task.
        teaches = distill_features > 0 or (distill_logits > 0 and teacher == "previous") or store == "question"
        self.needs_boundaries = teaches  # type: ignore[misc]
        self._task = ""
        self._own: list[Sample] = []
        self._pairs: list[Sample] | None = None
        self._previous: dict[str, Tensor] | None = None
        self._routes: dict[tuple[str, str], Route] = {}

    # ---------------------------------------------------------------------------------------------------- the task

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Take the previous model as teacher, if a loss asks for one and there is something to replay.

        Raises:
            UserError: `store: features` and an encoder that trains.
        """
        self._require_frozen(model)
        self._task = task.name
        self._own, self._pairs, self._routes = [], None, {}
        asks = self.distill_features > 0 or (self.distill_logits > 0 and self.teacher == "previous")
        self._previous = model.snapshot() if asks and self.memory.tasks - {task.name} else None

    def training_samples(self, model: Model, task: Task, samples: Samples, rng: random.Random) -> Samples:
        """The samples with replayed rows spread evenly between them."""
        self._own = [sample for sample in samples if sample.task == task.name]
        if self._previous is not None:  # what other methods have added since `begin_task`
            self._previous |= model.snapshot([name for name in model.trainable() if name not in self._previous])
        rows = round(len(samples) * self.ratio / (1 - self.ratio))
        return interleave(samples, self._replayed_rows(model, task, rows, rng))

    def end_task(self, model: Model, task: Task) -> None:
        """Offer what was trained on to the memory.

        Raises:
            UserError: the budget holds no record; `store: features` and an encoder that trains.
        """
        self._require_frozen(model)
        self._previous, self._pairs = None, None
        features = FeatureSource(
            compute=model.image_features,
            shape=lambda image: (model.views(image) * model.encoder_info.tokens, model.encoder_info.width),
            fingerprint=model.fingerprint,
        )
        scored = self.memory.selection == "drift"
        if scored:
            self.memory.score(lambda samples: self._losses(model, samples), new=False)
        self.memory.add(
            self._own or task.train,
            task=task.name,
            features=features if self.memory.store == "features" else None,
            logits=self._logit_source(model) if self.teacher == "stored" else None,
        )
        if scored:
            self.memory.score(lambda samples: self._losses(model, samples), new=True)
        self._own, self._routes = [], {}

    def _require_frozen(self, model: Model) -> None:
        if self.memory.store == "features" and any(p.requires_grad for p in model.encoder.parameters()):
            raise UserError(
                "`store: features` needs a frozen encoder: stored features would be those of an encoder that is gone",
                where="replay.store",
                hint="leave `encoder` out of `train`, or use `store: full`",
            )

    # ------------------------------------------------------------------------------------------------ what is replayed

    def _replayed_rows(self, model: Model, task: Task, rows: int, rng: random.Random) -> list[Sample]:
        if self.memory.store != "question":
            return [record.sample() for record in self.memory.sample(rows, rng, exclude={task.name})]
        if self._pairs is None:
            # Independent of the epoch's order, so that the pairs are the same whenever they are made.
            pairing = random.Random(f"{self.seed} {task.name}")
            records = self.memory.sample(rows, pairing, exclude={task.name})
            self._pairs = self._answered(model, pair(records, self._own, pairing))
        pairs = list(self._pairs)
        rng.shuffle(pairs)
        return list(itertools.islice(itertools.cycle(pairs), rows))

    def _answered(self, model: Model, questions: Samples) -> list[Sample]:
        """Questions with the model's greedy answers as pseudo targets, by the base route."""
        answers = model.generate(questions) if questions else []
        return [
            question.replace(turns=(*question.turns, Turn("assistant", answer)))
            for question, answer in zip(questions, answers, strict=True)
        ]

    # ---------------------------------------------------------------------------------------------------- the losses

    def needs_hidden(self) -> bool:
        """Feature distillation reads hidden states."""
        return self.distill_features > 0 and self._previous is not None

    def loss_counts(self, batch: Batch) -> Mapping[str, float]:
        """`logits`: supervised positions of replayed rows; `image` and `text`: their positions of each kind."""
        self._note_routes(batch)
        replayed = self._replayed(batch)
        counts: dict[str, float] = {}
        if not replayed:
            return counts
        if self.distill_logits > 0 and self.teacher == "stored":
            counts["logits"] = sum(len(top.rest) for _, top in self._stored_logits(batch, replayed))
        elif self.distill_logits > 0 and self._previous is not None:
            counts["logits"] = int(supervised(batch, replayed).sum())
        if self.needs_hidden():
            weight = uses(batch, replayed)
            image, every = float(weight[batch.is_image].sum()), float(weight.sum())
            # By token share both divide by all tokens, also in a batch that has none of one kind.
            counts["image"], counts["text"] = (image, every - image) if self.balance == "balanced" else (every, every)
        return {name: count for name, count in counts.items() if count}

    def loss(self, model: Model, batch: Batch, out: Output) -> Mapping[str, LossSum]:
        """Distillation on the replayed rows of the batch; nothing where there are none."""
        counts = self.loss_counts(batch)
        if not counts:
            return {}
        replayed = self._replayed(batch)
        totals: dict[str, Tensor] = {}
        if "logits" in counts and self.teacher == "stored":
            parts = [
                top.divergence(out.logits[place.to(out.logits.device)], temperature=self.temperature)
                for place, top in self._stored_logits(batch, replayed)
            ]
            totals["logits"] = self.distill_logits * torch.stack(parts).sum()
        if self._previous is not None:
            part = excerpt(batch, replayed)
            ours, theirs = part.of(out), teach(model, part.batch, self._previous, hidden=self.needs_hidden())
            if self.teacher == "previous":
                kl = kl_divergence(ours.logits, theirs.logits, temperature=self.temperature)
                totals["logits"] = self.distill_logits * kl
            if self.needs_hidden():
                sums = feature_sums(ours.hidden, theirs.hidden, part.batch, gamma=self.gamma)
                balanced = self.balance == "balanced"
                vision, text = (self.vision_weight, 1 - self.vision_weight) if balanced else (1.0, 1.0)
                totals["image"] = self.distill_features * vision * sums.image
                totals["text"] = self.distill_features * text * sums.text
        return {name: LossSum(totals[name], count) for name, count in counts.items()}

    def _replayed(self, batch: Batch) -> list[int]:
        return [index for index, sample in enumerate(batch.samples) if sample.task != self._task]

    def _stored_logits(self, batch: Batch, replayed: Sequence[int]) -> list[tuple[Tensor, TopLogits]]:
        """For each replayed row with stored logits, its places among the supervised positions, and the logits.

        A row whose supervised positions are not those it was stored with (another objective) is left out.
        """
        found = []
        for index in replayed:
            record = self.memory.get(batch.samples[index].metadata.get(REPLAY_KEY))
            place = (batch.target_sample == index).nonzero().flatten()
            if record is not None and record.logits is not None and len(record.logits.rest) == len(place):
                found.append((place, record.logits))
        return found

    # -------------------------------------------------------------------------------------- scores and stored logits

    def _note_routes(self, batch: Batch) -> None:
        """Remember how rows were routed, for when they are run again at the end of the task."""
        if self.teacher == "stored" or self.memory.selection == "drift":
            for sample, route in zip(batch.samples, batch.routes, strict=True):
                self._routes[sample.task, sample.id] = route

    def _run(self, model: Model, samples: Samples, read: Callable[[Tensor, Tensor], T]) -> list[T]:
        """For each sample, what `read` makes of its logits [n, V] and targets [n]."""
        routes = [self._routes.get((sample.task, sample.id), BASE) for sample in samples]
        place = {id(sample): index for index, sample in enumerate(samples)}
        results: dict[int, T] = {}
        with torch.no_grad(), evaluating(model):
            for batch in model.pack(samples, routes):
                logits = model.forward(batch).logits
                for index, sample in enumerate(batch.samples):
                    chosen = batch.target_sample == index
                    targets = batch.targets[chosen].to(logits.device)
                    results[place[id(sample)]] = read(logits[chosen.to(logits.device)], targets)
        return [results[index] for index in range(len(samples))]

    def _losses(self, model: Model, samples: Samples) -> list[float]:
        """Mean cross-entropy of each sample's answers."""
        return self._run(model, samples, lambda logits, targets: cross_entropy(logits.float(), targets).item())

    def _logit_source(self, model: Model) -> LogitSource:
        def compute(samples: Samples) -> list[TopLogits]:
            return self._run(
                model, samples, lambda logits, _: TopLogits.of(logits, k=self.top_k, temperature=self.temperature)
            )

        def positions(sample: Sample) -> int:
            return sum(len(batch.targets) for batch in model.pack([sample], [BASE]))

        return LogitSource(compute=compute, positions=positions, k=self.top_k)

    # --------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The memory."""
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, model: Model, state: Mapping[str, Any]) -> None:
        """The reverse."""
        self.memory.load_state_dict(state["memory"])

    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes of the memory."""
        return {"memory": self.memory.bytes}


def interleave(samples: Samples, replayed: Samples) -> list[Sample]:
    """Spread the replayed rows so evenly that every window holds its share of them, to within two rows."""
    mixed: list[Sample] = []
    used = 0
    for index, sample in enumerate(samples, 1):
        mixed.append(sample)
        due = (2 * index * len(replayed) + len(samples)) // (2 * len(samples))  # rounded to the nearest row
        mixed.extend(replayed[used:due])
        used = due
    return mixed


def pair(records: Sequence[Record], samples: Samples, rng: random.Random) -> list[Sample]:
    """Past questions with current images, drawn at random; without their placeholders where no image is at hand."""
    by_digest = {image.digest: image for sample in samples for image in sample.images}
    images: list[ImageSource] = [by_digest[digest] for digest in sorted(by_digest)]
    questions = []
    for record in records:
        places = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in record.question)
        question = record.sample()
        if not images:
            question = question.replace(turns=without_images(question.turns))
        elif places:
            question = question.replace(images=tuple(rng.choices(images, k=places)))
        questions.append(question)
    return questions
