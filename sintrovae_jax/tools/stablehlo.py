"""Writes a model as programs that need only JAX: `python -m sintrovae_jax.tools.export WORKDIR OUT --stablehlo`.

OUT has encoder and decoder as serialised `jax.export` artifacts for any number of examples on CPU, CUDA and TPU, with
the weights inside; model.json, which describes their inputs; and load_model.py, which reads both without this package.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from sintrovae_jax import files, seeds
from sintrovae_jax.models import Model

PLATFORMS = ("cpu", "cuda", "tpu")
LOADER = '''"""The model in this folder, with only JAX: encode, decode, decode_prior, sample. model.json describes it.

Images are float32 [N, *shape] in [0, 1], latents [N, z_dim]. A conditional model also takes labels [N], whole numbers
from 0 to classes - 1; samples without labels have all classes in turn.
"""

import json
import pathlib

import jax
import numpy
from jax import export

FOLDER = pathlib.Path(__file__).parent
MODEL = json.loads((FOLDER / "model.json").read_text())


def _read(name):
    program = export.deserialize(bytearray((FOLDER / f"{name}.jax_export").read_bytes())).call

    def call(inputs, labels=None):
        inputs = numpy.asarray(inputs, "float32")
        if not MODEL["classes"]:
            return program(inputs)
        labels = numpy.asarray(labels)
        if labels.shape != (len(inputs),) or not set(labels.tolist()) <= set(range(MODEL["classes"])):
            raise ValueError(f"labels are {len(inputs)} whole numbers from 0 to {MODEL['classes'] - 1}")
        return program(inputs, labels.astype("int32"))

    return call


encode, decode, decode_prior = map(_read, ("encode", "decode", "decode_prior"))


def sample(seed, n, labels=None):
    """n images [n, *shape], not clipped: decoded latents from the prior."""
    if MODEL["classes"] and labels is None:
        labels = numpy.arange(n) % MODEL["classes"]
    key = jax.random.key(seed, impl="threefry2x32")
    noise, mixture = jax.random.normal(key, (n, MODEL["z_dim"]), "float32"), MODEL["mixture"]
    if mixture is None:
        return decode_prior(MODEL["prior_std"] * noise, labels)
    mean, logvar, logits = (numpy.asarray(mixture[name], "float32") for name in ("mean", "logvar", "logits"))
    component = jax.random.categorical(jax.random.fold_in(key, 1), logits, shape=(n,))
    return decode_prior(mean[component] + numpy.exp(logvar[component] / 2) * noise, labels)
'''


def write(model: Model, target: str | Path) -> None:
    """Writes a model to a new folder. Raises `UserError` if it exists or cannot be written."""
    programs = _programs(model)
    about = {
        "shape": list(model.shape),
        "z_dim": model.config.model.z_dim,
        "prior_std": model.config.objective.prior_std,
        "mixture": model.mixture and {name: np.asarray(a).tolist() for name, a in vars(model.mixture).items()},
        "classes": model.config.model.classes,
        "step": model.step,
        "batch_norm": model.batch_norm,
        "platforms": PLATFORMS,
        "jax": jax.__version__,
    }
    with files.new_folder(target) as folder:
        for name, program in programs.items():
            (folder / f"{name}.jax_export").write_bytes(program)
        files.write_text(folder / "model.json", json.dumps(about, indent=2) + "\n")
        files.write_text(folder / "load_model.py", LOADER)


@seeds.pinned()
def _programs(model: Model) -> dict[str, bytes]:
    functions: dict[str, Callable[..., object]] = {
        "encode": lambda x, labels=None: tuple(model.apply("encoder", x, labels)),
        "decode": lambda z, labels=None: model.apply("decoder", z, labels, role="posterior"),
        "decode_prior": lambda z, labels=None: model.apply("decoder", z, labels, role="prior"),
    }
    number = jax_export.symbolic_shape("n")
    labels = [jax.ShapeDtypeStruct(number, jnp.int32)] if model.config.model.classes else []
    out = {}
    for name, function in functions.items():
        one = model.shape if name == "encode" else (model.config.model.z_dim,)
        inputs = jax.ShapeDtypeStruct((*number, *one), jnp.float32)
        out[name] = bytes(jax_export.export(jax.jit(function), platforms=PLATFORMS)(inputs, *labels).serialize())
    return out
