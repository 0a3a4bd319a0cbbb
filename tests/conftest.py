"""For all tests."""

from __future__ import annotations

import os

# Before torch is imported, and for subprocesses too: on tiny tensors, threads cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
