"""Data sets, augmentation and corruptions, all as plain tensors."""

from shiftnorm.data.augment import random_shift_flip
from shiftnorm.data.catalogue import DATASETS, open_dataset
from shiftnorm.data.corruptions import CORRUPTIONS, Corruption, corrupt
from shiftnorm.data.dataset import Batch, Dataset
from shiftnorm.data.digits import digits_on_photos
from shiftnorm.data.folder import load_folder
from shiftnorm.data.image_set import ImageSet

__all__ = [
    "CORRUPTIONS",
    "DATASETS",
    "Batch",
    "Corruption",
    "Dataset",
    "ImageSet",
    "corrupt",
    "digits_on_photos",
    "load_folder",
    "open_dataset",
    "random_shift_flip",
]
