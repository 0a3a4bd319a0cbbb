"""The store on disk: shared by processes, whole after a kill, bounded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmcl.errors import UserError
from mmcl.files import read_json
from mmcl.model.rounding import Codec, RoundingError
from mmcl.model.store import FeatureStore, shards_in

CODEC = Codec("fp32", 2, 8)


def store(root: Path, key: str = "key", *, limit: int = 10**8, shard: int = 10 * CODEC.size) -> FeatureStore:
    return FeatureStore(root, key, CODEC, limit_bytes=limit, shard_bytes=shard)


def features(number: int) -> torch.Tensor:
    return torch.full((2, 8), float(number))


def put(kept: FeatureStore, *numbers: int) -> bool:
    return kept.put([f"image {n}" for n in numbers], CODEC.encode(torch.stack([features(n) for n in numbers])))


def numbers(kept: FeatureStore, upto: int) -> list[int]:
    """Those that are there, each seen to have its own values."""
    found = kept.get([f"image {n}" for n in range(upto)])
    assert all(torch.equal(value, features(int(name.split()[1]))) for name, value in found.items())
    return [int(name.split()[1]) for name in found]


def test_what_was_put_is_there_for_others_and_later(tmp_path: Path) -> None:
    one, other = store(tmp_path), store(tmp_path)
    assert put(one, *range(25))  # over three shards
    assert numbers(one, 30) == numbers(other, 30) == numbers(store(tmp_path), 30) == list(range(25))
    assert other.missing(["image 1", "image 27"]) == ["image 27"]
    assert put(other, 24, 25)
    assert numbers(one, 30) == list(range(26))
    assert len(shards_in(tmp_path)) == 3
    assert sum(shard.size for shard in shards_in(tmp_path)) == 26 * (CODEC.size + 40)  # 24 was not written twice
    assert numbers(store(tmp_path, "another key"), 30) == []


WRITER = """
import sys, torch
from pathlib import Path
from mmcl.model.rounding import Codec
from mmcl.model.store import FeatureStore
codec = Codec("fp32", 2, 8)
store = FeatureStore(Path(sys.argv[1]), "key", codec, limit_bytes=10**8, shard_bytes=50 * codec.size)
for start in range(int(sys.argv[2]), int(sys.argv[3]), 4):
    numbers = range(start, start + 4)
    values = torch.stack([torch.full((2, 8), float(n)) for n in numbers])
    store.put([f"image {n}" for n in numbers], codec.encode(values))
    print(start, flush=True)
