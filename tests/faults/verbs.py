"""Small runs of the verbs, as they are typed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

_UNLEARN = (
    "unlearn --n-train 200 --n-models 2 --lane-width 1 --forget-size 8 --training.epochs 1 "
    "--training.batch-size 40 --methods finetune"
)
_ATTRIBUTE = (
    "attribute --n-train 60 --n-val 40 --members 10 --held-out 4 --checkpoints 1 --features 32 "
    "--targets 0 --training.epochs 1 --training.batch-size 10 --lane-width 4"
)
_PATHS = (
    "paths --stages keep=compliance:C,n=4,epochs=2 u=refusals,n=4 --forget u --rank 2 "
    "--batch-size 2 --unlearn-batch-size 2 --probe 2 --losses ga --max-tokens 200"
)
_COMPACT = (
    "compact --recipe.dual-epochs 1 --recipe.unfreeze-epochs 1 --recipe.last-epochs 2 "
    "--recipe.fold-mode none --recipe.batch-size 16 --recipe.schedule last_k --filters 2 --hidden 3"
)


def _model(work: Path) -> list[str]:
    """A random language model, of a process of its own: whoever forks must not have started JAX."""
    program = "import sys; from tests import language; language.save(sys.argv[1])"
    root, place = Path(__file__).parents[2], str(work / "model")
    subprocess.run([sys.executable, "-c", program, place], cwd=root, check=True)
    return ["--model", place]


def _images(work: Path) -> list[str]:
    """Images of two classes, 12 x 12, dark and light."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 30), ("test", 6)):
        for name, level in (("dark", 40), ("light", 200)):
            place = work / "images" / split / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(level - 30, level + 30, (12, 12), np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return ["--data", str(work / "images")]


# Of each verb its arguments, and what makes the inputs they need.
VERBS: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "unlearn": (_UNLEARN, lambda work: []),
    "attribute": (_ATTRIBUTE, lambda work: []),
    "paths": (_PATHS, _model),
    "compact": (_COMPACT, _images),
}
