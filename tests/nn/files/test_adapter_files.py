"""Adapters in files under the names of PEFT."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxunlearn.core import adapters, tree
from jaxunlearn.nn.files import safetensors
from jaxunlearn.nn.language import weights
from tests.network_files import (
    LLAMA,
    TARGETS,
    assert_same,
    random_params,
    rewrite,
)


def adapted(config, *, rank=4, alpha=8.0, targets=TARGETS, seed=0, **options):
    params = random_params(config)
    params = adapters.attach(params, targets, rank, alpha, jax.random.key(seed), **options)
    rng = np.random.default_rng(seed)
    thin, rest = adapters.split(params)
    thin = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), thin)
    return tree.combine(thin, rest)


@pytest.mark.parametrize("options", [{}, {"rank_stabilized": True}, {"rank": 3, "alpha": 10.0}])
def test_adapters_round_trip(tmp_path, options):
    params = adapted(LLAMA, **options)
    stabilized = options.get("rank_stabilized", False)
    weights.save_adapter(tmp_path, params, base="some/base", rank_stabilized=stabilized)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == options.get("rank", 4)
    assert config["lora_alpha"] == options.get("alpha", 8)
    assert config["use_rslora"] is stabilized
    assert config["base_model_name_or_path"] == "some/base"
    assert config["target_modules"] == sorted(
        ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    stored = safetensors.tensors(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    assert stored[name].shape == (config["r"], 64)
    np.testing.assert_array_equal(stored[name][:].T, params["layers"]["down"]["kernel"].lora_a[1])
    assert_same(weights.load_adapter(tmp_path, random_params(LLAMA)), params)


def test_adapter_of_the_output_layer_and_in_bfloat16(tmp_path):
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), adapted(LLAMA, targets=("head/kernel", ".*/q/.*"))
    )
    weights.save_adapter(tmp_path, params)
    names = list(safetensors.tensors(tmp_path / "adapter_model.safetensors"))
    assert "base_model.model.lm_head.lora_B.weight" in names
    base = random_params(LLAMA, dtype=ml_dtypes.bfloat16)
    assert_same(weights.load_adapter(tmp_path, base), params)


def test_outermost_adapter_goes_on_top(tmp_path):
    below = adapted(LLAMA)
    both = adapters.attach(below, TARGETS, 2, 2.0, jax.random.key(1))
    weights.save_adapter(tmp_path, both)
    assert_same(weights.load_adapter(tmp_path, below), both)


def test_adapters_that_do_not_fit(tmp_path):
    weights.save_adapter(tmp_path, adapted(LLAMA))
    params = random_params(LLAMA)
    file, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    deeper = dataclasses.replace(LLAMA, n_layers=4)
    with pytest.raises(ValueError, match="layers.3.*for 'layers/.*/kernel/A' is missing"):
        weights.load_adapter(tmp_path, random_params(deeper))
    shallower = dataclasses.replace(LLAMA, n_layers=2)
    with pytest.raises(ValueError, match="tensor .*layers.2.* has no place in this network"):
        weights.load_adapter(tmp_path, random_params(shallower))
    wider = dataclasses.replace(LLAMA, mlp_width=96)
    with pytest.raises(
        ValueError, match=r"has shape \[4, 64\]; .* for 'layers/down/kernel/A'; r is 4"
    ):
        weights.load_adapter(tmp_path, random_params(wider))
    config = json.loads(settings.read_text())
    for change, message in [
        ({"r": 8}, r"has shape \[4, 64\]; \[8, 64\] is .*'layers/down/kernel/A'; r is 8 in adap"),
        ({"r": None}, "r is None"),
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
    ]:
        settings.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            weights.load_adapter(tmp_path, params)
    settings.write_text(json.dumps(config))
    rewrite(file, lambda a: {"something.lora_A.weight": np.ones((4, 4), "<f4")})
    with pytest.raises(ValueError, match="'something.lora_A.weight' has no place in this network"):
        weights.load_adapter(tmp_path, params)
    with pytest.raises(ValueError, match="there is no adapter_config.json in it"):
        weights.load_adapter(tmp_path / "none", params)


def test_adapters_that_one_file_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="params has no adapters"):
        weights.save_adapter(tmp_path, random_params(LLAMA))
    params = adapters.attach(
        adapted(LLAMA, targets=".*/q/.*"), ".*/v/.*", 2, 4.0, jax.random.key(0)
    )
    with pytest.raises(ValueError, match="'layers/v/kernel' has rank 2"):
        weights.save_adapter(tmp_path, params)
    off = adapters.switch(adapted(LLAMA), jnp.array([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="has rank 4 and scale 0.0, 2.0"):
        weights.save_adapter(tmp_path, off)
