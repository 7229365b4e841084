"""Data sets, augmentation and corruptions, all as plain tensors."""

from shiftnorm.data.augment import random_shift_flip
from shiftnorm.data.catalogue import DATASETS, open_dataset
from shiftnorm.data.corrupted_set import CorruptedSet
from shiftnorm.data.corruptions import CORRUPTIONS, Corruption, corrupt
from shiftnorm.data.dataset import Batch, Dataset
from shiftnorm.data.digits import digits_on_photos
from shiftnorm.data.folder import load_folder
from shiftnorm.data.image_set import ImageSet
from shiftnorm.data.open_corrupted import open_corrupted
from shiftnorm.data.sequences import SequenceSet, open_sequences

__all__ = [
    "CORRUPTIONS",
    "DATASETS",
    "Batch",
    "CorruptedSet",
    "Corruption",
    "Dataset",
    "ImageSet",
    "SequenceSet",
    "corrupt",
    "digits_on_photos",
    "load_folder",
    "open_corrupted",
    "open_dataset",
    "open_sequences",
    "random_shift_flip",
]
