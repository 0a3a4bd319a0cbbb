"""Any set that `datasets` opens: Parquet, JSON, CSV, folders; images stay on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.data.formats.hf_dataset import HFDataset
from mmcl.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def rows(miniature: Any, count: int = 3) -> dict[str, Any]:
    return {
        "question": [f"what is {k}?" for k in range(count)],
        "answer": [f"answer {k}" for k in range(count)],
        "image": [{"bytes": miniature.png(k), "path": None} for k in range(count)],
    }


def features(**more: Any) -> datasets.Features:
    text = datasets.Value("string")
    return datasets.Features({"question": text, "answer": text, "image": datasets.Image(), **more})


def write(miniature: Any, path: Path) -> Path:
    table = datasets.Dataset.from_dict(rows(miniature), features=features())
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif not path.suffix:
        table.save_to_disk(path)
    return path


def check(samples: Any) -> None:
    assert [sample.reply for sample in samples] == ["answer 0", "answer 1", "answer 2"]
    assert samples[1].turns[0].text == "<image>\nwhat is 1?"
    assert [sample.images[0].open().size for sample in samples] == [(16, 12)] * 3
    assert len({sample.images[0].digest for sample in samples}) == 3


@pytest.mark.parametrize("name", ["set.parquet", "saved"])
def test_parquet_and_saved_sets(miniature: Any, tmp_path: Path, name: str) -> None:
    path = write(miniature, tmp_path / name)
    assert HFDataset().sniff(path)
    check(HFDataset().read(path, task="t", images=None))
    (tested,) = HFDataset(split="test", limit=1, suffix=" Briefly.").read(path, task="t", images=None)
    assert (tested.turns[-1].text, tested.answers) == ("<image>\nwhat is 0? Briefly.", ("answer 0",))


def test_streaming_takes_the_first_rows(miniature: Any, tmp_path: Path) -> None:
    path = write(miniature, tmp_path / "set.parquet")
    samples = HFDataset(streaming=True, limit=2).read(path, task="t", images=None)
    assert [sample.reply for sample in samples] == ["answer 0", "answer 1"]
    assert samples[1].images[0].open().size == (16, 12)
    with pytest.raises(UserError, match="streaming needs a limit"):
        HFDataset(streaming=True)


def test_json_lines_with_paths_below_the_folder(miniature: Any, tmp_path: Path) -> None:
    for number in range(3):
        miniature.picture(tmp_path / "images" / f"{number}.png", number)
    lines = [{"q": f"what is {k}?", "a": f"answer {k}", "picture": f"images/{k}.png"} for k in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    reader = HFDataset(question="q", answer="a", image="picture")
    check(reader.read(path, task="t", images=None))
    path.write_text(json.dumps({**lines[0], "picture": "../secret.png"}))
    (sample,) = reader.read(path, task="t", images=None)
    with pytest.raises(UserError, match="leaves the image folder"):
        sample.images[0].read()


def test_a_folder_of_images_has_labels(miniature: Any, tmp_path: Path) -> None:
    for number, name in enumerate(["cat/a.png", "big_dog/b.png"]):
        miniature.picture(tmp_path / "set" / name, number)
    samples = HFDataset(answer="label", prompt="What animal?").read(tmp_path / "set", task="t", images=None)
    assert sorted((sample.turns[0].text, sample.reply) for sample in samples) == [
        ("<image>\nWhat animal?", "big dog"),
        ("<image>\nWhat animal?", "cat"),
    ]


def test_conversations_several_images_and_annotators(miniature: Any, tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "<image>\n<image>\nSame?"},
        {"role": "assistant", "content": "no"},
    ]
    columns = {
        "messages": [talk],
        "images": [[{"bytes": miniature.png(0), "path": None}, {"bytes": miniature.png(1), "path": None}]],
        "answers": [["no", "nope"]],
    }
    several = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "images": datasets.List(datasets.Image()),
            "answers": datasets.List(datasets.Value("string")),
        }
    )
    path = tmp_path / "set.parquet"
    datasets.Dataset.from_dict(columns, features=several).to_parquet(path)
    (sample,) = HFDataset().read(path, task="t", images=None)
    assert (len(sample.images), sample.reply) == (2, "no")
    assert sample.images[0].digest != sample.images[1].digest
    (tested,) = HFDataset(split="test", messages="", answer="answers", question="").read(path, task="t", images=None)
    assert tested.answers == ("no",)  # the conversation's own answer comes first


def test_mistakes_are_named(miniature: Any, tmp_path: Path) -> None:
    path = write(miniature, tmp_path / "set.parquet")
    with pytest.raises(UserError) as error:
        HFDataset(question="frage").read(path, task="t", images=None)
    assert "there is no column `frage`" in error.value.problems[0].message
    assert "question, answer, image" in error.value.problems[0].hint
    broken = rows(miniature)
    broken["answer"][1] = ""
    broken["question"][2] = "  "
    datasets.Dataset.from_dict(broken, features=features()).to_parquet(path)
    problems = HFDataset().validate(path, task="t", images=None)
    assert [problem.where.rpartition(":")[2] for problem in problems] == ["2, question", "3, question"]
    twice = {**rows(miniature), "id": ["a", "b", "a"]}
    datasets.Dataset.from_dict(twice, features=features(id=datasets.Value("string"))).to_parquet(path)
    with pytest.raises(UserError, match="the id 'a' is that of row 1"):
        HFDataset().read(path, task="t", images=None)
    assert len(HFDataset(id="none").read(path, task="t", images=None)) == 3
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UserError, match="can't tell what this file is"):
        HFDataset().read(tmp_path / "x.txt", task="t", images=None)


MEASURE = """
import sys, psutil
import datasets
from pathlib import Path
datasets.config.HF_DATASETS_CACHE = Path(sys.argv[2])
datasets.disable_progress_bars()
from mmcl.data.formats.hf_dataset import HFDataset
def private():  # what is mapped from a file is the system's to drop
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024
samples = HFDataset().read(Path(sys.argv[1]), task="t", images=None)
before = private()
peak = before
total = 0
for number, sample in enumerate(samples):
    total += len(sample.images[0].read())
    if number % 50 == 0:
        peak = max(peak, private())
print(len(samples), total, peak - before)
"""


def streams_flat(tmp_path: Path, megabytes: int) -> None:
    """Write a Parquet set of that size, one row group at a time, and read every image of it."""
    path = tmp_path / "large.parquet"
    columns = pa.schema(
        [
            ("question", pa.string()),
            ("answer", pa.string()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ]
    )
    with pq.ParquetWriter(path, columns, compression="none") as writer:
        for group in range(megabytes // 10):
            names = [f"{group}-{k}" for k in range(10)]
            images = [{"bytes": os.urandom(1 << 20), "path": None} for _ in names]
            writer.write_table(pa.table({"question": names, "answer": names, "image": images}, schema=columns))
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, total, growth = done.stdout.split()
    assert int(count) == megabytes // 10 * 10
    assert int(total) >= megabytes // 10 * 10 << 20
    assert float(growth) < 60, growth  # MiB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_a_large_parquet_is_read_with_flat_memory(tmp_path: Path) -> None:
    streams_flat(tmp_path, 200)


@pytest.mark.slow
@pytest.mark.skipif("MMCL_TEST_LARGE" not in os.environ, reason="writes 10 GB: set MMCL_TEST_LARGE=1")
def test_five_gigabytes_of_parquet_are_read_with_flat_memory(tmp_path: Path) -> None:
    streams_flat(tmp_path, 5000)
