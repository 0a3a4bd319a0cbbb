"""The checks themselves: each broken promise is found, and the message names the class."""

import dataclasses
import random
import re

import pytest
import torch
from torch import nn

from mmcl.errors import UserError
from mmcl.model.probe import probe_encoder, probe_projector
from mmcl.protocols import EncoderInfo, LossSum, Method, Prediction, Route, Score
from mmcl.testing import (
    ContractError,
    check_encoder,
    check_method,
    check_metric,
    check_projector,
    check_stream,
    tiny_tasks,
)

INFO = EncoderInfo(tokens=4, width=3, image_size=8, source="random:0")


def to_pixels(image):
    values = torch.tensor(list(image.convert("RGB").resize((8, 8)).tobytes()), dtype=torch.float32)
    return values.view(8, 8, 3).permute(2, 0, 1) / 255


class Mine(nn.Module):
    """An encoder that keeps its promises, to be broken one by one."""

    def __init__(self, info=INFO):
        super().__init__()
        self.info = info

    def transform(self):
        return to_pixels

    def forward(self, pixels):
        return nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)


class NoInfo(Mine):
    def __init__(self):
        super().__init__(info=None)


class ZeroTokens(Mine):
    def __init__(self):
        super().__init__(info=dataclasses.replace(INFO, tokens=0))


class WrongTokens(Mine):
    def forward(self, pixels):
        return super().forward(pixels)[:, :3]


class WrongWidth(Mine):
    def __init__(self):
        super().__init__(info=dataclasses.replace(INFO, width=5))


class DropsBatch(Mine):
    def forward(self, pixels):
        return super().forward(pixels)[0]


class NotANumber(Mine):
    def forward(self, pixels):
        return super().forward(pixels) / 0


class Bytes(Mine):
    def transform(self):
        return to_bytes


def to_bytes(image):
    return (to_pixels(image) * 255).byte()


class WrongSize(Mine):
    def __init__(self):
        super().__init__(info=dataclasses.replace(INFO, image_size=9))


class Lambda(Mine):
    def transform(self):
        return lambda image: to_pixels(image)


class Dice(Mine):
    def forward(self, pixels):
        return super().forward(pixels) + torch.rand(())


class RandomCrop(Mine):
    def transform(self):
        return jitter


def jitter(image):
    return to_pixels(image) + random.random()


class Leaks(Mine):
    def forward(self, pixels):
        return super().forward(pixels) - pixels.mean()


class Blind(Mine):
    def forward(self, pixels):
        return super().forward(pixels) * 0


class BatchNorm(Mine):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels):
        return super().forward(self.norm(pixels))


def test_a_good_encoder_passes():
    check_encoder(Mine())
    check_encoder(BatchNorm())


@pytest.mark.parametrize(
    ("broken", "message", "at_build"),
    [
        (NoInfo, "not an EncoderInfo", True),
        (ZeroTokens, "`info.tokens` is 0", True),
        (WrongTokens, "tokens 3 instead of 4", True),
        (WrongWidth, "width 3 instead of 5", True),
        (DropsBatch, r"shape \(4, 3\), promised \(2, 4, 3\)", True),
        (NotANumber, "NaN", True),
        (Bytes, "uint8 .* promised float32", True),
        (WrongSize, r"\(3, 8, 8\), promised float32 \(3, 9, 9\)", True),
        (Lambda, "can't be pickled", True),
        (Dice, "something else the second time", False),
        (RandomCrop, "not repeatable", False),
        (Leaks, "depends on the others in its batch", False),
        (Blind, "two different images", False),
    ],
)
def test_a_broken_encoder_is_found(broken, message, at_build):
    with pytest.raises(ContractError, match=f"^{broken.__name__}: .*{message}"):
        check_encoder(broken())
    if at_build:
        with pytest.raises(UserError, match=rf"model.encoder \({broken.__name__}\): .*{message}"):
            probe_encoder(broken())
    else:
        probe_encoder(broken())


def test_the_probe_disturbs_nothing():
    encoder = BatchNorm().train()
    encoder.norm.eval()
    before, mean = torch.random.get_rng_state(), encoder.norm.running_mean.clone()
    probe_encoder(encoder)
    assert encoder.training and not encoder.norm.training
    assert torch.equal(encoder.norm.running_mean, mean)
    assert torch.equal(torch.random.get_rng_state(), before)


class Join(nn.Module):
    """A projector that joins two tokens to one."""

    def __init__(self, *, in_width, out_width):
        super().__init__()
        self.map = nn.Linear(2 * in_width, out_width)

    def tokens(self, tokens_in):
        return tokens_in // 2

    def forward(self, features):
        return self.map(features.reshape(len(features), features.shape[1] // 2, -1))


class ForgetsToJoin(Join):
    def tokens(self, tokens_in):
        return tokens_in


class HalfTokens(Join):
    def tokens(self, tokens_in):
        return tokens_in / 2


class Dead(Join):
    def __init__(self, **widths):
        super().__init__(**widths)
        self.unused = nn.Parameter(torch.zeros(1))


class Mixes(Join):
    def forward(self, features):
        return super().forward(features - features.mean(0))


class Detached(Join):
    def forward(self, features):
        return super().forward(features.detach())


class Drifts(Join):
    """Measures at each call of `calibrate`."""

    def calibrate(self, features, spread):
        with torch.no_grad():
            self.map.weight.mul_(spread / self(features).std())


class Hides(Join):
    """Keeps random numbers beside its state."""

    def __init__(self, *, in_width, out_width):
        super().__init__(in_width=in_width, out_width=out_width)
        self.shift = float(torch.rand(()))

    def forward(self, features):
        return super().forward(features) + self.shift


class OnlyFloat32(Join):
    def forward(self, features):
        return super().forward(features.float())


def test_a_good_projector_passes():
    check_projector(Join)
    probe_projector(Join(in_width=3, out_width=6), INFO, 6)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (ForgetsToJoin, "tokens 2 instead of 4"),
        (HalfTokens, "not a positive integer"),
        (Dead, "`unused` gets no gradient"),
        (Mixes, "depends on the others"),
        (Detached, "no gradient reaches the features"),
        (Drifts, "a second `calibrate` changes it"),
        (Hides, "same `state_dict` gives something else"),
        (OnlyFloat32, "does not run in bfloat16"),
    ],
)
def test_a_broken_projector_is_found(broken, message):
    with pytest.raises(ContractError, match=f"^{broken.__name__}: .*{message}"):
        check_projector(broken)


