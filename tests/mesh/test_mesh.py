import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxunlearn.core import mesh

SCRIPT = Path(__file__).parent / "eight_devices.py"


def test_one_and_eight_devices_give_the_same_bits(tmp_path):
    results = []
    for devices in (8, 1):
        done = subprocess.run(
            [sys.executable, SCRIPT, str(devices), tmp_path],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(done.stdout.splitlines()[-1]))
    eight, one = results
    assert (eight["devices"], one["devices"]) == (8, 1)
    assert eight["mlp"] == one["mlp"]
    assert eight["cnn"] == one["cnn"]
    # A run that was stopped on 8 devices and went on with 8, or with 1, is the same run.
    assert eight["resumed"] == one["resumed"] == one["mlp"]
    # A checkpoint of a 4 x 2 mesh opens on one device; sharded matmuls round differently.
    assert eight["sharded"] == 0.0
    assert one["sharded"] < 1e-5
    assert eight["finite"] and one["finite"]


def test_rules_choose_by_the_first_pattern():
    devices = mesh.make({"data": 1, "model": 1})
    params = {"a": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
    rules = {".*/kernel": P(None, "model"), ".*": P()}
    chosen = mesh.shardings(params, devices, rules)
    assert chosen["a"]["kernel"].spec == P(None, "model")
    assert chosen["a"]["bias"].spec == P()
    with pytest.raises(ValueError, match="'a/bias'"):
        mesh.shardings(params, devices, {".*/kernel": P()})


def test_bad_meshes():
    with pytest.raises(ValueError, match="there are 1"):
        mesh.make({"models": jax.device_count() + 1})
    with pytest.raises(ValueError, match="axes is"):
        mesh.make({"models": 0})
    with pytest.raises(ValueError, match="devices is 0"):
        mesh.start(0)
    jax.devices()  # now JAX has started
    with pytest.raises(ValueError, match="start\\(\\) must come first"):
        mesh.start(jax.device_count() + 1)
