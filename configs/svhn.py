"""Soft-IntroVAE on SVHN's cropped digits (32×32, colour), with the published hyper-parameters.

    python -m sintrovae_jax.main --config configs/svhn.py --config.data.download=True

250 epochs at batch 32. This recipe has not been run to completion yet.
"""

from sintrovae_jax.presets import images


def get_config():
    return images.cifar("tfds:svhn_cropped", count=73_257)
