"""E3: Datamodel Matching on a mixture of Gaussians, against retraining and the baselines.

Paper:     Datamodel Matching, arXiv 2410.23232, on a small problem of our own (its own results are
           of CIFAR-10 and ImageNet with 200 models a side)
Command:   python -m experiments.dmm.mixture
Hardware:  2 CPU cores; about 6 minutes; it goes on after an interruption
Data:      10 classes in 32 dimensions, means drawn with deviation 0.55 and unit noise, 5 % of the
           labels flipped; 600 points to train, 1,000 to validate; another set for every seed
Forget:    30 random points of (true) class 3
Models:    MLP of 64 hidden units, SGD, peak rate 0.2, 20 epochs, batch 60; 100 models a side;
           2,000 members on random halves for the datamodels (ridge, penalty by leave-one-out)
Methods:   Oracle Matching (forget x 5, retain x 19, Adam 5e-3, 60 epochs), each model with an
           oracle of its own and all with the mean of ten; DMM (the same, 20 epochs) and DM-Direct
           with ridge and with differences in means. None of these is tuned here. Ascent takes the
           best of 20 settings by forget KLOM among those that keep the validation accuracy within
           5 points of the full models' (the others count as collapsed), fine-tuning on the retain
           set the best of 4: both choices favour the baselines. (A first look at seed 0 had 12 and
           4 coarser ones.)
Seeds:     0, 1, 2; mean KLOM is judged
To show (fixed before the run), as means over the seeds: Oracle Matching (own oracle) at most 0.8 on
           the forget set; DMM at most half of doing nothing, below the best ascent and below
           fine-tuning; DMM and DM-Direct within 0.6; each doubling of the members from 250 to 2,000
           lowers the forget KLOM of DM-Direct
Added after the first full run, which missed the last of these (1.01 to 1.03; ridge predicts too
           large shifts at alpha 0.5): another 2,000 members on subsets of 70 %, of which the same
           doublings are shown, and the slope of true on predicted shifts

Writes mixture.json beside this file; finished models are kept under runs/mixture.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import attribution, evaluate, nn
from jaxunlearn.attribution import datamodels, members
from jaxunlearn.core import ensemble, keys, mesh
from jaxunlearn.core.checkpoint import BlockStore
from jaxunlearn.core.model import predict
from jaxunlearn.unlearn import METHODS, Problem, baselines, matching
from jaxunlearn.unlearn.scratch import Training, train

HERE = Path(__file__).parent
RUNS = Path("runs/mixture")
N, N_VAL, DIM, CLASSES, N_FORGET, N_MODELS, MEMBERS = 600, 1000, 32, 10, 30, 100, 2000
MODEL = nn.mlp(DIM, (64,), CLASSES)
TRAINING = Training(epochs=20, batch_size=60, learning_rate=0.2)
OM = matching.OracleMatching(epochs=60, learning_rate=5e-3, retain_multiplier=19.0)
DMM = matching.DatamodelMatching(epochs=20, learning_rate=5e-3, retain_multiplier=19.0)
ASCENT = [
    baselines.Ascent(learning_rate=rate, epochs=epochs)
    for rate in (0.003, 0.01, 0.02, 0.03, 0.05)
    for epochs in (3, 10, 20, 30)
]
FINETUNE = [baselines.FineTune(learning_rate=rate, epochs=20) for rate in (0.05, 0.1, 0.2, 0.4)]
SIZES, ALPHAS = (250, 500, 1000, 2000), (0.5, 0.7)


def draw(seed: int) -> dict[str, np.ndarray]:
    """Training and validation points of the mixture."""
    rng = np.random.default_rng(seed)
    means = 0.55 * rng.normal(size=(CLASSES, DIM))
    y = rng.integers(0, CLASSES, N + N_VAL)
    x = (means[y] + rng.normal(size=(N + N_VAL, DIM))).astype(np.float32)
    forget = np.sort(rng.choice(np.flatnonzero(y[:N] == 3), N_FORGET, replace=False))
    flipped = rng.random(N) < 0.05
    y[:N][flipped] = rng.integers(0, CLASSES, flipped.sum())
    return {"x": x, "y": y, "forget": forget}


def outputs(shared, result) -> jax.Array:
    """Logits of all points, [n + m, K]."""
    logits = predict(MODEL, result.params, result.stats, shared["x"])
    return logits if result.correction is None else logits + result.correction


def trained(shared, key):
    """A model trained on `shared["rows"]`."""
    result = train(MODEL, shared["problem"], shared["rows"], key, **vars(TRAINING))
    return {"params": result.params, "logits": outputs(shared, result)}


def member(shared, rows, key):
    """A member of the datamodel ensemble."""
    return outputs(shared, train(MODEL, shared["problem"], rows, key, **vars(TRAINING)))


@functools.cache  # the same method and settings are the same program
def forgetting(method, settings):
    """A function of one full model: what it outputs after forgetting."""

    def one(shared, full):
        problem = shared["problem"]
        if "oracle" in full:
            problem = dataclasses.replace(problem, oracle_logits=full["oracle"])
        result = method(MODEL, full["params"], {}, problem, full["key"], **vars(settings))
        return {"logits": outputs(shared, result)}

    return one


class Seed:
    """All models of one seed, and how far each method comes."""

    def __init__(self, seed: int):
        self.seed, self.data, self.folder = seed, draw(seed), RUNS / f"seed{seed}"
        self.retain = np.setdiff1d(np.arange(N), self.data["forget"])
        arrays = (self.data["x"][:N], self.data["y"][:N], self.retain, self.data["forget"])
        self.problem = Problem(*map(jnp.asarray, arrays), n_classes=CLASSES)
        self.full = self.train("full", np.arange(N), N_MODELS)
        self.oracle = self.train("oracle", self.retain, N_MODELS)["logits"]

    def keys(self, phase: str, count: int) -> jax.Array:
        """A key for each model of a phase."""
        root = keys.fold(jax.random.key(self.seed), phase)
        return jax.vmap(lambda i: keys.fold(root, i))(jnp.arange(count))

    def run(self, phase: str, one, of_members: Any, problem: Problem, **shared) -> dict[str, Any]:
        """Some function for all models, its lanes kept on disk."""
        shared = {"problem": problem, "x": jnp.asarray(self.data["x"])} | shared
        store = BlockStore(self.folder / phase)
        return ensemble.run(one, shared, of_members, width=25, mesh=mesh.make(), store=store)

    def train(self, phase: str, rows: np.ndarray, count: int) -> dict[str, Any]:
        """Models trained on some rows."""
        return self.run(
            phase, trained, self.keys(phase, count), self.problem, rows=jnp.asarray(rows)
        )

    def forget(self, phase: str, method, settings, oracle=None, **change) -> np.ndarray:
        """Logits of all full models after forgetting, [N_MODELS, n + m, K].

        `oracle` holds targets of each model's own, `change` what else the problem is given.
        """
        of_members = {"params": self.full["params"], "key": self.keys(phase, N_MODELS)}
        of_members |= {} if oracle is None else {"oracle": oracle}
        problem = dataclasses.replace(self.problem, **change)
        return self.run(phase, forgetting(method, settings), of_members, problem)["logits"]

    def members(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Masks [M, n] and logits [M, (n + m) K] of the datamodel ensemble."""
        masks = attribution.masks.exact(jax.random.key(1000 + self.seed), MEMBERS, N, alpha)
        shape = (N + N_VAL, CLASSES)
        member_keys, folder = self.keys("members", MEMBERS), self.folder / f"members-{alpha}"
        store = members.Outputs(folder, masks, member_keys, shape, width=100)
        shared = {"problem": self.problem, "x": jnp.asarray(self.data["x"])}
        members.run(member, shared, store, mesh=mesh.make())
        return masks, np.array(store.outputs).reshape(MEMBERS, -1)

    def effect(self, model: datamodels.Datamodel) -> jax.Array:
        """What the forget set adds to all logits, [n + m, K]."""
        of_logits = model.effect(self.data["forget"]).reshape(N + N_VAL, CLASSES)
        return jnp.asarray(of_logits, jnp.float32)

    def direct(self, effect: jax.Array) -> dict[str, float]:
        """DM-Direct, and how well the mean shifts of the forget set's logits are predicted."""
        at = self.data["forget"]
        true = (self.full["logits"].mean(0) - self.oracle.mean(0))[at].ravel()
        predicted = np.asarray(effect)[at].ravel()
        return self.judge(self.full["logits"] - np.asarray(effect)) | {
            "correlation": float(np.corrcoef(true, predicted)[0, 1]),
            "slope": float(true @ predicted / (predicted @ predicted)),
        }

    def judge(self, logits: np.ndarray) -> dict[str, float]:
        """Mean and 95th percentile of KLOM by group, and validation accuracy."""
        y = jnp.asarray(self.data["y"])
        unlearned, oracle = (
            np.asarray(evaluate.margins(jnp.asarray(a), y)) for a in (logits, self.oracle)
        )
        klom = evaluate.klom(unlearned, oracle)
        groups = {
            "forget": self.data["forget"], "retain": self.retain, "val": np.arange(N, N + N_VAL)
        }  # fmt: skip
        numbers = {name: float(klom[points].mean()) for name, points in groups.items()}
        numbers |= {f"{name} p95": float(np.quantile(klom[p], 0.95)) for name, p in groups.items()}
        return numbers | {
            "accuracy": float((logits[:, N:].argmax(-1) == self.data["y"][N:]).mean())
        }


