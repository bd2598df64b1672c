"""Soft-IntroVAE on CIFAR-10 (32×32, colour), with the published hyper-parameters.

    python -m sintrovae_jax.main --config configs/cifar10.py --config.data.download=True

250 epochs at batch 32. Published FID: 4.6, with both networks and Inception in training mode (paper); 25.86 for the
published checkpoint with an ordinary FID program (official issue 14). This recipe has not been run to completion yet.
A step takes 1.8 s on 2 cores of an AMD EPYC (2026-11-22): train it on a GPU.
"""

from sintrovae_jax.presets import images


def get_config():
    return images.cifar("tfds:cifar10", count=50_000)
