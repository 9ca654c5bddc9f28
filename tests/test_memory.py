"""Freed memory is kept while training, and only then. Counts page faults; asserts no times."""

import ctypes
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saliency_lab._common.memory import freed_memory_kept

TUNED = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
glibc_only = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or TUNED, reason="needs glibc's allocator, not tuned by the environment"
)


def faults(blocks):
    """Pages the system had to provide for blocks of 64 MiB, one after another, each freed at once."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.empty(16 << 20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_mib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@glibc_only
def test_inside_a_freed_block_comes_back_and_outside_it_does_not():
    with freed_memory_kept():
        faults(3)
        inside = faults(8)
    assert 4 * inside < faults(8)


@glibc_only
def test_on_leaving_by_an_error_too_memory_is_given_back():
    with freed_memory_kept():
        pass  # what earlier tests left free is gone now
    before = resident_mib()
    with pytest.raises(RuntimeError, match="stop"), freed_memory_kept():
        faults(1)
        assert resident_mib() > before + 32
        raise RuntimeError("stop")
    assert resident_mib() < before + 32
    assert faults(8) > 4


@pytest.mark.parametrize("tuned", [True, False])
def test_where_it_cannot_or_should_not_it_does_nothing(tuned, monkeypatch):
    def refused(*_):
        raise AssertionError("the C library was touched")

    monkeypatch.setattr(ctypes, "CDLL", refused)
    if tuned:
        monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000000")
    else:
        monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with freed_memory_kept():
        pass


PASSES = """
import resource, torch
from saliency_lab._common.memory import keep_memory
keep_memory()
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.ones(5 << 19) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
print(pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's allocator")
def test_memory_of_a_pass_is_kept_for_the_next(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", PASSES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10240  # one pass's; 20 passes fetch up to 204,800
