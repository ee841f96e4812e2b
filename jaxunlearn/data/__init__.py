"""Data sets as arrays, text as tokens, batches in compiled programs, augmentation, forget sets.

.. include:: README.md
"""

from jaxunlearn.data import augment, corruptions, forget_sets, text
from jaxunlearn.data._batches import Batches, Interleaved, Joined, batches, interleaved
from jaxunlearn.data._datasets import DEFAULT_SIZE, Dataset, load, local_path
from jaxunlearn.data._user_files import images

__all__ = [
    "DEFAULT_SIZE",
    "Batches",
    "Dataset",
    "Interleaved",
    "Joined",
    "augment",
    "batches",
    "corruptions",
    "forget_sets",
    "images",
    "interleaved",
    "load",
    "local_path",
    "text",
]
