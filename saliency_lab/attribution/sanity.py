"""The sanity check of saliency maps: does the map change when the model is re-initialised?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from saliency_lab._common.arguments import check_choice, check_count, check_mapping
from saliency_lab._common.checks import check_images
from saliency_lab._common.copying import copy_model
from saliency_lab._common.errors import InputError
from saliency_lab._common.html import table
from saliency_lab._common.inference import (
    check_classifier,
    check_module,
    gradients_recorded,
    translate_model_errors,
)
from saliency_lab._common.progress import progress
from saliency_lab._common.samples import Images, read_sample
from saliency_lab._common.seeding import derive_seed
from saliency_lab._common.selection import Selection, read_selection
from saliency_lab._common.text import number_of, words
from saliency_lab._common.warn import warn
from saliency_lab.attribution.api import MethodCall, attribute, parse_call, run_call
from saliency_lab.attribution.catalogue import METHODS
from saliency_lab.attribution.reinitialisation import (
    ChangeCheck,
    check_randomisable,
    layers_from_output,
    randomise,
)
from saliency_lab.attribution.similarity import rank_correlation, ssim
from saliency_lab.attribution.target import TargetSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINED = "trained"
DEFAULTS = ("saliency", "integrated_gradients", "guided_backprop", "edges")
_SHOWN = 4  # images whose maps are kept for the figure


MEASURES = ["rank_correlation", "absolute_rank_correlation", "ssim"]


@dataclass(frozen=True, eq=False)
class SanityCheck:
    """Similarity of each method's maps to those of the trained model, layer by layer from the output down.

    Attributes
    ----------
    likeness : DataFrame
        One row per method, step and sample: `method` (its label), `step` (0 is the trained model), `layer`
        (the last one randomised), `sample`, `rank_correlation` (Spearman of the signed maps),
        `absolute_rank_correlation` and `ssim` (of their magnitudes).
    maps : mapping of label to Tensor
        (steps + 1, n, C, H, W): the maps of the first images.
    """

    likeness: pd.DataFrame
    maps: Mapping[str, Tensor]

    def __repr__(self) -> str:
        steps, count = self.likeness.step.max(), self.likeness["sample"].nunique()
        shown = ", ".join(f"{name} {mean:.2g}" for name, mean in self._means().rank_correlation.items())
        return f"SanityCheck(mean rank correlation: {shown}; n={count}, {steps} steps)"

    def _repr_html_(self) -> str:
        rows = [(str(name), *(f"{mean:.2g}" for mean in row)) for name, row in self._means().iterrows()]
        images = number_of(self.likeness["sample"].nunique(), "image")
        title = (
            f"sanity check on {images}: mean similarity to the trained "
            f"model's maps over {self.likeness.step.max()} steps of randomising layers"
        )
        return table(title, ["method", *(words(measure) for measure in MEASURES)], rows)

    def summary(self) -> pd.DataFrame:
        """Compute the mean similarity over samples and randomised steps, one row per method.

        It is near 0 for a method that depends on what the model learnt. A map that is multiplied by the image
        is 0 wherever the image is, whatever the model: on images with a black background only the signed
        `rank_correlation` is informative for such methods. A similarity that is NaN, for example because a
        map is constant, is left out of the mean, and a warning counts them.

        Returns
        -------
        DataFrame
            Indexed by method: `rank_correlation`, `absolute_rank_correlation` and `ssim`.
        """
        randomised = self.likeness[self.likeness.step > 0]
        undefined = randomised[MEASURES].isna().any(axis=1)
        if undefined.any():
            counts = undefined.groupby(randomised.method, sort=False).agg(["sum", "size"])
            counted = [
                f"{name} ({row['sum']} of {row['size']})" for name, row in counts.iterrows() if row["sum"]
            ]
            warn(
                f"the means leave out similarities that are NaN: {', '.join(counted)}; one of the two maps "
                "is constant or not finite there",
            )
        return self._means()

    def _means(self) -> pd.DataFrame:
        return self.likeness[self.likeness.step > 0].groupby("method", sort=False)[MEASURES].mean()

    def plot(self, measure: str = "rank_correlation") -> Figure:
        """Plot the similarity against the layers randomised so far: mean and 95 % interval of each method.

        Parameters
        ----------
        measure : {"rank_correlation", "absolute_rank_correlation", "ssim"}
            Which similarity.

        Returns
        -------
        Figure
            One curve per method.

        Raises
        ------
        InputError
            If there is no such measure.
        """
        from saliency_lab.plotting.sanity import cascade

        return cascade(self.likeness, check_choice(measure, MEASURES, "measure"))

    def plot_maps(self, image: int = 0) -> Figure:
        """Draw the maps of one image, one row per method and one column per step, with one scale per panel.

        The maps of a method without negative values, such as Grad-CAM's, have a sequential scale.

        Parameters
        ----------
        image : int
            Position of the image among those in `maps`.

        Returns
        -------
        Figure
            A grid of maps.

        Raises
        ------
        InputError
            If the maps of that image are not among those in `maps`.
        """
        from saliency_lab.plotting.maps import steps

        kept = min(maps.shape[1] for maps in self.maps.values())
        image = check_count(image, "image", least=0, most=kept - 1)
        layers = self.likeness.drop_duplicates("step").sort_values("step").layer
        return steps({name: maps[:, image] for name, maps in self.maps.items()}, list(layers))


@gradients_recorded()
def sanity_check(
    model: nn.Module,
    x: Images,
    y: Tensor | None = None,
    methods: Selection | None = None,
    *,
    target: TargetSpec = "label",
    seed: int = 0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> SanityCheck:
    """Randomise a copy of the model layer by layer from the output down, and compare each method's maps.

    A method whose map hardly changes does not explain the model (Adebayo et al., "Sanity Checks for Saliency
    Maps", NeurIPS 2018). The control `edges`, which does not depend on the model, must fail.

    Parameters
    ----------
    model : nn.Module
        As for `attribute`; it is copied. A layer is re-initialised as before training (`reset_parameters`),
        together with the normalisation layers that follow it.
    x : Tensor, DataLoader or data set
        Images (N, C, H, W) in [0, 1], or what else `attribute` takes.
    y : Tensor, optional
        Labels (N,), needed for `target="label"`.
    methods : str, callable, sequence of these, or mapping of label to settings, optional
        Methods as for `Study.attribute`: names of `list_methods()`, your own functions or classes of Captum,
        whose names are their labels; or label → settings, which name the `method` unless the label does. By
        default `saliency`, `integrated_gradients`, `guided_backprop` and `edges`; those that do not support
        the model are left out with a warning.
    target : "label", "prediction", int, Tensor (N,), or a pair of these
        The logit to explain, as for `attribute`.
    seed : int
        Seed of the new weights and of the methods.
    settings : mapping of label to settings, optional
        Settings that replace a method's defaults.

    Returns
    -------
    SanityCheck
        Similarity of each map to that of the trained model, per method, step and sample.

    Raises
    ------
    InputError
        As `attribute`; or if there is no method; or if the model has no layer to randomise, does not
        change when it is randomised, or was traced, scripted or compiled.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net = sl.load_model("digits/at")
    >>> x, y = sl.load_dataset("digits").test.sample(4, seed=0)
    >>> check = sl.sanity_check(net, x, y, methods=["saliency", "edges"])
    >>> check.likeness["method"].unique().tolist()
    ['saliency', 'edges']
    """
    x, y, _ = read_sample(x, y)
    check_images(x)
    check_module(model)
    check_randomisable(model)
    check_classifier(model, x)
    by_default = methods is None
    calls = _calls(DEFAULTS if methods is None else methods, {} if settings is None else settings)
    twin = copy_model(model)
    with translate_model_errors(model, x):
        layers = layers_from_output(twin, x[:1])
    # classes of the trained model, also inside a contrast: the randomised ones predict something else
    classes = attribute(model, x, y, "constant", target=target, seed=seed).classes
    fixed: TargetSpec = classes if classes.ndim == 1 else (classes[:, 0], classes[:, 1])
    if by_default:
        first: TargetSpec = classes[:1] if classes.ndim == 1 else (classes[:1, 0], classes[:1, 1])
        calls = _not_refused(model, x[:1], first, calls)
    check = ChangeCheck(twin, x)
    reference: dict[str, Tensor] = {}
    kept: dict[str, list[Tensor]] = {name: [] for name in calls}
    rows = []
    with progress(label="sanity check", total=len(calls) * (len(layers) + 1)) as bar:
        for step, (layer, modules) in enumerate([(TRAINED, []), *layers]):
            for module_name, module in modules:
                randomise(module, derive_seed(seed, "randomise", module_name))
            if modules:
                check.update(twin, layer, [module for _, module in modules])
            for name, call in calls.items():
                maps = run_call(twin, x, y, replace(call, target=fixed), seed).values
                base = reference.setdefault(name, maps)
                kept[name].append(maps[:_SHOWN])
                rows.append(_likeness(base, maps).assign(method=name, step=step, layer=layer))
                bar.update()
    check.finish()
    likeness = pd.concat(rows, ignore_index=True)[["method", "step", "layer", "sample", *MEASURES]]
    return SanityCheck(likeness, {name: torch.stack(each) for name, each in kept.items()})


def _calls(methods: Selection, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, MethodCall]:
    """Return the methods with their settings, parsed, by label; one that is named twice is there once."""
    if isinstance(methods, Iterable) and not isinstance(methods, str | bytes | Mapping):
        methods = list(dict.fromkeys(methods))
    selected = read_selection(methods, METHODS)
    chosen = check_mapping(settings, "settings", '{"smoothgrad": {"n": 10}}')
    if stray := set(chosen) - set(selected):
        raise InputError(f"settings are given for methods that are not checked: {', '.join(sorted(stray))}")
    calls = {}
    for label, (what, own) in selected.items():
        given = own | check_mapping(chosen.get(label, {}), f"the settings of '{label}'", '{"n": 10}')
        engine = given.pop("engine", "fast")
        calls[label] = parse_call(what, given, engine=engine, label=label)
    return calls


def _not_refused(
    model: nn.Module, image: Tensor, target: TargetSpec, calls: Mapping[str, MethodCall]
) -> dict[str, MethodCall]:
    """Return those methods that support the model; a warning says why the others do not.

    Raises
    ------
    InputError
        The first refusal, if only controls are left.
    """
    refusals: dict[str, InputError] = {}
    for label, call in calls.items():
        try:
            run_call(model, image, None, replace(call, target=target), seed=0)
        except InputError as error:
            refusals[label] = error
    left = {label: call for label, call in calls.items() if label not in refusals}
    if refusals and all(call.method.family == "control" for call in left.values()):
        raise next(iter(refusals.values()))
    if refusals:
        why = "; ".join(str(error) for error in refusals.values())
        warn(f"the sanity check leaves out {', '.join(refusals)}: {why}")
    return left


def _likeness(base: Tensor, maps: Tensor) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample": range(len(base)),
            "rank_correlation": rank_correlation(base, maps).numpy(),
            "absolute_rank_correlation": rank_correlation(base.abs(), maps.abs()).numpy(),
            "ssim": ssim(base.abs(), maps.abs()).numpy(),
        }
    )
