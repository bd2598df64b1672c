"""The objectives of Soft-IntroVAE, VAE and IntroVAE: arrays in, arrays out.

Soft-IntroVAE: Daniel & Tamar, CVPR 2021, arXiv 2012.13253. IntroVAE: Huang et al., NeurIPS 2018, arXiv 1807.06358.

A training step computes the `Terms` of a batch x and of the decoder's outputs: recon = D(z) with z ~ q(z|x), and
fake = D(z_p) with z_p from the prior. The table `OBJECTIVES` defines each objective by up to three losses: one for both
networks, which uses only the terms of real data, one for the encoder and one for the decoder. Every term is one number
per example (shape [B]), *summed* over the example's dimensions and computed in float32, whatever precision the networks
use.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sintrovae_jax.arrays import Scalar
from sintrovae_jax.chamfer import chamfer


def _per_example(errors: jax.Array) -> jax.Array:
    return errors.reshape(errors.shape[0], -1).sum(axis=1)


def at_least_float32(x: jax.Array) -> jax.Array:
    """x in float32, or in its own dtype if wider. Keeps losses and statistics of bfloat16 networks in float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def mse(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """Σ (x - x̂)² per example. x, x̂: [B, ...]. Returns [B]."""
    return _per_example(jnp.square(at_least_float32(x) - at_least_float32(x_hat)))


def l1(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """Σ |x - x̂| per example. x, x̂: [B, ...]. Returns [B]."""
    return _per_example(jnp.abs(at_least_float32(x) - at_least_float32(x_hat)))


def bce(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """-Σ [x log x̂ + (1-x) log(1-x̂)] per example. x, x̂: [B, ...] in [0, 1]. Returns [B].

    x̂ is a probability, the output of a sigmoid; it is kept one float32 epsilon away from 0 and 1, where a saturated
    sigmoid would give an infinite loss and a NaN gradient.
    """
    x, x_hat = at_least_float32(x), at_least_float32(x_hat)
    eps = jnp.finfo(jnp.float32).eps
    x_hat = jnp.clip(x_hat, eps, 1 - eps)
    return _per_example(-(x * jnp.log(x_hat) + (1 - x) * jnp.log1p(-x_hat)))


RECONSTRUCTION_ERRORS = {"mse": mse, "l1": l1, "bce": bce, "chamfer": chamfer}


def kl(
    mean: jax.Array,
    logvar: jax.Array,
    prior_std: Scalar = 1.0,
    weights: jax.Array | Sequence[float] | None = None,
) -> jax.Array:
    """KL( N(mean, exp(logvar)) || N(0, prior_std² I) ) per example, in nats.

    mean, logvar: [B, Z]. prior_std: one number for all dimensions, or one per dimension, [1, Z]. weights: [Z], the
    factor of each latent dimension's KL (default: ones). Returns [B].
    """
    mean, logvar = at_least_float32(mean), at_least_float32(logvar)
    prior_var = jnp.asarray(prior_std, mean.dtype) ** 2
    per_dimension = 0.5 * ((jnp.exp(logvar) + jnp.square(mean)) / prior_var - 1 - logvar + jnp.log(prior_var))
    if weights is not None:
        per_dimension = per_dimension * jnp.asarray(weights, mean.dtype)
    return per_dimension.sum(axis=-1)


def kl_gap(kl_real: float, kl_fake: float, kl_recon: float) -> float:
    """The smaller mean KL of samples and reconstructions, minus the mean KL of real data; below 0, lower β_neg."""
    return min(kl_fake, kl_recon) - kl_real


class Hyper(NamedTuple):
    """The hyper-parameters that a schedule may change: traced scalars, so that a change does not recompile."""

    beta_rec: Scalar
    beta_kl: Scalar
    beta_neg: Scalar
    gamma: Scalar
    gamma_r: Scalar
    alpha: Scalar
    scale: Scalar  # s
    intro_alpha: Scalar
    margin: Scalar
    learning_rate: Scalar  # of both networks
    ema: Scalar
    blend: Scalar = 1.0  # how much of the level has been blended in, for networks that grow


class Terms(NamedTuple):
    """The terms of all objectives, [B] each; KLs in nats, errors in their own units (squared error for mse).

    rec: the reconstruction error of an image that was decoded from a sample of its posterior. kl: KL(posterior ||
    prior). Terms that a loss does not use may stay 0.
    """

    rec_real: jax.Array | float = 0.0
    kl_real: jax.Array | float = 0.0
    rec_recon: jax.Array | float = 0.0
    kl_recon: jax.Array | float = 0.0
    rec_fake: jax.Array | float = 0.0
    kl_fake: jax.Array | float = 0.0


def exp_elbo(rec: jax.Array | float, kl: jax.Array | float, h: Hyper) -> jax.Array:
    """(1/α)·exp(-α·s·[β_rec·rec + β_neg·kl]): the encoder minimises it on generated images. [B] in, [B] out."""
    return jnp.exp(-h.alpha * h.scale * (h.beta_rec * rec + h.beta_neg * kl)) / h.alpha


def soft_intro_real(t: Terms, h: Hyper) -> jax.Array:
    """s·[β_rec·rec(x) + β_kl·kl(x)], the weighted and scaled negative ELBO of real data. Returns a scalar."""
    return jnp.mean(h.scale * (h.beta_rec * t.rec_real + h.beta_kl * t.kl_real))


def soft_intro_encoder(t: Terms, h: Hyper) -> jax.Array:
    """L_E = s·[β_rec·rec(x) + β_kl·kl(x)] + (1/α)·mean of exp(-α·s·[β_rec·rec(y) + β_neg·kl(y)]), y in {recon, fake}.

    Raises the ELBO of real data, pushes down exp(ELBO) of generated data. Returns a scalar.
    """
    exp_recon, exp_fake = exp_elbo(t.rec_recon, t.kl_recon, h), exp_elbo(t.rec_fake, t.kl_fake, h)
    return soft_intro_real(t, h) + jnp.mean((exp_recon + exp_fake) / 2)


def soft_intro_decoder(t: Terms, h: Hyper) -> jax.Array:
    """L_D = s·[β_rec·rec(x) + γ·(β_kl·mean(kl(recon), kl(fake)) + γ_r·β_rec·mean(rec(recon), rec(fake)))].

    Reconstructs real data, raises the ELBO of generated data. Returns a scalar.
    """
    kl, rec = (t.kl_recon + t.kl_fake) / 2, (t.rec_recon + t.rec_fake) / 2
    return jnp.mean(h.scale * (h.beta_rec * t.rec_real + h.gamma * (h.beta_kl * kl + h.gamma_r * h.beta_rec * rec)))


def intro_real(t: Terms, h: Hyper) -> jax.Array:
    """IntroVAE's terms of real data: β_rec·rec(x) + kl(x). Returns a scalar."""
    return jnp.mean(h.beta_rec * t.rec_real + t.kl_real)


def intro_encoder(t: Terms, h: Hyper) -> jax.Array:
    """IntroVAE's encoder: β_rec·rec(x) + kl(x) + α_h·Σ max(0, m - kl(y)), y in {recon, fake}. Returns a scalar."""
    hinge = jnp.maximum(0.0, h.margin - t.kl_recon) + jnp.maximum(0.0, h.margin - t.kl_fake)
    return intro_real(t, h) + h.intro_alpha * jnp.mean(hinge)


def intro_decoder(t: Terms, h: Hyper) -> jax.Array:
    """IntroVAE's decoder ("generator"): β_rec·rec(x) + α_h·Σ kl(y), y in {recon, fake}. Returns a scalar."""
    return jnp.mean(h.beta_rec * t.rec_real + h.intro_alpha * (t.kl_recon + t.kl_fake))


def _exp_elbos(t: Terms, h: Hyper) -> dict[str, jax.Array]:
    return {"exp_elbo_recon": exp_elbo(t.rec_recon, t.kl_recon, h), "exp_elbo_fake": exp_elbo(t.rec_fake, t.kl_fake, h)}


Loss = Callable[[Terms, Hyper], jax.Array]


class Objective(NamedTuple):
    """Losses to minimise, functions (Terms, Hyper) -> scalar, and the names of the values that a step logs.

    `real` uses only the terms of real data. Both networks minimise it in the VAE phase, and in every step if there is
    no `encoder` and `decoder` loss, as for a VAE. It has the same scale as the other losses, so that the gradients and
    Adam's second moment keep their size when the VAE phase ends.
    """

    real: Loss
    encoder: Loss | None = None
    decoder: Loss | None = None
    logged: tuple[str, ...] = ("loss_encoder", "loss_decoder", "rec_real", "kl_real")
    # Other values to log, besides the losses and terms, [B] each.
    derived: Callable[[Terms, Hyper], dict[str, jax.Array]] = lambda terms, hyper: {}


_LOGGED = (*Objective(intro_real).logged, "kl_recon", "kl_fake")
OBJECTIVES = {
    "soft_intro": Objective(
        soft_intro_real,
        soft_intro_encoder,
        soft_intro_decoder,
        (*_LOGGED, "rec_recon", "rec_fake", "exp_elbo_recon", "exp_elbo_fake"),
        _exp_elbos,
    ),
    "vae": Objective(soft_intro_real),
    "intro": Objective(intro_real, intro_encoder, intro_decoder, _LOGGED),
}
