"""Metadata are in pyproject.toml. Here the README's relative links become absolute, for pages elsewhere, and the
recipes of configs/ go into the package, as sintrovae_jax/recipes."""

import re
import tomllib
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
REPOSITORY = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
RAW = REPOSITORY.replace("//github.com/", "//raw.githubusercontent.com/")

readme = (HERE / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{RAW}/main/", readme)
readme = re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/blob/main/", readme)

setup(
    long_description=readme,
    long_description_content_type="text/markdown",
    packages=[*find_packages(include=["sintrovae_jax", "sintrovae_jax.*"]), "sintrovae_jax.recipes"],
    package_dir={"sintrovae_jax.recipes": "configs"},
)
