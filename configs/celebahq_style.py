"""Style-based Soft-IntroVAE on CelebA-HQ, grown from 4×4 to 256×256, with the published hyper-parameters.

    python -m sintrovae_jax.main --config configs/celebahq_style.py --config.data.source=folder:PATH

29,000 faces to train, 1,000 to test; one image in two is mirrored; 30 epochs per level, 300 in all, the first one as a
plain VAE. The batch sizes are the published ones for 8 devices; configs/celebahq_style.py:4, :2 and :1 have those for
4, 2 and 1 devices. The published FID is 18.63, at epoch 230. This recipe has not been run to completion yet.
"""

from sintrovae_jax.presets import style


def get_config(devices: str = "8"):
    config = style.get_config(devices, "tfds:celeb_a_hq/256", count=29_000, epochs_per_level=30, beta_rec=0.05)
    config.data.test_fraction = 1 / 30
    config.optimizer.learning_rate = 1.5e-3
    return config
