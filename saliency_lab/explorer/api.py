"""`explore`: the public entry point, which needs ipywidgets."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab.study import Study

if TYPE_CHECKING:
    from saliency_lab.explorer.widget import Explorer


def explore(study: Study) -> Explorer:
    """Show a study's images and maps in Jupyter; put the call on the last line of a cell.

    Pick images, models and methods; filter the images by class, or by what an attack did to the prediction;
    sort them by a metric to see the best and the worst. Below each map stands what the model predicts, with
    its probability. Images can also be shown as an attack of the study changes them, with the predictions and
    maps for these. A method that the study does not have is computed on the models when it is chosen. A study
    that was loaded without its models shows its stored maps.

    Parameters
    ----------
    study : Study
        The study to look at; it may be loaded.

    Returns
    -------
    Explorer
        An ipywidgets box. Its controls can be set from Python too, such as `view.models.label = ("at",)`.

    Raises
    ------
    InputError
        If `study` is no study.
    SaliencyLabError
        If ipywidgets is not installed.

    Examples
    --------
    >>> import torch
    >>> import saliency_lab as sl
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> study = sl.Study({"plain": net}, (torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])))
    >>> view = sl.explore(study.attribute("saliency"))
    >>> view.models.label
    ('plain',)
    """
    if not isinstance(study, Study):
        raise InputError(
            f"explore takes a study, not {type(study).__name__}; "
            "make one: sl.Study({'mine': model}, (x, y))"
        )
    if importlib.util.find_spec("ipywidgets") is None:
        raise SaliencyLabError("sl.explore needs ipywidgets: pip install '.[notebook]'")
    from saliency_lab.explorer.widget import Explorer

    return Explorer(study)
