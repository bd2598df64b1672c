"""Prints the results of several workdirs side by side: one row per metric, one column per workdir.

python -m sintrovae_jax.tools.compare runs/digits runs/digits-vae [--metrics ood_auroc fid] [--html OUT.html]
"""

import sys
from pathlib import Path
from typing import Any

from sintrovae_jax import cli, extras, files, workdirs
from sintrovae_jax.errors import UserError, printable
from sintrovae_jax.tools import text

# Prefixes of metrics that can be compared only between results with the same features.
_OF_FEATURES = ("fid", "frechet", "kid", "precision", "recall", "classifier")


def selected(columns: dict[str, dict[str, Any]], beginnings: list[str]) -> list[str]:
    """The metrics of {column: {metric: value}} with one of these prefixes. Raises `UserError` if there are none."""
    names = dict.fromkeys(
        n for column in columns.values() for n, value in column.items() if not isinstance(value, list)
    )
    found = [name for name in names if not beginnings or name.startswith(tuple(beginnings))]
    if not found:
        raise UserError(f"no metric begins with {' or '.join(beginnings)}; there are {', '.join(names) or 'none'}")
    return found


def table(columns: dict[str, dict[str, Any]], names: list[str]) -> str:
    """The metrics with these names, from {column: {metric: value}}, as aligned text."""
    rows = [
        ["", *columns],
        *([printable(name), *(_shown(column.get(name)) for column in columns.values())] for name in names),
    ]
    return text.aligned(rows)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else printable(str(value))


def other_features(columns: dict[str, dict[str, Any]], names: list[str]) -> str:
    """A warning if metrics with these names use different features, such as two classifiers'; otherwise ''."""
    used = {column: str(results["features"]) for column, results in columns.items() if "features" in results}
    extractors = {text.split(" ")[0] for text in used.values()}
    if len(set(used.values())) == len(extractors) or not any(name.startswith(_OF_FEATURES) for name in names):
        return ""
    beginnings = "; ".join(f"{column}: {printable(text[:24])}" for column, text in used.items())
    return f"warning: metrics of different features cannot be compared ({beginnings}); run --mode eval on one machine"


def _write_page(target: str, places: dict[str, Path], beginnings: list[str], warning: str) -> None:
    """Writes the page of --html. Workdirs without results are included, with their other files."""
    extras.need_report()
    path = files.place(target)
    if path.is_dir():
        raise UserError(f"{target} is a folder: give --html the name of a file, such as {path / 'comparison.html'}")
    from sintrovae_jax.reports import comparison

    print(f"wrote {printable(str(comparison.write(path, places, beginnings, warning)))}")


def main(argv: list[str]) -> None:
    parser = cli.Parser(
        "tools.compare",
        "WORKDIR ... [--metrics NAME ...] [--html FILE]",
        "Prints the results of several workdirs side by side.",
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument(
        "--metrics", nargs="+", metavar="NAME", default=[], help="only metrics whose names begin with one of these"
    )
    parser.add_argument("--html", metavar="FILE", default="", help="also write a page: metrics, curves, pictures")
    args = parser.parse(argv[1:])
    places = {workdir: files.place(workdir) for workdir in args.workdirs}
    columns = {}
    for workdir, place in places.items():
        if (place / workdirs.RESULTS).exists():
            columns[workdir] = workdirs.read_results(place)
        elif not args.html:
            raise UserError(f"{workdir} has no {workdirs.RESULTS}: train there, or run --mode eval, first")
    warning = ""
    if columns:
        names = selected(columns, args.metrics)
        print(table(columns, names))
        if warning := other_features(columns, names):
            print(warning, file=sys.stderr)
    if args.html:
        _write_page(args.html, places, args.metrics, warning)


if __name__ == "__main__":
    cli.start(main)
