"""Soft-IntroVAE on the 2D density "2 Spirals", with the published hyper-parameters.

python -m sintrovae_jax.main --config configs/spirals.py
"""

from configs import density


def get_config():
    return density.get_config("spirals", beta_kl=0.5, beta_rec=0.2, beta_neg=1.0)
