"""A trained encoder and decoder, and the operations on them that all families share."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from sintrovae_jax import cancellation, importance, objectives, parallel, priors, progress, seeds
from sintrovae_jax.arrays import Array, Scalar, Tree, Variables
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError
from sintrovae_jax.models.layers import Posterior, Stage


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=("role", "method"))
def _apply(
    module: nn.Module,
    level: int | None,
    variables: Variables,
    inputs: jax.Array,
    keys: jax.Array | None = None,
    blend: Scalar = 1.0,
    labels: jax.Array | None = None,
    *,
    role: str | None = None,
    method: str | None = None,
) -> Tree:
    """level, blend, keys: for networks that grow; role: for decoders; labels: for conditional networks (`models`)."""
    options: dict[str, Any] = {} if level is None else {"stage": Stage(level, blend)}
    options |= {} if role is None else {"role": role}
    options |= {} if keys is None else {"keys": keys}
    options |= {} if labels is None else {"labels": labels}
    options |= {"train": False} if method is None else {"method": method}
    return module.apply(variables, inputs, **options)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _add_samples(encoder, decoder, level, variables, x, keys, sums, first, stop, std, prior, blend, labels=None):
    def decode(z, noise):
        keys = None if level is None else noise
        return _apply(decoder, level, variables["decoder"], z, keys, blend, labels, role="posterior")

    posterior = _apply(encoder, level, variables["encoder"], x, None, blend, labels)
    return importance.add_samples(sums, decode, x, posterior, keys, first, stop, std=std, log_prior=prior.log_prob)


def great_circle(a: jax.Array, b: jax.Array, t: jax.Array) -> jax.Array:
    """Points at t in [0, 1] on the arc from a to b, [..., Z]; on the line if their angle is 0 or π, where no arc is
    unique.
    """
    cosine = (a * b).sum(-1, keepdims=True) / jnp.maximum(
        jnp.linalg.norm(a, axis=-1, keepdims=True) * jnp.linalg.norm(b, axis=-1, keepdims=True), 1e-12
    )
    angle = jnp.arccos(cosine.clip(-1, 1))
    sine = jnp.sin(angle)
    arc = (jnp.sin((1 - t) * angle) * a + jnp.sin(t * angle) * b) / jnp.where(sine > 1e-4, sine, 1)
    return jnp.where(sine > 1e-4, arc, (1 - t) * a + t * b)


def line(a: jax.Array, b: jax.Array, t: jax.Array) -> jax.Array:
    return (1 - t) * a + t * b


_SAMPLES = 20  # importance samples of a chunk between two checks for a signal
Noise = bool | Sequence[int] | Array
Seed = int | np.integer | jax.Array  # or a jax key
Interpolation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (a, b [..., Z], t in [0, 1]) -> [..., Z]


def between(a: jax.Array, b: jax.Array, t: jax.Array, path: Interpolation) -> jax.Array:
    """Points at every t [T] on the paths from a to b [N, ...]. Returns [N·T, ...]."""
    points = path(a[:, None], b[:, None], t.reshape(-1, *[1] * (a.ndim - 1)))
    return points.reshape(-1, *a.shape[1:])


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained encoder and decoder. Arrays in, arrays out; x is float32 [N, *shape], N above 0, images in [0, 1].

    labels: a conditional model (`config.model.classes` above 0) needs them, others take none: whole numbers [N] from 0
    to classes - 1, or weights of the classes [N, classes]. Missing or wrong labels raise `UserError`.

    Decoded images are not clipped: most models overshoot [0, 1] a little. The decoder's BatchNorm uses the averages of
    prior samples in `sample`, and of posterior samples in all operations that start from images.

    Long inputs are processed in chunks of `config.eval.batch_size`; every call compiles once per shape.
    """

    config: ConfigDict
    step: int
    encoder: nn.Module
    decoder: nn.Module
    variables: dict[str, Variables]  # {'encoder': ..., 'decoder': ...}
    stage: Stage | None = None  # how far the networks have grown, if they grow
    batch_norm: str = "running"  # BatchNorm's averages, if the networks have BatchNorm: 'running' or 'standing'

    paths: ClassVar[Mapping[str, Interpolation]] = MappingProxyType({"linear": line, "spherical": great_circle})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example; for a model that grows, at the level that it has reached."""
        return examples.of(self.config.data).shape

    @seeds.pinned()
    def encode(self, x: ArrayLike, labels: ArrayLike | None = None) -> Posterior:
        """x [N, *shape] -> the posterior's mean and logvar, [N, Z] each. Raises `UserError` for any other shape."""
        x = self._examples(x)
        return self._in_chunks("encoder", x, labels=self._labels(labels, len(x)))

    @seeds.pinned()
    def decode(
        self, z: ArrayLike, noise: Noise = True, role: str = "posterior", labels: ArrayLike | None = None
    ) -> jax.Array:
        """z [N, Z] -> x̂ [N, *shape]. Not clipped. Raises `UserError` for another number of latent dimensions.

        role: the distribution of z, 'posterior' or 'prior', which selects BatchNorm's averages. It has no effect on a
        model without BatchNorm. noise: for decoders that add noise. True: image i always gets the same noise; False:
        no noise, the deterministic mode; numbers [N]: equal numbers get equal noise.
        """
        z = self._latents(z)
        return self._in_chunks("decoder", z, self._keys(len(z), noise), labels=self._labels(labels, len(z)), role=role)

    def _examples(self, x: ArrayLike) -> jax.Array:
        x = jnp.asarray(x, jnp.float32)
        if x.shape[1:] != self.shape:
            raise UserError(f"this model encodes arrays of shape [N, {', '.join(map(str, self.shape))}], not {x.shape}")
        if not len(x):
            raise UserError("there is nothing to encode: x has no examples")
        return x

    def _labels(self, labels: ArrayLike | None, n: int) -> jax.Array | None:
        classes = self.config.model.classes
        if labels is None and not classes:
            return None
        if not classes:
            raise UserError("this model takes no labels: it is not conditional (model.classes=0)")
        if labels is None:
            raise UserError(f"this model needs labels, whole numbers [N] from 0 to {classes - 1}")
        try:
            given = labels if isinstance(labels, jax.core.Tracer) else np.asarray(labels)
        except ValueError as error:  # lists of different lengths
            raise UserError(f"labels are no array: {error}") from None
        if given.shape == (n, classes) and given.dtype.kind in "fiu":
            if not isinstance(given, jax.core.Tracer) and not (np.isfinite(given) & (given >= 0)).all():
                raise UserError("weights of classes are finite and not negative")
            return jnp.asarray(given, jnp.float32)
        if given.shape != (n,) or not jnp.issubdtype(given.dtype, jnp.integer):
            raise UserError(f"labels are whole numbers of shape [{n}] here, not {given.dtype} {given.shape}")
        if not isinstance(given, jax.core.Tracer) and n and not 0 <= given.min() <= given.max() < classes:
            raise UserError(f"labels are from 0 to {classes - 1} here, not from {given.min()} to {given.max()}")
        return jnp.asarray(given, jnp.int32)

    def even_labels(self, n: int) -> np.ndarray | None:
        """Labels [n] of all classes in turn, i mod classes, for a conditional model; None for others."""
        classes = self.config.model.classes
        return np.arange(n, dtype=np.int32) % classes if classes else None

    def _latents(self, z: ArrayLike) -> jax.Array:
        z = jnp.asarray(z, jnp.float32)
        if z.ndim != 2 or z.shape[1] != self.config.model.z_dim:
            raise UserError(f"this model decodes latents of shape [N, {self.config.model.z_dim}], not {z.shape}")
        return z

    def _keys(self, n, noise):
        if self.stage is None or noise is False:
            return None
        numbers = jnp.arange(n) if noise is True else jnp.asarray(noise)
        return parallel.example_keys(seeds.key(self.config.seed), jnp.zeros((), jnp.int32), numbers)

    @functools.cached_property
    def _on_devices(self):
        with jax.ensure_compile_time_eval():  # also if the first call is inside a jit
            return parallel.on_local_devices(self.variables)

    def _in_chunks(
        self,
        network: str,
        inputs: jax.Array,
        keys: jax.Array | None = None,
        labels: jax.Array | None = None,
        staged: bool = True,
        **static: Any,
    ) -> Tree:
        """staged: whether the method depends on the stage of networks that grow."""
        module, variables = getattr(self, network), self._on_devices[network]
        level, blend = self.stage if self.stage is not None and staged else (None, 1.0)

        def apply(chunk, keys, labels):
            return _apply(module, level, variables, chunk, keys, blend, labels, **static)

        return parallel.in_chunks(apply, self.config.eval.batch_size, inputs, keys, labels)

    def apply(self, network: str, inputs: jax.Array, labels: jax.Array | None = None, role: str | None = None) -> Tree:
        """Applies 'encoder' or 'decoder' to inputs [N, ...] at once, for tracing: N may be a symbol of `jax.export`.

        Returns the same as `encode` or `decode`. Nothing is checked.
        """
        level, blend = self.stage or (None, 1.0)
        keys = self._keys(inputs.shape[0], network == "decoder")
        module, variables = getattr(self, network), self.variables[network]
        return _apply(module, level, variables, inputs, keys, blend, labels, role=role)

    @seeds.pinned()
    def prior(self, key: Seed, n: int, component: int | None = None, temperature: float = 1.0) -> jax.Array:
        """n latents from the prior, N(0, prior_std²) or a learnt mixture. Returns [n, Z].

        key: a jax key or an int seed. component: the component of a mixture that all latents are drawn from; None: all
        components. temperature: a factor of the standard deviation of every component. Raises `UserError` if there is
        no such component.
        """
        if n < 0:
            raise UserError(f"the number of latents cannot be negative: {n}")
        key, mixture = seeds.as_key(key), self.mixture
        noise = temperature * jax.random.normal(key, (n, self.config.model.z_dim))
        components = 0 if mixture is None else mixture.components
        if component is not None and not 0 <= component < components:
            raise UserError(f"the prior of this model has {components or 'no'} components: there is no {component}")
        if mixture is None:
            return self.config.objective.prior_std * noise
        drawn = jax.random.categorical(jax.random.fold_in(key, 1), jnp.asarray(mixture.logits), shape=(n,))
        return mixture.at(noise, drawn if component is None else jnp.full(n, component))

    @property
    def mixture(self) -> priors.Mixture | None:
        """The learnt prior; None if the prior is N(0, prior_std²)."""
        return priors.learnt(self.variables)

    @seeds.pinned()
    def kl(self, posterior: Posterior, key: Seed = 0) -> jax.Array:
        """KL(posterior || prior) in nats [N]; for a learnt prior, an estimate from `objective.kl_samples` samples."""
        mixture = self.mixture
        if mixture is None:
            return objectives.kl(*posterior, self.config.objective.prior_std)
        noise_key, samples = seeds.as_key(key), self.config.objective.kl_samples

        def estimate(mean, logvar, index):
            keys = jax.vmap(lambda i: jax.random.fold_in(noise_key, i))(index)
            noise = jax.vmap(lambda key: jax.random.normal(key, (samples, mean.shape[1])))(keys)
            return mixture.kl(mean, logvar, noise)

        index = jnp.arange(len(posterior.mean))
        return parallel.in_chunks(jax.jit(estimate), self.config.eval.batch_size, *posterior, index)

    def sample(self, key: Seed, n: int, truncation: float = 1.0, labels: ArrayLike | None = None) -> jax.Array:
        """n samples: decoded latents from the prior. key: a jax key or an int seed. Returns [n, *shape].

        truncation: for style-based models; others raise `UserError` unless it is 1. labels: for conditional models;
        without labels, sample i gets the label i mod classes.
        """
        if truncation != 1:
            raise UserError(f"a model of model.family={self.config.model.family} has no truncation: set it to 1")
        labels = self.even_labels(n) if labels is None else labels
        return self.decode(self.prior(key, n), role="prior", labels=labels)

    @seeds.pinned()
    def importance_weighted(
        self,
        x: ArrayLike,
        samples: int = 1000,
        std: float | None = None,
        key: Seed = 0,
        labels: ArrayLike | None = None,
    ) -> importance.Estimate:
        """Estimates log p(x) and the ELBO of x [N, *shape] in nats, [N] each, as described in `importance`.

        With labels, estimates log p(x | label) and its ELBO.

        samples: importance samples per example. std: the standard deviation of p(x|z), by default `observation_std`.
        key: a jax key or an int seed. Raises `UserError` for any other shape of x, or a std that is not above 0.
        """
        x, std = self._examples(x), self.observation_std if std is None else std
        known = self._labels(labels, len(x))
        if samples < 1:
            raise UserError(f"log p(x) needs at least one importance sample, not {samples}")
        if not std > 0:
            raise UserError("p(x|z) has no standard deviation: set eval.likelihood.observation_std")
        key = seeds.as_key(key)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(x)))
        level, blend = self.stage or (None, 1.0)
        static = (self.encoder, self.decoder, level)
        prior = priors.learnt(self._on_devices) or priors.Normal(self.config.objective.prior_std)

        def estimate(x, keys, labels):
            sums, tracing = importance.no_samples(len(x)), isinstance(x, jax.core.Tracer)
            size = samples if tracing else _SAMPLES
            for first in progress.counted(range(0, samples, size), "importance samples", samples, size):
                cancellation.check()
                span = first, min(first + size, samples)
                if not tracing:  # waits, because queued work cannot be cancelled; one sharding means one program
                    sums = jax.device_put(jax.block_until_ready(sums), x.sharding)
                sums = _add_samples(*static, self._on_devices, x, keys, sums, *span, std, prior, blend, labels)
            return importance.estimate(sums, samples)

        return parallel.in_chunks(estimate, self.config.eval.batch_size, x, keys, known)

    def log_likelihood(
        self,
        x: ArrayLike,
        samples: int = 1000,
        std: float | None = None,
        key: Seed = 0,
        labels: ArrayLike | None = None,
    ) -> jax.Array:
        """log p(x) in nats [N]; for a conditional model, log p(x | label). See `importance_weighted`."""
        return self.importance_weighted(x, samples, std, key, labels).log_likelihood

    @property
    def observation_std(self) -> float:
        """The standard deviation of p(x|z) that likelihoods use by default."""
        return self.config.eval.likelihood.observation_std or importance.observation_std(self.config.objective)

    def reconstruct(self, x: ArrayLike, labels: ArrayLike | None = None) -> jax.Array:
        """Decodes the posterior's mean. [N, *shape] in and out."""
        return self.decode(self.encode(x, labels).mean, labels=labels)

    @seeds.pinned()
    def interpolate(
        self,
        a: ArrayLike,
        b: ArrayLike,
        steps: int = 8,
        path: str = "linear",
        labels: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
    ) -> jax.Array:
        """Decodes points between the latents (posterior means) of a and b, both ends included.

        a, b: [N, *shape]. path: one of `paths`: 'linear' or 'spherical' (White 2016, arXiv 1609.04468). labels: for a
        conditional model, the labels of a and the labels of b, whose one-hot vectors are blended along the path.
        Returns [N, steps, *shape]. Raises `UserError` for any other path, or if a and b differ in shape.
        """
        if path not in self.paths:
            raise UserError(f"a path of interpolation is one of {', '.join(self.paths)}, not {path!r}")
        if jnp.shape(a) != jnp.shape(b):
            raise UserError(f"a and b are of different shapes: {jnp.shape(a)} and {jnp.shape(b)}")
        if len(labels) != 2:
            raise UserError("an interpolation has the labels of both ends: (of a, of b)")
        z_a, z_b = self.encode(a, labels[0]).mean, self.encode(b, labels[1]).mean
        t, noise = jnp.linspace(0.0, 1.0, steps), jnp.arange(len(z_a)).repeat(steps)  # the same noise along a path
        images = self._along(path, z_a, z_b, t, noise, self._blended(labels, t))
        return images.reshape(len(z_a), steps, *self.shape)

    def _blended(self, labels, t):
        """The weights of the classes [N·T, classes] at every point t [T] between the labels [N] of both ends.

        None for a model without labels.
        """
        if not self.config.model.classes:
            return None
        weights_a, weights_b = (self._weights(given) for given in labels)
        return between(weights_a, weights_b, t, line)

    def _weights(self, labels):
        """Labels as weights of the classes [N, classes]."""
        labels = jnp.asarray(labels)
        return labels if labels.ndim == 2 else jax.nn.one_hot(labels, self.config.model.classes)

    def _along(self, path, z_a, z_b, t, noise, labels=None):
        """Decodes every point t [T] on the paths between latents [N, Z]. Returns [N·T, *shape]."""
        return self.decode(between(z_a, z_b, t, self.paths[path]), noise, labels=labels)
