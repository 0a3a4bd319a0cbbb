"""Contract checks that a plug-in's author can run on their own class, and the tiny world to run them in.

Each check raises a ContractError that names the class and every broken promise:

    def test_my_encoder():
        mmcl.testing.check_encoder(MyEncoder(depth=2))
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Samples, Task
from mmcl.model.probe import (
    ROUNDING,
    encoder_problems,
    forward_problems,
    probe_images,
    projector_problems,
    repeat_problems,
)
from mmcl.model.tiny import tiny_tokenizer
from mmcl.model.views import has_grid, has_views
from mmcl.protocols import BASE, EncoderInfo, Method, Metric, Prediction, Route, Stream
from mmcl.testing_text import Asked, text_problems
from mmcl.testing_vlm import vlm_problems
from mmcl.tiny_world import TinyImage, tiny_assembly, tiny_language, tiny_tasks

__all__ = [
    "ContractError",
    "TinyImage",
    "check_encoder",
    "check_method",
    "check_metric",
    "check_projector",
    "check_stream",
    "check_vlm",
    "tiny_assembly",
    "tiny_language",
    "tiny_tasks",
    "tiny_tokenizer",
]

ROUNDING_BF16 = 0.1  # relative to the largest value; bfloat16 has 8 bits, several layers add up


class ContractError(AssertionError):
    """A plug-in breaks promises of `mmcl.protocols`.

    Args:
        name: of the class.
        promises: that it breaks.
    """

    def __init__(self, name: str, promises: Sequence[str]) -> None:
        self.promises = tuple(promises)
        super().__init__("\n".join(f"{name}: {promise}" for promise in promises))


def check_encoder(encoder: nn.Module) -> None:
    """Check a built encoder.

    `info` is true; the transform gives float32 of `info.pixel_shape` for images of any shape, is picklable and
    repeatable; features are finite, the same every time in evaluation mode, and do not depend on what else is in the
    batch.

    Raises:
        ContractError: a promise is broken.
    """
    problems = [problem.message for problem in encoder_problems(encoder)]
    _report(encoder, problems)
    transform = encoder.transform()  # type: ignore[operator]
    images = probe_images()
    pixels = [transform(image) for image in images]
    copied = pickle.loads(pickle.dumps(transform))
    if not all(torch.equal(copied(image), tensor) for image, tensor in zip(images, pixels, strict=True)):
        problems.append("`transform()` is not repeatable, or changes when it is pickled")
    if has_grid(encoder):  # each image is alone in its batch
        problems += repeat_problems(encoder, pixels)
    else:
        batch = torch.cat(pixels) if has_views(encoder) else torch.stack(pixels)
        problems += forward_problems(encoder, batch, other=len(pixels[0]) if has_views(encoder) else 1)
    _report(encoder, problems)


def check_projector(
    build: Callable[..., nn.Module], *, in_width: int = 12, out_width: int = 20, **options: Any
) -> None:
    """Check a projector's class with 4, 16 and 64 tokens of 2 images.

    Sizes are as promised; there is no leak between images; gradients reach every parameter and the features; a
    calibration happens once; `state_dict` is all there is to know; it can be copied and runs in bfloat16.

    Args:
        build: the class; called twice with `in_width`, `out_width` and `options`.
        in_width: width of the encoder's tokens.
        out_width: width of the language model.
        **options: further keywords of the constructor.

    Raises:
        ContractError: a promise is broken.
    """
    projector = _asked(build(in_width=in_width, out_width=out_width, **options), out_width)
    problems: list[str] = []
    for tokens in (4, 16, 64):
        info = EncoderInfo(tokens=tokens, width=in_width, image_size=32, source="random:0")
        problems += [problem.message for problem in projector_problems(projector, info, out_width)]
    _report(projector, problems)
    features = torch.randn(2, 16, in_width, generator=torch.Generator().manual_seed(0))
    problems += forward_problems(projector, features)
    problems += _gradient_problems(projector, features)
    problems += _calibration_problems(projector, features)
    problems += text_problems(projector.projector, features, out_width) if isinstance(projector, Asked) else []
    again = _asked(build(in_width=in_width, out_width=out_width, **options), out_width)
    again.load_state_dict(projector.state_dict())
    if not torch.equal(_quietly(again, features), _quietly(projector, features)):
        problems.append("a second one with the same `state_dict` gives something else")
    problems += _bf16_problems(projector, features)
    _report(projector, problems)


def _asked(projector: nn.Module, width: int) -> nn.Module:
    return Asked(projector, width) if getattr(projector, "reads_text", False) else projector


def check_vlm(model: Any, processor: Any) -> None:
    """Check that a model of image and text of transformers can be taken apart (`model: {vlm: ...}`).

    Prompts have the processor's own tokens, logits are those of the model's own forward pass to 1e-5 of the largest,
    and greedy answers, all questions in shared rows, are those of `generate`, one by one.

    Args:
        model: of a `...ForConditionalGeneration` class; put into float32, and of no use afterwards.
        processor: of the same checkpoint.

    Raises:
        ContractError: a promise is broken.
    """
    problems = vlm_problems(model, processor)
    if problems:
        raise ContractError(type(model).__name__, problems)


def check_method(build: Callable[[], Method], model: Callable[[], Any] = tiny_assembly) -> None:
    """Take a method through a task of the tiny world.

    It leaves the samples as they are, counts its loss as it said, routes each sample by itself, and its state survives
    in a fresh method.

    Args:
        build: makes the method; called twice.
        model: makes the model; called twice.

    Raises:
        ContractError: a promise is broken.
    """
    method, assembly = build(), model()
    task, following = tiny_tasks()
    problems: list[str] = []
    method.setup(assembly)
    method.begin_task(assembly, task, [])
    given = list(task.train)
    mixed = method.training_samples(assembly, task, given, random.Random(0))
    if given != list(task.train):
        problems.append("`training_samples` changes the list that it is given")
    if not all(isinstance(sample, Sample) for sample in mixed):
        problems.append("`training_samples` gives something that is no Sample")
    _report(method, problems)
    routes = method.assign(assembly, mixed)
    problems += _route_problems("assign", routes, len(mixed))
    _report(method, problems)
    problems += _loss_problems(method, assembly, mixed, routes or [BASE] * len(mixed))
    method.after_backward(assembly)
    method.end_task(assembly, task)
    questions = [sample.hidden(keep_task=method.needs_task_id) for sample in [*task.test, *following.test]]
    chosen = method.select(assembly, questions)
    problems += _route_problems("select", chosen, len(questions))
    _report(method, problems)
    if chosen is not None:
        alone = [method.select(assembly, [question]) for question in questions]
        if [[route] for route in chosen] != [list(routes or ()) for routes in alone]:
            problems.append("`select` routes a sample differently when it comes alone")
    problems += _state_problems(method, build, model)
    _report(method, problems)


def check_stream(stream: Stream, *, images: int = 16) -> None:
    """Check a stream's tasks: names, provenance, turns, placeholders, answers, and that it is the same every time.

    Args:
        stream: built.
        images: how many images to open per split.

    Raises:
        ContractError: a promise is broken.
    """
    tasks, again = stream.tasks(), stream.tasks()
    names = [task.name for task in tasks]
    problems = [] if names else ["`tasks()` is empty"]
    if len(set(names)) != len(names):
        problems.append(f"two tasks have one name: {names}")
    if [_fingerprint(task) for task in tasks] != [_fingerprint(task) for task in again]:
        problems.append("`tasks()` gives something else the second time")
    for task in tasks:
        if not task.train and not task.test:
            problems.append(f"the task {task.name} has no samples")
        for split, samples in (("train", task.train), ("test", task.test)):
            problems += _sample_problems(task, split, samples)
            problems += [
                f"{task.name}, {split}, {sample.id}: image {image.name} opens as {image.open().mode}, not RGB"
                for sample in samples[:images]
                for image in sample.images
                if image.open().mode != "RGB"
            ]
    _report(stream, problems)


def check_metric(metric: Metric, rows: Sequence[Prediction] | None = None) -> None:
    """Check that a metric scores every row in [0, 1], an empty answer as wrong, and a row by itself.

    Args:
        metric: built.
        rows: predictions that it takes whose `text` is right; default: short texts.

    Raises:
        ContractError: a promise is broken.
    """
    words = ("red", "yes", "two dogs on a bench")
    right = list(rows or [Prediction(str(i), "t", "q", word, (word,)) for i, word in enumerate(words)])
    empty = [Prediction(row.id, row.task, row.prompt, "", row.answers, metadata=row.metadata) for row in right]
    problems = [
        f"`{name}` is {getattr(metric, name, None)!r}, not a text"
        for name in ("definition", "follows")
        if not isinstance(getattr(metric, name, None), str)
    ]
    score = metric([*right, *empty])
    if len(score.rows) != 2 * len(right):
        problems.append(f"{2 * len(right)} rows come in, {len(score.rows)} scores go out")
        _report(metric, problems)
    if not all(0 <= value <= 1 for value in (*score.rows, score.corpus)):
        problems.append(f"a score lies outside [0, 1]: {score}")
    if any(score.rows[len(right) :]):
        problems.append("an empty answer is not wrong")
    if not all(score.rows[: len(right)]):
        problems.append("an answer that equals the reference scores 0")
    if metric([]).corpus != 0 or metric([]).rows:
        problems.append("no rows must give the corpus value 0")
    backwards = metric([*reversed(empty), *reversed(right)])
    if backwards.rows != tuple(reversed(score.rows)):
        problems.append("a row's score depends on the order of the rows")
    _report(metric, problems)


def _report(thing: object, problems: Sequence[str]) -> None:
    if problems:
        raise ContractError(type(thing).__name__, problems)


def _quietly(module: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = module.eval()(batch)
    return output


def _gradient_problems(projector: nn.Module, features: Tensor) -> list[str]:
    """Gradients reach all that can train, an encoder behind the features too."""
    reached = features.clone().requires_grad_()
    output = projector.train()(reached)
    if not output.requires_grad:
        return ["no gradient goes through `forward`"]
    output.square().sum().backward()
    problems = [
        f"the parameter `{name}` gets no gradient"
        for name, parameter in projector.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all())
    ]
    if reached.grad is None or not reached.grad.isfinite().all() or not reached.grad.any():
        problems.append("no gradient reaches the features, so that no encoder could train")
    return problems


def _calibration_problems(projector: nn.Module, features: Tensor) -> list[str]:
    """Where there is `calibrate`, it works once: the core calls it in each stage."""
    calibrate: Callable[[Tensor, float], None] | None = getattr(projector, "calibrate", None)
    if calibrate is None:
        return []
    calibrate(features, 0.1)
    once = _quietly(projector, features)
    calibrate(3 * features + 1, 1.0)
    return [] if torch.equal(_quietly(projector, features), once) else ["a second `calibrate` changes it"]


def _bf16_problems(projector: nn.Module, features: Tensor) -> list[str]:
    exact = _quietly(projector, features)
    try:
        rounded = _quietly(copy.deepcopy(projector).to(torch.bfloat16), features.bfloat16()).float()
    except RuntimeError as error:  # types that do not go together
        return [f"`forward` does not run in bfloat16: {error}"]
    if not (rounded - exact).abs().max() <= ROUNDING_BF16 * exact.abs().max():  # NaN counts as far
        return ["in bfloat16, `forward` gives something else"]
    return []


def _loss_problems(method: Method, model: Any, samples: Samples, routes: Sequence[Route]) -> list[str]:
    problems = []
    for batch in model.pack(samples, routes):
        counts = dict(method.loss_counts(batch))
        parts = method.loss(model, batch, model.forward(batch, hidden=method.needs_hidden()))
        if counts != {name: part.count for name, part in parts.items()}:
            problems.append(f"`loss_counts` says {counts}, `loss` gives { {n: p.count for n, p in parts.items()} }")
        for name, part in parts.items():
            if part.total.ndim or not part.total.isfinite():
                problems.append(f"the loss `{name}` is {part.total}, not a finite scalar")
    return problems


def _route_problems(hook: str, routes: Sequence[Route] | None, count: int) -> list[str]:
    if routes is None:
        return []
    if len(routes) != count:
        return [f"`{hook}` gives {len(routes)} routes for {count} samples"]
    return [
        f"`{hook}`: the weights of {route} do not sum to 1"
        for route in routes
        if route.experts and abs(sum(weight for _, weight in route.experts) - 1) > ROUNDING
    ]


def _state_problems(method: Method, build: Callable[[], Method], model: Callable[[], Any]) -> list[str]:
    state = method.state_dict()
    problems = [f"`state_dict` holds {kind}, which can't be stored" for kind in sorted(_foreign(state))]
    problems += [
        f"`stored_bytes` says {name}: {size!r}"
        for name, size in method.stored_bytes().items()
        if not isinstance(size, int) or size < 0
    ]
    if not problems:
        fresh, assembly = build(), model()
        fresh.setup(assembly)
        fresh.load_state_dict(assembly, state)
        if not _same(fresh.state_dict(), state):
            problems.append("`load_state_dict` does not bring back what `state_dict` gave")
    return problems


def _foreign(state: Any) -> set[str]:
    if isinstance(state, Mapping):
        keys = {f"a key of type {type(key).__name__}" for key in state if not isinstance(key, str)}
        return keys.union(*(_foreign(value) for value in state.values()))
    if isinstance(state, (list, tuple)):
        return set().union(*(_foreign(value) for value in state))
    return set() if state is None or isinstance(state, (Tensor, int, float, str, bytes)) else {type(state).__name__}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _sample_problems(task: Task, split: str, samples: Samples) -> list[str]:
    problems = []
    ids = [sample.id for sample in samples]
    if len(set(ids)) != len(ids):
        problems.append(f"{task.name}, {split}: ids are not unique")
    for sample in samples:
        where = f"{task.name}, {split}, {sample.id}"
        placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in sample.turns)
        if sample.task != task.name:
            problems.append(f"{where}: its task is {sample.task!r}")
        if placeholders != len(sample.images):
            problems.append(f"{where}: {placeholders} placeholders, {len(sample.images)} images")
        if not sample.turns or sample.turns[-1].role != ("assistant" if split == "train" else "user"):
            problems.append(f"{where}: ends with the wrong turn")
        if split == "test" and not sample.answers:
            problems.append(f"{where}: has no answers")
        if split == "train" and sample.answers:
            problems.append(f"{where}: is for training, but has references for scoring")
    return problems[:20]


def _fingerprint(task: Task) -> list[Any]:
    kept: list[Any] = [task.name, task.metric, task.kind]
    for samples in (task.train, task.test):
        kept += [(s.id, s.turns, s.answers, tuple(image.name for image in s.images)) for s in samples]
    return kept
