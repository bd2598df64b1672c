"""Unsupervised translation of sprites (32×32, drawn as training goes): class and content from two encoders.

python -m sintrovae_jax.main --config configs/sprites.py
"""

from configs import common


def get_config():
    config = common.get_config()
    config.data.source = "sprites"
    config.data.image_size = 32
    config.data.image_channels = 3
    config.data.background = (0, 0, 0)
    config.model.family = "two_encoder"
    config.model.z_dim = 16
    config.model.class_dim = 8
    config.model.hidden = 128
    config.model.kernel = 3
    config.model.channels = (12, 24, 24, 24)
    config.model.output = "sigmoid"
    config.objective.name = "vae"
    config.objective.beta_kl = 0.3
    config.objective.beta_rec = 1.0
    config.objective.beta_neg = 35.0
    config.objective.num_vae = 0
    config.optimizer.learning_rate = 1e-3
    config.train.ema = 0.99
    config.train.steps = 4_000
    config.train.batch_size = 32
    config.train.substeps = 20
    config.checkpoint.every = 1_000
    config.log.every = 200
    config.log.figures_every = 2_000
    config.eval.evaluators = ("latents", "transfer")
    config.eval.num_samples = 1000
    return config
