"""Soft-IntroVAE on SVHN's cropped digits (32×32, colour), with the published hyper-parameters.

    python -m sintrovae_jax.main --config configs/svhn.py --config.data.download=True

250 epochs at batch 32. This recipe has not been run to its end yet.
"""

from configs import cifar10


def get_config():
    return cifar10.get_config("tfds:svhn_cropped", count=73_257)
