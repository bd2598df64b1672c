"""Using a trained model: `load(path)`, then encode, decode, sample, reconstruct, interpolate.

Needs neither TensorFlow nor a config file: the workdir's config.json says what to build.
"""

import dataclasses
import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import checkpoint, models, parallel, state, step
from sintrovae_jax import config as configs
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import Posterior


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: nn.Module, variables, inputs):
    return module.apply(variables, inputs, train=False)


def _great_circle(a, b, t):
    """Points at t in [0, 1] of the arc from a to b, [..., Z]; of the line where an angle of 0 or π makes no circle."""
    cosine = (a * b).sum(-1, keepdims=True) / jnp.maximum(
        jnp.linalg.norm(a, axis=-1, keepdims=True) * jnp.linalg.norm(b, axis=-1, keepdims=True), 1e-12
    )
    angle = jnp.arccos(cosine.clip(-1, 1))
    sine = jnp.sin(angle)
    arc = (jnp.sin((1 - t) * angle) * a + jnp.sin(t * angle) * b) / jnp.where(sine > 1e-4, sine, 1)
    return jnp.where(sine > 1e-4, arc, (1 - t) * a + t * b)


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained encoder and decoder. Arrays in, arrays out; x is float32 [N, *shape], images in [0, 1].

    Long inputs go through in chunks of `config.eval.batch_size`; every call compiles once per shape.
    """

    config: ConfigDict
    step: int
    encoder: nn.Module
    decoder: nn.Module
    variables: dict  # {'encoder': ..., 'decoder': ...}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return models.data_shape(self.config.data)

    def encode(self, x) -> Posterior:
        """x [N, *shape] -> the posterior's mean and logvar, [N, Z] each. Raises `UserError` for another shape."""
        x = jnp.asarray(x, jnp.float32)
        if x.shape[1:] != self.shape:
            raise UserError(f"this model encodes arrays of shape [N, {', '.join(map(str, self.shape))}], not {x.shape}")
        return self._in_chunks(self.encoder, self.variables["encoder"], x)

    def decode(self, z) -> jax.Array:
        """z [N, Z] -> x̂ [N, *shape]. Not clipped. Raises `UserError` for another number of latent dimensions."""
        z = jnp.asarray(z, jnp.float32)
        if z.ndim != 2 or z.shape[1] != self.config.model.z_dim:
            raise UserError(f"this model decodes latents of shape [N, {self.config.model.z_dim}], not {z.shape}")
        return self._in_chunks(self.decoder, self.variables["decoder"], z)

    def _in_chunks(self, module, variables, inputs):
        size = self.config.eval.batch_size
        if len(inputs) <= size:
            return _apply(module, variables, inputs)
        missing = -len(inputs) % size  # the last chunk is filled up, so that it compiles nothing new
        filled = jnp.pad(inputs, [(0, missing)] + [(0, 0)] * (inputs.ndim - 1))
        parts = [_apply(module, variables, chunk) for chunk in filled.reshape(-1, size, *inputs.shape[1:])]
        return jax.tree.map(lambda *chunks: jnp.concatenate(chunks)[: len(inputs)], *parts)

    def prior(self, key, n: int) -> jax.Array:
        """n latents from the prior N(0, prior_std²). key: a jax key or an int seed. Returns [n, Z]."""
        key = jax.random.key(key) if isinstance(key, int) else key
        return self.config.objective.prior_std * jax.random.normal(key, (n, self.config.model.z_dim))

    def sample(self, key, n: int) -> jax.Array:
        """n samples: decoded latents from the prior. key: a jax key or an int seed. Returns [n, *shape]."""
        return self.decode(self.prior(key, n))

    def reconstruct(self, x) -> jax.Array:
        """Decodes the posterior's mean. [N, *shape] in and out."""
        return self.decode(self.encode(x).mean)

    def interpolate(self, a, b, steps: int = 8, spherical: bool = False) -> jax.Array:
        """Decodes points between the latents (posterior means) of a and b, both ends included.

        On the line between them, or if `spherical` on the great circle (White 2016, arXiv 1609.04468).
        a, b: [N, *shape]. Returns [N, steps, *shape].
        """
        z_a, z_b = self.encode(a).mean[:, None], self.encode(b).mean[:, None]
        t = jnp.linspace(0.0, 1.0, steps)[None, :, None]
        z = _great_circle(z_a, z_b, t) if spherical else (1 - t) * z_a + t * z_b
        return self.decode(z.reshape(-1, z.shape[-1])).reshape(z.shape[0], steps, *self.shape)


def from_state(config: ConfigDict, networks: state.Networks, host_state: state.TrainState) -> Model:
    """The model of a training state without device axis (`parallel.unreplicate`)."""
    return Model(config, int(host_state.step), networks.encoder, networks.decoder, host_state.best_variables)


def load(path, step: int | None = None) -> Model:
    """Rebuilds a trained model from its workdir alone.

    path: a workdir, its `checkpoints` folder, or one checkpoint (`checkpoints/STEP`). step: which checkpoint (default:
    the newest). Raises `UserError` where there is no workdir, no such checkpoint, or it cannot be read.
    """
    workdir, step = _locate(Path(path), step)
    config = configs.read(workdir)
    if config is None:
        raise UserError(f"no checkpoint in {path}: it is no workdir (it has no config.json); train first")
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True) if (workdir / checkpoint.FOLDER).is_dir() else None
    steps = checkpoints.steps() if checkpoints else []
    if not steps:
        raise UserError(f"no checkpoint in {workdir}; train first, or name another workdir")
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint of step {step} in {workdir}; there are {', '.join(map(str, steps))}")
    chosen = steps[-1] if step is None else step
    networks, variables = _read(config, checkpoints, chosen, workdir)
    checkpoints.close()
    return Model(config, chosen, networks.encoder, networks.decoder, variables)


def _locate(path: Path, step):
    if path.parent.name == checkpoint.FOLDER and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return (path.parent if path.name == checkpoint.FOLDER else path), step


def _read(config, checkpoints, chosen, workdir):
    networks, _, create = step.from_config(config)
    try:
        variables = checkpoints.read(chosen, jax.eval_shape(create))
    except Exception as error:  # whatever Orbax and its storage layers raise on damaged files
        others = [s for s in checkpoints.steps() if s != chosen]
        hint = f"; there is also step {', '.join(map(str, others))}" if others else ""
        reason = parallel.first_line(error)
        raise UserError(f"checkpoint {chosen} of {workdir} cannot be read ({reason}){hint}") from error
    return networks, jax.tree.map(np.asarray, variables)
