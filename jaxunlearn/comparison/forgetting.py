"""What a comparison forgets: a set that is drawn, or named by files, by classes or by a mask."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path, PurePath

import numpy as np

from jaxunlearn.comparison.settings import Settings
from jaxunlearn.data import Dataset, forget_sets

_USUAL = 30  # size of a forget set that is drawn
_NAMED = {"files": "forget_files", "classes": "forget_classes", "file": "forget_file"}


def chosen(settings: Settings, dataset: Dataset) -> tuple[Settings, Dataset, np.ndarray]:
    """The settings with what their defaults came to, the data, and the sorted training indices.

    What is named is to be forgotten, so it must have been learned: examples that would validate
    change places with training examples, where data in one piece was split by us.

    Raises:
        ValueError: settings that contradict each other, or name what is not there.
    """
    settings = dataclasses.replace(settings, forget=_kind(settings))
    label = _label(settings.forget_class, dataset, "forget_class")
    if settings.forget == "file":
        dataset, forget = _of_file(settings, dataset)
    elif settings.forget == "files":
        dataset, forget = _of_names(settings, dataset)
    elif settings.forget == "classes":
        labels = [_label(name, dataset, "forget_classes") for name in settings.forget_classes]
        forget = forget_sets.check(np.flatnonzero(np.isin(dataset.y_train, labels)), _n(dataset))
    else:
        settings, forget = _drawn(settings, dataset, label)
    resolved = dataclasses.replace(
        settings,
        forget_class=dataset.classes[label] if dataset.classes else label,
        forget_size=len(forget),
    )
    return resolved, dataset, forget


def forget_set(settings: Settings, dataset: Dataset) -> np.ndarray:
    """The forget set of the settings, sorted training indices of the data set.

    Raises:
        ValueError: as `chosen`, or what is named is no training example.
    """
    _, changed, forget = chosen(settings, dataset)
    if changed is not dataset:
        raise ValueError("the forget set holds validation examples of this data set")
    return forget


def _n(dataset: Dataset) -> int:
    return len(dataset.x_train)


def _kind(settings: Settings) -> str:
    """The kind of the forget set; what is named says it where no kind is chosen."""
    kind, given = settings.forget, [k for k, field in _NAMED.items() if getattr(settings, field)]
    if kind in ("file", "files", "classes") and kind not in given:
        raise ValueError(f"forget is {kind!r}, but {_NAMED[kind]} is not given")
    for other in given:
        field = _NAMED[other]
        shown = f"{field} is {getattr(settings, field)!r}"
        if other == "file" and kind != "file":
            raise ValueError(f"{shown}, but forget is {kind!r}; set forget to 'file'")
        if kind not in (other, "cluster") or len(given) > 1:
            raise ValueError(f"{shown}, but forget is {kind!r} or something else is named, too")
    return given[0] if given else kind


def _label(name: str | int | None, dataset: Dataset, field: str) -> int:
    """The number of a class."""
    if name is None:
        return 8 if dataset.name == "digits" else 0
    names = dataset.classes
    if str(name) in names:
        return names.index(str(name))
    counted = not any(one.isdecimal() for one in names)  # or "2" might be the third, named "10"
    if counted and str(name).isdecimal() and (not names or int(name) < len(names)):
        return int(name)
    allowed = ", ".join(names) if names else f"numbers from 0 to {dataset.n_classes - 1}"
    raise ValueError(f"{field} is {str(name)!r}; the classes are {allowed}")


def _drawn(settings: Settings, dataset: Dataset, label: int) -> tuple[Settings, np.ndarray]:
    x, y, kind = dataset.x_train, dataset.y_train, settings.forget
    of_class = kind in ("class", "cluster")
    n = int((y == label).sum()) if of_class else len(x)
    size = min(_USUAL, max(1, n // 2)) if settings.forget_size is None else settings.forget_size
    if of_class and dataset.classes and not 1 <= size <= n:
        name = dataset.classes[label]
        raise ValueError(f"forget_size is {size}; class {name} has {n} training examples")
    if kind == "random":
        return settings, forget_sets.random(len(x), size)
    if kind == "class":
        return settings, forget_sets.class_restricted(y, label, size)
    if kind == "cluster":
        return settings, forget_sets.cluster(x, y, label, size)
    if kind == "pc":
        return settings, forget_sets.principal_component(x, size)
    raise ValueError(f"forget is {kind!r}; it must be random, class, cluster, pc or file")


def _of_file(settings: Settings, dataset: Dataset) -> tuple[Dataset, np.ndarray]:
    """The set of a file of indices, or of a mask over training examples or a whole source."""
    assert settings.forget_file is not None
    given, n_all = forget_sets.read(settings.forget_file), dataset.sizes.get("all")
    if given.dtype == bool and given.shape == (n_all,):
        assert dataset.rows_train is not None and dataset.rows_val is not None
        validating = np.flatnonzero(given[dataset.rows_val])
        dataset = _into_training(dataset, validating, np.flatnonzero(~given[dataset.rows_train]))
        assert dataset.rows_train is not None
        missing = int(given.sum()) - int(given[dataset.rows_train].sum())
        if missing:
            raise ValueError(
                f"forget_file {settings.forget_file} marks {missing} examples that are neither "
                "trained on nor validate; leave n_val out, or raise it"
            )
        return dataset, forget_sets.check(np.flatnonzero(given[dataset.rows_train]), _n(dataset))
    return dataset, forget_sets.from_file(settings.forget_file, _n(dataset))


def _of_names(settings: Settings, dataset: Dataset) -> tuple[Dataset, np.ndarray]:
    """The set of some images of a folder."""
    if not dataset.files_train:
        raise ValueError(f"forget_files is given; {settings.data} is no folder of images")
    here = {name: i for i, name in enumerate(dataset.files_train + dataset.files_val)}
    root, n = Path(settings.data).expanduser().resolve(), _n(dataset)
    rows = {_row(name, here, root) for name in _listed(settings.forget_files)}
    validating = np.array(sorted(row - n for row in rows if row >= n), np.int64)
    if len(validating) and "all" not in dataset.sizes:
        name = dataset.files_val[validating.min()]
        raise ValueError(f"forget_files has {name!r}, which validates and is not trained on")
    free = np.setdiff1d(np.arange(n), sorted(rows))
    names = {(dataset.files_train + dataset.files_val)[row] for row in rows}
    dataset = _into_training(dataset, validating, free)
    forget = np.flatnonzero([name in names for name in dataset.files_train])
    return dataset, forget_sets.check(forget, n)


def _listed(names: Iterable[str]) -> list[str]:
    """Names of images; a text file stands for those that it lists."""
    out = []
    for name in names:
        if not name.lower().endswith(".txt"):
            out.append(name)
            continue
        try:
            lines = Path(name).expanduser().read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"forget_files has {name!r}, which cannot be read: {error}") from error
        out += [line.strip() for line in lines if line.strip()]
    if not out:
        raise ValueError("forget_files names no image; at least one is needed")
    return out


def _row(name: str, here: dict[str, int], root: Path) -> int:
    """The row of an image, by its path, or by the end of its path in the folder."""
    if name in here:
        return here[name]
    path = Path(name).expanduser().resolve()
    if path.is_relative_to(root) and path.relative_to(root).as_posix() in here:
        return here[path.relative_to(root).as_posix()]
    end = PurePath(name).parts
    matching = [file for file in here if PurePath(file).parts[-len(end) :] == end]
    if not matching:
        raise ValueError(
            f"forget_files has {name!r}, which is none of the {len(here)} images of {root} that "
            "are used; paths, or CLASS/NAME, are needed"
        )
    if len(matching) > 1:
        raise ValueError(f"forget_files has {name!r}, which may be {' or '.join(matching[:3])}")
    return here[matching[0]]


def _into_training(dataset: Dataset, validating: np.ndarray, free: np.ndarray) -> Dataset:
    """The set with some validation rows in the places of the last of its free training rows."""
    if not len(validating):
        return dataset
    if len(free) <= len(validating):
        raise ValueError(
            f"{len(validating)} examples that are to be forgotten validate, and there are "
            f"{len(free)} training examples to change places with; raise n_train"
        )
    places = free[-len(validating) :]
    assert dataset.rows_train is not None and dataset.rows_val is not None
    pairs = {
        "x": (dataset.x_train, dataset.x_val),
        "y": (dataset.y_train, dataset.y_val),
        "rows": (dataset.rows_train, dataset.rows_val),
    }
    if dataset.files_train:
        pairs["files"] = (np.array(dataset.files_train), np.array(dataset.files_val))
    swapped = {}
    for name, (train, val) in pairs.items():
        train, val = train.copy(), val.copy()
        train[places], val[validating] = val[validating], train[places]
        swapped |= {f"{name}_train": train, f"{name}_val": val}
    for name in ("files_train", "files_val"):
        if name in swapped:
            swapped[name] = tuple(swapped[name].tolist())
    return dataclasses.replace(dataset, **swapped)
