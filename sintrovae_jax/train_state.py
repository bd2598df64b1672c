"""The training state, its creation, and the two optimisers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from ml_collections import ConfigDict

from sintrovae_jax import priors, seeds
from sintrovae_jax.arrays import Array, Scalar, Tree, Variables
from sintrovae_jax.models.layers import ROLES


class NetworkState(struct.PyTreeNode):
    """One network: its parameters, its other collections (such as `batch_stats`), its optimiser's state."""

    params: Tree
    stats: Variables
    opt_state: optax.OptState

    @property
    def variables(self) -> Variables:
        """The variables that `Module.apply` takes."""
        return {"params": self.params, **self.stats}


class TrainState(struct.PyTreeNode):
    """All that changes from step to step. step: int32, the number of steps taken."""

    step: Array
    encoder: NetworkState
    decoder: NetworkState
    target: Variables | None = None  # bootstrap: the target decoder's variables
    ema: dict[str, Variables] | None = (
        None  # the exponential moving average of both networks' variables, {'encoder': ..., 'decoder': ...}
    )
    prior: priors.PriorState | None = None  # None: the prior is not learnt

    @property
    def variables(self) -> dict[str, Variables]:
        """Both networks' current variables, {'encoder': ..., 'decoder': ...}, and the 'prior' if it is learnt."""
        learnt: dict[str, Any] = {} if self.prior is None else {"prior": self.prior.mixture}
        return {"encoder": self.encoder.variables, "decoder": self.decoder.variables, **learnt}

    @property
    def best_variables(self) -> dict[str, Variables]:
        """The variables to sample from: the averaged ones if there are any."""
        return self.variables if self.ema is None else self.ema


class Networks(NamedTuple):
    """The static part of a run: two Flax modules, and for each an optax transform without the learning rate."""

    encoder: nn.Module
    decoder: nn.Module
    encoder_tx: optax.GradientTransformation
    decoder_tx: optax.GradientTransformation


def has_ema(config: ConfigDict) -> bool:
    """Whether a run of this config has averaged networks."""
    return config.train.ema > 0 or config.growth.ema_images > 0


def apply_gradients(
    network: NetworkState, tx: optax.GradientTransformation, grads: Tree, learning_rate: Scalar, stats: Variables
) -> NetworkState:
    """One optimiser step: params - learning_rate · tx(grads), and the new statistics."""
    updates, opt_state = tx.update(grads, network.opt_state, network.params)
    params = optax.apply_updates(network.params, jax.tree.map(lambda u: -learning_rate * u, updates))
    return NetworkState(params=params, stats=stats, opt_state=opt_state)


def initial(create: Callable[[], TrainState]) -> TrainState:
    """The state that `create` returns, as numpy arrays.

    On a CPU it is compiled without optimisations: it runs once, and optimising it would take almost as long as
    optimising the step.
    """
    options: dict[str, str | bool] | None = (
        {"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else None
    )
    return jax.device_get(jax.jit(create).lower().compile(compiler_options=options)())


def reset_optimizers(networks: Networks, state: TrainState) -> TrainState:
    """The state with fresh optimisers, for a new level of networks that grow. Arrays on the host stay there."""

    def fresh(network, tx):
        zeros = jax.eval_shape(tx.init, network.params)
        return network.replace(opt_state=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), zeros))

    return state.replace(
        encoder=fresh(state.encoder, networks.encoder_tx), decoder=fresh(state.decoder, networks.decoder_tx)
    )


def _check_batch_norm(module: nn.Module, stats: Variables, roles: int) -> None:
    """Raises `TypeError` for averages that `layers.BatchNorm` did not make: they would be wrong in evaluation."""
    if any(leaf.ndim != 2 or len(leaf) != roles for leaf in jax.tree.leaves(stats)):
        raise TypeError(f"{type(module).__qualname__} has batch_stats that models.layers.BatchNorm does not make")


def create(
    networks: Networks,
    seed: int,
    shape: tuple[int, ...],
    z_dim: int,
    *,
    target: bool = False,
    ema: bool = False,
    conditional: bool = False,
    learnt: priors.Setting | None = None,
) -> TrainState:
    """A fresh state, a function of the seed alone. shape: one example's shape. Traceable, for `jax.eval_shape`.

    target, ema: whether it has a target decoder and averaged networks; both start as copies. conditional: whether the
    networks take labels. learnt: the settings of a learnt prior; None: the prior is fixed.
    """
    encoder_key, decoder_key = jax.random.split(seeds.key(seed))
    options = {"labels": jnp.zeros(1, jnp.int32)} if conditional else {}

    def network(module, tx, key, example, roles):
        params_key, noise_key = jax.random.split(key)
        variables = seeds.init(module, {"params": params_key, "noise": noise_key}, example, train=False, **options)
        _check_batch_norm(module, variables.get("batch_stats", {}), roles)
        params = variables.pop("params")
        return NetworkState(params=params, stats=variables, opt_state=tx.init(params))

    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        encoder=network(networks.encoder, networks.encoder_tx, encoder_key, jnp.zeros((1, *shape)), 1),
        decoder=network(networks.decoder, networks.decoder_tx, decoder_key, jnp.zeros((1, z_dim)), len(ROLES)),
    )
    if learnt is not None:
        key = jax.random.fold_in(seeds.key(seed), 2)
        state = state.replace(prior=priors.create(key, learnt, z_dim, networks.decoder_tx))
    copies = {"target": state.decoder.variables if target else None, "ema": state.variables if ema else None}
    return state.replace(**copies)
