"""The forward passes of a training step, in training mode: several batches pass as one, with the step's noise."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sintrovae_jax import diff_augment, objectives, parallel, priors, reconstruction
from sintrovae_jax.arrays import Tree, Variables
from sintrovae_jax.models import Posterior, Stage
from sintrovae_jax.models.family import Growth
from sintrovae_jax.objectives import Hyper
from sintrovae_jax.train_state import Networks, TrainState


@dataclasses.dataclass(frozen=True)
class Static:
    """The static parameters of a step; a change compiles a new step."""

    name: str = "soft_intro"  # a key of `OBJECTIVES`
    vae: bool = False  # the VAE phase; implied by an objective without adversarial losses
    reconstruction: str = "mse"
    prior_std: float = 1.0
    kl_weights: tuple[float, ...] = ()
    use_gamma_r: bool = False
    target_period: int = 0  # bootstrap: steps between refreshes of the target decoder, if the state has one
    growth: Growth | None = None  # how the networks grow; None: they do not
    level: int | None = None  # the level that networks that grow are trained at
    augment: bool = False  # `diff_augment` before the encoder
    prior: priors.Setting | None = None  # the settings of a learnt prior; None: the prior is fixed

    @property
    def objective(self) -> objectives.Objective:
        return objectives.OBJECTIVES[self.name]


class Noise(NamedTuple):
    """Standard normal noise of one step, each [B, Z], named after the latents that it draws."""

    prior: jax.Array
    real: jax.Array
    recon: jax.Array
    fake: jax.Array
    recon_again: jax.Array
    fake_again: jax.Array
    keys: jax.Array | None = None  # [B], for the noise that a decoder adds, for augmentation, and for a learnt prior


_SAMPLES = Noise._fields[:-1]


def draw_noise(keys: jax.Array, z_dim: int) -> Noise:
    """Noise per example. keys: [B]. Unused draws cost nothing: the compiler removes them."""

    def draw(number):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), (z_dim,)))(keys)

    return Noise(**{name: draw(number) for number, name in enumerate(_SAMPLES)}, keys=keys)


def as_float(x: jax.Array) -> jax.Array:
    """Bytes as float32 in [0, 1]; other types unchanged. Images go to the devices as bytes, a quarter of the size."""
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


class Passes:
    """The networks in training mode. groups: the number of batches that are concatenated in the input.

    labels: the batch's labels [B], for conditional networks. Real images, reconstructions and samples share them.
    """

    def __init__(
        self,
        networks: Networks,
        static: Static,
        state: TrainState,
        noise: Noise,
        hyper: Hyper,
        weights: Tree,
        labels: jax.Array | None = None,
    ):
        self.encoder, self.decoder, self.state, self.static = networks.encoder, networks.decoder, state, static
        self.rec = reconstruction.error(static.reconstruction, weights)
        self._noise, self._labels = noise, labels
        self._prior = None if state.prior is None else state.prior.mixture  # None: N(0, prior_std²)
        self._stage = {} if static.level is None else {"stage": Stage(static.level, hyper.blend)}

    def encode(self, params: Tree, x: jax.Array, samples: Sequence[str] = ("real",)) -> tuple[Posterior, Variables]:
        """x [groups·B, ...] -> the posterior, and the updated statistics (for one group only).

        samples: for each group, the field of `Noise` that its posterior will be sampled with.
        """
        groups, stats = len(samples), self.state.encoder.stats
        if self.static.augment:
            x = diff_augment.augment(self._keys(samples, 2), x)
        return self._apply(self.encoder, params, stats, x, groups, keep=groups == 1, **self._stage)

    def decode(
        self, params: Tree, z: jax.Array, samples: Sequence[str], keep: bool = True
    ) -> tuple[jax.Array, Variables]:
        """z [groups·B, Z] -> images, and with `keep` the updated statistics.

        samples: for each group, the field of `Noise` that its z was sampled with. A decoder that adds noise of its own
        draws it independently for each field.
        """
        options = self._stage and self._stage | {"keys": self._keys(samples, 1), "mix": samples[-1] == "prior"}
        return self._apply(self.decoder, params, self.state.decoder.stats, z, len(samples), keep=keep, **options)

    def decode_again(self, params: Tree, z: jax.Array, samples: Sequence[str]) -> jax.Array:
        """Decodes the latents of generated images, with bootstrap's target decoder if the state has one."""
        target = self.state.target
        return self.decode(params if target is None else target["params"], z, samples, keep=False)[0]

    def latents(self) -> jax.Array:
        """z_p [B, Z], samples of the prior."""
        mixture = self._prior
        if mixture is None:
            return self.static.prior_std * self._noise.prior
        component = jax.vmap(lambda key: jax.random.categorical(key, mixture.logits))(self._keys(["prior"], 4))
        return mixture.at(self._noise.prior, component)

    def kl(
        self, posterior: Posterior, samples: Sequence[str] = ("real",), mixture: priors.Mixture | None = None
    ) -> jax.Array:
        """KL(posterior || prior) [groups·B]. samples: see `encode`. mixture: replaces the state's prior."""
        mixture = self._prior if mixture is None else mixture
        if mixture is None:
            return objectives.kl(*posterior, self.static.prior_std, self.static.kl_weights or None)
        return mixture.kl(*posterior, self._kl_noise(samples))

    def unevenness(self, posterior: Posterior) -> jax.Array:
        """-H / ln K of the responsibilities r of the prior's K components, averaged over the batch of all devices.

        From -1 (even) to 0 (a single component). Its gradient is the gradient of this device's share of the batch.
        """
        assert self._prior is not None
        z = Posterior(*(a[:, None] for a in posterior)).sample(self._kl_noise(["real"]))
        local_mean = self._prior.responsibilities(z).mean((0, 1))
        log_mean = jnp.log(parallel.pmean(jax.lax.stop_gradient(local_mean)) + 1e-8)
        # The derivative of Σ r ln r is Σ (ln r + 1) dr, and Σ dr = 0.
        return (local_mean * log_mean).sum() / jnp.log(self._prior.components)

    def _kl_noise(self, samples):
        assert self.static.prior is not None
        shape = self.static.prior.kl_samples, self._noise.prior.shape[1]
        return jax.vmap(lambda key: jax.random.normal(key, shape))(self._keys(samples, 3))

    def _keys(self, samples, use):
        """Keys [groups·B], different for every `use`; `draw_noise` uses 0."""
        numbers = (use * len(_SAMPLES) + _SAMPLES.index(name) for name in samples)
        return jnp.concatenate([jax.vmap(lambda k, n=n: jax.random.fold_in(k, n))(self._noise.keys) for n in numbers])

    def _apply(
        self,
        module: nn.Module,
        params: Tree,
        stats: Variables,
        inputs: jax.Array,
        groups: int,
        keep: bool,
        **options: Any,
    ) -> Tree:
        variables, mutable = {"params": params, **stats}, list(stats) if keep else []
        if self._labels is not None:
            options["labels"] = jnp.tile(self._labels, groups)
        return module.apply(variables, inputs, train=True, groups=groups, mutable=mutable, **options)
