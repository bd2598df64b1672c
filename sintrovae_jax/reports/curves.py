"""Training curves as inline SVG: transparent, in the page's font and colours, light or dark."""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sintrovae_jax.reports.reading import Phases, Run

SERIES = 8  # colours; with more curves they repeat
_WINDOWS = 300  # windows of all curves of a panel: for long curves, each window's smallest and largest value are drawn
_OTHERS = 24  # the most terms of unknown kinds
_LOG = 30  # the smallest ratio of values, all above 0, that get a logarithmic axis
# Colours that the page replaces with its own, light or dark, in its style sheet (page.css).
_INK, _GRID, _BAND, _ALERT = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "--muted", _GRID: "--rule", _BAND: "--band", _ALERT: "--alert"} | {
    f"#0102{16 + i:02x}": f"--series-{i}" for i in range(SERIES)
}
_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 10, "axes.edgecolor": _GRID}

_FRACTION = re.compile(r"(\d\.\d\d)\d+")  # less than a hundredth of a point is invisible


class Line(NamedTuple):
    """A curve: steps [N], values [N], NaN if missing, and the number of its colour."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    colour: int = 0


class Panel(NamedTuple):
    """A plot. curves: (name, number of the colour). below: says where a kl_gap is negative. notes: about the plot."""

    title: str
    about: str
    svg: Markup
    below: tuple[str, ...]
    notes: tuple[str, ...]
    curves: tuple[tuple[str, int], ...]


_ABOUT = {
    "Losses": "The loss that each network minimises.",
    "Reconstruction errors": "Errors of real data, reconstructions and samples, summed over an example's dimensions.",
    "KL divergences": "KL(posterior || prior) in nats, for real data, reconstructions and samples.",
    "kl_gap": "The smaller KL of samples and reconstructions, minus the KL of real data, on training batches.",
    "Exponential terms": "The exponential terms of the encoder's loss, for reconstructions and samples.",
    "learning_rate": "Adam's learning rate, for both networks.",
    "examples_per_second": "Training examples per second, without pauses for figures, evaluations and saving.",
}
_GROUPS = {
    "Losses": ("loss_encoder", "loss_decoder"),
    "Reconstruction errors": ("rec_real", "rec_recon", "rec_fake"),
    "KL divergences": ("kl_real", "kl_recon", "kl_fake"),
    "kl_gap": ("kl_gap",),
    "Exponential terms": ("exp_elbo_recon", "exp_elbo_fake"),
    "learning_rate": ("learning_rate",),
}
_PLACE = (0.11, 0.17, 0.87, 0.74)  # of the axes, as fractions of the plot, so that all panels' axes are aligned
_NO_CURVES, _LAST = ("seconds",), "examples_per_second"


def of_run(run: Run) -> list[Panel]:
    """A panel for each kind of term in metrics.csv, and one for each term of an unknown kind."""
    grouped = {name for names in _GROUPS.values() for name in names}
    others = sorted(run.terms.keys() - grouped - {*_NO_CURVES, _LAST})
    groups = _GROUPS | {name: (name,) for name in [*others[:_OTHERS], _LAST]}
    out = []
    for title, names in groups.items():
        there = [name for name in names if name in run.terms]
        lines = [Line(name, run.steps, run.terms[name], i) for i, name in enumerate(there)]
        if lines:
            out.append(panel(title, lines, run.phases()))
    return out


def of_runs(runs: Mapping[str, Run]) -> list[Panel]:
    """A panel for each term that any of the runs {name: run} has, with a curve for each run."""
    terms = dict.fromkeys(name for names in _GROUPS.values() for name in names)
    others = {name for run in runs.values() for name in run.terms} - {*terms, *_NO_CURVES, _LAST}
    out = []
    for term in [*terms, *sorted(others)[:_OTHERS], _LAST]:
        there = [(i, name, run) for i, (name, run) in enumerate(runs.items()) if term in run.terms]
        lines = [Line(name, run.steps, run.terms[term], i % SERIES) for i, name, run in there]
        if lines:
            out.append(panel(term, lines, Phases()))
    return out


def panel(title: str, lines: Sequence[Line], phases: Phases) -> Panel:
    """Curves in one plot. With the title kl_gap, the parts below 0 are marked."""
    gap, windows = title == "kl_gap", max(20, _WINDOWS // len(lines))
    below = tuple(text for line in lines if gap and (text := _negative(line, len(lines) > 1)))
    notes = []
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(5.2, 2.7))
        axis = figure.add_axes(_PLACE)
        _shade(axis, phases)
        for line in lines:
            _draw(axis, line, gap, windows)
        if _logarithmic(lines):
            axis.set_yscale("log")
            notes.append("Logarithmic axis.")
        if any(len(line.steps) > 2 * windows for line in lines):
            notes.append(f"Shows the smallest and the largest value in each of {windows} windows of rows.")
        _dress(axis, max(float(line.steps[-1]) for line in lines))
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True)
    slug = re.sub(r"\W+", "-", title)
    curves = tuple((line.name, line.colour) for line in lines)
    label = f"{title}: {', '.join(line.name for line in lines)}, by step"
    return Panel(title, _ABOUT.get(title, ""), inline(drawn.getvalue(), slug, label), below, tuple(notes), curves)


def _negative(line: Line, named: bool) -> str:
    """Says where a kl_gap is below 0; '' if it never is."""
    below = line.steps[line.values < 0].astype(int)
    if not len(below):
        return ""
    where = f"at step {below[0]}" if len(below) == 1 else f"between steps {below[0]} and {below[-1]}"
    rows = np.isfinite(line.values).sum()
    return f"{line.name + ': ' if named else ''}Below 0 at {len(below)} of {rows} rows, {where}."


def _shade(axis: Axes, phases: Phases) -> None:
    if phases.vae:
        axis.axvspan(0, phases.vae, color=_BAND, lw=0)
    for i, (start, stop, size) in enumerate(phases.levels):
        if i % 2:
            axis.axvspan(start, stop, color=_BAND, lw=0)
        if stop - start > 0.08 * phases.levels[-1][1]:
            where: Any = {"xy": ((start + stop) / 2, 1), "xycoords": ("data", "axes fraction")}
            axis.annotate(f"{size} px", **where, ha="center", va="bottom", color=_INK, fontsize=8)
    for step in phases.milestones:
        axis.axvline(step, color=_INK, lw=1, ls=(0, (4, 3)))


def _draw(axis: Axes, line: Line, gap: bool, windows: int) -> None:
    steps, values = thinned(line.steps, line.values, windows)
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    colour = f"#0102{16 + line.colour % SERIES:02x}"
    if gap:
        axis.axhline(0, color=_INK, lw=1)
        axis.fill_between(steps, values, 0, where=values < 0, interpolate=True, color=_ALERT, alpha=0.3, lw=0)
    alone: Any = {"marker": "o", "markersize": 4} if len(steps) < 3 else {}
    axis.plot(steps, values, color=colour, lw=1.6, solid_joinstyle="round", **alone)
    if gap:
        below = values < 0
        axis.plot(steps[below], values[below], color=_ALERT, ls="none", marker="o", markersize=3)


def thinned(steps: np.ndarray, values: np.ndarray, windows: int) -> tuple[np.ndarray, np.ndarray]:
    """The curve, or each window's smallest and largest value if it has more than two rows per window."""
    if len(steps) <= 2 * windows:
        return steps, values
    chosen = set()
    for window in np.array_split(np.arange(len(steps)), windows):
        known = window[np.isfinite(values[window])]
        if len(known):
            chosen |= {known[np.argmin(values[known])], known[np.argmax(values[known])]}
    order = sorted(int(i) for i in chosen)
    return steps[order], values[order]


