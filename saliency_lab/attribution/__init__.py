"""Attribution: Captum's image catalogue and more behind one call."""

# importing a module registers its methods, in this order
from saliency_lab.attribution import gradient, paths, shap, noise, rectifier, deeplift, lrp, attn_lrp  # noqa: F401, I001
from saliency_lab.attribution import cam, attention, perturbation, control  # noqa: F401
from saliency_lab.attribution.catalogue import list_methods
from saliency_lab.attribution.api import attribute
from saliency_lab.attribution.result import Attributions
from saliency_lab.attribution.sanity import SanityCheck, sanity_check

__all__ = ["Attributions", "SanityCheck", "attribute", "list_methods", "sanity_check"]
