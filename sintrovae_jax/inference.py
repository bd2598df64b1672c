"""Using a trained model: `load(path)`, then encode, decode, sample, reconstruct, interpolate.

Needs neither TensorFlow nor a config file: the workdir's config.json says what to build.
"""

import contextlib
import dataclasses
import functools
import numbers
from collections.abc import Iterator, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import checkpoint, files, importance, models, parallel, schedule, train_state, train_step
from sintrovae_jax import config as configs
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import Posterior, Stage, style


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=("role", "method"))
def _apply(module: nn.Module, level, variables, inputs, keys=None, blend=1.0, *, role=None, method=None):
    """level, blend, keys: of networks that grow; role: of decoders (`models`)."""
    options = {} if level is None else {"stage": Stage(level, blend)}
    options |= {} if role is None else {"role": role}
    options |= {} if keys is None else {"keys": keys}
    options |= {"train": False} if method is None else {"method": method}
    return module.apply(variables, inputs, **options)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _importance_weighted(encoder, decoder, level, variables, x, keys, samples, std, prior_std, blend):
    def decode(z, noise):
        keys = None if level is None else noise
        return _apply(decoder, level, variables["decoder"], z, keys, blend, role="posterior")

    posterior = _apply(encoder, level, variables["encoder"], x, None, blend)
    return importance.importance_weighted(decode, x, posterior, keys, samples, std=std, prior_std=prior_std)


def _great_circle(a, b, t):
    """Points at t in [0, 1] of the arc from a to b, [..., Z]; of the line where an angle of 0 or π makes no circle."""
    cosine = (a * b).sum(-1, keepdims=True) / jnp.maximum(
        jnp.linalg.norm(a, axis=-1, keepdims=True) * jnp.linalg.norm(b, axis=-1, keepdims=True), 1e-12
    )
    angle = jnp.arccos(cosine.clip(-1, 1))
    sine = jnp.sin(angle)
    arc = (jnp.sin((1 - t) * angle) * a + jnp.sin(t * angle) * b) / jnp.where(sine > 1e-4, sine, 1)
    return jnp.where(sine > 1e-4, arc, (1 - t) * a + t * b)


def _line(a, b, t):
    return (1 - t) * a + t * b


PRETRAINED = Path(__file__).with_name("pretrained")  # what comes with the package
Noise = bool | Sequence[int] | np.ndarray | jax.Array
_PATHS = {"linear": _line, "spherical": _great_circle}
PATHS = (*_PATHS, "style")  # of interpolation


