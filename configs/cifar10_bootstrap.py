"""The bootstrap variant on CIFAR-10: a target decoder, refreshed every epoch, decodes already decoded images.

    python -m sintrovae_jax.main --config configs/cifar10_bootstrap.py --config.data.download=True

Like configs/cifar10.py, with γ_r = 1. This recipe has not been run to completion yet.
"""

from sintrovae_jax.presets import images


def get_config():
    config = images.cifar("tfds:cifar10", count=50_000)
    config.objective.gamma_r = 1.0
    config.objective.target_period = 1_563
    return config
