"""Data sets by name, as tensors in memory with a training, a validation and a test split."""

from saliency_lab.data.catalogue import data_root, list_datasets, load_dataset
from saliency_lab.data.images import ImageData, LabelledImages, Split
from saliency_lab.data.loading import ImageBatch, load_images
from saliency_lab.data.located import LocatedSample, LocatedSplit
from saliency_lab.data.mosaic import make_mosaics

__all__ = [
    "ImageBatch",
    "ImageData",
    "LabelledImages",
    "LocatedSample",
    "LocatedSplit",
    "Split",
    "data_root",
    "list_datasets",
    "load_dataset",
    "load_images",
    "make_mosaics",
]
