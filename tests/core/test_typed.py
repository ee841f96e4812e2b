"""Settings of any study are held against their declarations."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from jaxunlearn import compact, comparison
from jaxunlearn.comparison.settings import AttributeSettings
from jaxunlearn.core import typed
from jaxunlearn.paths.settings import Settings as PathsSettings


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 1
    rate: float = 0.5
    names: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    kind: Literal["a", "b"] = "a"
    kinds: tuple[Literal["a", "b"], ...] = ()
    limit: int | None = None
    flag: bool = False
    file: Path | None = None
    inner: Inner = Inner()


GOOD = [
    {},
    dict(count=np.int64(3), rate=1, names=["a"], pair=(np.int32(1), np.float32(2))),
    dict(kind="b", limit=4, flag=True, file="a", inner=Inner(np.float32(1))),
]
BAD = [
    (dict(count=1.0), "count is 1.0; a whole number is needed"),
    (dict(count=True), "count is True"),
    (dict(count="1"), "count is '1'"),
    (dict(rate="0.5"), "rate is '0.5'; a number"),
    (dict(rate=False), "rate is False"),
    (dict(rate=np.ones(2)), "rate is"),
    (dict(names="ab"), "names is 'ab'"),
    (dict(names=(1,)), "names is"),
    (dict(pair=(1,)), "pair is"),
    (dict(kind=1), "kind is 1"),
    (dict(kind="c"), "kind is 'c'; a, b are allowed"),
    (dict(kind=["a"]), r"kind is \['a'\]; a, b"),
    (dict(limit=2.5), "limit is 2.5; int . None"),
    (dict(flag=1), "flag is 1; True or False"),
    (dict(inner={"rate": 1.0}), "inner is .*; an instance of Inner"),
    (dict(inner=Inner("x")), "rate is 'x'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("fields", GOOD)
def test_what_fits(fields):
    typed.check("settings", Settings(**fields), Settings)


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_what_does_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        typed.check("settings", Settings(**fields), Settings)


@pytest.mark.parametrize(
    "defaults",
    [comparison.Settings(), AttributeSettings(), PathsSettings(), compact.study.Settings()],
    ids=lambda settings: type(settings).__module__,
)
def test_defaults_fit_and_no_field_takes_another_type(defaults):
    """Each field of each study's settings, one after the other, as an object of no type."""
    typed.check("settings", defaults, type(defaults))
    for field in dataclasses.fields(defaults):
        with pytest.raises(ValueError, match=f"{field.name} is"):
            typed.check(
                "settings", dataclasses.replace(defaults, **{field.name: object()}), type(defaults)
            )


def test_wrong_arguments_are_named_before_anything_is_written(tmp_path):
    tiny = comparison.Settings(n_train=200, n_val=50, n_models=2)
    for arguments, message in (
        (({"n_models": 2},), "settings is .*; an instance of Settings"),
        ((dataclasses.replace(tiny, seed=0.5), {}), "seed is 0.5; a whole number"),
        ((dataclasses.replace(tiny, n_models="2"), {}), "n_models is '2'"),
        ((tiny, "scrub"), "methods has"),
        ((tiny, {"mine": print}), "methods has 'mine'"),
        ((tiny, {}, {"mine": 3}), "networks is"),
    ):
        with pytest.raises(ValueError, match=message):
            comparison.run(*arguments, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
