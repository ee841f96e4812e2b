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
    kernels = adapted(LLAMA, targets=("head/kernel", ".*/q/.*"))
    is_adapter = lambda leaf: isinstance(leaf, adapters.LowRank)  # noqa: E731
    half = lambda leaf: leaf.astype(jnp.bfloat16)  # noqa: E731  # the scale keeps its type
    params = jax.tree.map(half, kernels, is_leaf=is_adapter)
    weights.save_adapter(tmp_path, params)
    names = list(safetensors.tensors(tmp_path / "adapter_model.safetensors"))
    assert "base_model.model.lm_head.lora_B.weight" in names
    base = random_params(LLAMA, dtype=ml_dtypes.bfloat16)
    assert_same(weights.load_adapter(tmp_path, base), params)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("of_base", [ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize(("rank", "alpha"), [(12, 16), (3, 1), (7, 10)])
@pytest.mark.parametrize("stabilized", [False, True])
def test_saved_adapters_compute_the_same_function(
    tmp_path, dtype, of_base, rank, alpha, stabilized
):
    """Of any type on a base of any type, with alpha / r as PEFT has it."""
    base = random_params(LLAMA, dtype=of_base)
    options = {"rank_stabilized": stabilized}
    params = adapters.attach(base, "layers/q/kernel", rank, alpha, jax.random.key(0), **options)
    kernel = params["layers"]["q"]["kernel"]
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=one.shape).astype(dtype) for one in (kernel.lora_a, kernel.lora_b))
    kernel = dataclasses.replace(kernel, lora_a=jnp.asarray(a), lora_b=jnp.asarray(b))
    params["layers"]["q"]["kernel"] = kernel
    weights.save_adapter(tmp_path, params, rank_stabilized=stabilized)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == alpha
    assert_same(weights.load_adapter(tmp_path, base), params)
    scale = alpha / (rank**0.5 if stabilized else rank)
    np.testing.assert_allclose(np.asarray(kernel.scale, float), scale, rtol=1e-7)


def test_a_short_scale_is_saved_as_what_it_computes(tmp_path):
    """Whoever casts all leaves of a tree has other scales; the file says what they are."""
    short = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), adapted(LLAMA, rank=12, alpha=16.0)
    )
    weights.save_adapter(tmp_path, short)
    read = weights.load_adapter(tmp_path, random_params(LLAMA))["layers"]["q"]["kernel"]
    assert float(read.scale[0]) == float(short["layers"]["q"]["kernel"].scale[0]) != 16 / 12


def test_outermost_adapter_goes_on_top(tmp_path):
    below = adapted(LLAMA)
    both = adapters.attach(below, TARGETS, 2, 2.0, jax.random.key(1))
    weights.save_adapter(tmp_path, both)
    assert_same(weights.load_adapter(tmp_path, below), both)


# Initialisations that take something from the base, and entries that change what is computed.
CHANGING = ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "something new")
OTHERS = (
    ("alora_invocation_tokens", [1, 2]),
    ("lora_bias", True),
    ("use_qalora", True),
    ("use_bdlora", {"target_modules_bd_a": ["q_proj"]}),
    ("modules_to_save", ["lm_head"]),
    ("layers_to_transform", [0]),
    ("layer_replication", [[0, 2], [1, 3]]),
    ("trainable_token_indices", [1]),
    ("target_parameters", ["experts"]),
    ("megatron_config", {"a": 1}),
    ("arrow_config", {"top_k": 2}),
    ("an_entry_of_a_later_version", 1.5),
)


def test_a_config_as_peft_writes_it_is_read(tmp_path):
    """All entries of PEFT 0.20, as they are by default or without effect on a trained adapter."""
    params = adapted(LLAMA)
    weights.save_adapter(tmp_path, params)
    settings = tmp_path / "adapter_config.json"
    nothing = {name: None for name, _ in OTHERS} | {"corda_config": None, "velora_config": None}
    nothing |= {"lora_bias": False, "use_qalora": False, "ensure_weight_tying": False}
    written = {"loftq_config": {}, "rank_pattern": {}, "alpha_pattern": {}, "auto_mapping": None}
    written |= {"megatron_core": "megatron.core", "qalora_group_size": 16, "lora_dropout": 0.05}
    written |= {"peft_version": "0.20.0", "revision": "main", "layers_pattern": None}
    written |= {"exclude_modules": ["k_proj"], "eva_config": {"rho": 2.0}, "task_type": None}
    config = json.loads(settings.read_text()) | nothing | written
    for initial in (True, False, "gaussian", "orthogonal", "eva"):
        settings.write_text(json.dumps(config | {"init_lora_weights": initial}))
        assert_same(weights.load_adapter(tmp_path, random_params(LLAMA)), params)


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
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern is"),
        *(({"init_lora_weights": kind}, f"init_lora_weights is '{kind}'") for kind in CHANGING),
        *(({name: value}, f"{name} is .*, which is not computed") for name, value in OTHERS),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": 10**400}, "a finite number is needed"),
        ({"r": True}, "r is True"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
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