def test_the_width_of_a_projector_is_checked_at_build_time():
    with pytest.raises(UserError, match=r"model.projector \(Join\): .*width 6 instead of 7"):
        probe_projector(Join(in_width=3, out_width=6), INFO, 7)


class Eats(Method):
    def training_samples(self, model, task, samples, rng):
        samples.pop()
        return samples


class Miscounts(Method):
    def loss_counts(self, batch):
        return {"extra": 1.0}

    def loss(self, model, batch, out):
        return {"extra": LossSum(out.logits.sum(), 2.0)}


class Unbalanced(Method):
    def select(self, model, samples):
        return [Route(experts=(("base", 0.4),))] * len(samples)


class ByBatch(Method):
    def select(self, model, samples):
        return [Route(experts=(("base", 1.0),)) if len(samples) > 1 else Route()] * len(samples)


class Short(Method):
    def select(self, model, samples):
        return [Route()]


class StoresObjects(Method):
    def state_dict(self):
        return {"rng": random.Random(0)}


class Forgets(Method):
    def __init__(self):
        self.seen = 0

    def end_task(self, model, task):
        self.seen += 1

    def state_dict(self):
        return {"seen": self.seen}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Eats, "changes the list"),
        (Miscounts, "`loss_counts` says"),
        (Unbalanced, "do not sum to 1"),
        (ByBatch, "when it comes alone"),
        (Short, "1 routes for 8 samples"),
        (StoresObjects, "holds Random"),
        (Forgets, "does not bring back"),
    ],
)
def test_a_broken_method_is_found(broken, message):
    with pytest.raises(ContractError, match=f"{broken.__name__}: .*{message}"):
        check_method(broken)


class Tasks:
    """A stream of given tasks."""

    def __init__(self, *tasks):
        self._tasks = tasks

    def tasks(self):
        return self._tasks


COLOUR, PLACE = tiny_tasks()


def with_sample(split, **changes):
    samples = list(getattr(COLOUR, split))
    samples[1] = samples[1].replace(**changes)
    return dataclasses.replace(COLOUR, **{split: samples})


def test_the_tiny_stream_passes():
    check_stream(Tasks(COLOUR, PLACE))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((), "is empty"),
        ((COLOUR, COLOUR), "one name"),
        ((with_sample("train", task="other"),), "its task is 'other'"),
        ((with_sample("train", images=()),), "1 placeholders, 0 images"),
        ((with_sample("train", id="000"),), "ids are not unique"),
        ((with_sample("train", answers=("red",)),), "references for scoring"),
        ((with_sample("train", turns=COLOUR.train[1].turns[:1]),), "ends with the wrong turn"),
        ((with_sample("test", answers=()),), "has no answers"),
        ((dataclasses.replace(COLOUR, train=(), test=()),), "has no samples"),
    ],
)
def test_a_broken_stream_is_found(tasks, message):
    with pytest.raises(ContractError, match=message):
        check_stream(Tasks(*tasks))


def test_a_stream_that_changes_is_found():
    class Changes:
        calls = 0

        def tasks(self):
            self.calls += 1
            return tiny_tasks(train=self.calls + 1)

    with pytest.raises(ContractError, match=r"Changes: .*second time"):
        check_stream(Changes())


class Equal:
    """A metric that keeps its promises, to be broken one by one."""

    definition, follows = "equal texts", "nobody"

    def score(self, rows, index):
        return float(rows[index].text == rows[index].answers[0])

    def __call__(self, rows):
        scores = tuple(self.score(rows, index) for index in range(len(rows)))
        return Score(scores, sum(scores) / len(scores) if scores else 0.0)


class Percent(Equal):
    def score(self, rows, index):
        return 100 * super().score(rows, index)


class Flatters(Equal):
    def score(self, rows, index):
        return float(rows[index].text in rows[index].answers[0])


class Strict(Equal):
    def score(self, rows, index):
        return 0.0


class ByPlace(Equal):
    def score(self, rows, index):
        return super().score(rows, index) / (index + 1)


class Drops(Equal):
    def __call__(self, rows):
        return super().__call__([row for row in rows if row.text])


class Mute(Equal):
    follows = None


def test_a_good_metric_passes():
    check_metric(Equal())
    check_metric(Equal(), [Prediction("1", "t", "q", "A", ("A",))])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Percent, "outside"),
        (Flatters, "an empty answer is not wrong"),
        (Strict, "equals the reference scores 0"),
        (ByPlace, "order of the rows"),
        (Drops, "6 rows come in, 3 scores go out"),
        (Mute, "`follows` is None"),
    ],
)
def test_a_broken_metric_is_found(broken, message):
    with pytest.raises(ContractError, match=re.compile(f"^{broken.__name__}: .*{message}", re.MULTILINE)):
        check_metric(broken())
