"""One training step per device: the encoder's update, then the decoder's against the new encoder.

Read it beside reference.md, section 1. With x a real batch and z_p prior noise,

    fake = D(z_p)      z ~ q(z|x)      recon = D(z)

are decoded once, in `encoder_update`; `jax.vjp` also hands back how to pull a gradient from these two images to the
decoder's parameters, and `decoder_update` uses that instead of decoding again. Everything here is pure and runs under
the device axis of `parallel.pmap`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sintrovae_jax import growth, models, objectives, parallel, perceptual
from sintrovae_jax.models import Stage, style
from sintrovae_jax.state import Networks, TrainState, apply_gradients, create


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is static about the objective; changing one of these compiles a new step."""

    name: str = "soft_intro"
    reconstruction: str = "mse"
    vgg: str = ""  # of the perceptual reconstruction error: where its weights are, if not where they are looked for
    prior_std: float = 1.0
    kl_weights: tuple[float, ...] = ()
    num_vae: int = 0
    use_gamma_r: bool = False
    target_period: int = 0  # bootstrap: steps between refreshes of the target decoder, if the state has one
    level: int | None = None  # of networks that grow; None: they do not


class Hyper(NamedTuple):
    """What a schedule may change: traced scalars, so that changing one compiles nothing."""

    beta_rec: Any
    beta_kl: Any
    beta_neg: Any
    gamma: Any
    gamma_r: Any
    alpha: Any
    scale: Any
    intro_alpha: Any
    margin: Any
    learning_rate: Any  # of the encoder
    decoder_ratio: Any  # the decoder's learning rate, divided by the encoder's
    ema: Any
    blend: Any = 1.0  # how much of the level has been blended in, for networks that grow


class Noise(NamedTuple):
    """Standard normal noise of one step, each [B, Z], named after what is sampled with it."""

    prior: Any
    real: Any
    recon: Any
    fake: Any
    recon_again: Any
    fake_again: Any
    keys: Any = None  # [B], for the noise that a decoder adds


class Decodings(NamedTuple):
    """What the encoder's update leaves for the decoder's: images, and the pull-backs of gradients to D's parameters."""

    recon: Any
    fake: Any
    pull_recon: Callable
    pull_fake: Callable
    stats: Any


_ROLES = Noise._fields[:-1]


def draw_noise(keys: jax.Array, z_dim: int) -> Noise:
    """Noise per example. keys: [B]. Draws that a step does not use cost nothing: the compiler drops them."""

    def draw(role):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, role), (z_dim,)))(keys)

    return Noise(*(draw(role) for role in range(len(_ROLES))), keys)


def _train_apply(module, params, stats, inputs, **kwargs):
    """Applies a network in training mode. Returns its output and its updated statistics."""
    return module.apply({"params": params, **stats}, inputs, train=True, mutable=list(stats), **kwargs)


def stage_of(objective: Objective, hyper: Hyper) -> Stage | None:
    """How far the networks have grown at this step; None if they do not grow."""
    return None if objective.level is None else Stage(objective.level, hyper.blend)


def reconstruction_error(objective) -> Callable:
    """The function (x, x̂ [B, ...]) -> [B] that an `Objective`, or `config.objective`, names.

    Raises `UserError` if it needs weights that are not there.
    """
    if objective.reconstruction == "perceptual":
        return perceptual.error(perceptual.read(perceptual.find(objective.vgg)))
    return objectives.RECONSTRUCTION_ERRORS[objective.reconstruction]


class _Terms:
    """The static parts of a step, as the three functions the formulas are made of."""

    def __init__(self, networks: Networks, objective: Objective, state: TrainState, noise: Noise, hyper: Hyper):
        self.encoder, self.decoder, self.state, self.objective = networks.encoder, networks.decoder, state, objective
        self.rec = reconstruction_error(objective)
        self._noise, self._stage = noise, stage_of(objective, hyper)

    def encode(self, params, x):
        stage = {} if self._stage is None else {"stage": self._stage}
        return _train_apply(self.encoder, params, self.state.encoder.stats, x, **stage)

    def decode(self, role: str) -> Callable:
        """(params, z) -> image and statistics, for a z that was sampled with the noise of this name.

        The name keeps apart what a decoder that adds noise of its own draws.
        """
        options = {}
        if self._stage is not None:
            fold = jax.vmap(lambda key: jax.random.fold_in(key, len(_ROLES) + _ROLES.index(role)))
            options = {"stage": self._stage, "keys": fold(self._noise.keys), "mix": role == "prior"}
        return lambda params, z: _train_apply(self.decoder, params, self.state.decoder.stats, z, **options)

    def decode_again(self, role: str, params, z):
        """Decodes a latent of an already decoded image: bootstrap's target decoder does it, where there is one."""
        target = self.state.target
        return self.decode(role)(params if target is None else target["params"], z)[0]

    def kl(self, posterior):
        weights = self.objective.kl_weights or None
        return objectives.kl(posterior.mean, posterior.logvar, self.objective.prior_std, weights)


