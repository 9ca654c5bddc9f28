from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from saliency_lab._common.tensor_files import _NAMES, write_tensors


def test_files_are_read_by_safetensors(tmp_path):
    tensors = {
        str(dtype): torch.arange(6).reshape(2, 3).to(dtype)
        for dtype in _NAMES
        if dtype not in (torch.float8_e4m3fn, torch.float8_e5m2)
    }
    tensors |= {
        "eight bits": torch.tensor([1.0, -0.5, 448.0]).to(torch.float8_e4m3fn),
        "nothing": torch.empty(0, 3),
        "a number": torch.tensor(2.5),
        "strided": torch.rand(4, 5).T,
    }
    path = tmp_path / "some.safetensors"
    write_tensors(path, tensors, {"digest": "ä", "more": "text"})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(
            found[name].contiguous().view(-1).view(torch.uint8),
            tensor.contiguous().view(-1).view(torch.uint8),
        )
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"digest": "ä", "more": "text"}


def test_a_disk_error_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        write_tensors(tmp_path / "missing" / "some.safetensors", {"x": torch.rand(2)}, {})
