"""The columns that comparisons are shown in: tables, legends, and what their noise allows."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

GROUPS = ("forget", "retain", "val")  # of points, in the order of the table
_ENOUGH = 100  # models a side, above which the noise of KLOM hides little
FLOOR = "KLOM of two independent sets of oracles: no method can honestly score less"
_KLOM = "how far margins lie from the oracles', mean over points; good is near the floor"


@dataclasses.dataclass(frozen=True)
class Column:
    """A number of every method.

    Attributes:
        name: what `--columns` calls it.
        header: head of the column; a second line is its group of points.
        legend: what it is, and what is good.
        path: where it lies in a method's results.
        digits: digits after the point.
        scale: factor of what is shown.
    """

    name: str
    header: str
    legend: str
    path: tuple[str, ...]
    digits: int = 3
    scale: float = 1.0

    def value(self, row: dict[str, Any]) -> float | None:
        """The number of a method; None where it was not computed."""
        return _at(row, self.path)

    def error(self, row: dict[str, Any]) -> float | None:
        """Its standard error; None where there is none."""
        path = self.path[:-1] if self.path[-1] == "mean" else self.path
        return _at(row, ("stderr", *path))

    @property
    def kind(self) -> str:
        """Its head without the group of points."""
        return " ".join(line for line in self.header.split("\n") if line not in GROUPS)

    def cell(self, row: dict[str, Any]) -> str:
        """What a table shows."""
        value, error = self.value(row), self.error(row)
        if value is None:
            return "-"
        shown = self._written(value)
        return shown if error is None else shown + f"±{self._written(error)}".replace("±0.", "±.")

    def _written(self, value: float) -> str:
        return f"{self.scale * value:.{self.digits}f}"


def _at(row: Any, path: Iterable[str]) -> float | None:
    """A number in nested dicts, if one is there."""
    for part in path:
        row = row.get(part) if isinstance(row, dict) else None
    return row if isinstance(row, int | float) and not isinstance(row, bool) else None


def _by_group(name: str, header: str, legend: str, path: str, last: str = "", **more: Any) -> Any:
    ends = (last,) if last else ()
    return tuple(
        Column(f"{name}_{group}", f"{header}\n{group}", legend, (path, group, *ends), **more)
        for group in GROUPS
    )


SHOWN: tuple[Column, ...] = (
    *_by_group("klom", "KLOM", _KLOM, "klom", "mean", digits=2),
    *_by_group(
        "accuracy", "acc %", "accuracy; good is as retrain", "accuracy", digits=1, scale=100.0
    ),
    Column("mia", "MIA", "AUC of the loss attack, within classes; good is as retrain", ("mia",)),
    Column(
        "epsilon",
        "epsilon",
        "forgetting epsilon, mean over forget points; good is as retrain",
        ("epsilon",),
        2,
    ),
    Column("seconds", "seconds", "wall time of all models without compilation", ("seconds",), 2),
    Column("cost", "cost", "gradients of a model, in retrainings", ("cost",)),
    Column("shared", "shared", "the same for what all models share", ("cost_shared",), 1),
)  # fmt: skip
FURTHER: tuple[Column, ...] = (
    Column(
        "mia_confidence",
        "MIA\nconfidence",
        "AUC of the attack by confidence; good is as retrain",
        ("mia_confidence",),
    ),
    Column(
        "ulira",
        "U-LiRA",
        "accuracy of the strong attack, with 20 models and more; good is 0.5",
        ("ulira",),
    ),
    *_by_group("ks", "KS", "mean Kolmogorov-Smirnov distance of margins", "tests", "ks"),
    *_by_group(
        "ks_below", "KS\np<5%", "points that the test tells apart", "tests", "ks_below_5_percent"
    ),
    *_by_group(
        "welch_below",
        "Welch\np<5%",
        "points that the test tells apart",
        "tests",
        "welch_below_5_percent",
    ),
    *_by_group("renyi", "Renyi-2", "Renyi divergence of margins, mean", "tests", "renyi_2"),
    *_by_group("klom_p95", "KLOM\n95 %", "KLOM's 95th percentile over points", "klom", "p95"),
    Column("compile", "compile\nseconds", "seconds of compilation", ("compile_seconds",), 2),
)
COLUMNS = {column.name: column for column in (*SHOWN, *FURTHER)}


def check(names: Iterable[str]) -> None:
    """Raises a ValueError for a column that is not there."""
    for name in names:
        if name != "all" and name not in COLUMNS:
            raise ValueError(f"columns has {name!r}; all and {', '.join(COLUMNS)} are allowed")


def chosen(names: Iterable[str]) -> tuple[Column, ...]:
    """The columns of some names; "all" stands for those that are not shown anyway."""
    names = tuple(names)
    return FURTHER if "all" in names else tuple(COLUMNS[name] for name in dict.fromkeys(names))


def table(results: dict[str, Any]) -> Table:
    """The results of a comparison, one row per method and one for the floor."""
    title = f"{results['n_models']} models a side, means over points and models"
    rows, floor = results["methods"].items(), results["floor"]
    shares = any(row.get("cost_shared") for _, row in rows)
    out = of_rows(title, rows, SHOWN if shares else SHOWN[:-1])
    out.add_section()
    if floor:
        errors = {group: floor[group].get("stderr") for group in GROUPS}
        as_row = {"klom": floor, "stderr": {"klom": errors}}
        out.add_row("floor", *(column.cell(as_row) for column in SHOWN[: len(GROUPS)]))
    return out


def of_rows(
    title: str | None, rows: Iterable[tuple[str, dict[str, Any]]], columns: Sequence[Column]
) -> Table:
    """A table of methods' results."""
    out = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), title_justify="left")
    out.add_column("method", no_wrap=True)
    for column in columns:
        out.add_column(column.header, justify="right", no_wrap=True)
    for name, row in rows:
        out.add_row(name, *(column.cell(row) for column in columns))
    return out


