"""Prints the results of several workdirs side by side: a metric a row, a workdir a column.

python -m sintrovae_jax.tools.compare runs/digits runs/digits-vae [--metrics ood_auroc fid]
"""

from typing import Any

from sintrovae_jax import cli, files, workdirs
from sintrovae_jax.errors import UserError, printable
from sintrovae_jax.tools import text


def table(columns: dict[str, dict[str, Any]], beginnings: list[str]) -> str:
    """{column: {metric: value}} as aligned text. Raises `UserError` if no metric has such a beginning."""
    names = dict.fromkeys(
        n for column in columns.values() for n, value in column.items() if not isinstance(value, list)
    )
    selected = [name for name in names if not beginnings or name.startswith(tuple(beginnings))]
    if not selected:
        raise UserError(f"no metric begins with {' or '.join(beginnings)}; there are {', '.join(names) or 'none'}")
    rows = [
        ["", *columns],
        *([printable(name), *(_shown(column.get(name)) for column in columns.values())] for name in selected),
    ]
    return text.aligned(rows)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else printable(str(value))


def main(argv: list[str]) -> None:
    parser = cli.Parser(
        "tools.compare", "WORKDIR ... [--metrics NAME ...]", "Prints the results of several workdirs side by side."
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument(
        "--metrics", nargs="+", metavar="NAME", default=[], help="only those whose names begin with one of these"
    )
    args = parser.parse(argv[1:])
    columns = {}
    for workdir in args.workdirs:
        place = files.place(workdir)
        if not (place / workdirs.RESULTS).exists():
            raise UserError(f"{workdir} has no {workdirs.RESULTS}: train there, or run --mode eval, first")
        columns[workdir] = workdirs.read_results(place)
    print(table(columns, args.metrics))


if __name__ == "__main__":
    cli.start(main)