def one_seed(seed: int) -> dict[str, Any]:
    """The rows of one seed."""
    began, this = time.perf_counter(), Seed(seed)
    rows = {
        "none": this.judge(this.full["logits"]),
        "fresh oracles": this.judge(this.train("fresh", this.retain, N_MODELS)["logits"]),
    }
    targets = this.train("targets", this.retain, N_MODELS)["logits"]
    om = functools.partial(this.forget, method=matching.oracle_matching, settings=OM)
    rows["OM, own oracle"] = this.judge(om("om-own", oracle=targets))
    rows["OM, mean of 10"] = this.judge(
        om("om-mean", oracle_logits=jnp.asarray(targets[:10].mean(0)))
    )
    masks, logits = this.members(0.5)
    for method in ("ridge", "difference"):
        effect = this.effect(datamodels.fit(masks, logits, method=method))
        rows[f"DM-Direct, {method}"] = this.direct(effect)
        matched = this.forget(f"dmm-{method}", matching.datamodel_matching, DMM, effect=effect)
        rows[f"DMM, {method}"] = this.judge(matched)
    sizes: dict[str, dict[str, Any]] = {}
    for alpha in ALPHAS:
        masks, logits = this.members(alpha)
        sizes[str(alpha)] = {
            str(size): this.direct(this.effect(datamodels.fit(masks[:size], logits[:size])))
            for size in SIZES
        }
    grids: dict[str, list] = {"ascent": [], "finetune": []}
    for name, settings in (("ascent", ASCENT), ("finetune", FINETUNE)):
        for number, candidate in enumerate(settings):
            judged = this.judge(this.forget(f"{name}-{number}", METHODS[name][0], candidate))
            grids[name].append(dataclasses.asdict(candidate) | judged)
    kept = [r for r in grids["ascent"] if r["accuracy"] > rows["none"]["accuracy"] - 0.05]
    rows["ascent, best kept"] = min(kept, key=lambda row: row["forget"])
    rows["finetune, best"] = min(grids["finetune"], key=lambda row: row["forget"])
    print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    return {"rows": rows, "sizes": sizes, "grids": grids}