def show(console: Console, results: dict[str, Any], names: Iterable[str] = ()) -> None:
    """Prints the table of a comparison, the columns that were asked for, a legend, and notes."""
    further = chosen(names)
    console.print(table(results))
    for at in range(0, len(further), 8):  # as many as fit a line
        console.print(of_rows(None, results["methods"].items(), further[at : at + 8]))
    for line in (*legend((*SHOWN, *further), results), "", *notes(results)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def legend(columns: Sequence[Column], results: dict[str, Any]) -> list[str]:
    """A line for every kind of column."""
    meanings = {column.kind: column.legend for column in columns}
    meanings["floor"] = FLOOR
    lines = [f"{name:<15} {meaning}" for name, meaning in meanings.items()]
    if any("stderr" in row for row in results["methods"].values()):
        lines.append(
            f"{'±':<15} standard error: KLOM by the choice of oracles, acc and MIA by models, "
            "epsilon and U-LiRA by points"
        )
    return lines


def notes(results: dict[str, Any]) -> list[str]:
    """What the floor makes of differences, and where methods come from."""
    plugins = results.get("plugins")
    lines = [
        f"{name} is {origin.get('file')}, sha256 {str(origin.get('sha256'))[:16]}"
        for name, origin in (plugins.items() if isinstance(plugins, dict) else ())
        if isinstance(origin, dict)
    ]
    return lines + _noise(results)


def _noise(results: dict[str, Any]) -> list[str]:
    n, score = results["n_models"], COLUMNS["klom_forget"]
    floor = _at(results["floor"], ("forget", "mean"))
    known = {
        name: (mean, error)
        for name, row in results["methods"].items()
        if (mean := score.value(row)) is not None and (error := score.error(row)) is not None
    }
    if floor is None or not known:
        return []
    of_floor = _at(results["floor"], ("forget", "stderr")) or 0.0
    near = [
        name
        for name, (mean, error) in known.items()
        if mean - floor < 2 * math.hypot(error, of_floor)
    ]
    lines = []
    if near:
        lines.append(f"Within two standard errors of the floor, as retraining: {', '.join(near)}.")
    if n < _ENOUGH:
        apart = 2 * math.sqrt(2) * max(error for _, error in known.values())
        lines.append(
            f"{n} models a side are few: of a KLOM on the forget set the first {floor:.2f} are "
            f"noise, and methods that differ by less than {apart:.2f} are not told apart. "
            f"{_ENOUGH} models a side bring the floor down to about 0.35."
        )
    if "none" in near:
        lines.append(
            "Doing nothing is not told from retraining either: this run says nothing about methods."
        )
    return lines
