"""Prints the results of several workdirs side by side: a figure a row, a workdir a column.

python -m sintrovae_jax.tools.compare runs/digits runs/digits-vae [--figures ood_auroc fid]
"""

import sys

from sintrovae_jax import cli, files, results
from sintrovae_jax.errors import UserError


def table(columns: dict[str, dict], beginnings: list[str]) -> str:
    """{column: {figure: value}} as aligned text. Raises `UserError` if no figure begins so."""
    names = dict.fromkeys(
        n for column in columns.values() for n, value in column.items() if not isinstance(value, list)
    )
    chosen = [name for name in names if not beginnings or name.startswith(tuple(beginnings))]
    if not chosen:
        raise UserError(f"no figure begins with {' or '.join(beginnings)}; there are {', '.join(names) or 'none'}")
    rows = [["", *columns], *([name, *(_shown(column.get(name)) for column in columns.values())] for name in chosen)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _shown(value) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def main(argv: list[str]) -> None:
    parser = cli.Parser(prog="python -m sintrovae_jax.tools.compare", description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--figures", nargs="+", default=[], help="only those whose names begin with one of these")
    args = parser.parse_args(argv[1:])
    columns = {}
    for workdir in args.workdirs:
        place = files.workdir(workdir)
        if not (place / results.FILE).exists():
            raise UserError(f"{workdir} has no {results.FILE}: train there, or run --mode eval, first")
        columns[workdir] = results.read(place)
    print(table(columns, args.figures))


if __name__ == "__main__":
    cli.reporting(main)(sys.argv)