def encoder_update(
    networks: Networks, objective: Objective, state: TrainState, x, noise: Noise, hyper: Hyper
) -> tuple[TrainState, dict, Decodings]:
    """Minimises L_E with the decoder frozen. Returns the state with a new encoder, L_E's terms, and the decodings."""
    net = _Terms(networks, objective, state, noise, hyper)
    frozen = state.decoder.params
    z_p = objective.prior_std * noise.prior

    def loss_fn(params):
        real, stats = net.encode(params, x)
        recon, pull_recon, recon_stats = jax.vjp(net.decode("real"), frozen, real.sample(noise.real), has_aux=True)
        fake, pull_fake, fake_stats = jax.vjp(net.decode("prior"), frozen, z_p, has_aux=True)
        rec_real, kl_real = net.rec(x, recon), net.kl(real)

        kls, recs = [], []
        for y, role in ((recon, "recon"), (fake, "fake")):
            constant = lax.stop_gradient(y)
            posterior, _ = net.encode(params, constant)
            kls.append(net.kl(posterior))
            if objective.name == "soft_intro":  # IntroVAE's hinge looks at the KL alone
                recs.append(net.rec(constant, net.decode_again(role, frozen, posterior.sample(getattr(noise, role)))))

        terms = {"rec_real": rec_real, "kl_real": kl_real, "kl_recon": kls[0], "kl_fake": kls[1]}
        if objective.name == "soft_intro":
            elbo_real = objectives.elbo(rec_real, kl_real, hyper.beta_rec, hyper.beta_kl)
            elbos = [objectives.elbo(r, k, hyper.beta_rec, hyper.beta_neg) for r, k in zip(recs, kls, strict=True)]
            loss = objectives.soft_intro_encoder(elbo_real, elbos, hyper.scale, hyper.alpha)
            terms |= {"rec_recon": recs[0], "rec_fake": recs[1]}
            terms |= {
                f"exp_elbo_{y}": objectives.exp_elbo(e, hyper.scale, hyper.alpha)
                for y, e in zip(("recon", "fake"), elbos, strict=True)
            }
        else:
            loss = objectives.intro_encoder(
                rec_real, kl_real, kls, beta_rec=hyper.beta_rec, intro_alpha=hyper.intro_alpha, margin=hyper.margin
            )
        # Evaluation decodes prior and posterior samples alike, so the running averages follow the mean of both passes.
        decoder_stats = jax.tree.map(lambda a, b: (a + b) / 2, recon_stats, fake_stats)
        terms = {name: term.mean() for name, term in terms.items()} | {"loss_encoder": loss}
        return loss, (terms, stats, Decodings(recon, fake, pull_recon, pull_fake, decoder_stats))

    grads, (terms, stats, decodings) = jax.grad(loss_fn, has_aux=True)(state.encoder.params)
    encoder = apply_gradients(state.encoder, networks.encoder_tx, parallel.pmean(grads), hyper.learning_rate, stats)
    return state.replace(encoder=encoder), terms, decodings


