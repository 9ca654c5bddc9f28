"""Attribution: Captum's image catalogue and more behind one call."""

from saliency_lab.attribution import gradient, noise  # noqa: F401 - registers the methods
from saliency_lab.attribution.catalogue import list_methods
from saliency_lab.attribution.door import attribute
from saliency_lab.attribution.result import Attributions

__all__ = ["Attributions", "attribute", "list_methods"]
