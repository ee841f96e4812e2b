"""What `stages.run` and `stages.run_orders` are given is checked before anything runs."""

import jax
import numpy as np
import optax
import pytest

from jaxunlearn.core import Stage, stages

KEY = jax.random.key(0)
STATE = stages.init({"a": np.zeros(2)})
A = Stage("a", lambda *arguments: 0, None, optax.sgd(0.1), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, [("a",)], STATE, KEY), "stage_of is None"),
        (("a", [("a",)], STATE, KEY), "stage_of is 'a'"),
        (({"a": 3}, [("a",)], STATE, KEY), "stage_of gives 'a': 3; a Stage"),
        ((lambda prefix: "a", [("a",)], STATE, KEY), r"stage_of gives \('a',\): 'a'; a Stage"),
        (({"a": A}, None, STATE, KEY), "orders is None"),
        (({"a": A}, [(["a"],)], STATE, KEY), r"orders has \['a'\]"),
        (({"a": A}, [("a",)], {"a": 1}, KEY), "state is a dict; a TrainState"),
        (({"a": A}, [("a",)], None, KEY), "state is a NoneType"),
        (({"a": A}, [("a",)], STATE, 0), "key is 0; a typed key"),
        (({"a": A}, [("a",)], STATE, jax.random.key_data(KEY)), "key is .*; a typed key"),
    ],
)
def test_wrong_orders(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        stages.run_orders(*arguments, snapshots=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((["a"], STATE, KEY), "stages has: 'a'; a Stage"),
        (([A], None, KEY), "state is a NoneType"),
        (([A], STATE, None), "key is None"),
    ],
)
def test_wrong_stages(given, message):
    with pytest.raises(ValueError, match=message):
        stages.run(*given)
