"""Soft-IntroVAE on point clouds of boxes, cylinders, cones, tori, tables and chairs.

    python -m sintrovae_jax.main --config configs/shapes.py

The hyper-parameters have not been tuned: reconstructions are good, but samples are mixtures (docs/clouds.md).
"""

from sintrovae_jax.config import default


def get_config():
    config = default()
    config.data.source = "shapes"
    config.data.points = 512
    config.model.family = "point_cloud"
    config.model.channels = (16, 32, 128)
    config.model.hidden = 128
    config.model.decoder_channels = (64, 128, 512)
    config.model.z_dim = 8
    config.objective.reconstruction = "chamfer"
    config.objective.beta_rec = 4.0
    config.objective.beta_kl = 1.0
    config.objective.beta_neg = 256.0
    config.objective.num_vae = 200
    config.optimizer.learning_rate = 1e-3
    config.optimizer.milestones = (1_600,)
    config.train.ema = 0.99
    config.train.steps = 2_000
    config.train.batch_size = 32
    config.train.substeps = 10
    config.checkpoint.every = 200
    config.log.every = 50
    config.log.figures_every = 200
    config.eval.evaluators = ("latents", "clouds")
    config.eval.num_samples = 600
    return config
