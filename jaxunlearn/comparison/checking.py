"""Whether methods fit a comparison, before anything is compiled or written."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import tree, user_code
from jaxunlearn.core.model import Model
from jaxunlearn.nn.files import safetensors
from jaxunlearn.unlearn import Problem, Unlearned
from jaxunlearn.unlearn.method_settings import DEFAULTS
from jaxunlearn.unlearn.methods import METHODS, bind, check_settings

# These are no names of methods.
_TAKEN = ("full", "original", "oracle", "targets", "members", "effect", "evaluation", "floor")
_OURS = {type(settings) for settings in DEFAULTS.values()}


def check_method(name: str, method: Any, config: Any) -> None:
    """Raises a ValueError for a name, a function or settings that a method cannot have."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.=+-]*(@[\w.=+-]+)?", name) or name in _TAKEN:
        raise ValueError(
            f"method name is {name!r}; it needs letters, digits and any of _ . = + -, perhaps "
            f"@ and a label, and must not be one of {', '.join(_TAKEN)}"
        )
    if not callable(method) or type(method).__hash__ is None:
        raise ValueError(f"method {name} is {method!r}; a function is needed")
    if not dataclasses.is_dataclass(config) or type(config).__hash__ is None:
        raise ValueError(
            f"the settings of {name} are {config!r}; an instance of a frozen dataclass is needed"
        )
    if type(config) in _OURS:  # what settings of another method may be, its author knows
        check_settings("training" if name == "retrain" else name, config)
        return
    try:
        json.dumps(dataclasses.asdict(config), allow_nan=False)  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the settings of {name} are {config!r}, which cannot be recorded as JSON: {error}"
        ) from error


def check_trace(
    name: str,
    method: Callable[..., Unlearned],
    config: Any,
    model: Model,
    problem: Problem,
    n_points: int,
    file: str = "",
) -> Unlearned:
    """What a method of the user's own gives for one model, as shapes; nothing is compiled.

    Args:
        name: name of the method.
        method: the method.
        config: its settings.
        model: the network.
        problem: what is to be forgotten.
        n_points: training and validation points, on which estimates are given.
        file: name of the file that it comes from, for messages.

    Raises:
        ValueError: it fails, or gives back something else than `Unlearned` has.
    """
    logits = jax.ShapeDtypeStruct((n_points, problem.n_classes), jnp.float32)
    needed = getattr(config, "needs", None)
    if needed not in (None, "effect", "oracle_logits"):
        raise ValueError(f"{name} needs {needed!r}; effect or oracle_logits can be estimated")
    given = dataclasses.replace(problem, **({needed: logits} if needed else {}))
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), given)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, stats = jax.eval_shape(model.init, key)
    run = bind(method, config)
    try:
        result = jax.eval_shape(lambda *args: _plain(run(model, *args)), params, stats, given, key)
    except Exception as error:  # whatever the user's function does
        raise ValueError(f"{name} fails: {user_code.where(error, file)}") from error
    for field, got, wanted in (("params", result.params, params), ("stats", result.stats, stats)):
        if _layout(got) != _layout(wanted):
            raise ValueError(f"{name} gives {field} of other names, shapes or types than it got")
    for field, rank in (("losses", 1), ("n_gradients", 0)):
        shape = getattr(getattr(result, field), "shape", None)
        if shape is None or len(shape) != rank:
            wanted = "[n_steps]" if rank else "a number"
            raise ValueError(f"{name} gives {field} of shape {shape}; {wanted} is needed")
    if result.correction is not None and result.correction.shape != logits.shape:
        raise ValueError(
            f"{name} gives a correction of shape {result.correction.shape}; {logits.shape} is "
            "needed"
        )
    return result


def _plain(result: Any) -> Unlearned:
    if not isinstance(result, Unlearned):
        raise TypeError(f"it returns {type(result).__name__}; Unlearned is needed")
    return result._replace(n_gradients=jnp.asarray(result.n_gradients))


def _layout(weights: Any) -> dict[str, Any]:
    return {name: (leaf.shape, leaf.dtype) for name, leaf in tree.named(weights).items()}


def check_saved(saved: Iterable[str], names: Iterable[str]) -> None:
    """Raises a ValueError for methods whose weights cannot be saved since they do not run."""
    names = list(names)
    for name in saved:
        if name not in names:
            raise ValueError(f"save has {name!r}; the methods of this run are {', '.join(names)}")


def check_weights(name: str, result: Unlearned) -> None:
    """Raises a ValueError unless a method's weights are what it gives, of types that files have."""
    if result.correction is not None:
        raise ValueError(f"save has {name!r}, which changes outputs and leaves weights as they are")
    for leaf_name, leaf in tree.named({"params": result.params, "stats": result.stats}).items():
        safetensors.writable(np.dtype(leaf.dtype), leaf_name)


def is_ours(method: Callable[..., Unlearned]) -> bool:
    """Whether a method is one of the library's."""
    return any(method is ours for ours, _ in METHODS.values())
