"""The model card of an export: README.md, with the front matter that the Hugging Face Hub reads."""

import logging
import math
from pathlib import Path
from typing import Any

import sintrovae_jax
from sintrovae_jax import extras, files, inference, workdirs
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError, printable
from sintrovae_jax.models import Model

log = logging.getLogger(__name__)
_OBJECTIVES = {
    "soft_intro": ("Soft-IntroVAE", "2012.13253"),
    "intro": ("IntroVAE", "1807.06358"),
    "vae": ("Variational autoencoder", "1312.6114"),
}
# Licences of data, by the Hub's names; the Hub calls all others 'other'.
_LICENCES = (
    *("apache-2.0", "mit", "bsd-3-clause", "cc", "cc0-1.0", "pddl", "odbl", "odc-by", "unlicense", "unknown"),
    *(f"cc-by-{version}" for version in ("2.0", "2.5", "3.0", "4.0")),
    *("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0"),
)
_OF_THE_RUN = ("step", "seconds", "examples_per_second", "skipped")  # numbers in results.json that are not metrics
_TASK = "unconditional-image-generation"


def write(folder: Path, name: str, licence: str) -> None:
    """Writes README.md, and samples to figures/, for the export in a folder. Needs the extra `hub`.

    name: the repository's USER/NAME. licence: the data's licence, in words or as an SPDX identifier; '': the card says
    that it was not given. Without the packages of the extra `train`, there is no figure.
    """
    model = inference.load(folder)
    drawn = _draw(model, folder)
    results = workdirs.read_results(folder)
    kept = {
        k: v for k, v in results.items() if isinstance(v, int | float) and k not in _OF_THE_RUN and math.isfinite(v)
    }
    text = _text(model, name, licence, kept, drawn)
    files.write_text(folder / "README.md", f"---\n{_front(model, name, licence, kept)}\n---\n\n{text}")


def _draw(model: Model, folder: Path) -> bool:
    """Draws figures/samples.png if possible, and returns whether it did. Shows no data, except a 2D density's."""
    try:
        extras.need_train()
    except UserError as error:
        log.warning("the model card has no figure: %s", error)
        return False
    from sintrovae_jax.data import pipeline  # TensorFlow
    from sintrovae_jax.plots import figures

    source: Any = pipeline.build(model.config.data) if examples.of(model.config.data).kind == "points" else None
    figures.samples(model, source, folder / workdirs.FIGURES, truncation=model.config.eval.truncation)
    return True


def _data(model: Model) -> str:
    """The training data, such as `folder:pictures`, without the folders that they are in."""
    kind, _, path = printable(model.config.data.source).partition(":")
    return f"{kind}:{Path(path).name}" if kind in examples.PATHS else printable(model.config.data.source)


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() or c in ".-" else " " for c in text.lower()).split())


def _front(model: Model, name: str, licence: str, metrics: dict[str, Any]) -> str:
    """The front matter, in YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    images = examples.of(model.config.data).kind == "images"
    data, short = _data(model), _slug(licence) or "unknown"
    about: dict[str, Any] = {"license": short if short in _LICENCES else "other"}
    if about["license"] == "other":
        about["license_name"] = short
    results = [
        EvalResult(_TASK if images else "other", _slug(data), data, metric, value)
        for metric, value in metrics.items()
        if isinstance(value, float)  # not the numbers of examples
    ]
    return ModelCardData(
        **about,
        library_name="sintrovae_jax",
        pipeline_tag=_TASK if images and not model.config.model.classes else None,
        tags=["sintrovae_jax", _slug(_OBJECTIVES[model.config.objective.name][0]), "vae", "jax", "flax"],
        model_name=name.partition("/")[2],
        eval_results=results or None,
    ).to_yaml()


def _text(model: Model, name: str, licence: str, metrics: dict[str, Any], drawn: bool) -> str:
    config, title = model.config, name.partition("/")[2]
    objective, paper = _OBJECTIVES[config.objective.name]
    trained = (
        f"{objective} ([paper](https://arxiv.org/abs/{paper})), networks `{config.model.family}` with "
        f"{config.model.z_dim} latent dimensions, trained on `{_data(model)}` for {model.step:,} steps of "
        f"{config.train.batch_size} examples, seed {config.seed}. `config.json` has all that was chosen."
    )
    picture = "![Samples](figures/samples.png)\n\n*Samples from the prior, none picked.*\n\n" if drawn else ""
    rows = [f"| {printable(metric)} | {value:.6g} |" for metric, value in metrics.items()]
    table = "\n".join(["| metric | value |", "|---|---|", *rows]) if rows else "It was not scored at this step."
    given = f"Of the data, as who uploaded this gave it: {printable(licence)}. `license` above repeats this."
    if not licence:
        given = "Who uploaded this did not give the licence of the data."
    return f"""\
# {title}

{trained}

{picture}## Use

With `sintrovae_jax` {sintrovae_jax.__version__} and its extra `hub`, on any device:

```python
import sintrovae_jax

model = sintrovae_jax.load("hf:{name}")
x = model.sample(0, 16)  # [{", ".join(map(str, (16, *model.shape)))}]; the first argument is a seed
posterior = model.encode(x)
model.decode(posterior.mean)
```

Loading reads values and arrays, and runs no code of this repository.

## Metrics

{table}

## Licence

{given} The code of `sintrovae_jax` is under Apache-2.0.
"""
