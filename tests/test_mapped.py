"""Large tensors are backed by a file without a name, and results are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import saliency_lab as sl
from saliency_lab._common import mapped
from saliency_lab._common.hashing import TensorBlocks, fingerprint
from saliency_lab._common.mapped import empty_tensor, take_rows
from saliency_lab.attribution.packing import PackedMaps
from saliency_lab.data.images import MappedSplit, Split

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other systems have ordinary tensors")


@pytest.fixture(params=["ordinary", "mapped"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(mapped, "LARGE", 1 if request.param == "mapped" else 1 << 40)
    return str(request.param)


def is_mapped(tensor: Tensor) -> bool:
    """Whether the tensor lies in a file, by the memory map of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(each, 16) for each in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return "deleted" in line
    return False


@linux_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.float8_e4m3fn])
def test_a_large_tensor_lies_in_a_file_that_has_no_name(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(mapped, "LARGE", 1000)
    large, small = empty_tensor((10, 1, 10, 10), dtype), empty_tensor((9, 1, 10, 1), dtype)
    assert (large.dtype, large.shape, large.is_contiguous()) == (dtype, (10, 1, 10, 10), True)
    assert is_mapped(large) and not is_mapped(small)
    assert not list(tmp_path.iterdir())
    large.view(torch.uint8)[...] = 7
    assert torch.equal(large.clone().view(torch.uint8), torch.full(large.view(torch.uint8).shape, 7).byte())


@linux_only
def test_without_room_on_the_disk_it_is_an_ordinary_tensor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(mapped, "LARGE", 1)
    assert empty_tensor((2, 3)).fill_(1.0).sum() == 6
    monkeypatch.setattr(mapped, "_folder", lambda: tmp_path / "gone")
    assert empty_tensor((2, 3)).fill_(1.0).sum() == 6


def test_results_do_not_depend_on_it(kind: str, tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(0)
    x, y = torch.rand(40, 3, 8, 8, generator=source), torch.arange(40) % 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    maps = sl.attribute(net, x, y, "saliency").values
    assert is_mapped(maps) == (kind == "mapped" and sys.platform == "linux")
    points = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(points).gather(1, y[:, None]).sum(), points)
    torch.testing.assert_close(maps, expected)

    packed = PackedMaps.of(maps)
    rows = slice(3, 30)
    assert torch.equal(packed[rows], packed.codes[rows].float() * packed.scales[rows, None, None, None])

    found = sl.attack(net, x, y, "fgsm", eps="16/255", quantised=True)
    levels = found.adversarial[found.clean_correct] * 255
    assert len(levels) and (levels - levels.round()).abs().max() < 1e-4
    assert torch.equal(found.distance, (found.adversarial - x).flatten(1).abs().amax(1))
    assert torch.equal(found.predictions, net(found.adversarial).argmax(1))
    curve = sl.robustness_curve(net, x, y, "fgsm", eps=(0, "8/255", "16/255"))
    assert torch.equal(curve.robust[0], net(x).argmax(1) == y)

    eight_bit = (x * 255).round().byte()
    for images, expected in ((x, x), (eight_bit, eight_bit.float() / 255)):
        dataset = TensorDataset(images, y)
        for given in (dataset, DataLoader(dataset, batch_size=7)):
            again = sl.attribute(net, given, method="saliency").values
            assert torch.equal(again, sl.attribute(net, expected, y, "saliency").values)

    stored = torch.randint(0, 256, (700, 1, 4, 4), generator=source).byte()
    labels, order = torch.arange(700) % 2, torch.randperm(700, generator=source)
    for split in (Split(stored, labels), MappedSplit(stored, labels, torch.arange(700))):
        for indices in (slice(None), slice(5, 600), slice(None, None, 3), order, order[:9], [-1, 2]):
            batch = split.batch(indices)
            assert torch.equal(batch.x, stored[indices].float() / 255)
            assert torch.equal(batch.y, labels[indices])
    assert torch.equal(take_rows(stored, order), stored[order])

    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), np.uint8)
    for index, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f"{index}.png")
    loaded = sl.load_images(tmp_path).x
    assert torch.equal(loaded, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_tensor_is_hashed_in_another_precision_without_a_copy(dtype: torch.dtype) -> None:
    x = torch.rand(600, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert fingerprint(TensorBlocks.of(x, dtype)) == fingerprint(x.to(dtype))


STUDY = """
import sys, tempfile, threading, time
import torch, saliency_lab as sl
from pathlib import Path
from torch import nn

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) // 1024

sl.show_progress(False)
count = 400
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "images").write_bytes(torch.rand(count, 3, 224, 224).numpy().tobytes())
    size = count * 3 * 224**2
    x = torch.from_file(f"{folder}/images", size=size).reshape(count, 3, 224, 224)
    net = nn.Sequential(nn.Conv2d(3, 4, 32, stride=32), nn.ReLU(), nn.Flatten(), nn.Linear(196, 2))
    y = net(x).argmax(1)
    def compute(count):
        study = sl.Study({"net": net}, (x[:count], y[:count]), store=f"{folder}/{count}", compile=False)
        study.attribute(["saliency", "input_x_gradient"]).score("complexity")
        study.attack("fgsm", eps=["1/255"])
        assert study.failures.empty
    compute(16)  # as many as a pass has, and more
    before, peak = anonymous(), 0
    work = threading.Thread(target=compute, args=(count,))
    work.start()
    while work.is_alive():
        peak = max(peak, anonymous())
        time.sleep(0.005)
    print(peak - before)
"""


@linux_only
@pytest.mark.slow
def test_memory_of_a_study_of_mapped_photographs_does_not_grow_with_them() -> None:
    freed = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = os.environ | freed  # what is freed goes back at once, so that only what is kept counts
    command = [sys.executable, "-c", STUDY]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) < 115, "MiB; the images are 230, and so are the maps of each method"
