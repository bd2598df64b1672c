"""Soft-IntroVAE with small convolutional networks on 4,013 sprites of creatures (32×32, colour).

    dpkg -x wesnoth-1.16-data_*.deb wesnoth
    python -m sintrovae_jax.tools.datasets creatures wesnoth/usr/share/games/wesnoth/1.16/data/core/images/units \\
        creatures.npz
    python -m sintrovae_jax.main --config configs/creatures.py

This recipe has not been run to completion yet. After 18,000 steps (2026-11-27, seed 0) samples are sharp, with bodies,
limbs, shadows and colours, but few look like creatures; rec_real is 29, kl_real 171 and kl_gap 2.7 on training batches
(kl_gap was 11 at step 17,250). The long VAE phase and the small beta_kl are needed: with a VAE phase of 1,000 or 3,000
steps, or with beta_kl=0.5, no colour was learnt, and the encoder won within 500 to 2,000 adversarial steps (kl_gap 20
to 60, noisy samples).
"""

from sintrovae_jax.config import default


def get_config():
    config = default()
    config.data.source = "npz:creatures.npz"
    config.data.image_size = 32
    config.data.image_channels = 3
    config.data.flip = True
    config.model.family = "conv"
    config.model.z_dim = 64
    config.model.channels = (16, 32, 64, 128)
    config.objective.beta_kl = 0.06
    config.objective.beta_rec = 1.0
    config.objective.beta_neg = 60.0
    config.objective.num_vae = 15_000
    config.optimizer.learning_rate = 2e-3
    config.optimizer.milestones = (14_500,)
    config.optimizer.decay = 0.2
    config.train.ema = 0.995
    config.train.steps = 60_000
    config.train.batch_size = 16
    config.train.substeps = 10
    config.checkpoint.every = 1_000
    config.log.every = 250
    config.log.figures_every = 2_000
    config.eval.evaluators = ("latents", "fid", "kid", "precision_recall")
    config.eval.features = "classifier"
    config.eval.num_samples = 4_000
    config.eval.batch_norm = "standing"
    return config