def decoder_update(
    networks: Networks, objective: Objective, state: TrainState, x, noise: Noise, hyper: Hyper, decodings: Decodings
) -> tuple[TrainState, dict]:
    """Minimises L_D with the encoder frozen at its just-updated parameters, on the same z_p and z.

    kl(recon) and kl(fake) carry gradient through E into D, by way of the images of `decodings`. In the γ_r term target
    and latent are constants and its own decoding carries the gradient; with bootstrap's target decoder, which is a
    constant itself, it is the other way round.
    """
    net = _Terms(networks, objective, state, noise, hyper)
    frozen = state.encoder.params

    def loss_fn(params, recon, fake):
        rec_real = net.rec(x, recon)
        kls, recs = [], []
        for y, role in ((recon, "recon_again"), (fake, "fake_again")):
            posterior, _ = net.encode(frozen, y)
            kls.append(net.kl(posterior))
            if objective.use_gamma_r:
                constant = lax.stop_gradient if state.target is None else lambda a: a
                y_hat = net.decode_again(role, params, constant(posterior.sample(getattr(noise, role))))
                recs.append(net.rec(constant(y), y_hat))
        if objective.name == "soft_intro":
            return objectives.soft_intro_decoder(
                rec_real,
                kls,
                recs,
                scale=hyper.scale,
                beta_rec=hyper.beta_rec,
                beta_kl=hyper.beta_kl,
                gamma=hyper.gamma,
                gamma_r=hyper.gamma_r,
            )
        return objectives.intro_decoder(rec_real, kls, beta_rec=hyper.beta_rec, intro_alpha=hyper.intro_alpha)

    loss, (grads, recon_grad, fake_grad) = jax.value_and_grad(loss_fn, argnums=(0, 1, 2))(
        state.decoder.params, decodings.recon, decodings.fake
    )
    # The chain rule: what reaches the images goes on to the parameters that made them.
    grads = jax.tree.map(
        lambda direct, recon, fake: direct + recon + fake,
        grads,
        decodings.pull_recon(recon_grad)[0],
        decodings.pull_fake(fake_grad)[0],
    )
    rate = hyper.learning_rate * hyper.decoder_ratio
    decoder = apply_gradients(state.decoder, networks.decoder_tx, parallel.pmean(grads), rate, decodings.stats)
    return state.replace(decoder=decoder), {"loss_decoder": loss}


def vae_update(
    networks: Networks, objective: Objective, state: TrainState, x, noise: Noise, hyper: Hyper
) -> tuple[TrainState, dict]:
    """Both networks minimise β_rec·rec + β_kl·kl: the VAE baseline, and the first `num_vae` steps of a run."""
    net = _Terms(networks, objective, state, noise, hyper)

    def loss_fn(params):
        real, encoder_stats = net.encode(params[0], x)
        recon, decoder_stats = net.decode("real")(params[1], real.sample(noise.real))
        rec_real, kl_real = net.rec(x, recon), net.kl(real)
        loss = objectives.vae(objectives.elbo(rec_real, kl_real, hyper.beta_rec, hyper.beta_kl))
        terms = {"rec_real": rec_real.mean(), "kl_real": kl_real.mean(), "loss_encoder": loss, "loss_decoder": loss}
        return loss, (terms, encoder_stats, decoder_stats)

    params = (state.encoder.params, state.decoder.params)
    grads, (terms, encoder_stats, decoder_stats) = jax.grad(loss_fn, has_aux=True)(params)
    encoder_grads, decoder_grads = parallel.pmean(grads)
    rate = hyper.learning_rate
    encoder = apply_gradients(state.encoder, networks.encoder_tx, encoder_grads, rate, encoder_stats)
    decoder = apply_gradients(
        state.decoder, networks.decoder_tx, decoder_grads, rate * hyper.decoder_ratio, decoder_stats
    )
    return state.replace(encoder=encoder, decoder=decoder), terms


TERMS = {
    "vae": ("loss_encoder", "loss_decoder", "rec_real", "kl_real"),
    "intro": ("loss_encoder", "loss_decoder", "rec_real", "kl_real", "kl_recon", "kl_fake"),
}
TERMS["soft_intro"] = (*TERMS["intro"], "rec_recon", "rec_fake", "exp_elbo_recon", "exp_elbo_fake")


def update(networks: Networks, objective: Objective, state: TrainState, batch: dict, hyper: Hyper, key: jax.Array):
    """One step on one batch {'x': [B, ...], 'index': [B]}. Returns the new state and {term: [sum, count]}.

    A term that this step does not have (an adversarial one in the VAE phase) counts 0 times.
    """
    keys = parallel.example_keys(key, state.step, batch["index"])
    noise = draw_noise(keys, networks.encoder.z_dim)
    x, stage = as_float(batch["x"]), stage_of(objective, hyper)
    x = x if stage is None else style.blended_images(x, stage)

    def adversarial(state):
        state, encoder_terms, decodings = encoder_update(networks, objective, state, x, noise, hyper)
        state, decoder_terms = decoder_update(networks, objective, state, x, noise, hyper, decodings)
        return state, counted(encoder_terms | decoder_terms)

    def vae(state):
        state, terms = vae_update(networks, objective, state, x, noise, hyper)
        return state, counted(terms)

    def counted(terms):
        nothing = jnp.zeros(2)
        return {t: jnp.stack([terms[t], 1.0]) if t in terms else nothing for t in TERMS[objective.name]}

    if objective.name == "vae":
        state, terms = vae(state)
    elif objective.num_vae == 0:
        state, terms = adversarial(state)
    else:
        state, terms = lax.cond(state.step < objective.num_vae, vae, adversarial, state)
    return _follow(objective, state.replace(step=state.step + 1), hyper), terms


