"""The report of one run: WORKDIR/report.html."""

import math
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sintrovae_jax import schema, workdirs
from sintrovae_jax.keys import Optional
from sintrovae_jax.reports import curves, metrics, pages, pictures, reading
from sintrovae_jax.reports.reading import Run

_TEXT = 700_000  # the most bytes of a page that are neither pictures nor curves
_FIGURES, _NAMES = 24, 100  # the most figures, and names of files, that are shown
_SLIDERS = 6  # the most kinds of pictures of training that are shown
_FIRST = ("samples", "reconstructions", "interpolations")
CAPTIONS = {
    "samples": "Samples of the prior, decoded.",
    "reconstructions": "Test examples and their reconstructions; each row of images is above its reconstructions.",
    "interpolations": "From one test example to another, through latent space.",
    "interpolation": "From one of the two given examples to the other, through latent space.",
    "density": "Data, samples, and exp(ELBO) on a grid.",
    "ood": "Scores of test images and of images from another source.",
    "translations": "Contents and classes of test images, exchanged.",
    "translation": "Content and class of the two given images, exchanged.",
}


def write(workdir: Path) -> Path:
    """Writes the report of a workdir, even if files are missing. Returns its path.

    Raises `UserError` if the workdir has nothing of a run, `Unavailable` if it cannot be read or written.
    """
    return pages.write(workdir / workdirs.REPORT, "report.html", content(reading.read(workdir)))


