"""Soft-IntroVAE on the 2D density "25 Gaussians".

python -m sintrovae_jax.main --config configs/gaussians25.py
"""

from sintrovae_jax.presets import density


def get_config():
    return density.get_config("gaussians25", beta_kl=0.3, beta_rec=0.2, beta_neg=0.9)