def _between(a, b, t, path):
    """Points at every t [T] of the paths from a to b [N, ...]. Returns [N·T, ...]."""
    points = path(a[:, None], b[:, None], t.reshape(-1, *[1] * (a.ndim - 1)))
    return points.reshape(-1, *a.shape[1:])


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained encoder and decoder. Arrays in, arrays out; x is float32 [N, *shape], N above 0, images in [0, 1].

    What is decoded is not clipped: images of most models overshoot [0, 1] a little. BatchNorm uses the averages of the
    checkpoint, its running ones: those of prior samples in `sample`, those of posterior samples in all that begins with
    images.

    Long inputs go through in chunks of `config.eval.batch_size`; every call compiles once per shape.
    """

    config: ConfigDict
    step: int
    encoder: nn.Module
    decoder: nn.Module
    variables: dict  # {'encoder': ..., 'decoder': ...}
    stage: Stage | None = None  # how far it has grown, if it grows

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example, of the level that the model has reached if it grows."""
        whole = models.data_shape(self.config.data)
        return whole if self.stage is None else (*[style.resolution(self.stage.level)] * 2, whole[-1])

    def encode(self, x) -> Posterior:
        """x [N, *shape] -> the posterior's mean and logvar, [N, Z] each. Raises `UserError` for another shape."""
        return self._in_chunks("encoder", self._examples(x))

    def decode(self, z, noise: Noise = True, role: str = "posterior") -> jax.Array:
        """z [N, Z] -> x̂ [N, *shape]. Not clipped. Raises `UserError` for another number of latent dimensions.

        role: where z is from, 'posterior' or 'prior'. BatchNorm has averages of its own for each; a model without it
        decodes both alike.
        noise: whether a style-based decoder adds its noise, always the same to image i, or is in its deterministic
        mode; or the numbers [N] of the noises that the images get.
        """
        z = self._latents(z)
        return self._in_chunks("decoder", z, self._keys(len(z), noise), role=role)

    def styles(self, z, truncation: float = 1.0) -> jax.Array:
        """Style-based models: z [N, Z] -> the styles of every layer [N, layers, Z], to be mixed and synthesised.

        truncation: how far those of the first 8 layers stay from the average of training; 1: untouched, 0: at it.
        Raises `UserError` for other models, other shapes, or a truncation outside [0, 1].
        """
        self._require_styles()
        if not 0 <= truncation <= 1:
            raise UserError(f"a truncation is from 0 to 1, not {truncation}")
        w = self._in_chunks("decoder", self._latents(z), method="style")
        average = self.variables["decoder"]["averages"]["style"]
        return style.truncated(jnp.repeat(w[:, None], self._layers, 1), average, truncation)

    def synthesize(self, styles, noise: Noise = True) -> jax.Array:
        """Style-based models: styles [N, layers, Z] -> x̂ [N, *shape], as `decode`."""
        self._require_styles()
        styles, shape = jnp.asarray(styles, jnp.float32), (self._layers, self.config.model.z_dim)
        if styles.shape[1:] != shape:
            raise UserError(f"this model synthesises styles of shape [N, {shape[0]}, {shape[1]}], not {styles.shape}")
        return self._in_chunks("decoder", styles, self._keys(len(styles), noise), method="synthesize")

    @property
    def _layers(self):
        return 2 * (self.stage.level + 1)

    def _examples(self, x):
        x = jnp.asarray(x, jnp.float32)
        if x.shape[1:] != self.shape:
            raise UserError(f"this model encodes arrays of shape [N, {', '.join(map(str, self.shape))}], not {x.shape}")
        if not len(x):
            raise UserError("there is nothing to encode: x has no examples")
        return x

    def _latents(self, z):
        z = jnp.asarray(z, jnp.float32)
        if z.ndim != 2 or z.shape[1] != self.config.model.z_dim:
            raise UserError(f"this model decodes latents of shape [N, {self.config.model.z_dim}], not {z.shape}")
        return z

    def _keys(self, n, noise):
        if self.stage is None or noise is False:
            return None
        numbers = jnp.arange(n) if noise is True else jnp.asarray(noise)
        return parallel.example_keys(parallel.seed_key(self.config.seed), jnp.zeros((), jnp.int32), numbers)

    @functools.cached_property
    def _on_devices(self):
        with jax.ensure_compile_time_eval():  # also if the first call is within somebody's jit
            return parallel.on_local_devices(self.variables)

    def _in_chunks(self, network: str, inputs, keys=None, **static):
        module, variables = getattr(self, network), self._on_devices[network]
        level, blend = (None, 1.0) if self.stage is None or static.get("method") == "style" else self.stage

        def apply(chunk, keys):
            return _apply(module, level, variables, chunk, keys, blend, **static)

        return parallel.in_chunks(apply, self.config.eval.batch_size, inputs, keys)

    def prior(self, key, n: int) -> jax.Array:
        """n latents from the prior N(0, prior_std²). key: a jax key or an int seed. Returns [n, Z]."""
        key = jax.random.key(key) if isinstance(key, numbers.Integral) else key
        if n < 0:
            raise UserError(f"so many latents cannot be drawn: {n}")
        return self.config.objective.prior_std * jax.random.normal(key, (n, self.config.model.z_dim))

    def sample(self, key, n: int, truncation: float = 1.0) -> jax.Array:
        """n samples: decoded latents from the prior. key: a jax key or an int seed. Returns [n, *shape].

        truncation: of style-based models, see `styles`.
        """
        z = self.prior(key, n)
        return self.decode(z, role="prior") if truncation == 1 else self.synthesize(self.styles(z, truncation))

    def importance_weighted(self, x, samples: int = 1000, std: float | None = None, key=0) -> importance.Estimate:
        """Estimates log p(x) and the ELBO of x [N, *shape] in nats, [N] each, as `importance.importance_weighted` says.

        samples: importance samples of every example. std: of p(x|z), `config.eval.observation_std` if not given. key: a
        jax key or an int seed. Raises `UserError` for another shape of x, or a std that is not above 0.
        """
        x, std = self._examples(x), self.observation_std if std is None else std
        if samples < 1:
            raise UserError(f"log p(x) needs at least one importance sample, not {samples}")
        if not std > 0:
            raise UserError("p(x|z) has no standard deviation: set eval.observation_std")
        key = parallel.seed_key(key) if isinstance(key, numbers.Integral) else key
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(x)))
        level, blend = self.stage or (None, 1.0)
        static, prior_std = (self.encoder, self.decoder, level), self.config.objective.prior_std

        def estimate(x, keys):
            return _importance_weighted(*static, self._on_devices, x, keys, samples, std, prior_std, blend)

        return parallel.in_chunks(estimate, self.config.eval.batch_size, x, keys)

    def log_likelihood(self, x, samples: int = 1000, std: float | None = None, key=0) -> jax.Array:
        """log p(x) in nats [N]; see `importance_weighted`."""
        return self.importance_weighted(x, samples, std, key).log_likelihood

    @property
    def observation_std(self) -> float:
        """The standard deviation of p(x|z) that likelihoods are computed with, unless another is given."""
        return self.config.eval.observation_std or importance.observation_std(self.config.objective)

    def reconstruct(self, x) -> jax.Array:
        """Decodes the posterior's mean. [N, *shape] in and out."""
        return self.decode(self.encode(x).mean)

    def interpolate(self, a, b, steps: int = 8, path: str = "linear") -> jax.Array:
        """Decodes points between the latents (posterior means) of a and b, both ends included.

        a, b: [N, *shape]. path: 'linear' or 'spherical' (White 2016, arXiv 1609.04468) in latent space, or 'style', the
        line between the styles of a style-based model. Returns [N, steps, *shape]. Raises `UserError` for another path,
        and where a and b differ in shape.
        """
        if jnp.shape(a) != jnp.shape(b):
            raise UserError(f"a and b are of different shapes: {jnp.shape(a)} and {jnp.shape(b)}")
        z_a, z_b = self.encode(a).mean, self.encode(b).mean
        t, noise = jnp.linspace(0.0, 1.0, steps), jnp.arange(len(z_a)).repeat(steps)  # the same all along a path
        if path == "style":
            images = self.synthesize(_between(self.styles(z_a), self.styles(z_b), t, _line), noise)
        elif path in _PATHS:
            images = self.decode(_between(z_a, z_b, t, _PATHS[path]), noise)
        else:
            raise UserError(f"a path of interpolation is one of {', '.join(PATHS)}, not {path!r}")
        return images.reshape(len(z_a), steps, *self.shape)

    def codes(self, x) -> tuple[jax.Array, jax.Array]:
        """Two-encoder models: x [N, *shape] -> the means of its class code and of its content code, [N, Z] together.

        Raises `UserError` for other models.
        """
        if self.config.model.family != "two_encoder":
            raise UserError(f"class and content are of two-encoder models, not of {self._family}")
        return jnp.split(self.encode(x).mean, [self.config.model.class_dim], axis=-1)

    def translate(self, of_class, of_content) -> jax.Array:
        """Two-encoder models: images with the class of one and the content of the other, all [N, *shape].

        Decodes the class code of `of_class` with the content code of `of_content`, both posterior means. Raises
        `UserError` for other models.
        """
        return self.decode(jnp.concatenate([self.codes(of_class)[0], self.codes(of_content)[1]], -1))

    @property
    def _family(self):
        return f"model.family={self.config.model.family}"

    def _require_styles(self):
        if self.stage is None:
            raise UserError(f"styles and truncation are of style-based models, not of {self._family}")


