"""The objectives of Soft-IntroVAE, VAE and IntroVAE: arrays in, arrays out.

Formulas: Soft-IntroVAE (Daniel & Tamar, CVPR 2021, arXiv 2012.13253) and IntroVAE (Huang et al., NeurIPS 2018), as
gathered in reference.md, section 1. Every term is one number per example (shape [B]), *summed* over
the example's dimensions and computed in float32 whatever the networks compute in; only the last step averages over
the batch. The functions named after a network return that network's loss, a scalar to minimise.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def _per_example(errors: jax.Array) -> jax.Array:
    return errors.reshape(errors.shape[0], -1).sum(axis=1)


def at_least_float32(x: jax.Array) -> jax.Array:
    """x in float32, or a wider type that it has: a bfloat16 network still has float32 losses and statistics."""
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


RECONSTRUCTION_ERRORS = {"mse": mse, "l1": l1, "bce": bce}


def kl(
    mean: jax.Array,
    logvar: jax.Array,
    prior_std: float = 1.0,
    weights: jax.Array | Sequence[float] | None = None,
) -> jax.Array:
    """KL( N(mean, exp(logvar)) || N(0, prior_std² I) ) per example, in nats.

    mean, logvar: [B, Z]. weights: [Z], multiplies each latent dimension's KL (default: ones). Returns [B].
    """
    mean, logvar = at_least_float32(mean), at_least_float32(logvar)
    prior_var = jnp.asarray(prior_std, mean.dtype) ** 2
    per_dimension = 0.5 * ((jnp.exp(logvar) + jnp.square(mean)) / prior_var - 1 - logvar + jnp.log(prior_var))
    if weights is not None:
        per_dimension = per_dimension * jnp.asarray(weights, mean.dtype)
    return per_dimension.sum(axis=-1)


def kl_gap(kl_real: float, kl_fake: float, kl_recon: float) -> float:
    """How far the mean KLs of samples and reconstructions both stay above that of real data; below 0, lower β_neg."""
    return min(kl_fake, kl_recon) - kl_real


def elbo(rec: jax.Array, kl: jax.Array, beta_rec, beta_kl) -> jax.Array:
    """The (β-weighted) evidence lower bound per example: -(β_rec·rec + β_kl·kl). [B] in, [B] out."""
    return -(beta_rec * rec + beta_kl * kl)


def exp_elbo(elbo: jax.Array, scale, alpha) -> jax.Array:
    """exp(α·s·ELBO) / α per example: what the encoder pushes down on generated images. [B] in, [B] out."""
    return jnp.exp(alpha * scale * elbo) / alpha


def vae(elbo_real: jax.Array) -> jax.Array:
    """The VAE's loss, for both networks: -ELBO, not scaled. elbo_real: [B]. Returns a scalar."""
    return -elbo_real.mean()


def soft_intro_encoder(elbo_real: jax.Array, elbos_generated: Sequence[jax.Array], scale, alpha) -> jax.Array:
    """L_E: raise the ELBO of real data, push down exp(ELBO) of generated data.

    elbo_real: [B], with β_kl. elbos_generated: those of reconstructions and samples, each [B], with β_neg. Returns a
    scalar.
    """
    repulsion = sum(exp_elbo(e, scale, alpha).mean() for e in elbos_generated) / len(elbos_generated)
    return -scale * elbo_real.mean() + repulsion


def soft_intro_decoder(
    rec_real: jax.Array,
    kls_generated: Sequence[jax.Array],
    recs_generated: Sequence[jax.Array],
    *,
    scale,
    beta_rec,
    beta_kl,
    gamma,
    gamma_r,
) -> jax.Array:
    """L_D: reconstruct real data, raise the ELBO of generated data.

    rec_real: [B]. kls_generated, recs_generated: KL and re-reconstruction errors [B] of reconstructions and samples;
    recs_generated may be empty, which is γ_r = 0. Returns a scalar.
    """
    attraction = beta_kl * sum(k.mean() for k in kls_generated) / len(kls_generated)
    if recs_generated:
        attraction += gamma_r * beta_rec * sum(r.mean() for r in recs_generated) / len(recs_generated)
    return scale * (beta_rec * rec_real.mean() + gamma * attraction)


def intro_encoder(
    rec_real: jax.Array, kl_real: jax.Array, kls_generated: Sequence[jax.Array], *, beta_rec, intro_alpha, margin
) -> jax.Array:
    """IntroVAE's encoder: β_rec·rec + kl + α_h·Σ_y max(0, m - kl(y)). All [B]. Returns a scalar."""
    hinge = sum(jnp.maximum(0.0, margin - k).mean() for k in kls_generated)
    return beta_rec * rec_real.mean() + kl_real.mean() + intro_alpha * hinge


def intro_decoder(rec_real: jax.Array, kls_generated: Sequence[jax.Array], *, beta_rec, intro_alpha) -> jax.Array:
    """IntroVAE's decoder ("generator"): β_rec·rec + α_h·Σ_y kl(y). All [B]. Returns a scalar."""
    return beta_rec * rec_real.mean() + intro_alpha * sum(k.mean() for k in kls_generated)
