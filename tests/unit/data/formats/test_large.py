"""A file of many rows is checked in little time and memory, whatever images it names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import json, re, sys, time
from pathlib import Path
from mmcl.data.formats.llava_json import LlavaJSON
path = Path(sys.argv[1])
started = time.perf_counter()
json.loads(path.read_text())
parsed = time.perf_counter()
problems = LlavaJSON().validate(path, task="t", images=path.parent)
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())  # ru_maxrss would begin with the parent's
print(len(problems), time.perf_counter() - parsed, parsed - started, int(peak[1]) / 1024)
"""


def measure(tmp_path: Path, count: int) -> tuple[int, float, float, float]:
    """Mistakes, seconds, seconds of parsing the JSON alone, and peak memory in MiB of checking so many rows.

    The last row names a missing image.
    """
    from PIL import Image

    for number in range(100):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    words = "Answer the question using a single word or phrase. " * 4
    rows = [
        {
            "id": str(k),
            "image": f"{k % 100}.png" if k + 1 < count else "gone.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat is in picture {k}? {words}"},
                {"from": "gpt", "value": f"thing {k}"},
            ],
        }
        for k in range(count)
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows))
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    problems, seconds, parsing, memory = done.stdout.split()
    return int(problems), float(seconds), float(parsing), float(memory)


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")


@linux
@pytest.mark.slow
def test_a_hundred_thousand_rows(tmp_path: Path) -> None:
    problems, seconds, parsing, memory = measure(tmp_path, 100_000)
    assert problems == 1
    assert seconds < 60
    assert seconds < 40 * parsing
    assert memory < 1024


@linux
def test_ten_thousand_rows(tmp_path: Path) -> None:
    problems, seconds, parsing, memory = measure(tmp_path, 10_000)
    assert problems == 1
    assert seconds < 40 * parsing
    assert memory < 200
