"""How close a set of unlearned models comes to retrained ones, and what it reveals.

Functions that bin or rank samples compute in NumPy float64, so that a result depends on the samples
alone and not on a device's rounding.

Language models have modules of their own: `tofu`, `muse` and `memorization` hold the measures of
those benchmarks, `language` computes them of a model, `paths` those of the study of retrain
equivalence.
"""

from jaxunlearn.core.losses import margins
from jaxunlearn.evaluate import language, memorization, muse, paths, tofu
from jaxunlearn.evaluate._epsilon import forgetting_epsilon
from jaxunlearn.evaluate._klom import klom, noise_floor, renyi, standard_error
from jaxunlearn.evaluate._lds import lds
from jaxunlearn.evaluate._membership import membership_auc
from jaxunlearn.evaluate._rouge import rouge_l
from jaxunlearn.evaluate._summary import accuracy, summary
from jaxunlearn.evaluate._trajectory import Trajectory, trajectory
from jaxunlearn.evaluate._two_samples import kolmogorov_smirnov, welch
from jaxunlearn.evaluate._ulira import ulira, ulira_cheap, ulira_strong

__all__ = [
    "Trajectory",
    "accuracy",
    "forgetting_epsilon",
    "klom",
    "kolmogorov_smirnov",
    "language",
    "lds",
    "margins",
    "membership_auc",
    "memorization",
    "muse",
    "noise_floor",
    "paths",
    "renyi",
    "rouge_l",
    "standard_error",
    "summary",
    "tofu",
    "trajectory",
    "ulira",
    "ulira_cheap",
    "ulira_strong",
    "welch",
]
