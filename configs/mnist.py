"""Soft-IntroVAE on MNIST (28×28, grey), with the published hyper-parameters.

    python -m sintrovae_jax.main --config configs/mnist.py --config.data.download=True

200 epochs at batch 128. The author later found objective.beta_neg=128 better. This recipe has not been run to its
end yet.
"""

from configs import images


def get_config(source: str = "tfds:mnist"):
    config = images.get_config(source, size=28, channels=1, images=60_000, batch_size=128, epochs=200, substeps=10)
    config.model.z_dim = 32
    config.model.channels = (64, 128)
    config.objective.beta_neg = 256.0
    return config