def content(run: Run) -> dict[str, Any]:
    """The content for the template."""
    panels = curves.of_run(run)
    left = pages.MOST - _TEXT - sum(len(panel.svg.encode()) for panel in panels)
    finals, left = final_figures(run, left, slider=bool(run.pictures))
    return {
        "run": run,
        "title": run.name,
        "facts": _facts(run),
        "status": _status(run),
        "metrics": metrics.table(run.results),
        "dependencies": metrics.dependencies(run),
        "figures": finals,
        "slider": _slider(run, left),
        "panels": panels,
        "phases": run.phases(),
        "settings": settings(run),
        "data": _data(run),
        "sessions": _sessions(run),
        "commands": commands(run),
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _status(run: Run) -> str:
    if run.finished:
        return "finished"
    if run.last is None:
        return f"at step {run.step:,}"
    return f"at step {run.step:,} of {run.last:,}, without final results"


def _facts(run: Run) -> list[tuple[str, str]]:
    """The key facts, as (name, value); unknown ones are left out."""
    facts = [("step", f"{run.step:,}" + (f" of {run.last:,}" if run.last else ""))]
    if (seconds := _last(run, "seconds")) is not None:
        facts.append(("wall time", pages.duration(seconds)))
    if (rate := _last(run, "examples_per_second")) is not None:
        facts.append(("examples per second", pages.count(rate)))
    if (examples := _of(run.made, "data").get("examples")) is not None:
        facts.append(("training examples", pages.count(examples)))
    sessions = _sessions(run)
    if sessions and sessions[-1]["devices"]:
        facts.append(("devices", sessions[-1]["devices"]))
    return facts


def _last(run: Run, name: str) -> float | None:
    """The value in results.json, or else the last one in metrics.csv."""
    value = run.results.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    known = [v for v in run.terms.get(name, ()) if math.isfinite(v)]
    return float(known[-1]) if known else None


class Figure(NamedTuple):
    """name: the file's name without its suffix. picture: None if it cannot be shown; `problem` says why."""

    name: str
    caption: str
    picture: pictures.Picture | None
    problem: str = ""


def final_figures(run: Run, left: int, slider: bool) -> tuple[list[Figure], int]:
    """The last figures, the usual ones first, and the bytes of `left` that remain.

    slider: whether there is a slider, for which bytes must remain.
    """
    names = [name for name in _FIRST if name in run.figures]
    names += [name for name in run.figures if name not in _FIRST]
    if len(names) > _FIGURES:
        run.missing.append(f"{workdirs.FIGURES}/ has {len(names)} figures: the first {_FIGURES} are shown")
    out = []
    names = names[:_FIGURES]
    mine = left * 6 // 10 if slider else left
    for i, name in enumerate(names):
        picture, problem = pictures.shown(run.figures[name], mine // (len(names) - i))
        used = len(picture.source) if picture else 0
        mine, left = mine - used, left - used
        out.append(Figure(name, CAPTIONS.get(name, ""), picture, problem))
    return out, left


def _slider(run: Run, left: int) -> dict[str, Any] | None:
    """The pictures of training, {name: [(step, picture)]}, all their steps, and what was left out; None if there are
    none.

    The last figures of a finished run are its last pictures.
    """
    names = [*dict.fromkeys(name for name in (*_FIRST, *run.pictures) if name in run.pictures)][:_SLIDERS]
    found = {}
    for name in names:
        files = run.pictures[name]
        if run.finished and name in run.figures and files[-1][0] < run.step:
            files = [*files, (run.step, run.figures[name])]
        found[name] = pictures.frames(files, left // len(names))
    found = {name: frames for name, frames in found.items() if frames.frames}
    if not found:
        return None
    fewer = [f"{name}: {len(f.frames)} of {f.total}" for name, f in found.items() if len(f.frames) < f.total]
    steps = sorted({step for frames in found.values() for step, _ in frames.frames})
    return {"frames": {name: frames.frames for name, frames in found.items()}, "steps": steps, "fewer": fewer}


class Setting(NamedTuple):
    """A value of the config, its values in the recipe and the schema, and its meaning."""

    key: str
    value: Any
    recipe: Any
    default: Any
    about: str


def settings(run: Run) -> dict[str, Any]:
    """The values of the config. recipe: its name; '': unknown. changed: values that differ from the recipe's, or from
    the defaults if the recipe is unknown. own: values of the recipe that differ from the defaults. all: all values.
    """
    known = schema.keys()
    stored = _of(run.made, "recipe")
    own, name = _of(stored, "values"), stored.get("name")
    rows = []
    for key, value in run.values.items():
        default = known[key].default if key in known else None
        default = None if isinstance(default, Optional) else list(default) if isinstance(default, tuple) else default
        about = known[key].about.replace("`", "") if key in known else "not known to this version"
        rows.append(Setting(key, value, own.get(key, default), default, about))
    return {
        "recipe": name if isinstance(name, str) else "",
        "changed": [row for row in rows if row.value != row.recipe],
        "own": [row for row in rows if row.value == row.recipe != row.default],
        "all": rows,
    }


def _data(run: Run) -> dict[str, Any]:
    """The data: their source and number, the skipped files with reasons, and the number of parts in data.json."""
    stored = _of(run.made, "data")
    skipped = _of(stored, "skipped_files")
    listed = run.results.get("skipped_files")
    if not skipped and isinstance(listed, list):
        skipped = dict.fromkeys(map(str, listed), "")
    return {
        "source": run.values.get("data.source"),
        "examples": stored.get("examples"),
        "skipped": stored.get("skipped") or run.results.get("skipped") or 0,
        "files": list(skipped.items())[:_NAMES],
        "parts": f"{len(run.data.parts):,} {run.data.what}" if run.data else "",
    }


def _sessions(run: Run) -> list[dict[str, Any]]:
    """The sessions of training, as text: started, step, devices, versions, commit."""
    stored = run.made.get("sessions")
    out = []
    for session in stored if isinstance(stored, list) else []:
        if not isinstance(session, dict):
            continue
        devices = ", ".join(f"{n} × {kind}" for kind, n in _of(session, "devices").items())
        processes = session.get("processes", 1)
        versions = ", ".join(f"{name} {version}" for name, version in _of(session, "versions").items())
        commit = str(session.get("commit", ""))[:40]
        out.append(
            {
                "started": pages.value(session.get("started")),
                "step": pages.count(session.get("step")),
                "devices": devices + (f", {processes} processes" if processes != 1 else ""),
                "versions": versions,
                "commit": commit + (" with changes" if commit and session.get("changed") else ""),
            }
        )
    return out


def commands(run: Run) -> list[tuple[str, str]]:
    """Commands to try next, as (text, shell command); none without a config.json."""
    if not run.values:
        return []
    base = f"python -m sintrovae_jax.main --workdir {shlex.quote(str(run.place))}"
    if run.finished and run.last:
        out = [("Train longer, here twice as long", f"{base} --config.train.steps={2 * run.last}")]
    elif run.checkpoints:
        out = [(f"Go on from step {run.checkpoints[-1]:,}", base)]
    else:
        out = [("Start, as there is no checkpoint", base)]
    if run.checkpoints:
        modes = "\n".join(f"{base} --mode {mode}" for mode in ("sample", "eval", "report"))
        load = f"import sintrovae_jax\n\nmodel = sintrovae_jax.load({str(run.place)!r})"
        steps = ", ".join(map(str, run.checkpoints))
        out += [("Draw samples, evaluate again, write this page again", modes)]
        out += [(f"From Python (there are checkpoints of step {steps})", load)]
    return out


def _of(stored: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object inside a JSON object; {} if it is something else."""
    value = stored.get(name)
    return value if isinstance(value, dict) else {}