def main() -> None:
    """Runs the seeds, writes their results and says which thresholds hold."""
    mesh.start(mesh.cores())
    seeds = [one_seed(seed) for seed in (0, 1, 2)]

    def mean(name, group="forget"):
        return float(np.mean([seed["rows"][name][group] for seed in seeds]))

    by_size = {
        alpha: [
            float(np.mean([s["sizes"][str(alpha)][str(n)]["forget"] for s in seeds])) for n in SIZES
        ]
        for alpha in ALPHAS
    }
    dmm = mean("DMM, ridge")
    held = {
        "OM at most 0.8": mean("OM, own oracle") <= 0.8,
        "DMM at most half of none": dmm <= 0.5 * mean("none"),
        "DMM below the best ascent": dmm < mean("ascent, best kept"),
        "DMM below fine-tuning": dmm < mean("finetune, best"),
        "DMM and DM-Direct within 0.6": abs(dmm - mean("DM-Direct, ridge")) <= 0.6,
        "more members are better": bool(np.all(np.diff(by_size[0.5]) < 0)),
        "more members are better, alpha 0.7": bool(np.all(np.diff(by_size[0.7]) < 0)),
    }
    content = {"seeds": seeds, "by_size": by_size, "held": held, "jax": jax.__version__}
    (HERE / "mixture.json").write_text(json.dumps(content, indent=1) + "\n")
    for name in seeds[0]["rows"]:
        print(f"{name:<24}" + "".join(f"{mean(name, g):8.2f}" for g in ("forget", "retain", "val")))
    for alpha, row in by_size.items():
        values = ", ".join(f"{value:.2f}" for value in row)
        print(f"forget KLOM of DM-Direct, alpha {alpha}, members {SIZES}: {values}")
    for name, result in held.items():
        print(f"{name:<36} {result}")


if __name__ == "__main__":
    main()
