"""Soft-IntroVAE on FFHQ at 256×256, with the convolutional networks and hyper-parameters of CelebA-HQ.

    python -m sintrovae_jax.main --config configs/ffhq.py --config.data.source=folder:PATH

70,000 faces, a seventh of them (by a hash of the file name) to test; 250 epochs at batch 8; one image in two is
mirrored. The paper trained FFHQ with the style-based networks only (FID 17.55). This recipe has not been run to
completion yet.
"""

from sintrovae_jax.presets import images


def get_config():
    config = images.faces("folder:data/ffhq", count=60_000)
    config.data.test_fraction = 1 / 7
    return config
