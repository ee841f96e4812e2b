"""What many files share: rows in chunks, checks of arguments and of what was computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core import checks, chunks, finite
from jaxunlearn.core.checks import NonFiniteError


@pytest.mark.parametrize("n", [1, 4, 5, 11])
def test_rows_in_chunks_are_those_of_all_at_once(n):
    rows = {"x": np.arange(3.0 * n).reshape(n, 3), "y": np.arange(n)}

    def function(part):
        assert len(part["y"]) <= 4
        return {"sum": part["x"].sum(1) + part["y"], "x": part["x"]}

    whole = {"sum": rows["x"].sum(1) + rows["y"], "x": rows["x"]}
    found = jax.jit(lambda rows: chunks.mapped(function, rows, 4))(rows)
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    parts = [rows["x"][index][:size] for index, size in chunks.blocks(n, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), rows["x"])
    assert {len(index) for index, _ in chunks.blocks(n, 4)} == {4}


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (checks.whole, ("n", 1.5), "n is 1.5; a whole number is needed"),
        (checks.whole, ("n", 0), "n is 0; it must be at least 1"),
        (checks.at_least, ("l2", -1.0, 0), "l2 is -1.0; it must be at least 0"),
        (checks.at_least, ("l2", float("nan"), 0), "l2 is nan; it must be at least 0"),
        (checks.at_least, ("l2", float("inf"), 0), "l2 is inf; it must be at least 0 and finite"),
        (checks.at_least, ("p", 1.0, 0, 1), "p is 1.0; it must be at least 0 and below 1"),
        (checks.positive, ("rate", 0), "rate is 0; it must be above 0 and finite"),
        (checks.temperature, ("t", 0), "t is 0; it must be > 0 and finite"),
        (checks.temperature, ("t", np.float32(-1)), "t is -1.0; it must be > 0 and finite"),
        (checks.temperature, ("t", np.array([1, np.nan])), r"t is .*; it must be > 0 and finite"),
        (checks.temperature, ("t", np.inf), "t is inf; it must be > 0 and finite"),
        (checks.temperature, ("t", "1"), "t is '1'; a number is needed"),
        (checks.temperature, ("t", [None]), r"t is \[None\]; a number is needed"),
        (checks.one_of, ("mode", "up", ("min", "max")), "mode is 'up'; min, max are allowed"),
    ],
)
def test_what_is_not_allowed_is_said(check, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check(*arguments)


def test_what_is_allowed_is_returned():
    assert checks.whole("n", np.int64(3)) == 3
    assert checks.at_least("p", 0.5, 0, 1) == checks.positive("p", 0.5) == 0.5
    assert checks.one_of("mode", "min", ["min"]) == "min"
    assert checks.temperature("t", 0, zero=True) == 0 and checks.temperature("t", 0.5) == 0.5
    assert jax.eval_shape(lambda t: checks.temperature("t", t), 0.0).shape == ()  # traced


def test_the_first_number_that_is_not_finite_is_named():
    losses = np.zeros((3, 4))
    finite.check_members(str, losses)
    losses[1, 2:] = np.nan
    with pytest.raises(NonFiniteError, match="^loss 8 is nan at step 2 of 4; stop$"):
        finite.check_members("loss {}".format, losses, 7, advice="; stop")
    with pytest.raises(NonFiniteError, match=r"^1 is nan at \[2, 0\]$"):
        finite.check_members(str, losses[..., None])
    with pytest.raises(NonFiniteError, match="^2 is inf$"):
        finite.check_members(str, [0, 1, np.inf])
    tree = {"a": jnp.zeros(2), "b": {"c": jnp.array([0, -jnp.inf])}}
    with pytest.raises(NonFiniteError, match="^the weights: b/c is not finite$"):
        finite.check_leaves("the weights", tree)
    finite.check_leaves("the weights", {"a": jnp.zeros(2, jnp.bfloat16)})
