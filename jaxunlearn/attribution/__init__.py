"""Which training data mattered: subset masks, datamodels regressed on them, TRAK."""

from jaxunlearn.attribution import datamodels, masks, members, trak

__all__ = ["datamodels", "masks", "members", "trak"]
