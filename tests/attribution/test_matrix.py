"""Every method on every network of `benchmarks/networks.py`: a map, or a refusal with the true cause."""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import list_methods

pytestmark = pytest.mark.slow


def _load() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "networks.py"
    spec = importlib.util.spec_from_file_location("networks", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["networks"] = module  # where dataclasses look up its annotations
    spec.loader.exec_module(module)
    return module


networks = _load()
COMPLETE = {"deep_lift", "deep_lift_shap"}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_method_gives_a_map_or_says_why_not(name):
    network = networks.NETWORKS[name]
    model, image = network.prepared()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for method in list_methods().index:
        cause = network.cause(method)
        if cause is not None:
            with pytest.raises(InputError, match=rf"^{method} .*({cause})") as refusal:
                networks.run(method, model, image)
            assert re.search("use .?'[a-z_]+'", str(refusal.value), re.IGNORECASE), "no alternative is named"
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="Objective did not converge")  # LIME, on 8 samples
            maps = networks.run(method, model, image)
        assert maps.values.shape == image.shape and maps.values.isfinite().all(), method
        assert method == "constant" or maps.values.std() > 0, method
        if method in COMPLETE:
            assert maps.completeness_error.max() < 1e-2, method
    assert all((value == before[key]).all() for key, value in model.state_dict().items())


def test_the_alternatives_that_refusals_name_work_everywhere():
    """Each refusal names one of these, which no network refuses."""
    for network in networks.NETWORKS.values():
        assert all(network.cause(each) is None for each in ("integrated_gradients", "saliency", "rise"))
