"""One page about several runs: metrics in a table, curves over each other, pictures side by side."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sintrovae_jax.errors import printable
from sintrovae_jax.reports import curves, metrics, pages, pictures, reading
from sintrovae_jax.reports.reading import Run
from sintrovae_jax.reports.report import CAPTIONS

_TEXT = 900_000  # bytes of a page that are neither pictures nor curves, at most
_FIGURES = ("samples", "reconstructions", "interpolations", "translations", "density")
_KEYS = 200  # that differ and are shown, at most


def write(path: Path, workdirs: Mapping[str, Path], beginnings: Sequence[str] = (), warning: str = "") -> Path:
    """Writes a page that compares workdirs, {their names on the page: places}. Returns its path.

    beginnings: of the names of metrics that are shown; (): all. warning: shown above the metrics. Raises `UserError` if
    there is nothing of a run in one of them, `Unavailable` if one cannot be read, or the page not be written.
    """
    names = dict(zip(workdirs, _short([*workdirs]), strict=True))
    runs = {printable(names[name]): reading.read(place) for name, place in workdirs.items()}
    return pages.write(path, "comparison.html", content(runs, beginnings, warning))


def _short(names: list[str]) -> list[str]:
    """The names without the folders that all of them begin with."""
    parts = [name.rstrip("/").split("/") for name in names]
    while len({part[0] for part in parts}) == 1 and all(len(part) > 1 for part in parts):
        parts = [part[1:] for part in parts]
    return ["/".join(part) for part in parts]


def content(runs: Mapping[str, Run], beginnings: Sequence[str] = (), warning: str = "") -> dict[str, Any]:
    """What the template is filled with."""
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
    """(name, the value of each column, None where it has none) for each name of any column."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return [(name, [column.get(name) for column in columns.values()]) for name in names]


def _training(run):
    known = {name: run.results.get(name) for name in ("seconds", "examples_per_second")}
    return {"steps": run.step} | {name: value for name, value in known.items() if value is not None}


def _differing(runs: Mapping[str, Run]) -> list[tuple[str, list[Any]]]:
    """The keys of which the configs have different values, with the value of each."""
    rows = _rows({name: run.values for name, run in runs.items()})
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)][:_KEYS]


def _figures(runs: Mapping[str, Run], left: int) -> list[tuple[str, str, list[tuple[str, Any, str]]]]:
    """(name, caption, [(run, picture or None, why there is none)]) of each figure that any of the runs has."""
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
