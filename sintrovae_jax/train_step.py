"""One training step per device: the encoder's update, then the decoder's against the new encoder.

Read it alongside the paper. With x a real batch and z_p prior noise,

    fake = D(z_p)      z ~ q(z|x)      recon = D(z)

are decoded once, in `encoder_update`. Its `jax.vjp` also returns the pullback of a gradient from these images to the
decoder's parameters, which `decoder_update` uses instead of decoding again. Reconstructions and samples pass through
the networks together, as one batch of 2B in two groups that BatchNorm normalises separately. Conditional networks get
the labels of x in every pass, so z_p is decoded with these labels too. This module computes the terms; `objectives`
combines them into losses. All functions are pure and run under the device axis of `parallel.pmap`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sintrovae_jax import parallel, priors
from sintrovae_jax.arrays import Tree, Variables
from sintrovae_jax.models import Posterior, Stage
from sintrovae_jax.objectives import Hyper, Terms
from sintrovae_jax.passes import Noise, Passes, Static, as_float, draw_noise
from sintrovae_jax.train_state import Networks, TrainState, apply_gradients


class Decodings(NamedTuple):
    """The images that the encoder's update decoded, which the decoder's update reuses."""

    images: jax.Array  # recon and fake, [2B, ...]
    vjp: Callable[[jax.Array], tuple[Tree, jax.Array]]  # the decoding's pullback
    stats: Variables
    real: Posterior  # q(z|x), for a learnt prior


def _concatenate(a, b):
    return jnp.concatenate([a, b])


def encoder_update(
    networks: Networks,
    static: Static,
    state: TrainState,
    x: jax.Array,
    noise: Noise,
    hyper: Hyper,
    weights: Tree = (),
    labels: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array], Decodings]:
    """Minimises L_E with the decoder frozen. Returns the state with a new encoder, values to log, and decodings."""
    net = Passes(networks, static, state, noise, hyper, weights, labels)
    frozen, adversarial = state.decoder.params, static.objective.encoder
    assert adversarial is not None
    responsibility = static.prior.responsibility if static.prior else 0.0

    def encode(params):
        real, stats = net.encode(params, x)
        uneven = net.unevenness(real) if responsibility else 0.0
        return (real.sample(noise.real), net.kl(real), uneven), (stats, real)

    decode = functools.partial(net.decode, samples=("real", "prior"))
    (z, kl_real, uneven), encode_vjp, (stats, real) = jax.vjp(encode, state.encoder.params, has_aux=True)
    images, decode_vjp, decoder_stats = jax.vjp(decode, frozen, _concatenate(z, net.latents()), has_aux=True)

    def loss_fn(params, kl_real, uneven, recon):
        generated, _ = net.encode(params, images, ("recon", "fake"))  # images are constants here
        z_again = generated.sample(_concatenate(noise.recon, noise.fake))
        again = net.decode_again(frozen, z_again, ("recon", "fake"))
        rec_recon, rec_fake = jnp.split(net.rec(images, again), 2)
        kl_recon, kl_fake = jnp.split(net.kl(generated, ("recon", "fake")), 2)

        terms = Terms(net.rec(x, recon), kl_real, rec_recon, kl_recon, rec_fake, kl_fake)
        loss = adversarial(terms, hyper)
        if responsibility:
            loss += hyper.scale * responsibility * uneven
        return loss, _means(static, terms._asdict() | static.objective.derived(terms, hyper) | {"loss_encoder": loss})

    recon, fake = jnp.split(images, 2)
    gradient = jax.grad(loss_fn, argnums=(0, 1, 2, 3), has_aux=True)
    (grads, kl_grad, uneven_grad, recon_grad), logged = gradient(state.encoder.params, kl_real, uneven, recon)
    # The chain rule: the gradient of the reconstructions is pulled back to their latents, then to the encoding of x.
    # One `jax.grad` of the whole would differentiate the custom gradients of BatchNorm and convolutions term by term.
    _, z_grad = decode_vjp(_concatenate(recon_grad, jnp.zeros_like(fake)))
    grads = parallel.pmean(jax.tree.map(jnp.add, grads, encode_vjp((z_grad[: len(z)], kl_grad, uneven_grad))[0]))
    encoder = apply_gradients(state.encoder, networks.encoder_tx, grads, hyper.learning_rate, stats)
    return state.replace(encoder=encoder), logged, Decodings(images, decode_vjp, decoder_stats, real)


def decoder_update(
    networks: Networks,
    static: Static,
    state: TrainState,
    x: jax.Array,
    noise: Noise,
    hyper: Hyper,
    decodings: Decodings,
    weights: Tree = (),
    labels: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Minimises L_D with the encoder frozen at its just-updated parameters, on the same z_p and z.

    The gradients of kl(recon) and kl(fake) reach D through E and the images of `decodings`. In the γ_r term the target
    image and the latent are constants, and the gradient flows through the second decoding. With bootstrap, the target
    decoder is constant, and the gradient flows through the target image and the latent instead.
    """
    net = Passes(networks, static, state, noise, hyper, weights, labels)
    frozen, adversarial = state.encoder.params, static.objective.decoder
    assert adversarial is not None
    maybe_stop_gradient = lax.stop_gradient if state.target is None else lambda a: a

    def loss_fn(params, images):
        recon, _ = jnp.split(images, 2)
        generated, _ = net.encode(frozen, images, ("recon_again", "fake_again"))
        kl_recon, kl_fake = jnp.split(net.kl(generated, ("recon_again", "fake_again")), 2)
        terms = Terms(rec_real=net.rec(x, recon), kl_recon=kl_recon, kl_fake=kl_fake)
        if static.use_gamma_r:
            z_again = maybe_stop_gradient(generated.sample(_concatenate(noise.recon_again, noise.fake_again)))
            again = net.decode_again(params, z_again, ("recon_again", "fake_again"))
            rec_recon, rec_fake = jnp.split(net.rec(maybe_stop_gradient(images), again), 2)
            terms = terms._replace(rec_recon=rec_recon, rec_fake=rec_fake)
        return adversarial(terms, hyper)

    loss, (grads, images_grad) = jax.value_and_grad(loss_fn, argnums=(0, 1))(state.decoder.params, decodings.images)
    # The chain rule: the gradient of the images is pulled back to the parameters that decoded them.
    grads = parallel.pmean(jax.tree.map(jnp.add, grads, decodings.vjp(images_grad)[0]))
    decoder = apply_gradients(state.decoder, networks.decoder_tx, grads, hyper.learning_rate, decodings.stats)
    state = state.replace(decoder=decoder)
    return _prior_update(networks, static, state, net, decodings.real, hyper), {"loss_decoder": loss}