def _logarithmic(lines: Sequence[Line]) -> bool:
    values = np.concatenate([line.values[np.isfinite(line.values)] for line in lines])
    return bool(len(values)) and values.min() > 0 and values.max() / values.min() >= _LOG


def _dress(axis: Axes, last: float) -> None:
    """Sets ticks, a grid of thin lines and no frame."""
    axis.set_xlim(0, max(last, 1))
    axis.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    if axis.get_yscale() == "log":
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1,) if high / low > 1e3 else (1, 3), numticks=6))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        axis.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.4g}".replace("-", "−")))
    axis.grid(axis="y", color=_GRID, lw=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelcolor=_INK, pad=5)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel("step", color=_INK, loc="right", fontsize=9)


def inline(svg: str, prefix: str, label: str) -> Markup:
    """matplotlib's SVG as an element of a page.

    The element has no namespaces, no metadata and no size of its own. Its ids begin with the prefix, so that the ids of
    several plots differ. It uses the page's fonts and colour variables. label: a description for screen readers.
    """
    root = ET.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None  # white space
        element.text = (element.text or "").strip() or None
        attributes = element.attrib.items()
        element.attrib = {name.rpartition("}")[2]: _FRACTION.sub(r"\1", value) for name, value in attributes}
    for element in root.findall("metadata"):
        root.remove(element)
    text = " ".join(element.get(name, "") for element in root.iter() for name in ("clip-path", "href", "style"))
    used = set(re.findall(r"#([\w-]+)", text))
    for element in root.iter():
        for name, value in [*element.attrib.items()]:
            if name == "id" and value not in used:
                del element.attrib[name]
            else:
                element.attrib[name] = _adapted(name, value, prefix)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    for defs in root.findall("defs"):
        for style in defs.findall("style"):  # it would apply to the whole page
            defs.remove(style)
    return Markup(ET.tostring(root, encoding="unicode"))


def _adapted(name: str, value: str, prefix: str) -> str:
    """The value of an SVG attribute, with the page's font and colours, and ids that begin with the prefix."""
    if name == "id":
        return f"{prefix}-{value}"
    if name in ("href", "clip-path"):
        return value.replace("#", f"#{prefix}-")
    if name == "style":
        value = re.sub(r"font-family: [^;]*;? ?", "", re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value))
        for colour, variable in _VARIABLES.items():
            value = value.replace(colour, f"var({variable})")
    return value
