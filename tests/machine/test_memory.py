"""What psutil tells of memory and processor time, beside what the system's own tables say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spade_deploy.machine.memory import busy_seconds, free_memory_bytes

# In a process of its own: after a training, the test process keeps what is freed, and takes that again without growing.
GROWTH = """
import os
from spade_deploy.machine.memory import memory_bytes, peak_memory_bytes

before = memory_bytes()
block = bytearray(os.urandom(1 << 20)) * 64
during = memory_bytes()
del block
print(during - before, peak_memory_bytes() - during)
"""


def test_what_is_held_grows_with_what_is_taken_and_the_peak_stays() -> None:
    process = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    growth, peak_over_growth = map(int, process.stdout.split())
    assert 48 << 20 < growth < 80 << 20
    assert peak_over_growth >= -(1 << 20)


def test_free_memory_is_that_of_the_system() -> None:
    table = Path("/proc/meminfo")
    if not table.exists():
        pytest.skip("there is no /proc/meminfo here")
    (line,) = (line for line in table.read_text().splitlines() if line.startswith("MemAvailable:"))
    assert free_memory_bytes() == pytest.approx(int(line.split()[1]) * 1024, rel=0.2)


def test_busy_time_is_that_of_the_system_without_idle_time() -> None:
    table = Path("/proc/stat")
    if not table.exists():
        pytest.skip("there is no /proc/stat here")
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, table.read_text().split()[1:9])
    told = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    found = busy_seconds()
    assert found == pytest.approx(told, rel=0.01, abs=2.0)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert busy_seconds() >= found + 0.05