def _prior_update(
    networks: Networks, static: Static, state: TrainState, net: Passes, real: Posterior, hyper: Hyper
) -> TrainState:
    """Updates a learnt prior, which minimises s·β_kl·kl of real data; the posteriors are constants."""
    if state.prior is None or static.prior is None:
        return state
    held = state.prior if static.vae else priors.bounded(state.prior)
    gradient = jax.grad(lambda mixture: hyper.scale * hyper.beta_kl * jnp.mean(net.kl(real, mixture=mixture)))
    grads = parallel.pmean(gradient(held.mixture))
    rate = hyper.learning_rate * static.prior.rate
    return state.replace(prior=priors.stepped(held, networks.decoder_tx, grads, rate))


def vae_update(
    networks: Networks,
    static: Static,
    state: TrainState,
    x: jax.Array,
    noise: Noise,
    hyper: Hyper,
    weights: Tree = (),
    labels: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Both networks minimise the objective's `real` loss: in the VAE phase, and in every step of a VAE."""
    net = Passes(networks, static, state, noise, hyper, weights, labels)

    def loss_fn(params):
        real, encoder_stats = net.encode(params[0], x)
        recon, decoder_stats = net.decode(params[1], real.sample(noise.real), ("real",))
        terms = Terms(rec_real=net.rec(x, recon), kl_real=net.kl(real))
        loss = static.objective.real(terms, hyper)
        logged = {"rec_real": terms.rec_real, "kl_real": terms.kl_real, "loss_encoder": loss, "loss_decoder": loss}
        return loss, (_means(static, logged), encoder_stats, decoder_stats, real)

    params = (state.encoder.params, state.decoder.params)
    grads, (logged, encoder_stats, decoder_stats, posterior) = jax.grad(loss_fn, has_aux=True)(params)
    encoder_grads, decoder_grads = parallel.pmean(grads)
    encoder = apply_gradients(state.encoder, networks.encoder_tx, encoder_grads, hyper.learning_rate, encoder_stats)
    decoder = apply_gradients(state.decoder, networks.decoder_tx, decoder_grads, hyper.learning_rate, decoder_stats)
    state = state.replace(encoder=encoder, decoder=decoder)
    return _prior_update(networks, static, state, net, posterior, hyper), logged


def _means(static: Static, values: Mapping[str, jax.Array | float]) -> dict[str, jax.Array]:
    return {name: jnp.mean(value) for name, value in values.items() if name in static.objective.logged}


def update(
    networks: Networks,
    static: Static,
    state: TrainState,
    batch: dict[str, jax.Array],
    hyper: Hyper,
    key: jax.Array,
    weights: Tree = (),
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on one batch {'x': [B, ...], 'index': [B]}, with 'labels' [B] for conditional networks.

    Returns the new state and {term: [sum, count]}.
    """
    keys = parallel.example_keys(key, state.step, batch["index"])
    noise = draw_noise(keys, networks.encoder.z_dim)
    x, labels = as_float(batch["x"]), batch.get("labels")
    if static.growth is not None and static.level is not None:
        x = static.growth.shown(x, Stage(static.level, hyper.blend))
    if static.vae or static.objective.encoder is None:
        state, logged = vae_update(networks, static, state, x, noise, hyper, weights, labels)
    else:
        state, logged, decodings = encoder_update(networks, static, state, x, noise, hyper, weights, labels)
        state, loss = decoder_update(networks, static, state, x, noise, hyper, decodings, weights, labels)
        logged |= loss
    # A term that this step does not compute (an adversarial one in the VAE phase) has count 0.
    terms = {t: jnp.stack([logged[t], 1.0]) if t in logged else jnp.zeros(2) for t in static.objective.logged}
    return _update_copies(static, state.replace(step=state.step + 1), hyper), terms


def _update_copies(static: Static, state: TrainState, hyper: Hyper) -> TrainState:
    """Updates the copies of the networks: bootstrap's target decoder, and the exponential moving average."""
    target, ema = state.target, state.ema
    if target is not None:
        due = state.step % static.target_period == 0
        target = jax.tree.map(lambda old, new: jnp.where(due, new, old), target, state.decoder.variables)
    if ema is not None:
        ema = optax.incremental_update(state.variables, ema, 1 - hyper.ema)
    return state.replace(target=target, ema=ema)


def train_step(
    networks: Networks,
    static: Static,
    state: TrainState,
    batches: dict[str, jax.Array],
    hypers: Hyper,
    key: jax.Array,
    weights: Tree = (),
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One dispatch on one device: `substeps` updates, scanned.

    batches: as in `update`, with a leading axis of substeps; hypers: [substeps] each; weights: the arrays that the
    reconstruction error needs (`reconstruction.weights`). Returns the new state and {term: [sum, count, first]} over
    the substeps and devices, where `first` is the first substep at which the term was not finite, or infinity.
    """

    def body(state, inputs):
        batch, hyper = inputs
        return update(networks, static, state, batch, hyper, key, weights)

    state, terms = lax.scan(body, state, (batches, hypers))

    def summarise(term):  # [substeps, 2]
        bad = ~jnp.isfinite(term[:, 0])
        return jnp.stack([*term.sum(axis=0), jnp.where(bad.any(), bad.argmax().astype(term.dtype), jnp.inf)])

    return state, jax.tree.map(summarise, parallel.pmean(terms))
