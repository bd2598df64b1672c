"""Soft-IntroVAE on the 2D density "8 Gaussians", with the published hyper-parameters.

python -m sintrovae_jax.main --config configs/gaussians8.py
"""

from configs import density


def get_config():
    return density.get_config("gaussians8", beta_kl=0.3, beta_rec=0.2, beta_neg=0.9)
