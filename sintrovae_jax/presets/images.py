"""Shared by the convolutional recipes (docs/method.md, "Convolutional networks"). Not a recipe itself."""

from ml_collections import ConfigDict

from sintrovae_jax.config import default
from sintrovae_jax.presets import set_lengths


def get_config(
    source: str, *, size: int, channels: int, images: int, batch_size: int, epochs: int, substeps: int
) -> ConfigDict:
    """images, epochs, substeps: see `presets.set_lengths`."""
    config = default()
    config.data.source = source
    config.data.image_size = size
    config.data.image_channels = channels
    config.model.family = "conv"

    steps = set_lengths(config, images=images, batch_size=batch_size, epochs=epochs, substeps=substeps)
    if epochs > 350:
        config.optimizer.milestones = (steps(350),)
    config.eval.evaluators = ("latents",)
    config.eval.num_samples = 1_000
    config.eval.batch_norm = "standing"
    return config


def cifar(source: str, *, count: int) -> ConfigDict:
    """The networks and hyper-parameters published for CIFAR-10 and SVHN."""
    config = get_config(source, size=32, channels=3, images=count, batch_size=32, epochs=250, substeps=10)
    config.model.z_dim = 128
    config.model.channels = (64, 128, 256)
    config.objective.beta_neg = 256.0
    return config


def mnist(source: str) -> ConfigDict:
    """The networks and hyper-parameters published for MNIST and Fashion-MNIST."""
    config = get_config(source, size=28, channels=1, images=60_000, batch_size=128, epochs=200, substeps=10)
    config.model.z_dim = 32
    config.model.channels = (64, 128)
    config.objective.beta_neg = 256.0
    return config


def faces(source: str, *, size: int = 256, count: int = 29_000, substeps: int = 5) -> ConfigDict:
    """The networks and hyper-parameters published for CelebA-HQ at 256×256. count: training images."""
    config = get_config(source, size=size, channels=3, images=count, batch_size=8, epochs=250, substeps=substeps)
    config.data.test_fraction = 1 / 30
    config.data.flip = True
    config.model.z_dim = 256
    config.model.channels = (64, 128, 256, 512, 512, 512)
    config.objective.beta_kl = 0.5
    config.objective.beta_neg = 1024.0
    return config
