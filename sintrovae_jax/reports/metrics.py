"""The metrics of results.json, and what they depend on, for readers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sintrovae_jax.reports.reading import Run

_TRAINING = ("step", "seconds", "examples_per_second", "skipped", "skipped_files")  # shown elsewhere on the page
_COUNTS = {
    "samples": "samples",
    "real": "real images",
    "images": "test images",
}  # NAME_samples: the number of samples that the metrics of NAME are computed from
_DEPENDED = ("observation_std",)  # numbers that are not metrics
_ROWS = 400  # the most rows


class Row(NamedTuple):
    """A metric, its value in results.json, and the numbers of samples and real images that it is computed from."""

    name: str
    value: float | int | None
    of: str


def table(results: Mapping[str, Any]) -> list[Row]:
    """The metrics of results.json, in its order, without the values that they depend on or that describe training."""
    counts = _counts(results)
    rows = [Row(name, value, _of(name, counts)) for name, value in results.items() if _is_metric(name, results)]
    return rows[:_ROWS]


def dependencies(run: Run) -> list[tuple[str, Any]]:
    """The (name, value) pairs that all metrics depend on: the step, the seed, texts of results.json, and other counts.

    If results.json has no number of test examples for a metric, its evaluator's config keys have it.
    """
    results = run.results
    metrics = [row.name for row in table(results)]
    if not metrics:
        return []
    named = {name for metric in metrics for name in _fitting(metric, _counts(results))}
    others = [k for k in results if _is_count(k, results) and _name(k) not in named]
    about = [(k, v) for k, v in results.items() if isinstance(v, str) or k in (*others, *_DEPENDED)]
    return [("step", results.get("step")), ("seed", run.values.get("seed")), *about[:_ROWS]]


def _is_metric(name: str, results: Mapping[str, Any]) -> bool:
    value = results[name]
    number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return number and name not in (*_TRAINING, *_DEPENDED) and not _is_count(name, results)


def _is_count(key: str, results: Mapping[str, Any]) -> bool:
    """Whether it is NAME_samples or NAME_images, or NAME_real if NAME_samples exists: kl_real is a metric."""
    name, _, what = key.rpartition("_")
    counted = what != "real" or f"{name}_samples" in results
    return bool(name) and what in _COUNTS and isinstance(results[key], int) and counted


def _name(key: str) -> str:
    return key.rpartition("_")[0]


def _counts(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """{NAME: ['1,000 samples', ...]} from the keys NAME_samples and NAME_real."""
    out: dict[str, list[str]] = {}
    for key, value in results.items():
        if _is_count(key, results):
            out.setdefault(_name(key), []).append(f"{value:,} {_COUNTS[key.rpartition('_')[2]]}")
    return out


def _of(metric: str, counts: Mapping[str, list[str]]) -> str:
    """The numbers of samples that a metric is computed from: the counts of the longest NAME that fits."""
    fitting = _fitting(metric, counts)
    return ", ".join(counts[max(fitting, key=len)]) if fitting else ""


def _fitting(metric: str, counts: Mapping[str, list[str]]) -> list[str]:
    """The NAMEs whose words a metric's name contains, as kid_std_classifier contains the words of kid_classifier.
    Recall has the counts of precision.
    """
    words = {"precision" if word == "recall" else word for word in metric.split("_")}
    return [name for name in counts if set(name.split("_")) <= words]
