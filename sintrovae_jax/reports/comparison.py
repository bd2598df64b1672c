"""A page that compares several runs: metrics in a table, curves in shared plots, pictures side by side."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sintrovae_jax.errors import printable
from sintrovae_jax.reports import curves, metrics, pages, pictures, reading
from sintrovae_jax.reports.reading import Run
from sintrovae_jax.reports.report import CAPTIONS

_TEXT = 900_000  # the most bytes of a page that are neither pictures nor curves
_FIGURES = ("samples", "reconstructions", "interpolations", "translations", "density")
_KEYS = 200  # the most differing keys that are shown


def write(path: Path, workdirs: Mapping[str, Path], beginnings: Sequence[str] = (), warning: str = "") -> Path:
    """Writes a page that compares workdirs, {name on the page: path}. Returns its path.

    beginnings: shows only metrics whose names have one of these prefixes; (): all. warning: shown above the metrics.
    Raises `UserError` if a workdir has nothing of a run, `Unavailable` if a workdir cannot be read or the page cannot
    be written.
    """
    names = dict(zip(workdirs, _short([*workdirs]), strict=True))
    runs = {printable(names[name]): reading.read(place) for name, place in workdirs.items()}
    return pages.write(path, "comparison.html", content(runs, beginnings, warning))


def _short(names: list[str]) -> list[str]:
    """The names without the folders that they all begin with."""
    parts = [name.rstrip("/").split("/") for name in names]
    while len({part[0] for part in parts}) == 1 and all(len(part) > 1 for part in parts):
        parts = [part[1:] for part in parts]
    return ["/".join(part) for part in parts]


def content(runs: Mapping[str, Run], beginnings: Sequence[str] = (), warning: str = "") -> dict[str, Any]:
    """The content for the template."""
    panels = curves.of_runs(runs)
    left = pages.MOST - _TEXT - sum(len(panel.svg.encode()) for panel in panels)
    return {
        "title": f"Comparison of {len(runs)} runs" if len(runs) != 1 else "Comparison of one run",
        "runs": {name: {"run": run, "colour": i % curves.SERIES} for i, (name, run) in enumerate(runs.items())},
        "warning": warning,
        "metrics": [row for row in _metrics(runs) if not beginnings or row[0].startswith(tuple(beginnings))],
        "dependencies": _rows({name: dict(metrics.dependencies(run)) for name, run in runs.items()}),
        "training": _rows({name: _training(run) for name, run in runs.items()}),
        "differ": _differing(runs),
        "panels": panels,
        "figures": _figures(runs, left),
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _metrics(runs):
    return _rows({name: {row.name: row.value for row in metrics.table(run.results)} for name, run in runs.items()})


def _rows(columns: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """(name, [the value in each column, or None]) for each name in any column."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return [(name, [column.get(name) for column in columns.values()]) for name in names]


def _training(run):
    known = {name: run.results.get(name) for name in ("seconds", "examples_per_second")}
    return {"steps": run.step} | {name: value for name, value in known.items() if value is not None}


def _differing(runs: Mapping[str, Run]) -> list[tuple[str, list[Any]]]:
    """(key, [its value in each config]) for the keys whose values differ."""
    rows = _rows({name: run.values for name, run in runs.items()})
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)][:_KEYS]


def _figures(runs: Mapping[str, Run], left: int) -> list[tuple[str, str, list[tuple[str, Any, str]]]]:
    """(name, caption, [(run, picture or None, the reason for None)]) for each figure that any of the runs has."""
    shown = [name for name in _FIGURES if any(name in run.figures for run in runs.values())]
    each = left // max(1, len(shown) * len(runs))
    out = []
    for name in shown:
        row: list[tuple[str, Any, str]] = []
        for label, run in runs.items():
            drawn = name in run.figures
            row.append((label, *(pictures.shown(run.figures[name], each) if drawn else (None, "not drawn"))))
        out.append((name, CAPTIONS.get(name, ""), row))
    return out
