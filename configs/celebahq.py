"""Soft-IntroVAE on CelebA-HQ at 256×256, with the published hyper-parameters of the convolutional networks.

    python -m sintrovae_jax.main --config configs/celebahq.py
    python -m sintrovae_jax.main --config configs/celebahq.py --config.data.source=folder:PATH

29,000 faces to train, 1,000 to test, 250 epochs at batch 8, mirrored one in two. TFDS cannot fetch CelebA-HQ: prepare
`celeb_a_hq/256` by hand, or give a folder of its pictures. data.memory_gib=6 holds the set in memory. This recipe
has not been run to its end yet; the published FID of 18.63 is the style-based networks'. A step is 4.8 TFLOP and takes
54 s on 2 cores of an AMD EPYC, in 6.9 GB (2026-11-22): train it on a GPU or TPU.
"""

from configs import images


def get_config(source: str = "tfds:celeb_a_hq/256", size: int = 256, count: int = 29_000, substeps: int = 5):
    config = images.get_config(source, size=size, channels=3, images=count, batch_size=8, epochs=250, substeps=substeps)
    config.data.test_fraction = 1 / 30
    config.data.flip = True
    config.model.z_dim = 256
    config.model.channels = (64, 128, 256, 512, 512, 512)
    config.objective.beta_kl = 0.5
    config.objective.beta_neg = 1024.0
    return config
