"""Random draws that depend on the seed and the sample, and on nothing else.

A draw for a sample is keyed by `(seed, purpose, the sample's own pixels)`. It is therefore the
same for every batch size, order and device, whatever else is in the batch and whatever ran before.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saliency_lab._common.checks import check_seed
from saliency_lab._common.threads import SharedState


def derive_seed(seed: int, *keys: object) -> int:
    """Hash a seed and any printable keys to a 63-bit seed.

    >>> derive_seed(0, "noise") == derive_seed(0, "noise") != derive_seed(1, "noise")
    True

    Raises
    ------
    InputError
        If the seed is no whole number from 0.
    """
    text = repr((check_seed(seed), *(str(key) for key in keys)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *keys: object) -> torch.Generator:
    """Return a CPU generator seeded by `derive_seed(seed, *keys)`."""
    return torch.Generator().manual_seed(derive_seed(seed, *keys))


def sample_seeds(x: Tensor, seed: int, purpose: str) -> list[int]:
    """Return one seed per sample of `x` (N, ...), from the seed, the purpose and the sample's values."""
    prefix = f"{check_seed(seed)}|{purpose}|".encode()
    rows = x.detach().to("cpu", torch.float32).reshape(len(x), -1).contiguous().numpy()
    return [
        int.from_bytes(hashlib.blake2b(prefix + row.tobytes(), digest_size=8).digest(), "big") >> 1
        for row in rows
    ]


def sample_uniform(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Draw uniformly from [0, 1): float32 (len(seeds), *shape); row i depends on `seeds[i]` alone."""
    source = torch.Generator()
    out = torch.empty(len(seeds), *shape, dtype=torch.float32)
    for row, seed in zip(out, seeds, strict=True):
        row.uniform_(generator=source.manual_seed(seed))
    return out


def sample_normal(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Draw from N(0, 1): float32 (len(seeds), *shape); row i depends on `seeds[i]` alone."""
    source = torch.Generator()
    out = torch.empty(len(seeds), *shape, dtype=torch.float32)
    for row, seed in zip(out, seeds, strict=True):
        row.normal_(generator=source.manual_seed(seed))
    return out


_GENERATORS = SharedState()


@contextmanager
def preserved_rng(seed: int | None = None, *, exclusive: bool = False) -> Iterator[None]:
    """Restore the global generators (Python, NumPy, torch on each device) on leaving, also after an error.

    With `seed`, they are seeded inside: for libraries that draw from them. If several threads are inside, the
    last one to leave restores what the first one found, and draws depend on how the threads take turns. So
    short blocks that must draw the same whatever other threads do are `exclusive`: the others wait.
    """
    with _GENERATORS.changed(
        _generator_states,
        lambda: None if seed is None else seed_generators(seed),
        _restore_generator,
        exclusive=exclusive,
    ):
        yield


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def _generator_states() -> dict[str, Any]:
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the global generator is what is preserved
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # asking an idle GPU would start it, and the process could not fork
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _restore_generator(name: str, state: Any) -> None:
    restore: dict[str, Callable[[Any], object]] = {
        "python": random.setstate,
        "numpy": np.random.set_state,
        "torch": torch.set_rng_state,
        "cuda": torch.cuda.set_rng_state_all,
        "mps": torch.mps.set_rng_state,
    }
    restore[name](state)
