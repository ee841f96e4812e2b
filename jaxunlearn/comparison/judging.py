"""From the logits of all models to the numbers that are reported."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from jaxunlearn import evaluate
from jaxunlearn.core import losses
from jaxunlearn.data import Dataset
from jaxunlearn.unlearn import Problem


@dataclasses.dataclass(frozen=True)
class Judge:
    """Compares unlearned models with reference oracles; points are train, then validation."""

    dataset: Dataset
    problem: Problem

    @property
    def labels(self) -> np.ndarray:
        """int [n + m]."""
        return np.concatenate([self.dataset.y_train, self.dataset.y_val])

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """The points of each group."""
        n, m = len(self.dataset.y_train), len(self.dataset.y_val)
        return {
            "forget": np.asarray(self.problem.forget),
            "retain": np.asarray(self.problem.retain),
            "val": np.arange(n, n + m),
        }

    def margins(self, logits: np.ndarray) -> np.ndarray:
        """Logits [N, P, K] -> margins [N, P]."""
        return np.asarray(losses.margins(jnp.asarray(logits), jnp.asarray(self.labels)))

    def judge(
        self,
        margins: dict[str, np.ndarray],
        unlearned: dict[str, dict[str, np.ndarray]],
        seconds: dict[str, dict[str, float]],
    ) -> dict[str, Any]:
        """The `methods` and the `floor` of the results.

        Args:
            margins: of the reference oracles (`oracle`) and of each method's models, [N, P].
            unlearned: by method, `logits` [N, P, K] and `n_gradients` [N]; `retrain` among them.
            seconds: by method, wall time by kind; lanes from another run count as 0.
        """
        oracle = margins["oracle"]
        retrain_gradients = unlearned["retrain"]["n_gradients"].mean()
        methods = {
            name: self._method(outputs["logits"], margins[name], oracle)
            | {
                "seconds": seconds.get(name, {}).get("run", 0.0),
                "compile_seconds": seconds.get(name, {}).get("compile", 0.0),
                "cost": float(outputs["n_gradients"].mean() / retrain_gradients),
            }
            for name, outputs in unlearned.items()
        }
        return {"methods": methods, "floor": self._floor(margins["retrain"], oracle)}

    def _method(
        self, logits: np.ndarray, margins: np.ndarray, oracle: np.ndarray
    ) -> dict[str, Any]:
        scores = evaluate.klom(margins, oracle)
        forget = self.groups["forget"]
        confidence = logits.max(-1) - logsumexp(logits, axis=-1)
        values = {  # of each forget point
            "epsilon": evaluate.forgetting_epsilon(margins[:, forget], oracle[:, forget]),
            "ulira": self._ulira(margins[:, forget], oracle[:, forget]),
        }
        hits = {group: self._hits(logits, at) for group, at in self.groups.items()}
        return {
            "klom": {group: evaluate.summary(scores[at]) for group, at in self.groups.items()},
            "tests": self._two_sample(margins, oracle),
            "accuracy": {
                group: evaluate.accuracy(logits[:, at], self.labels[at])
                for group, at in self.groups.items()
            },
            "mia_points": int(self._attacked().sum()),
            "mia": _known(self._attack(margins)),  # the loss is log(1 + exp(-margin)): same order
            "mia_confidence": _known(self._attack(confidence)),
            **{name: None if v is None else float(v.mean()) for name, v in values.items()},
            "stderr": {
                "klom": self._klom_errors(margins, oracle),
                "accuracy": {group: _error(of_models) for group, of_models in hits.items()},
                "mia": _known(_error(self._aucs(margins))),
                "mia_confidence": _known(_error(self._aucs(confidence))),
                **{name: None if v is None else _error(v) for name, v in values.items()},
            },
        }

    def _hits(self, logits: np.ndarray, at: np.ndarray) -> np.ndarray:
        """The accuracy of each model on some points, [N]."""
        return (logits[:, at].argmax(-1) == self.labels[at]).mean(1)

    def _klom_errors(self, margins: np.ndarray, oracle: np.ndarray) -> dict[str, float]:
        """The standard error of KLOM's mean over each group, by the choice of oracles."""
        means = lambda scores: np.array([scores[at].mean() for at in self.groups.values()])  # noqa: E731
        errors = evaluate.standard_error(margins, oracle, means)
        return dict(zip(self.groups, errors.tolist(), strict=True))

    def _two_sample(self, margins: np.ndarray, oracle: np.ndarray) -> dict[str, dict[str, float]]:
        """Beside KLOM: mean KS distance and Renyi-2, and how many points a test tells apart."""
        distance, ks = evaluate.kolmogorov_smirnov(margins, oracle)
        _, welch = evaluate.welch(margins, oracle)
        renyi = evaluate.renyi(margins, oracle, order=2.0)
        return {
            group: {
                "ks": float(distance[at].mean()),
                "ks_below_5_percent": float((ks[at] < 0.05).mean()),
                "welch_below_5_percent": float((welch[at] < 0.05).mean()),
                "renyi_2": float(renyi[at].mean()),
            }
            for group, at in self.groups.items()
        }

    def _ulira(self, margins: np.ndarray, oracle: np.ndarray) -> np.ndarray | None:
        """Accuracy of the strong attack on each forget point; of few models it is biased."""
        return None if len(margins) < 20 else evaluate.ulira_strong(margins, oracle)

    def _attacked(self) -> np.ndarray:
        """Which forget points have validation points of their class to be compared with."""
        return np.isin(self.labels[self.groups["forget"]], self.labels[self.groups["val"]])

    def _attack(self, scores: np.ndarray) -> float:
        """The mean of `_aucs` over models."""
        return float(self._aucs(scores).mean())

    def _aucs(self, scores: np.ndarray) -> np.ndarray:
        """AUC of forget points against validation points of their class, [N]; NaN without any."""
        groups = self.groups["forget"], self.groups["val"]
        members, others = (scores[:, at] for at in groups)
        classes = self.labels[groups[0]], self.labels[groups[1]]
        return evaluate.membership_auc(members, others, classes=classes)

    def _floor(self, fresh: np.ndarray, oracle: np.ndarray) -> dict[str, dict[str, float]]:
        splits = evaluate.noise_floor(fresh, oracle)
        errors = self._klom_errors(fresh, oracle)
        floor = {}
        for group, at in self.groups.items():
            rows = [evaluate.summary(split[at]) for split in splits]
            floor[group] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
            floor[group]["stderr"] = errors[group]
        return floor


def _error(values: np.ndarray) -> float:
    """The standard error of a mean."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _known(value: float) -> float | None:
    """What JSON has in place of NaN."""
    return None if np.isnan(value) else value