"""


def writer(root: Path, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(root), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_write_at_once_while_another_reads(tmp_path: Path) -> None:
    reader = store(tmp_path, shard=50 * CODEC.size)
    processes = [writer(tmp_path, first, first + 200) for first in (0, 100, 200)]  # they overlap
    while any(process.poll() is None for process in processes):
        numbers(reader, 400)
        time.sleep(0.01)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert numbers(reader, 400) == list(range(400))
    assert sum(shard.size for shard in shards_in(tmp_path)) == 400 * (CODEC.size + 40)


def test_a_killed_writer_leaves_a_store_that_works(tmp_path: Path) -> None:
    process = writer(tmp_path, 0, 10**6)
    assert process.stdout
    while int(process.stdout.readline()) < 100:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = store(tmp_path)
    before = numbers(kept, 2000)
    assert len(before) >= 100
    assert put(kept, 5000)  # the lock is free
    assert numbers(store(tmp_path), 6000) == [*before, 5000]


@pytest.mark.parametrize("tail", ["record", "entry", "entry without record"])
def test_what_lies_behind_the_last_whole_entry_is_cut_off(tmp_path: Path, tail: str) -> None:
    put(store(tmp_path), 0, 1, 2)
    data, index = next(tmp_path.rglob("*.data")), next(tmp_path.rglob("*.index"))
    if tail == "record":  # killed between a record and its entry
        data.write_bytes(data.read_bytes() + b"x" * 100)
    elif tail == "entry":
        data.write_bytes(data.read_bytes() + b"x" * CODEC.size)
        index.write_bytes(index.read_bytes() + b"x" * 13)
    else:  # as a crash of the machine may leave it
        data.write_bytes(data.read_bytes()[:-5])
    whole = [0, 1] if tail == "entry without record" else [0, 1, 2]
    kept = store(tmp_path)
    assert numbers(kept, 5) == whole
    put(kept, 2, 3, 4)
    assert numbers(kept, 5) == sorted(numbers(store(tmp_path), 5)) == [0, 1, 2, 3, 4]
    assert len(list(tmp_path.rglob("*.data"))) == 1
    assert data.stat().st_size == 5 * CODEC.size
    assert index.stat().st_size == 5 * 40


def test_a_damaged_record_is_not_returned_but_made_again(tmp_path: Path) -> None:
    put(store(tmp_path), 0, 1)
    data = next(tmp_path.rglob("*.data"))
    content = bytearray(data.read_bytes())
    content[3] ^= 1
    data.write_bytes(content)
    kept = store(tmp_path)
    assert numbers(kept, 2) == [1]
    put(kept, 0)
    assert sorted(numbers(store(tmp_path), 2)) == [0, 1]


def test_the_longest_unused_shards_go_and_what_is_mapped_stays_readable(tmp_path: Path) -> None:
    size = 10 * (CODEC.size + 40)
    for age, key in enumerate(("oldest", "older", "young")):
        put(store(tmp_path, key), *range(10))
        for path in (tmp_path / key).glob("*.data"):
            os.utime(path, (1000 + age, 1000 + age))
    elsewhere = store(tmp_path, "older")
    read_again = store(tmp_path, "oldest")
    assert numbers(read_again, 1) == [0]  # now `older` is the longest unused
    new = store(tmp_path, "new", limit=3 * size, shard=size)
    assert put(new, 0, 1)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["new", "oldest", "young"]
    assert numbers(elsewhere, 10) == list(range(10))
    assert sum(shard.size for shard in shards_in(tmp_path)) <= 3 * size
    assert put(elsewhere, 11)  # its folder is made anew
    assert numbers(store(tmp_path, "older"), 12) == [11]


def test_a_process_does_not_push_out_what_it_uses(tmp_path: Path) -> None:
    kept = store(tmp_path, limit=20 * (CODEC.size + 40))
    wanted = range(40)
    done = [put(kept, number) for number in wanted]
    assert done == [True] * 20 + [False] * 20
    assert numbers(kept, 40) == list(range(20))


def test_the_cost_of_rounding_is_measured_and_kept(tmp_path: Path) -> None:
    exact = torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 10, 0])[:, None]
    bounds = {"fp32": 0.0, "fp16": 2**-11, "int8": 1 / 254 * 1.0001}
    sizes = {"fp32": 4 * 64, "fp16": 2 * 64, "int8": 64 + 4 * 4}
    for dtype, bound in bounds.items():
        codec = Codec(dtype, 4, 16)  # type: ignore[arg-type]
        records = codec.encode(exact)
        assert records.shape == (6, sizes[dtype]) == (6, codec.size)
        rounded = codec.decode(records)
        error = RoundingError()
        error.measure(exact, rounded)
        assert (dtype == "fp32") == torch.equal(exact, rounded)
        assert (exact - rounded).abs().le(bound * exact.abs().amax(-1, keepdim=True)).all()
        assert error.largest <= bound
        assert error.relative == pytest.approx(float((exact - rounded).norm() / exact.norm()), rel=1e-4)
        kept = FeatureStore(tmp_path, dtype, codec, limit_bytes=10**6, about={"encoder": "mine"})
        kept.put(list("abcdef"), records, error)
        kept.put(list("ghijkl"), records, error)
        meta = read_json(tmp_path / dtype / "meta.json")
        assert (meta["encoder"], meta["dtype"]) == ("mine", dtype)
        if dtype != "fp32":
            assert kept.error.images == 12
            assert kept.error.relative == pytest.approx(error.relative)


@pytest.mark.parametrize(("dtype", "value"), [("fp16", 1e5), ("int8", float("inf"))])
def test_values_that_the_format_has_no_number_for(dtype: str, value: float) -> None:
    with pytest.raises(UserError, match=f"do not fit {dtype}(.|\n)*fp32"):
        Codec(dtype, 1, 2).encode(torch.tensor([[[1.0, value]]]))  # type: ignore[arg-type]
