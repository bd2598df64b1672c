"""Soft-IntroVAE on CelebA-HQ at 256×256, with the published hyper-parameters of the convolutional networks.

    python -m sintrovae_jax.main --config configs/celebahq.py
    python -m sintrovae_jax.main --config configs/celebahq.py --config.data.source=folder:PATH

29,000 faces to train, 1,000 to test; 250 epochs at batch 8; one image in two is mirrored. TFDS cannot download
CelebA-HQ: prepare `celeb_a_hq/256` by hand, or give a folder of its pictures. data.memory_gib=6 keeps the data set in
memory. This recipe has not been run to completion yet; the published FID of 18.63 belongs to the style-based networks.
A step has 4.8 TFLOP and takes 54 s on 2 cores of an AMD EPYC, in 6.9 GB (2026-11-22): train it on a GPU or TPU.
"""

from sintrovae_jax.presets import images


def get_config():
    return images.faces("tfds:celeb_a_hq/256")
