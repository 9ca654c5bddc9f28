"""Warnings that point to the line of the user who called the package."""

from __future__ import annotations

import sys
import warnings

_PACKAGE = __name__.partition(".")[0]


def warn(message: str) -> None:
    """Issue a `UserWarning` at the line that called into this package, however deep the call.

    Python shows a text once for each line. A warning that pointed into the package would be shown for the
    first model alone.
    """
    frame = user = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
            user = caller
        frame = caller
    warnings.warn_explicit(
        message,
        UserWarning,
        filename=user.f_code.co_filename,
        lineno=user.f_lineno,
        module=user.f_globals.get("__name__"),
        registry=user.f_globals.setdefault("__warningregistry__", {}),
    )
