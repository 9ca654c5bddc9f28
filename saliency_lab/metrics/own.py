"""Custom metrics: a function of the user's, or an object built with Quantus."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saliency_lab._common.arguments import shown
from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab._common.inference import undisturbed
from saliency_lab._common.own_code import check_user_function
from saliency_lab._common.registry import Extension, given_settings, settings_of
from saliency_lab._common.seeding import preserved_rng
from saliency_lab.metrics.catalogue import METRICS, Metric, MetricInput, MetricOutput
from saliency_lab.metrics.explainer import Explaining
from saliency_lab.metrics.probe import Output
from saliency_lab.metrics.quantus_engine import no_warnings, quantus_failure, replaced_in_quantus

COMPARE_SAMPLES = {"Consistency", "Sufficiency", "BatchSufficiency"}


class QuantusObject(Explaining):
    """With `masks` (N, 1, H, W), maps are summed over their channels; `output` sets Quantus's softmax."""

    output: Output = "probability"
    masks: Tensor | None = None


class QuantusLocalisation(QuantusObject):
    """An object of Quantus's category of localisation needs `masks` (N, 1, H, W)."""

    masks: Tensor


def custom_metric(extension: Extension) -> Metric:
    """Describe a Quantus metric object, or a function `f(model, x, y, maps, **settings)`, as a metric.

    Raises
    ------
    InputError
        If it is neither.
    """
    metric, name = extension.item, extension.name
    loaded = sys.modules.get("quantus.metrics.base")  # whoever built such an object has imported it
    if loaded is not None and isinstance(metric, loaded.Metric):
        kind = type(metric).__name__
        category = getattr(getattr(metric, "evaluation_category", None), "name", "")
        return Metric(
            name=name,
            family="own",
            better=extension.better,
            range="its own",
            reference="the user's own Quantus object",
            settings=QuantusLocalisation if category == "LOCALISATION" else QuantusObject,
            forwards=lambda s, pixels: 1,
            needs="nonzero",
            undefined="Quantus returns NaN",
            quantus=lambda case: _quantus_object(metric, case),
            serial=("quantus",),
            whole=kind in COMPARE_SAMPLES,
        )
    if callable(metric) and not isinstance(metric, type):
        check_user_function(metric, "metric", "model, x, y, maps")
        return Metric(
            name=name,
            family="own",
            better=extension.better,
            range="its own",
            reference="the user's own function",
            settings=settings_of(extension, 4),
            forwards=lambda s, pixels: 0,
            needs="finite",
            undefined="the function returns NaN",
            fast=lambda case: _function(metric, case),
        )
    raise InputError(
        "metric must be a name of list_metrics(), a Quantus metric object, or a function "
        f"f(model, x, y, maps), not {metric!r}"
    )


METRICS.adapt = custom_metric


def _function(metric: Callable[..., Any], case: MetricInput) -> MetricOutput:
    probe = case.probe
    x, y = probe.x.to(probe.dtype, copy=True), probe.y.clone()  # the function may write to them
    with undisturbed(probe.model):
        maps = case.maps.float().to(probe.device)
        values = metric(probe.model, x, y, maps, **given_settings(case.settings))
    wanted = f"your metric must return one number per sample, ({len(probe)},)"
    try:
        scores = torch.as_tensor(values).detach().cpu()
    except (RuntimeError, TypeError, ValueError):
        raise InputError(f"{wanted}, not {type(values).__name__}: {shown(values)}") from None
    if scores.is_complex():
        raise InputError(f"{wanted}, not complex numbers")
    if scores.shape != (len(probe),):
        raise InputError(f"{wanted}, not {tuple(scores.shape)}")
    return MetricOutput(scores.numpy().astype(np.float64))


def _quantus_object(metric: Any, case: MetricInput) -> MetricOutput:
    """Call the object on one sample at a time, so that nothing in it can depend on the batch."""
    if type(metric).__name__ in COMPARE_SAMPLES:
        return MetricOutput(np.asarray(_call(metric, case, slice(None), case.probe.seed), dtype=np.float64))
    values: list[float] = []
    failures: list[str | None] = []
    for row, seed in enumerate(case.probe.seeds("quantus")):
        value, failure = np.nan, None
        if case.maps[row].any():  # one that cannot be scored is zeros
            try:
                value = _number(_call(metric, case, slice(row, row + 1), seed))
            except SaliencyLabError:
                raise
            except Exception as error:
                failure = quantus_failure(error)
        values.append(value)
        failures.append(failure)
    return MetricOutput(np.array(values), failures=failures)


def _call(metric: Any, case: MetricInput, rows: slice, seed: int) -> Any:
    from quantus.helpers.model.pytorch_model import PyTorchModel

    fresh = copy.copy(metric)
    fresh.return_aggregate, fresh.evaluation_scores, fresh.all_evaluation_scores = False, [], []
    if hasattr(fresh, "return_auc_per_sample"):
        fresh.return_auc_per_sample = False
    probe, settings, explainer = case.probe, case.settings, case.explainer.rows(rows)
    made: list[int] = []

    def explain(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: Any) -> np.ndarray:
        points = torch.as_tensor(np.asarray(inputs), dtype=torch.float32)
        points = points.unflatten(0, (len(explainer), -1))  # usually all of one image
        classes = torch.as_tensor(np.asarray(targets)).long().flatten()
        made.append(len(points))
        maps = explainer(model, points, settings.explain, classes=classes)
        return maps.flatten(0, 1).numpy()

    maps = case.maps[rows] if settings.masks is None else case.maps[rows].sum(1, keepdim=True)
    try:
        # Quantus draws from global generators, so one object is called at a time
        with (
            replaced_in_quantus(calculate_auc=_area),
            undisturbed(probe.model),
            preserved_rng(seed, exclusive=True),
            no_warnings(),
        ):
            scores = fresh(
                model=probe.model,
                x_batch=probe.images[rows].cpu().numpy().copy(),
                y_batch=probe.labels[rows].cpu().numpy(),
                a_batch=maps.float().cpu().numpy().copy(),
                s_batch=None if settings.masks is None else settings.masks[rows].cpu().numpy(),
                channel_first=True,
                explain_func=explain,
                explain_func_kwargs={},
                model_predict_kwargs={},
                softmax=settings.output == "probability",
                device=str(probe.device),
                batch_size=len(probe),
            )
    finally:  # its caches would keep the model alive
        PyTorchModel._get_last_softmax_layer_index.cache_clear()
        PyTorchModel._get_model_with_linear_top.cache_clear()
    if made:
        explainer.compare(probe.model, case.maps[rows], settings.explain)
    return scores


def _area(values: np.ndarray, dx: int = 1, batched: bool = False) -> Any:
    return np.trapezoid(np.asarray(values), dx=dx, axis=1 if batched else -1)


def _number(result: Any) -> float:
    """Reduce what Quantus returns for a sample to one number.

    A curve becomes its trapezoid area over a range of 1; results by layer or percentage become their mean.
    """
    if isinstance(result, dict):
        return float(np.mean([_number(value) for value in result.values()]))
    values = np.asarray(result, dtype=np.float64).ravel()
    return float(values[0] if values.size == 1 else np.trapezoid(values) / (values.size - 1))
