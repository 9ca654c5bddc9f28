"""The images of a declared study: the data set, and the sample that all models are compared on."""

from __future__ import annotations

from saliency_lab._common.arguments import check_path
from saliency_lab._common.errors import InputError
from saliency_lab.data import ImageData
from saliency_lab.data.images import Split
from saliency_lab.data.located import LocatedSplit
from saliency_lab.experiment.schema import Declaration
from saliency_lab.study.sample import StudySample, read_sample
from saliency_lab.training.api import load_data


def load_declared_data(declared: Declaration) -> ImageData:
    """Load the data set of a declared study."""
    root = declared.data.root
    folder = None if root is None else str(declared.folder / check_path(root, "data.root"))
    return load_data(declared.data.model_copy(update={"root": folder}))


def draw_sample(declared: Declaration, data: ImageData) -> StudySample:
    """Draw the images that a declaration asks for, with their masks where the data set has some."""
    split: Split = getattr(data, declared.data.split)
    wanted = declared.data.images
    if wanted > len(split):
        raise InputError(
            f"the study asks for data.images = {wanted:,}, and the {declared.data.split} split of "
            f"'{declared.data.name}' has {len(split):,}"
        )
    draw = split.located if isinstance(split, LocatedSplit) else split.sample
    return read_sample(draw(wanted, declared.seed))
