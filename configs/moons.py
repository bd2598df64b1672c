"""Soft-IntroVAE on the 2D density "2 Moons".

python -m sintrovae_jax.main --config configs/moons.py
"""

from sintrovae_jax.presets import density


def get_config():
    return density.get_config("moons", beta_kl=0.2, beta_rec=0.2, beta_neg=1.0)
