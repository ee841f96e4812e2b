"""Data sets as arrays, batches indexed inside compiled programs, forget sets."""

from jaxunlearn.data import forget_sets
from jaxunlearn.data.batches import Batches
from jaxunlearn.data.datasets import Dataset, load

__all__ = ["Batches", "Dataset", "forget_sets", "load"]
