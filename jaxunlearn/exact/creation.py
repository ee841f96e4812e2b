"""A new store on disk, in which nothing is trained yet."""

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.core import checkpoint
from jaxunlearn.core.disk import sync_folder
from jaxunlearn.core.tree import Tree
from jaxunlearn.exact import prefixes
from jaxunlearn.exact.examples import Examples, check_examples, row_digests
from jaxunlearn.exact.files import check_id, file_digest, place_of, write_json
from jaxunlearn.exact.ledger import Ledger
from jaxunlearn.exact.plan import Plan
from jaxunlearn.exact.sliceable import Config, network_of, record_of
from jaxunlearn.nn.images import vit


def lay_out(
    folder: str | os.PathLike,
    plan: Plan,
    config: Config,
    base: Tree,
    ids: Sequence[str],
    examples: Examples,
    *,
    groups: Sequence[str] | None = None,
    source: dict[str, Any] | None = None,
    who: str = "",
) -> None:
    """Writes the files of a new store; see `service.create`."""
    folder, ids = Path(folder), list(ids)
    groups = ids if groups is None else list(groups)
    check_new(folder, plan, config, ids, groups)
    check_examples(config, examples, len(ids))
    # Under another name first: after a kill there is a whole store, or none.
    new = folder.with_name(f".{folder.name}.new")
    new.mkdir(parents=True, exist_ok=True)
    with _locked(new):
        for left in new.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        stored = checkpoint.store_shared(new / "base", base)
        digests = row_digests(network_of(config), examples)
        names = {"ids": ids, "groups": groups, "sha256": digests}
        record = {
            "plan": dataclasses.asdict(plan),
            "network": record_of(config),
            "base": stored,
            "base_file": file_digest(new / "base" / f"{stored}.npz"),
            "examples": write_json(new / "examples.json", names),
            "source": source,
        }
        digest, ledger = write_json(new / "plan.json", record), Ledger(new / "ledger.jsonl")
        with ledger.writing():
            ledger.append("plan", {"plan": digest, "examples": len(ids)}, who)
        new.replace(folder)
    sync_folder(folder.absolute().parent)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"another process makes {folder} into a store; wait for it") from error
    finally:
        os.close(number)


def check_new(folder: Path, plan: Plan, config: Config, ids: list[str], groups: list[str]) -> None:
    """Raises a ValueError where `lay_out` cannot make a store."""
    prefixes.check_plan(network_of(config), plan)
    if plan.recipe.augment and not isinstance(config, vit.Config):
        raise ValueError(f"augment is {list(plan.recipe.augment)}; it is for images, not for texts")
    _check_ids(ids, groups)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder {folder} is a file or holds something already; choose another")
    places = np.array([place_of(plan, group) for group in groups])
    prefixes.arrange(plan, {"y": np.zeros(len(ids))}, places)  # raises if a slice is too full


def _check_ids(ids: list[str], groups: list[str]) -> None:
    if len(ids) != len(groups):
        raise ValueError(f"groups has {len(groups)} entries; there are {len(ids)} ids")
    for name in (*ids, *groups):
        check_id(name)
    if not ids:
        raise ValueError("ids is empty; at least one example is needed")
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ValueError(f"id {name!r} is there twice")
        seen.add(name)