def as_float(x: jax.Array) -> jax.Array:
    """Images travel to the devices as bytes, a quarter of the size; networks see [0, 1]. Other types pass."""
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def _follow(objective: Objective, state: TrainState, hyper: Hyper) -> TrainState:
    """Moves the copies that follow the networks: bootstrap's target decoder, and the exponential moving average."""
    target, ema = state.target, state.ema
    if target is not None:
        due = state.step % objective.target_period == 0
        target = jax.tree.map(lambda old, new: jnp.where(due, new, old), target, state.decoder.variables)
    if ema is not None:
        ema = optax.incremental_update(state.variables, ema, 1 - hyper.ema)
    return state.replace(target=target, ema=ema)


def train_step(
    networks: Networks, objective: Objective, state: TrainState, batches: dict, hypers: Hyper, key: jax.Array
):
    """One dispatch on one device: `substeps` updates, scanned.

    batches: {'x': [substeps, B, ...], 'index': [substeps, B]}; hypers: each [substeps]. Returns the new state and
    {term: [sum, count, first]} over the substeps and devices, where `first` is the first substep at which the term was
    not finite, or infinity. `on_devices` wraps it.
    """

    def body(state, inputs):
        return update(networks, objective, state, *inputs, key)

    state, terms = lax.scan(body, state, (batches, hypers))

    def summarise(term):  # [substeps, 2]
        bad = ~jnp.isfinite(term[:, 0])
        return jnp.stack([*term.sum(axis=0), jnp.where(bad.any(), bad.argmax().astype(term.dtype), jnp.inf)])

    return state, jax.tree.map(summarise, parallel.pmean(terms))


def on_devices(networks: Networks, objective: Objective, devices: Sequence | None = None) -> Callable:
    """`train_step` over all devices. Of its arguments (state, batches, hypers, key) only the key has no device axis.

    devices: others, to compile for. Where they are TPUs, networks that can compute on pairs of pixels do.
    """
    if (devices or jax.devices())[0].platform == "tpu":
        networks = networks._replace(encoder=models.paired(networks.encoder), decoder=models.paired(networks.decoder))
    return parallel.pmap(functools.partial(train_step, networks, objective), (0, 0, 0, None), devices)


def has_ema(config) -> bool:
    """Whether a run of this config has averaged networks."""
    return config.train.ema > 0 or config.growth.ema_images > 0


def from_config(config) -> tuple[Networks, Objective, Callable[[], TrainState]]:
    """What a config makes static: networks with optimisers, the objective, and a function that makes a fresh state."""
    shape = models.data_shape(config.data)
    encoder, decoder = models.build(config.model, shape, config.train.dtype)
    o = config.objective
    objective = Objective(
        name=o.name,
        reconstruction=o.reconstruction,
        vgg=o.vgg,
        prior_std=o.prior_std,
        kl_weights=tuple(o.kl_weights),
        num_vae=o.num_vae,
        use_gamma_r=o.gamma_r > 0,
        target_period=o.target_period,
        level=len(config.model.channels) - 1 if models.grows(config.model) else None,
    )
    tx = models.optimizer(config.model)
    networks = Networks(encoder, decoder, tx, tx)
    copies = {"target": o.target_period > 0, "ema": has_ema(config)}
    return networks, objective, functools.partial(create, networks, config.seed, shape, config.model.z_dim, **copies)


def hypers_at(config, steps: np.ndarray) -> Hyper:
    """The hyper-parameters of the given steps, each a float32 array of their shape."""
    o, size = config.objective, math.prod(models.data_shape(config.data))
    passed = sum((steps >= milestone).astype(np.int32) for milestone in config.optimizer.milestones)
    values = {name: o[name] for name in Hyper._fields if name in o} | {"ema": config.train.ema}
    values |= {"scale": 1 / size if o.scale is None else o.scale, "learning_rate": config.optimizer.learning_rate}
    values["decoder_ratio"] = config.optimizer.decoder_ratio
    values |= growth.hypers(config, steps)
    values["learning_rate"] *= config.optimizer.decay**passed
    return Hyper(**{name: np.broadcast_to(np.float32(value), steps.shape) for name, value in values.items()})
