"""Soft-IntroVAE with fully connected networks on scikit-learn's handwritten digits (8×8, grey, nothing to download).

python -m sintrovae_jax.main --config configs/digits.py
"""

from configs import common


def get_config():
    config = common.get_config()
    config.data.source = "digits"
    config.data.image_size = 8
    config.model.z_dim = 16
    config.model.channels = (256, 256, 256)
    config.objective.beta_kl = 0.05
    config.objective.beta_rec = 1.0
    config.objective.beta_neg = 1.0
    config.objective.num_vae = 1_000
    config.train.steps = 10_000
    config.train.batch_size = 64
    config.train.substeps = 50
    config.checkpoint.every = 2_000
    config.log.every = 500
    config.eval.evaluators = ("latents",)
    config.eval.num_samples = 256
    return config
