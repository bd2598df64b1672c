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


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained encoder and decoder. Arrays in, arrays out; x is float32 [N, *shape], images in [0, 1].

    Every call compiles once per batch size.
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
        return _apply(self.encoder, self.variables["encoder"], x)

    def decode(self, z) -> jax.Array:
        """z [N, Z] -> x̂ [N, *shape]. Not clipped. Raises `UserError` for another number of latent dimensions."""
        z = jnp.asarray(z, jnp.float32)
        if z.ndim != 2 or z.shape[1] != self.config.model.z_dim:
            raise UserError(f"this model decodes latents of shape [N, {self.config.model.z_dim}], not {z.shape}")
        return _apply(self.decoder, self.variables["decoder"], z)

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

    def interpolate(self, a, b, steps: int = 8) -> jax.Array:
        """Decodes points on the line between the latents (posterior means) of a and b, both ends included.

        a, b: [N, *shape]. Returns [N, steps, *shape].
        """
        z_a, z_b = self.encode(a).mean, self.encode(b).mean
        t = jnp.linspace(0.0, 1.0, steps)[None, :, None]
        z = (1 - t) * z_a[:, None] + t * z_b[:, None]
        return self.decode(z.reshape(-1, z.shape[-1])).reshape(z.shape[0], steps, *self.shape)


def from_state(config: ConfigDict, networks: state.Networks, host_state: state.TrainState) -> Model:
    """The model of a training state without device axis (`parallel.unreplicate`)."""
    variables = {"encoder": host_state.encoder.variables, "decoder": host_state.decoder.variables}
    return Model(config, int(host_state.step), networks.encoder, networks.decoder, variables)


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
    networks, _, shape = step.from_config(config)
    abstract = jax.eval_shape(lambda: state.create(networks, 0, shape, config.model.z_dim))
    wanted = {"encoder": abstract.encoder.variables, "decoder": abstract.decoder.variables}
    try:
        variables = checkpoints.read(chosen, wanted)
    except Exception as error:  # whatever Orbax and its storage layers raise on damaged files
        others = [s for s in checkpoints.steps() if s != chosen]
        hint = f"; there is also step {', '.join(map(str, others))}" if others else ""
        reason = parallel.first_line(error)
        raise UserError(f"checkpoint {chosen} of {workdir} cannot be read ({reason}){hint}") from error
    return networks, jax.tree.map(np.asarray, variables)