def from_state(config: ConfigDict, networks: train_state.Networks, host_state: train_state.TrainState) -> Model:
    """The model of a training state without device axis (`parallel.unreplicate`)."""
    step = int(host_state.step)
    stage = schedule.stage_at(config, step)
    return Model(config, step, networks.encoder, networks.decoder, host_state.best_variables, stage)


def load(path, step: int | str | None = None, *, ema: bool = True) -> Model:
    """Rebuilds a trained model from its workdir alone, on whatever devices there are.

    path: a workdir, its `checkpoints` folder, or one checkpoint (`checkpoints/STEP`), local or remote (gs://…, which
    takes TensorFlow or gcsfs); or 'pretrained:NAME', a model that comes with the package. step: which checkpoint: a
    step, 'best' of those that are there by the figure that `config.checkpoint.best` names, or the newest if not given.
    ema: the averaged networks where the run has them; False: as they were trained. Raises `UserError` where there is no
    workdir, no such checkpoint, or it cannot be read or holds another model than its config says.
    """
    workdir, step = locate(path, step)
    config = config_of(workdir, path)
    for last in (False, False, True):
        try:
            return _read(config, workdir, step, ema)
        except UserError:
            # A run that trains there removes old checkpoints, perhaps while they are looked at.
            if last or isinstance(step, int):
                raise
    raise AssertionError


