"""Errors that several methods raise."""


class NonFiniteError(ArithmeticError):
    """A training diverged: a loss, a weight or an output is infinite or not a number."""
