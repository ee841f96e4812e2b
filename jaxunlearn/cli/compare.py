"""`jaxunlearn compare`: several runs of `unlearn` in one table, in a CSV file, and on one page."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from jaxunlearn.cli import columns, page
from jaxunlearn.cli.columns import COLUMNS, GROUPS, SHOWN, Column
from jaxunlearn.cli.console import check_json, guarded, printer, write_json
from jaxunlearn.cli.page import Run

_LEFT_OUT = ("seconds", "shared")  # of the table on a terminal, whose lines are short
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]


@dataclasses.dataclass(frozen=True)
class Compare:
    """Several runs of `jaxunlearn unlearn` in one table, in a CSV file, and on one page.

    Attributes:
        runs: folders of finished runs, or their files of results.
        csv: also write all numbers, a line for each run and method, to this file.
        html: also write a page to this file: all numbers in a table that can be sorted, with
            figures; it needs no other file and no network.
        columns: further columns of the table, see `unlearn`.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    csv: File = None
    html: File = None
    columns: tuple[str, ...] = ()


def main(argv: list[str]) -> int:
    """Runs `jaxunlearn compare`; returns the exit code."""
    options = tyro.cli(Compare, args=argv, prog="jaxunlearn compare")
    return guarded(lambda: work(options, printer()), "jaxunlearn compare")


def work(options: Compare, console: Console) -> None:
    """Reads the runs, prints their table, and writes the files that are wanted."""
    columns.check(options.columns)
    for option in ("csv", "html"):
        check_json(getattr(options, option), option=option)
    runs = read(options.runs)
    extra = [column for column in columns.chosen(options.columns) if column not in SHOWN]
    usual = [column for column in SHOWN if column.name not in _LEFT_OUT]
    console.print(table(runs, usual))
    for at in range(0, len(extra), 7):
        console.print(table(runs, extra[at : at + 7]))
    for line in (*legend(runs, [*usual, *extra]), "", *notes(runs)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if options.csv is not None:
        write_json(options.csv, as_csv(runs).encode())
    if options.html is not None:
        write_json(options.html, page.render(runs, differing(runs), notes(runs)).encode())


def read(paths: Sequence[Path]) -> list[Run]:
    """The runs in some folders, or files of results.

    Raises:
        ValueError: no runs, one that is not finished, or one of another verb; it is named.
    """
    if not paths:
        raise ValueError("runs is empty; at least one folder of a run is needed")
    folders = [path.parent if path.name == "results.json" else path for path in paths]
    names = [path.absolute().name or str(path) for path in folders]
    if len(set(names)) < len(names):
        names = [str(path) for path in folders]
    if len(set(names)) < len(names):
        raise ValueError("runs names one twice; each is needed once")
    return [_read(name, path) for name, path in zip(names, paths, strict=True)]


def _read(name: str, path: Path) -> Run:
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        why = "which is not finished, or no run" if path.is_dir() else "which is not there"
        raise ValueError(f"run is {str(path)!r}, {why}; results.json of a finished run is needed")
    try:
        results = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not _is_comparison(results):
        raise ValueError(f"{file} holds no results of `jaxunlearn unlearn`")
    return Run(name, results, path if path.is_dir() else None)


def _is_comparison(results: Any) -> bool:
    """Whether all is there that tables and notes read."""
    kinds = {"n_models": int, "methods": dict, "floor": dict, "settings": dict, "forget_set": dict}
    if not isinstance(results, dict):
        return False
    if any(not isinstance(results.get(field), kind) for field, kind in kinds.items()):
        return False
    if not all(isinstance(row, dict) for row in results["methods"].values()):
        return False
    scores = [COLUMNS[f"klom_{group}"] for group in GROUPS]
    rows = list(results["methods"].values())
    floor = [{"klom": results["floor"]}] if results["floor"] else []
    return all(score.value(row) is not None for score in scores for row in rows + floor)


def table(runs: Sequence[Run], shown: Sequence[Column]) -> Table:
    """All runs in one table; what is to be compared, a method in several runs, lies together."""
    out = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    out.add_column("method", no_wrap=True)
    out.add_column("run", overflow="fold")
    for column in shown:
        out.add_column(column.header, justify="right", no_wrap=True)
    rows = [(run, name, row) for run in runs for name, row in run.rows]
    methods = dict.fromkeys(name for _, name, _ in rows)
    for method in sorted(methods, key=lambda name: name == "floor"):  # which comes last
        mine = [(run, row) for run, name, row in rows if name == method]
        for i, (run, row) in enumerate(mine):
            label = method if i == 0 else ""
            cells = (column.cell(row) for column in shown)
            out.add_row(label, page.plain(run.name), *cells, end_section=i == len(mine) - 1)
    return out


def legend(runs: Sequence[Run], shown: Sequence[Column]) -> list[str]:
    """A line for every kind of column."""
    most = max(
        runs, key=lambda run: any("stderr" in row for row in run.results["methods"].values())
    )
    return columns.legend(shown, most.results)


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which runs differ, dots between the levels, with their values."""
    flat = [_flat(run.results["settings"]) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    values = {name: [settings.get(name) for settings in flat] for name in names}
    # A method that only one run has differs in no setting.
    there = {
        name: [s[name] for s in flat if name in s] if name.startswith("methods.") else of
        for name, of in values.items()
    }
    return {name: values[name] for name, of in there.items() if any(v != of[0] for v in of)}


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {name: settings}
    dot = f"{name}." if name else ""
    return {k: v for key, part in settings.items() for k, v in _flat(part, f"{dot}{key}").items()}


def notes(runs: Sequence[Run]) -> list[str]:
    """What must be known to compare the runs."""
    lines, differences = [], differing(runs)
    if "data_sha256" in differences:
        lines.append("The runs have different data: their numbers are of different points.")
    elif "forget_sha256" in differences:
        lines.append("The runs forget different examples: their numbers are of different points.")
    if "n_models" in differences:
        lines.append("The runs have different numbers of models, and so different floors of KLOM.")
    shown = {k: v for k, v in differences.items() if not k.endswith("_sha256")}
    for name, values in shown.items():
        pairs = ", ".join(f"{run.name} {v}" for run, v in zip(runs, values, strict=True))
        lines.append(page.plain(f"{name}: {pairs}"))
    for run in runs:
        of_run = [page.plain(line) for line in columns.notes(run.results)]
        lines += [f"{page.plain(run.name)}: {line}" for line in of_run]
    return lines


def as_csv(runs: Sequence[Run]) -> str:
    """All numbers as they are, with their standard errors and the settings in which runs differ."""
    out, differences = io.StringIO(), differing(runs)
    file = csv.writer(out, lineterminator="\n")
    numbers = [name for column in COLUMNS for name in (column, f"{column}_stderr")]
    file.writerow(["run", "method", "models", *numbers, *map(_as_text, differences)])
    for at, run in enumerate(runs):
        settings = [_as_text(values[at]) for values in differences.values()]
        for method, row in run.rows:
            pairs = ((column.value(row), column.error(row)) for column in COLUMNS.values())
            cells = ["" if value is None else repr(value) for pair in pairs for value in pair]
            labels = [_as_text(run.name), _as_text(method), run.results["n_models"]]
            file.writerow([*labels, *cells, *settings])
    return out.getvalue()


def _as_text(value: Any) -> str:
    """A value in words; of a text nothing that a spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return "" if value is None else json.dumps(value)
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