def locate(path, step: int | str | None = None):
    """The workdir that a path of `load` is of, and the step. Raises `UserError` for a path that cannot be one."""
    if step is not None and step != "best":
        if not isinstance(step, numbers.Integral):
            raise UserError(f"a step is a whole number or 'best', not {step!r}")
        step = int(step)
    kind, _, name = str(path).partition("pretrained:")
    if name and not kind:
        return _pretrained(name), step
    place = files.place(path)
    if place.parent.name == checkpoint.FOLDER and place.name.isdecimal() and not (place / configs.FILE).exists():
        if step not in (None, int(place.name)):
            raise UserError(f"{path} is step {int(place.name)}, not {step}")
        return place.parent.parent, int(place.name)
    inside = place.name == checkpoint.FOLDER and not (place / configs.FILE).exists()
    return (place.parent if inside else place), step


def _pretrained(name):
    folder = files.place(PRETRAINED)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if name not in names:
        raise UserError(f"pretrained:{name} does not come with the package; there are {', '.join(names)}")
    return folder / name


def config_of(workdir, path=None) -> ConfigDict:
    """A workdir's config. path: what the user calls it. Raises `UserError` where there is none or it cannot be used."""
    path = path or workdir
    try:
        config = configs.read(workdir) if (workdir / configs.FILE).exists() else None
        if config is not None:
            configs.validate(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{workdir / configs.FILE} is no config of this project ({parallel.first_line(error)})"
        ) from None
    except Exception as error:  # whatever the libraries for remote files raise
        raise UserError(f"{path} cannot be reached ({parallel.first_line(error)})") from error
    if config is None:
        raise UserError(f"no checkpoint in {path}: it is no workdir (it has no config.json); train first")
    return config


@contextlib.contextmanager
def opened(config, workdir, step: int | str | None = None) -> Iterator[tuple[checkpoint.Checkpoints, int]]:
    """Yields a workdir's checkpoints, only to be read, and the step that `load` would take of them.

    Raises `UserError` where there is none.
    """
    best = config.checkpoint.best if step == "best" else ""
    try:
        if not (workdir / checkpoint.FOLDER).is_dir():
            raise UserError(f"no checkpoint in {workdir}; train first, or name another workdir")
        mode = config.checkpoint.best_mode
        checkpoints = checkpoint.Checkpoints(workdir, best=best, best_mode=mode, read_only=True)
        chosen = _chosen(config, checkpoints, workdir, step)
    except UserError:
        raise
    except Exception as error:  # whatever Orbax and its storage layers raise on damaged files
        raise UserError(f"the checkpoints of {workdir} cannot be read ({parallel.first_line(error)})") from error
    with contextlib.closing(checkpoints):
        yield checkpoints, chosen


def _chosen(config, checkpoints, workdir, step) -> int:
    """The step to load. Raises `UserError` where there is no checkpoint of it."""
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"no checkpoint in {workdir}; train first, or name another workdir")
    there = f"there are {', '.join(map(str, steps))}"
    if step is None:
        return steps[-1]
    if step == "best":
        best = checkpoints.best_step()
        if best is None:
            figure = config.checkpoint.best
            why = f"none was evaluated for {figure}" if figure else "its config has no checkpoint.best"
            raise UserError(f"no best checkpoint in {workdir}: {why}; {there}")
        return best
    if step not in steps:
        raise UserError(f"no checkpoint of step {step} in {workdir}; {there}")
    return step


def _read(config, workdir, which, ema) -> Model:
    networks, _, create = train_step.from_config(config)
    abstract = jax.eval_shape(create)
    with opened(config, workdir, which) as (checkpoints, chosen):
        try:
            variables = checkpoints.read(chosen, abstract, ema)
        except UserError:
            raise
        except Exception as error:  # whatever Orbax and its storage layers raise on damaged files
            others = [s for s in checkpoints.steps() if s != chosen]
            hint = f"; there is also step {', '.join(map(str, others))}" if others else ""
            reason = parallel.first_line(error)
            raise UserError(f"checkpoint {chosen} of {workdir} cannot be read ({reason}){hint}") from error
    variables = jax.tree.map(np.asarray, variables)
    return Model(config, chosen, networks.encoder, networks.decoder, variables, schedule.stage_at(config, chosen))
