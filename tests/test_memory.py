"""Freed memory is kept while training, and only then. Asserts no times."""

import ctypes
import platform
import subprocess
import sys

import pytest
import torch

from saliency_lab._common.memory import freed_memory_kept, raise_mmap_threshold

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's allocator")

BLOCKS = """
import resource
import torch
from pathlib import Path
from saliency_lab._common.memory import freed_memory_kept, raise_mmap_threshold

def kept():
    "MiB that a freed block of 64 leaves with the process."
    def resident():
        return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

    before = resident()
    torch.empty(16 << 20).fill_(1.0)
    return resident() - before
"""


def fresh(script, monkeypatch):
    """Numbers that a script prints in a process of its own, whose heap nothing else has touched."""
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", BLOCKS + script], capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


@pytest.mark.long
@glibc_only
def test_inside_freed_memory_is_kept_and_after_an_error_too_given_back(monkeypatch):
    script = """
kept()
try:
    with freed_memory_kept():
        print(kept())
        raise RuntimeError
except RuntimeError:
    print(kept())
"""
    inside, outside = fresh(script, monkeypatch)
    assert inside > 48 and outside < 16


@pytest.mark.parametrize(
    "variable",
    [("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000000"), ("SALIENCY_LAB_KEEP_MEMORY", "0"), None],
)
def test_where_it_cannot_or_should_not_it_does_nothing(variable, monkeypatch):
    def refused(*_):
        raise AssertionError("the C library was touched")

    monkeypatch.setattr(ctypes, "CDLL", refused)
    monkeypatch.setattr(torch, "empty", refused)
    if variable:
        monkeypatch.setenv(*variable)
    else:
        monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with freed_memory_kept():
        pass
    raise_mmap_threshold.__wrapped__()  # what is called once per process


@pytest.mark.long
@glibc_only
def test_memory_of_a_pass_is_kept_for_the_next(monkeypatch):
    script = """
raise_mmap_threshold()
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.ones(5 << 19) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
print(pages())
"""
    (found,) = fresh(script, monkeypatch)
    assert found < 10240  # one pass's; 20 passes fetch up to 204,800
