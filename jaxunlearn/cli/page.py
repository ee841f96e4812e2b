"""One page of HTML with several comparisons: it needs no other file, and no network."""

import base64
import dataclasses
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.cli.columns import COLUMNS, FLOOR, GROUPS, Column

_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
_MOST = 20 * 2**20  # bytes of a figure that is embedded
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 100em; padding: 0 1em;
  color: #222; background: #fff }
div.wide { overflow-x: auto }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .25em .6em; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums }
th { position: sticky; top: 0; background: #f4f4f4; vertical-align: bottom }
td.text, th.text { text-align: left }
th button { font: inherit; font-weight: 600; border: 0; background: none; cursor: pointer;
  text-align: inherit; padding: 0 }
th[aria-sort=ascending] button::after { content: " \\25B2" }
th[aria-sort=descending] button::after { content: " \\25BC" }
tr.floor { color: #777; font-style: italic }
.error { color: #888; font-size: 85% }
img { max-width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif }
dt { font-weight: 600 } dd { margin: 0 0 .4em 1.5em }
"""
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable"))
  table.tHead.querySelectorAll("th").forEach((head, at) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[at].dataset.value;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");  // what is missing comes last
        const order = head.classList.contains("text") ? x.localeCompare(y) : Number(x) - Number(y);
        return down ? -order : order;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished comparison.

    Attributes:
        name: what it is called beside others.
        results: contents of its `results.json`.
        folder: its folder, if it was given as one.
    """

    name: str
    results: dict[str, Any]
    folder: Path | None

    @property
    def rows(self) -> list[tuple[str, dict[str, Any]]]:
        """Its methods, and its floor as one more."""
        rows, floor = list(self.results["methods"].items()), self.results["floor"]
        if not floor:
            return rows
        errors = {group: floor[group].get("stderr") for group in GROUPS}
        return [*rows, ("floor", {"klom": floor, "stderr": {"klom": errors}})]


def plain(text: Any) -> str:
    """Text without what a terminal, or a reader's eye, would take for commands."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def render(runs: Sequence[Run], differences: dict[str, list[Any]], notes: Sequence[str]) -> str:
    """The page.

    Args:
        runs: the comparisons.
        differences: settings in which they differ, with a value for each run.
        notes: lines of text above the tables.
    """
    title = "Comparison of " + ", ".join(run.name for run in runs)
    said = "".join(f"<p>{_text(note)}</p>\n" for note in notes)
    scatter = _scatter(runs, COLUMNS["klom_retain"], "damage", log=False)
    cost = _scatter(runs, COLUMNS["cost"], "cost", log=True)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
{said}<h2>All numbers</h2>
<p>A click on a head sorts. Small grey numbers are standard errors.</p>
<div class="wide">{_numbers(runs)}</div>
<h2>Trade-offs</h2>
<div class="wide">{_key(runs)}{scatter}{cost}</div>
<h2>Settings</h2>
<div class="wide">{_settings(runs, differences)}</div>
{_figures(runs)}<h2>Columns</h2>
<dl>{_legend()}</dl>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _text(value: Any) -> str:
    return html.escape(plain(value))


def _numbers(runs: Sequence[Run]) -> str:
    rows = [(run, name, row) for run in runs for name, row in run.rows]
    shown = [
        column
        for column in COLUMNS.values()
        if any(column.value(row) is not None for _, _, row in rows)
    ]
    heads = [("run", "", True), ("method", "", True)]
    heads += [(column.header.replace("\n", " "), column.legend, False) for column in shown]
    head = "".join(
        f'<th scope="col"{" class=text" * is_text} title="{_text(legend)}">'
        f'<button type="button">{_text(name)}</button></th>'
        for name, legend, is_text in heads
    )
    body = "".join(
        f"<tr{' class=floor' * (name == 'floor')}>{_word(run.name)}{_word(name)}"
        + "".join(_cell(column, row) for column in shown)
        + "</tr>\n"
        for run, name, row in rows
    )
    return (
        f'<table class="sortable"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>'
    )


def _word(text: Any) -> str:
    return f'<td class="text" data-value="{_text(text)}">{_text(text)}</td>'


def _cell(column: Column, row: dict[str, Any]) -> str:
    value, error = column.value(row), column.error(row)
    if value is None or not math.isfinite(value):
        return '<td data-value="">-</td>'
    shown, _, after = column.cell(row).partition("±")
    more = f' <span class="error">±{_text(after)}</span>' if error is not None else ""
    return f'<td data-value="{value!r}">{_text(shown)}{more}</td>'


def _settings(runs: Sequence[Run], differences: dict[str, list[Any]]) -> str:
    """What the runs are, and where they differ."""
    facts = {
        "models a side": [run.results["n_models"] for run in runs],
        "data": [run.results["settings"].get("data") for run in runs],
        "network": [run.results["settings"].get("model") for run in runs],
        "forgotten": [
            f"{run.results['forget_set'].get('size')} ({run.results['forget_set'].get('kind')})"
            for run in runs
        ],
    }
    rows = facts | {name: values for name, values in differences.items() if name not in facts}
    head = "".join(f'<th class="text" scope="col">{_text(run.name)}</th>' for run in runs)
    body = "".join(
        f'<tr><th class="text" scope="row">{_text(name)}</th>'
        + "".join(f'<td class="text">{_text(_short(value))}</td>' for value in values)
        + "</tr>\n"
        for name, values in rows.items()
    )
    return f'<table><thead><tr><th class="text">setting</th>{head}</tr></thead>\n{body}</table>'


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _figures(runs: Sequence[Run]) -> str:
    """The figure of every run that still has one."""
    out = ""
    for run in runs:
        file = None if run.folder is None else run.folder / "figure.png"
        if file is None or not file.is_file() or file.stat().st_size > _MOST:
            continue
        content = file.read_bytes()
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            data = base64.b64encode(content).decode()
            name = _text(run.name)
            out += f"<h2>{name}</h2>\n"
            out += (
                f'<img alt="trade-offs and margins of {name}" src="data:image/png;base64,{data}">\n'
            )
    return out


def _legend() -> str:
    meanings = {column.kind: column.legend for column in COLUMNS.values()}
    meanings["floor"] = FLOOR
    meanings["±"] = (
        "standard error: KLOM by the choice of oracles, accuracy and MIA by models, epsilon and "
        "U-LiRA by points"
    )
    return "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(meaning)}</dd>\n" for name, meaning in meanings.items()
    )


def _key(runs: Sequence[Run]) -> str:
    spans = (
        f'<span style="color: {_color(i)}">&#9679; {_text(run.name)}</span> '
        for i, run in enumerate(runs)
    )
    return f"<p>{''.join(spans)}(dotted: floors)</p>\n"


@dataclasses.dataclass(frozen=True)
class _Axes:
    """Where numbers lie in a drawing; `log`: across, a logarithm of 1 + 100 x."""

    most_x: float
    most_y: float
    log: bool
    width: int = 560
    height: int = 420
    left: int = 60
    bottom: int = 50

    def x(self, value: float) -> float:
        share = self.placed(value) / self.placed(self.most_x)
        return round(self.left + share * (self.width - self.left - 80), 1)  # names need room

    def y(self, value: float) -> float:
        return round(self.height - self.bottom - value / self.most_y * (self.height - 90), 1)

    def placed(self, value: float) -> float:
        return math.log10(1 + 100 * max(value, 0)) if self.log else value

    def frame(self, across: str) -> list[str]:
        """Lines, ticks and what they are of."""
        end = self.height - self.bottom
        ticks = (0, 0.01, 0.1, 1, 10, 100) if self.log else _ticks(self.most_x)
        return [
            f'<path d="M{self.left} 20V{end}H{self.width}" fill="none" stroke="#888"/>',
            f'<text x="{self.width / 2}" y="{self.height - 10}">{across}</text>',
            f'<text x="{self.left - 40}" y="14">KLOM forget</text>',
            *(
                f'<text x="{self.x(t)}" y="{end + 18}" text-anchor="middle">{t:g}</text>'
                for t in ticks
                if t <= self.most_x
            ),
            *(
                f'<text x="{self.left - 8}" y="{self.y(t) + 4}" text-anchor="end">{t:g}</text>'
                for t in _ticks(self.most_y)
            ),
        ]


def _scatter(runs: Sequence[Run], across: Column, title: str, *, log: bool) -> str:
    """Forgetting against another column, as SVG: a point for each method of each run."""
    up = COLUMNS["klom_forget"]
    points = [
        (i, name, x, y, up.error(row) or 0.0)
        for i, run in enumerate(runs)
        for name, row in run.results["methods"].items()
        if (x := across.value(row)) is not None and (y := up.value(row)) is not None
        if math.isfinite(x) and math.isfinite(y)
    ]
    if not points:
        return ""
    most_x = max(*(x for _, _, x, _, _ in points), 1e-6)
    axes = _Axes(most_x, 1.05 * max(*(y + error for *_, y, error in points), 1e-6), log)
    marks = axes.frame(_text(across.header.replace("\n", " ")))
    for i, run in enumerate(runs):
        floor = up.value({"klom": run.results["floor"]})
        if floor is not None and floor <= axes.most_y:
            marks.append(
                f'<line x1="{axes.left}" x2="{axes.width}" y1="{axes.y(floor)}" '
                f'y2="{axes.y(floor)}" stroke="{_color(i)}" stroke-dasharray="2 4"/>'
            )
    for i, name, x, y, error in points:
        said = f"{runs[i].name}, {name}: {x:.3g}, {y:.3g}"
        marks.append(
            f'<g fill="{_color(i)}" stroke="none"><title>{_text(said)}</title>'
            f'<line x1="{axes.x(x)}" x2="{axes.x(x)}" y1="{axes.y(y - error)}" '
            f'y2="{axes.y(y + error)}" stroke="{_color(i)}"/>'
            f'<circle cx="{axes.x(x)}" cy="{axes.y(y)}" r="4"/>'
            f'<text x="{axes.x(x) + 7}" y="{axes.y(y) + 4}">{_text(name)}</text></g>'
        )
    size = f'width="{axes.width}" height="{axes.height}"'
    box = f'viewBox="0 0 {axes.width} {axes.height}"'
    drawn, label = "\n".join(marks), f'aria-label="forgetting and {title}"'
    return f'<svg role="img" {label} {size} {box}>\n{drawn}\n</svg>\n'


def _color(run: int) -> str:
    return _COLORS[run % len(_COLORS)]


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 up to the most."""
    step = 10 ** math.floor(math.log10(most / 4))
    step = next(step * k for k in (1, 2, 5, 10) if most / (step * k) <= 6)
    return [round(i * step, 10) for i in range(int(most / step) + 1)]
