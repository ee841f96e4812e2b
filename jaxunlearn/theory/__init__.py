"""Closed-form settings of the papers, in float64."""

from jaxunlearn.theory import ridge

__all__ = ["ridge"]
