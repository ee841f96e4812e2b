"""Methods of the user's own, from files."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import comparison, nn
from jaxunlearn.comparison import checking, plugins
from jaxunlearn.core.study import Where
from jaxunlearn.unlearn import METHODS, Problem, Unlearned

GOOD = '''"""A method."""
from __future__ import annotations
import dataclasses
import jax.numpy as jnp
from jaxunlearn.unlearn import Unlearned

@dataclasses.dataclass(frozen=True)
class Mine:
    """Settings of `mine`."""
    factor: float = -1.5
    switch: bool = False
    epochs: int = 0
    names: tuple[str, ...] = ()

def helper(x):
    return x

def mine(model, params, stats, problem, key, *, factor, switch, epochs, names):
    return Unlearned(params, stats, jnp.zeros(0), 0)
'''


def write(folder, text, name="mine.py"):
    (folder / name).write_text(text)
    return folder / name


def test_a_plugin_is_a_function_and_a_dataclass(tmp_path):
    plugin = plugins.load(write(tmp_path, GOOD))
    assert (plugin.name, plugin.file) == ("mine", "mine.py")
    assert dataclasses.asdict(plugin.settings)["factor"] == -1.5
    assert re.fullmatch("[0-9a-f]{64}", plugin.sha256)
    assert plugins.load(write(tmp_path, GOOD)).sha256 == plugin.sha256
    assert plugins.load(write(tmp_path, GOOD + "\n")).sha256 != plugin.sha256
    assert not list(tmp_path.glob("__pycache__"))
    bare = "def bare(model, params, stats, problem, key):\n    return 1\n"
    assert plugins.load(write(tmp_path, bare)).name == "bare"


FORM = "(model, params, stats, problem, key"
CLASS = "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass S:\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_thing", "line 1: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("x = (", "line 1: SyntaxError"),
        ("\n\n1 / 0", "line 3: ZeroDivisionError"),
        ("raise SystemExit(3)", "line 1: SystemExit: 3"),
        ("\0", "cannot be run"),
        ("x = 1", "needs one function .* it has none"),
        ("def f(params, model): pass", "needs one function .* it has none"),
        (f"def f{FORM}): pass\ndef g{FORM}): pass", "needs one function .* it has f, g"),
        (f"def scrub{FORM}): pass", "defines 'scrub', which is a method already"),
        (f"def f{FORM}, *, a): pass", "one dataclass with the settings of f, a; it has none"),
        (f"def f{FORM}, **more): pass", "takes .args or ..kwargs"),
        (f"{CLASS}    b: int = 1\ndef f{FORM}, *, a): pass", "S has the fields b; f takes the set"),
        (f"{CLASS}    a: int\ndef f{FORM}, *, a): pass", "S.a has no default"),
        (
            f"import dataclasses\n@dataclasses.dataclass\nclass S:\n    a: int = 1\n"
            f"def f{FORM}, *, a): pass",
            "S must be frozen",
        ),
        (
            f"{CLASS}    a: list = dataclasses.field(default_factory=list)\n"
            f"def f{FORM}, *, a): pass",
            "S cannot be used: unhashable",
        ),
        (f"{CLASS}    a: 'nope' = 1\ndef f{FORM}, *, a): pass", "S cannot be used: name 'nope'"),
    ],
)
def test_bad_plugins_are_named_with_their_line(text, message, tmp_path):
    with pytest.raises(ValueError, match=f"plugin '.*bad.py'.*{message}"):
        plugins.load(write(tmp_path, text, "bad.py"))


def test_files_that_are_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "none.py"):
        with pytest.raises(ValueError, match="cannot be read"):
            plugins.load(path)


@dataclasses.dataclass(frozen=True)
class Free:
    """Values that settings of ours could not have."""

    epochs: int = 0
    switch: bool = False
    shift: float = -3.0
    temperature: float = 0.0
    momentum: float = 2.0
    augment: tuple[str, ...] = ("mine",)


def test_settings_of_ones_own_are_not_judged_by_our_rules():
    checking.check_method("free", print, Free())
    ours = METHODS["scrub"][1]
    with pytest.raises(ValueError, match="scrub.epochs is 0"):
        checking.check_method("scrub", print, dataclasses.replace(ours, epochs=0))
    with pytest.raises(ValueError, match="cannot be recorded as JSON"):
        checking.check_method("free", print, Free(shift=np.inf))
    with pytest.raises(ValueError, match="method free is 3; a function is needed"):
        checking.check_method("free", 3, Free())


@pytest.fixture(scope="module")
def problem():
    x, y = jnp.zeros((6, 4)), jnp.arange(6) % 3
    return Problem(x, y, jnp.arange(4), jnp.arange(4, 6), 3)


def fails(model, params, stats, problem, key, **settings):
    return problem.nothing


def nothing(model, params, stats, problem, key, **settings):
    return params


def smaller(model, params, stats, problem, key, **settings):
    return Unlearned(jax.tree.map(lambda x: x[..., :1], params), stats, jnp.zeros(0), 0)


def scalar_loss(model, params, stats, problem, key, **settings):
    return Unlearned(params, stats, jnp.zeros(()), 0)


def many_gradients(model, params, stats, problem, key, **settings):
    return Unlearned(params, stats, jnp.zeros(2), jnp.zeros(2))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (fails, r"mine fails: line \d+: AttributeError: 'Problem' object has no attribute"),
        (nothing, "mine fails: .*returns dict; Unlearned is needed"),
        (smaller, "mine gives params of other names, shapes or types"),
        (scalar_loss, "mine gives losses of shape .*n_steps. is needed"),
        (many_gradients, "mine gives n_gradients of shape .*a number is needed"),
    ],
)
def test_what_a_method_gives_is_checked_before_anything_is_compiled(method, message, problem):
    model = nn.mlp(4, (2,), 3)
    with pytest.raises(ValueError, match=message):
        checking.check_trace("mine", method, Free(), model, problem, 8, "test_plugins.py")


def test_a_failing_method_leaves_no_folder(tmp_path):
    tiny = comparison.Settings(n_train=100, n_models=2, lane_width=2, forget_size=4)
    with pytest.raises(ValueError, match="mine fails"):
        comparison.prepare(tiny, Where(tmp_path / "run"), {"mine": (fails, Free())})
    assert not (tmp_path / "run").exists()
