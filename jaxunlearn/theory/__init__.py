"""Closed-form settings of the papers, in float64."""

from jaxunlearn.theory import linear, linear_study, ridge

__all__ = ["linear", "linear_study", "ridge"]
