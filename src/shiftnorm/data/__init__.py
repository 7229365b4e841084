"""Data sets, augmentation and corruptions, all as plain tensors."""

from shiftnorm.data.augment import random_shift_flip
from shiftnorm.data.corruptions import CORRUPTIONS, Corruption, corrupt
from shiftnorm.data.digits import digits_on_photos
from shiftnorm.data.folder import load_folder
from shiftnorm.data.image_set import ImageSet

__all__ = ["CORRUPTIONS", "Corruption", "ImageSet", "corrupt", "digits_on_photos", "load_folder", "random_shift_flip"]
