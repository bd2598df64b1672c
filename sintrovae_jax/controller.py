"""A controller of β_neg: holds kl_gap / kl_real of the training batches at a target (`objective.beta_neg_target`).

With a larger β_neg, exp(ELBO) of samples is smaller and the encoder pushes them away less, so the gap between their KL
and that of real data shrinks; with a smaller one it grows. So β_neg rises while the smoothed gap is above the target
and falls while it is below. Its state is part of the `TrainState`: a resumed run goes on exactly.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from ml_collections import ConfigDict

from sintrovae_jax import parallel
from sintrovae_jax.arrays import Array

# The part of the newest step in the smoothed gap: an average over about 50 steps.
_NEWEST = 0.02
# The distance from the target, in units of kl_real, from which on β_neg moves at its full rate.
_FAR = 0.1

LOGGED = ("beta_neg", "kl_gap_smoothed")


@dataclasses.dataclass(frozen=True)
class Setting:
    """target: of kl_gap / kl_real. rate: the most that ln β_neg moves in a step. bounds: of β_neg."""

    target: float
    rate: float
    bounds: tuple[float, float]


class BetaNeg(struct.PyTreeNode):
    """log: ln β_neg. gap: the smoothed kl_gap / kl_real. float32 scalars."""

    log: Array
    gap: Array

    @property
    def value(self) -> jax.Array:
        return jnp.exp(self.log)


def setting(objective: ConfigDict) -> Setting | None:
    """That of a config's `objective`; None: β_neg is as the config says."""
    if objective.beta_neg_target is None:
        return None
    low, high = objective.beta_neg_bounds
    return Setting(objective.beta_neg_target, objective.beta_neg_rate, (low, high))


def create(beta_neg: float, setting: Setting) -> BetaNeg:
    """The state before the first step, from which β_neg starts at this value."""
    low, high = setting.bounds
    return BetaNeg(jnp.log(jnp.clip(jnp.float32(beta_neg), low, high)), jnp.float32(setting.target))


def moved(state: BetaNeg, kl_real: jax.Array, kl_recon: jax.Array, kl_fake: jax.Array, setting: Setting) -> BetaNeg:
    """The state after a step with these KLs: means over the device's batch, in nats. Runs under the device axis."""
    real, recon, fake = parallel.pmean(jnp.stack([kl_real, kl_recon, kl_fake]))
    gap = (jnp.minimum(recon, fake) - real) / jnp.maximum(real, jnp.finfo(jnp.float32).tiny)
    # Bounded, so that one step with exploding KLs does not decide for hundreds.
    smoothed = state.gap + _NEWEST * (jnp.clip(gap, -1, 1) - state.gap)
    error = jnp.clip((smoothed - setting.target) / _FAR, -1, 1)
    low, high = jnp.log(jnp.float32(setting.bounds[0])), jnp.log(jnp.float32(setting.bounds[1]))
    return BetaNeg(jnp.clip(state.log + setting.rate * error, low, high), smoothed)


def logged(state: BetaNeg) -> dict[str, jax.Array]:
    """What is logged of a step: β_neg, and the smoothed gap as a part of kl_real."""
    return dict(zip(LOGGED, (state.value, jnp.asarray(state.gap)), strict=True))
