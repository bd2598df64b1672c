"""CIFAR-10 with differentiable augmentation of the encoder's inputs.

    python -m sintrovae_jax.main --config configs/cifar10_augment.py --config.data.download=True

Otherwise like configs/cifar10.py, but with standing averages, because running averages are computed on augmented
images. This recipe has not been run to completion yet.
"""

from sintrovae_jax.presets import images


def get_config():
    config = images.cifar("tfds:cifar10", count=50_000)
    config.model.augment = True
    config.eval.batch_norm = "standing"
    return config
