"""The installed commands. Each does the same as `python -m` with its module.

The current folder is on the path, so that recipes and `eval.features` can import modules from it.
"""

import importlib
import os
import sys


def _run(module: str) -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    from sintrovae_jax import cli

    cli.start(importlib.import_module(module).main)


def main() -> None:
    _run("sintrovae_jax.main")


def bench() -> None:
    _run("sintrovae_jax.tools.bench")


def compare() -> None:
    _run("sintrovae_jax.tools.compare")


def export() -> None:
    _run("sintrovae_jax.tools.export")


def convert() -> None:
    _run("sintrovae_jax.official.convert")


def explore() -> None:
    _run("sintrovae_jax.explore.__main__")
