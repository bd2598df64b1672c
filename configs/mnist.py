"""Soft-IntroVAE on MNIST (28×28, grey), with the published hyper-parameters.

    python -m sintrovae_jax.main --config configs/mnist.py --config.data.download=True

200 epochs at batch 128. The author later found objective.beta_neg=128 better. This recipe has not been run to
completion yet.
"""

from sintrovae_jax.presets import images


def get_config():
    return images.mnist("tfds:mnist")
