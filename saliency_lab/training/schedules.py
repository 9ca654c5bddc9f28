"""Schedules of the learning rate and of ε, as pure functions of the training's progress."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine", "one_cycle", "step"]


def learning_rate_factor(schedule: Schedule, progress: float) -> float:
    """Return the factor of the base learning rate at `progress` in [0, 1).

    `cosine` falls from 1 to 0 (Loshchilov & Hutter 2017); `one_cycle` rises linearly over the first
    30 % and falls linearly to 0 (Smith & Topin 2018); `step` divides by 10 at 50 % and at 75 %.

    >>> [learning_rate_factor("step", p) for p in (0.0, 0.5, 0.75)]
    [1.0, 0.1, 0.01]
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "one_cycle":
        return progress / 0.3 if progress < 0.3 else (1 - progress) / 0.7
    if schedule == "step":
        return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
    return 1.0


def ramp(progress: float, over: float) -> float:
    """Rise linearly from 0 to 1 over the first share `over` of the training.

    >>> ramp(0.05, over=0.2), ramp(0.3, over=0.2), ramp(0.0, over=0.0)
    (0.25, 1.0, 1.0)
    """
    return 1.0 if over <= 0 else min(1.0, progress / over)
