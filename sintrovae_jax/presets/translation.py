"""Shared by the recipes for unsupervised translation: LORD's networks. Not a recipe itself.

See docs/method.md, "Translation networks". The betas are ours: none are published. The content code's KL has twice the
weight of the class code's KL; docs/translation.md, "Why the class goes to the class code", gives the reason.
"""

from ml_collections import ConfigDict

from sintrovae_jax.config import default
from sintrovae_jax.presets import set_lengths

CLASS, CONTENT = 256, 128  # sizes of the published codes


def get_config(source: str, *, channels: int, images: int, batch_size: int, epochs: int, substeps: int) -> ConfigDict:
    """images, epochs, substeps: see `presets.set_lengths`."""
    config = default()
    config.data.source = source
    config.data.image_size = 64
    config.data.image_channels = channels
    config.model.family = "two_encoder"
    config.model.channels = (64, 128, 256, 256, 256)
    config.model.z_dim = CLASS + CONTENT
    config.model.class_dim = CLASS
    config.model.output = "sigmoid"

    config.objective.beta_rec = 1.0
    config.objective.beta_kl = 0.15
    config.objective.beta_neg = 1024.0
    config.objective.kl_weights = (1.0,) * CLASS + (2.0,) * CONTENT
    steps = set_lengths(config, images=images, batch_size=batch_size, epochs=epochs, substeps=substeps)
    config.objective.num_vae = steps(epochs // 4)
    config.train.ema = 0.999
    config.eval.evaluators = ("latents", "transfer")
    config.eval.num_samples = 2_000
    return config
