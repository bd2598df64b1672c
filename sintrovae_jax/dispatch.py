"""A training step for all devices, and the objects that it is built from, as a config describes them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from sintrovae_jax import models, parallel, priors
from sintrovae_jax.data import examples
from sintrovae_jax.passes import Static
from sintrovae_jax.train_state import Networks, TrainState, create, has_ema
from sintrovae_jax.train_step import train_step


def suited(networks: Networks, devices: Sequence[jax.Device]) -> Networks:
    """The networks in the form that is fastest on these devices: on TPUs they use pairs of pixels, if they can."""
    if devices[0].platform != "tpu":
        return networks
    return networks._replace(encoder=models.paired(networks.encoder), decoder=models.paired(networks.decoder))


def on_devices(networks: Networks, static: Static, devices: Sequence[jax.Device] | None = None) -> parallel.Mapped:
    """`train_step` over all devices: all its arguments except the key get a leading device axis.

    devices: the devices to compile for; None: all devices of this run.
    """
    networks = suited(networks, devices or jax.devices())
    return parallel.pmap(functools.partial(train_step, networks, static), (0, 0, 0, None, 0), devices)


def from_config(config: ConfigDict) -> tuple[Networks, Static, Callable[[], TrainState]]:
    """The static parts of a config: networks with optimisers, the step, and a function that creates a fresh state."""
    shape, family = examples.of(config.data).shape, models.family_of(config.model)
    encoder, decoder = models.build(config.model, shape, config.train.dtype)
    o = config.objective
    static = Static(
        name=o.name,
        reconstruction=o.reconstruction,
        prior_std=o.prior_std,
        kl_weights=tuple(o.kl_weights),
        use_gamma_r=o.gamma_r > 0,
        target_period=o.target_period,
        growth=family.growth,
        level=len(config.model.channels) - 1 if family.growth else None,
        augment=config.model.augment,
        prior=priors.setting(config),
    )
    tx = family.optimizer()
    networks = Networks(encoder, decoder, tx, tx)
    options: dict[str, Any] = {
        "target": o.target_period > 0,
        "ema": has_ema(config),
        "conditional": config.model.classes > 0,
        "learnt": static.prior,
    }
    return networks, static, functools.partial(create, networks, config.seed, shape, config.model.z_dim, **options)
