"""The installed commands. Each does what `python -m` of its module does.

The modules run as `__main__`, so that absl's --help shows their flags, and with the current folder on the path, so that
recipes and `eval.features` find what lies there. Without the extra `train`, where it is needed, they say so.
"""

import os
import runpy
import sys

# What the extra `train` brings, by the names that are imported.
_TRAIN = [
    "PIL",
    "clu",
    "matplotlib",
    "simplejpeg",
    "sklearn",
    "tensorboard",
    "tensorflow",
    "tensorflow_datasets",
    "tqdm",
]


def _run(module: str) -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _TRAIN:
            raise
        print(f"error: {error.name} is not installed: pip install '.[train]' in a clone", file=sys.stderr, flush=True)
        sys.exit(2)


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
