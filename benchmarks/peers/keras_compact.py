"""Keras' side of the lightweight CNN, as the author's notebook has it, in a process of its own.

`python -m benchmarks.peers.keras_compact BACKEND JOB OF`: `train` batches of that size, `predict`,
or `outputs` of the weights and images in an `.npz` file; prints JSON.
"""

import json
import os
import sys
import time

import numpy as np


def main(backend: str, job: str, of: str) -> None:
    """Runs one job."""
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6400, 28, 28, 1), np.uint8)
    y = rng.integers(0, 10, len(x)).astype(np.int32)
    results = {
        "train": lambda: train(keras, x, y, int(of)),
        "predict": lambda: predict(keras, x[0:1] / 255),
        "outputs": lambda: outputs(keras, of),
    }[job]()
    print(json.dumps(results | {"keras": keras.__version__, "backend": backend}))


def branch(keras, x, name):
    """A branch up to its last map."""
    for i, filters in ((1, 10), (2, 20)):
        layer = keras.layers.Conv2D(
            filters, 3, activation="relu", kernel_initializer="he_normal", name=f"{name}_conv_{i}"
        )
        x = keras.layers.MaxPool2D()(layer(x))
    return x


def dual(keras):
    """The model of stage A."""
    inputs = [keras.layers.Input((28, 28, 1)) for _ in range(2)]
    answers = []
    for i, x in enumerate(inputs, 1):
        x = keras.layers.Flatten()(branch(keras, x, f"branch_{i}"))
        answers.append(keras.layers.Dense(10, activation="softmax", name=f"branch_{i}_head")(x))
    return keras.Model(inputs, answers)


def outputs(keras, path):
    """Probabilities of both branches, with weights by layer: `NAME/kernel` and `NAME/bias`."""
    with np.load(path) as stored:
        arrays = dict(stored)
    model = dual(keras)
    for name in {name.split("/")[0] for name in arrays} - {"x"}:
        model.get_layer(name).set_weights([arrays[f"{name}/{part}"] for part in ("kernel", "bias")])
    answers = model([arrays["x"]] * 2)
    return {"probabilities": [np.asarray(answer).tolist() for answer in answers]}


def train(keras, x, y, batch):
    """Seconds of each epoch of stage A; tf.data feeds it where TensorFlow is the backend."""
    model = dual(keras)
    model.compile("nadam", ["sparse_categorical_crossentropy"] * 2)
    augment = keras.Sequential(
        [
            keras.layers.RandomRotation(0.1),
            keras.layers.RandomZoom(0.2, 0.2),
            keras.layers.RandomBrightness(0),
            keras.layers.RandomTranslation(0.2, 0.2),
        ]
    )
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        floats = (x / 255).astype(np.float32)
        source = tf.data.Dataset.from_tensor_slices((floats, y)).cache().shuffle(10_000)
        source = source.batch(batch).map(
            lambda x, y: ((x, augment(x, training=True)), (y, y)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        source = source.prefetch(1)
    else:
        floats = (x / 255).astype(np.float32)

        class Source(keras.utils.PyDataset):
            def __len__(self):
                return len(floats) // batch

            def __getitem__(self, i):
                rows = slice(i * batch, (i + 1) * batch)
                warped = np.asarray(augment(floats[rows], training=True))
                return (floats[rows], warped), (y[rows], y[rows])

        source = Source()
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        model.fit(source, epochs=1, verbose=0)
        seconds.append(time.perf_counter() - start)
    return {"images": len(x), "seconds": seconds}


def predict(keras, image):
    """Seconds of single calls of `predict`, and of the model itself, for one image."""
    x = keras.layers.Input((28, 28, 1))
    heads = [
        keras.layers.Conv2D(10, 5, activation="relu")(branch(keras, x, f"branch_{i}"))
        for i in (1, 2)
    ]
    y = keras.layers.Flatten()(keras.layers.Concatenate()(heads))
    y = keras.layers.Dropout(0.5)(keras.layers.Dense(32, activation="relu")(y))
    model = keras.Model(x, keras.layers.Dense(10, activation="softmax")(y))
    results = {"parameters": model.count_params()}
    calls = {
        "predict": lambda: model.predict(image, verbose=0),
        "call": lambda: np.asarray(model(image)),
    }
    for name, call in calls.items():
        for _ in range(5):
            call()
        seconds = []
        for _ in range(100):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        results[name] = seconds
    return results


if __name__ == "__main__":
    main(*sys.argv[1:])
