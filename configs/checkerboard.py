"""Soft-IntroVAE on the 2D density "Checkerboard", with the published hyper-parameters.

python -m sintrovae_jax.main --config configs/checkerboard.py
"""

from configs import density


def get_config():
    return density.get_config("checkerboard", beta_kl=0.1, beta_rec=0.2, beta_neg=0.2)
