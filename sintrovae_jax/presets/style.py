"""Shared by the style-based recipes for faces (docs/method.md, "Style-based networks"). Not a recipe itself."""

import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax.presets import images, steps_of

SUBSTEPS = 10
# Published batch sizes by number of devices, for each level from 4×4 up.
BATCH_SIZES = {
    "8": (512, 256, 128, 64, 32, 32, 32),
    "4": (512, 256, 128, 64, 32, 32, 16),
    "2": (128, 128, 128, 64, 32, 16, 8),
    "1": (128, 128, 128, 32, 16, 8, 4),
}


def get_config(devices: str, source: str, *, count: int, epochs_per_level: int, beta_rec: float) -> ConfigDict:
    """devices: a key of `BATCH_SIZES`. count: training images. beta_rec: as published, for images in [-1, 1].

    Raises ValueError for any other number of devices.
    """
    if devices not in BATCH_SIZES:
        raise ValueError(f"batches are published for {', '.join(BATCH_SIZES)} devices, not {devices}")
    sizes = BATCH_SIZES[devices]
    config = images.get_config(
        source, size=256, channels=3, images=count, batch_size=sizes[-1], epochs=300, substeps=SUBSTEPS
    )
    config.data.flip = True
    config.model.family = "style"
    config.model.z_dim = 512
    config.model.channels = (64, 128, 256, 512, 512, 512, 512)
    config.objective.scale = 5e-6
    config.objective.beta_kl = 0.2
    config.objective.beta_rec = 4 * beta_rec  # our images are in [0, 1], so squared errors are a quarter as large
    config.objective.beta_neg = 512.0  # at the last level
    steps = [steps_of(epochs_per_level, count, size, SUBSTEPS) for size in sizes]
    config.growth.batch_sizes = sizes
    config.growth.steps = tuple(steps)
    config.growth.beta_neg = (2048.0, 2048.0, 2048.0, 1024.0, 512.0, 512.0, 512.0)
    config.growth.ema_images = 10_000.0
    config.objective.num_vae = steps_of(1, count, sizes[0], SUBSTEPS)  # the first epoch
    config.optimizer.milestones = ()
    last_epochs = 300 - epochs_per_level * (len(steps) - 1)
    config.train.steps = sum(steps[:-1]) + steps_of(last_epochs, count, sizes[-1], SUBSTEPS)
    every = int(np.ceil(config.train.steps / 50 / SUBSTEPS)) * SUBSTEPS
    config.checkpoint.every, config.log.figures_every = every, every
    config.eval.batch_norm = "running"  # the networks have no BatchNorm
    return config
