"""Data sets by name, as tensors in memory with a training, a validation and a test split."""

from saliency_lab.data.catalogue import data_root, list_datasets, load_dataset
from saliency_lab.data.images import ImageData, Sample, Split

__all__ = ["ImageData", "Sample", "Split", "data_root", "list_datasets", "load_dataset"]
