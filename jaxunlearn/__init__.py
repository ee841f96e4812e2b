"""Machine unlearning and staged training as pure JAX transformations over parameter pytrees.

A parameter pytree goes in, a chain of pure, compiled transformations runs over it, and a parameter
pytree comes out: trained, adapted, or with data forgotten, together with the evidence for it.

Sub-packages load on first use, so `import jaxunlearn` stays light:

- `core`: the vocabulary (trees, models, steps, loops, stages, ensembles, meshes, checkpoints);
- `nn`: network definitions; `data`: data sets, batches and forget sets;
- `unlearn`: unlearning methods and the job that compares them with retraining;
- `compact`: networks of 15,000 parameters; `theory`: closed-form settings;
- `attribution`: subset masks, datamodels, TRAK;
- `evaluate`: KLOM, U-LiRA, LDS, forgetting epsilon, membership inference, accuracy.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBPACKAGES = (
    "attribution",
    "compact",
    "core",
    "data",
    "evaluate",
    "nn",
    "plots",
    "theory",
    "unlearn",
)


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_SUBPACKAGES]
