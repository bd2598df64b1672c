"""CIFAR-10 with differentiable augmentation of what the encoder is given.

    python -m sintrovae_jax.main --config configs/cifar10_augment.py --config.data.download=True

As configs/cifar10.py otherwise, with standing averages: running ones are of augmented images. This recipe has not been
run to its end yet.
"""

from sintrovae_jax.presets import images


def get_config():
    config = images.cifar("tfds:cifar10", count=50_000)
    config.model.augment = True
    config.eval.batch_norm = "standing"
    return config
