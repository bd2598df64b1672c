"""Unsupervised translation of sprites (32×32, drawn during training): class and content from two encoders.

    python -m sintrovae_jax.main --config configs/sprites.py

Expect figures/translations.png to show the position of each row and the colour and size of each column. On classes and
contents that training never saw, expect a transfer_error of 12.7, against 69.5 for the better of copying either image,
and kl_gap 5.2, after 19 minutes on one core of an AMD EPYC (2026-11-26, seed 0). Shape and rotation are not learnt:
sprites are discs and ovals.

The KL of the content code has four times the weight. With equal weights the content code also encodes the size: it can
express everything that the class code can, so global properties go to the class code only if that is cheaper.
"""

from sintrovae_jax.config import default

CLASS, CONTENT = 8, 8  # sizes of the codes


def get_config():
    config = default()
    config.data.source = "sprites"
    config.data.image_size = 32
    config.data.image_channels = 3
    config.data.background = (0, 0, 0)
    config.model.family = "two_encoder"
    config.model.z_dim = CLASS + CONTENT
    config.model.class_dim = CLASS
    config.model.hidden = 128
    config.model.kernel = 3
    config.model.channels = (8, 16, 24, 24)
    config.model.output = "sigmoid"
    config.objective.beta_kl = 0.1
    config.objective.beta_rec = 1.0
    config.objective.beta_neg = 220.0
    config.objective.kl_weights = (1.0,) * CLASS + (4.0,) * CONTENT
    config.objective.num_vae = 6_000
    config.optimizer.learning_rate = 2e-3
    config.optimizer.milestones = (6_000,)
    config.optimizer.decay = 0.25
    config.train.ema = 0.99
    config.train.steps = 7_500
    config.train.batch_size = 32
    config.train.substeps = 20
    config.checkpoint.every = 500
    config.log.every = 100
    config.log.figures_every = 1_500
    config.eval.evaluators = ("latents", "transfer")
    config.eval.num_samples = 2_000
    return config
