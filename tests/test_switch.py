"""The switch from the VAE phase to the adversarial one: the size of the updates, and when it comes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sintrovae_jax import objectives, parallel, train_state, train_step
from sintrovae_jax.models import mlp

SHAPE, Z, BATCH = (8, 8, 1), 3, 32
HYPER = objectives.Hyper(
    beta_rec=1.0,
    beta_kl=1.0,
    beta_neg=1.0,  # a gentle repulsion, so that the size of the updates is that of the loss
    gamma=1.0,
    gamma_r=0.0,
    alpha=2.0,
    scale=1 / 64,
    intro_alpha=0.25,
    margin=10.0,
    learning_rate=1e-3,
    ema=0.0,
)


def data(steps):
    """Images of a smooth family with three factors, and a little noise."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:8, :8] / 7
    a, b, c = rng.random((3, steps, BATCH, 1, 1))
    x = np.exp(-8 * ((row - a) ** 2 + (column - b) ** 2)) * (0.5 + c / 2) + 0.05 * rng.normal(size=(steps, BATCH, 8, 8))
    return {"x": np.asarray(x[..., None], np.float32), "index": np.tile(np.arange(BATCH), (steps, 1))}


BATCHES = data(340)


@functools.cache
def compiled(networks, name, vae):
    """The state after one update of the networks on one device."""
    step = functools.partial(train_step.train_step, networks, train_step.Static(name=name, vae=vae))

    @jax.jit
    def update(*args):
        after = jax.vmap(lambda _: step(*args)[0], axis_name=parallel.AXIS)(jnp.zeros(1))
        return jax.tree.map(lambda a: a[0], after)

    return update


@jax.jit
def moved(after, before):
    """The norm of what each network's parameters moved by."""
    by = jax.tree.map(jnp.subtract, after.variables, before.variables)
    return [optax.global_norm(by[network]["params"]) for network in ("encoder", "decoder")]


def sizes(name, vae, state, networks, first, steps):
    """The mean norm of each network's updates over the last 10 of so many steps, and the state after them.

    Until then Adam's first moment still carries what was before.
    """
    hypers, key, norms = jax.tree.map(lambda v: jnp.full(1, v), HYPER), jax.random.key(0), []
    for i in range(first, first + steps):
        batch = jax.tree.map(lambda a, i=i: a[i : i + 1], BATCHES)
        after = compiled(networks, name, vae)(state, batch, hypers, key)
        if i >= first + steps - 10:
            norms.append(moved(after, state))
        state = after
    return np.mean(norms, 0), state


@pytest.mark.soak
@pytest.mark.parametrize("name", ["soft_intro", "intro"])
def test_updates_are_of_one_size_before_and_after_the_switch(name):
    """Adam divides by the root of what the VAE phase's gradients were, for thousands of steps after it."""
    networks = train_state.Networks(
        mlp.Encoder((32,), Z), mlp.Decoder((32,), SHAPE), optax.scale_by_adam(), optax.scale_by_adam()
    )
    state = jax.jit(functools.partial(train_state.create, networks, 0, SHAPE, Z))()
    _, state = sizes(name, True, state, networks, 0, 300)
    before, state = sizes(name, True, state, networks, 300, 20)
    after, _ = sizes(name, False, state, networks, 320, 20)
    assert (before > 1e-4).all()
    ratio = after / before  # without the scale in both phases, about 1/64
    assert (ratio > 1 / 2).all()
    assert (ratio < 3).all()
