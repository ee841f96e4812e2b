"""Machine unlearning and staged training as pure JAX transformations over parameter pytrees.

A parameter pytree goes in, a chain of pure, compiled transformations runs over it, and a parameter
pytree comes out: trained, adapted, or with data forgotten, together with the evidence for it.

Sub-packages load on first use, so `import jaxunlearn` stays light:

- `core`: the vocabulary (trees, models, steps, loops, stages, ensembles, meshes, checkpoints);
- `nn`: networks and their weights in files; `data`: data sets, texts, batches and forget sets;
- `theory`: closed-form settings; `attribution`: subset masks, datamodels, TRAK;
- `evaluate`: KLOM, U-LiRA, LDS, forgetting epsilon, membership inference, accuracy;
- `unlearn`: unlearning methods and objectives.

Systems, each a job with a verb of the command line:

- `comparison`: unlearning methods compared with retraining, and data attribution;
- `paths`: language models trained in stages in different orders;
- `exact`: exact unlearning by sharded, sliced training (S3T);
- `compact`: networks of 15,000 parameters;
- `tta`: networks that adapt to a stream of images while they predict it.

`load` reads the weights that `jaxunlearn unlearn --save` wrote.
"""

from jaxunlearn.lazy import exports

__version__ = "0.1.0"

__getattr__, __dir__ = exports(
    __name__,
    (
        "attribution",
        "compact",
        "comparison",
        "core",
        "data",
        "evaluate",
        "exact",
        "nn",
        "paths",
        "theory",
        "tta",
        "unlearn",
    ),
    {"load": "comparison.weights"},
)
