"""Soft-IntroVAE on the 2D density "Rings", with the published hyper-parameters.

python -m sintrovae_jax.main --config configs/rings.py
"""

from configs import density


def get_config():
    return density.get_config("rings", beta_kl=0.2, beta_rec=0.2, beta_neg=1.0)
