"""The source network of the experiments: WRN-16-1 on CIFAR-10, in [0, 1], not normalised.

Command:   python -m experiments.tta.source
           (TFDS_DATA_DIR names the folder of prepared data sets; it goes on after an interruption)
Hardware:  2 CPU cores, about 70 minutes, which are counted apart from those of the settings
Data:      CIFAR-10, whose images went through JPEG once
Recipe:    SGD with Nesterov's momentum 0.9, batch 128, weight decay 5e-4, learning rate up to 0.2
           at a fifth of the way and linearly down to 0, flips and shifts by up to 4 pixels, 35
           epochs
Arithmetic: 35 x 50,000 images x 0.16 GFLOP = 0.28 PFLOP, 70 minutes at 67 GFLOP/s
To show:   at least 88 % on the 10,000 test images

Writes wrn-16-1.safetensors, under RobustBench's names, and source.json beside this file.
"""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxunlearn import data, nn
from jaxunlearn.core import mesh
from jaxunlearn.core.keys import fold
from jaxunlearn.core.resume import ResumePoint
from jaxunlearn.tta import source_network
from jaxunlearn.tta.deployment import Samples
from jaxunlearn.tta.settings import Training

HERE = Path(__file__).parent
RECIPE = Training(
    epochs=35, batch_size=128, learning_rate=0.2, weight_decay=5e-4, flip=True, shift=4
)


def main() -> None:
    """Trains, judges, writes."""
    mesh.start(mesh.cores())
    dataset, began = data.load("cifar10"), time.perf_counter()
    network = nn.wide_resnet(16, 1)
    with jax.set_mesh(mesh.make({"data": jax.device_count()})):
        params, stats = source_network.train(
            network,
            Samples(jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train)),
            RECIPE,
            fold(jax.random.key(0), "source"),
            report=lambda done, total: print(f"{done} of {total} steps", flush=True),
            point=ResumePoint("runs/tta/source", "wrn-16-1"),
        )
    test = Samples(dataset.x_val, dataset.y_val)
    accuracy = source_network.accuracy(network, params, stats, test)
    print(f"test accuracy {100 * accuracy:.2f} %")
    source_network.save(HERE, "wrn-16-1", params, stats, stem="wrn-16-1")
    record = {"test_accuracy": accuracy, "seconds": time.perf_counter() - began}
    (HERE / "source.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
