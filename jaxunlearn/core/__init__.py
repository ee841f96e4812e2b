"""The vocabulary of the library; it knows no paper.

The contract (every other package builds on it; whoever changes it changes every caller too):

- `Model`: `init(key) -> (params, stats)`, `apply(params, stats, *inputs, train=False, key=None,
  **static) -> (outputs, stats)`; `static` are hashable switches. `train` sets three of them, which
  may be given apart: `statistics` of normalisation layers ("running", "batch" or a mixture), their
  update (`update_statistics`), and whether layers draw `random` numbers; a traced `mask` says
  which examples statistics of the batch are taken of. `params` and `stats`
  (BatchNorm statistics and the like) are plain nested dicts with string keys. Flax NNX defines
  networks and is split once, in `model.from_nnx`; nothing below that border sees NNX.
- `Objective`: `objective(params, stats, shared, batch, key) -> (loss, (stats, metrics))`, pure.
  `step.weighted_sum({name: (weight, objective)})` composes objectives: the batch is a dict by the
  same names, keys are folded by name, stats are threaded in order, metrics are prefixed.
  `step.accumulated(objective, size)` accumulates the gradient over parts of a batch.
- `Step`: `step(state, shared, batch, key) -> (state, metrics)`. `state` is any pytree the method
  needs; `TrainState(params, opt_state, stats, step, extra)` is the default, and its `params` are
  the *trainable part*. `shared` is everything read but not trained by this step (frozen weights, a
  teacher): never donated, without a models axis unless a member truly owns it, and stored once, by
  its hash (`checkpoint.store_shared`). Cached targets ride in the batch, gathered by example
  index. Closures hold functions and configs, never arrays.
  Wrappers extend a step: `ema.with_ema(step, decay)`, `step.alternate(step_a, step_b, schedule)`.
- Data: a source is a pytree with `plan(key, steps[K]) -> rows[K, ...]` (computed once per compiled
  block, e.g. shuffled index tables) and `gather(row, key) -> batch`; a plain traced function
  `(key, step) -> batch` and blocks read on the host (`sources.HostBlocks`) are accepted too.
- Gradients and optimizer state exist only for the trainable part, and a frozen leaf is
  bit-identical afterwards, weight decay or not.
- State survives, metrics are looked at. Randomness comes in as a key, derived by `keys.fold` from
  (purpose, stage name and its occurrence, step) or from the prefix of stages where a method asks,
  never from a position in a run: a shared prefix, a resumed run and an uninterrupted one give the
  same bits.
- Two levels for every method: a low-level function with each tunable as an argument, and a recipe
  that closes over a frozen config dataclass with the paper's values as defaults.
- Arrays in, arrays out; configs are hashable; errors name the argument, what it was and what is
  allowed, before anything is compiled.

What "equal" means:

| what differs                                                                         | promise  |
|--------------------------------------------------------------------------------------|----------|
| resumed or not, 1 or 8 devices, 1 or 2 processes, shared prefixes, lane width alike  | the bits |
| lane width; a model trained alone; devices that share each batch (mesh axis `data`)  | close    |
| another implementation of the same arithmetic                                        | per test |
| metrics with bins (KLOM)                                                             | see next |

Close is 1e-5 for one step from an equal state and 1e-3 on final logits. Of metrics with bins the
margins and means are compared, not the points.

.. include:: README.md
"""

from typing import TYPE_CHECKING

from jaxunlearn.lazy import exports

if TYPE_CHECKING:
    from jaxunlearn.core.loop import EarlyStop as EarlyStop
    from jaxunlearn.core.model import Model as Model
    from jaxunlearn.core.stages import Stage as Stage
    from jaxunlearn.core.step import TrainState as TrainState

__getattr__, __dir__ = exports(
    __name__,
    "adapters chat checkpoint checks chunks configuration disk ema ensemble extras finite folders"
    " keys loop losses members mesh model optimizers pixels products readers records resume"
    " run_folder sources stages step streams study tree typed user_code".split(),
    {"EarlyStop": "loop", "Model": "model", "Stage": "stages", "TrainState": "step"},
)
