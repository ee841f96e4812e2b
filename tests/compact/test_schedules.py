import jax
import pytest

from jaxunlearn.compact import Recipe, phases, schedules
from jaxunlearn.core import tree
from jaxunlearn.nn.images import dual_cnn

PAIR = dual_cnn.build((28, 28, 1))


def trained_sizes(schedule, **options):
    """Numbers of parameters that the stages train."""
    params, _ = jax.eval_shape(PAIR.fused.init, jax.random.key(0))
    found = []
    for stage, _ in phases.unfreezing(PAIR, Recipe(schedule=schedule, **options)):
        trainable, _ = tree.partition(params, tree.select(params, stage.trainable))
        found.append(tree.size(trainable))
    return found


@pytest.mark.parametrize(
    ("schedule", "options", "sizes"),
    [
        ("paper", {}, [330, 1_002, 11_022, 14_662, 14_862]),
        ("official_notebook", {}, [14_532, 14_862]),
        ("last_k", {"last_k": 2}, [1_002, 14_862]),
        ("last_k", {"last_k": 3}, [11_022, 14_862]),
        ((("hidden", "out"), ("conv_1",)), {}, [1_002, 200]),
        (("hidden,out", "conv_1"), {}, [1_002, 200]),
        ([["hidden", "out"], ["conv_1"]], {}, [1_002, 200]),
    ],
)
def test_what_each_stage_trains(schedule, options, sizes):
    assert trained_sizes(schedule, **options) == sizes


def test_lengths_and_optimizers_are_those_of_the_notebook():
    recipe = Recipe(schedule="official_notebook")
    first, last = phases.unfreezing(PAIR, recipe)
    assert [epochs for _, epochs in (first, last)] == [10, 50]
    assert [stage.stops[0].patience for stage, _ in (first, last)] == [5, 10]
    assert {stage.stops[0].min_delta for stage, _ in (first, last)} == {0.001}
    assert first[0].optimizer is not last[0].optimizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "papper"}, "schedule is 'papper'; paper, official_notebook, last_k"),
        ({"schedule": ()}, "schedule is \\(\\); at least one stage"),
        ({"schedule": (("out",), ())}, "at least one layer"),
        ({"schedule": (("head", "conv3"),)}, "the layer 'conv3'; there are out, hidden, head"),
        ({"schedule": "last_k", "last_k": 6}, "k is 6; 1 to 5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5; a whole number"),
        ({"schedule": ("out,",)}, "the layer ''"),
        ({"dual_epochs": 0}, "dual_epochs is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"folds": 1}, "folds is 1; it must be at least 2"),
        ({"fold_mode": "leaky"}, "fold_mode is 'leaky'; independent, continued, none"),
        ({"heads": "second"}, "heads is 'second'; both, first, none"),
    ],
)
def test_bad_recipes(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**arguments)


def test_layers_cover_every_parameter_once():
    params, _ = jax.eval_shape(PAIR.fused.init, jax.random.key(0))
    chosen = [tree.select(params, pattern) for pattern in schedules.LAYERS.values()]
    counts = jax.tree.map(lambda *flags: sum(flags), *chosen)
    assert set(jax.tree.leaves(counts)) == {1}
