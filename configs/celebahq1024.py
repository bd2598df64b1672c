"""Soft-IntroVAE on CelebA-HQ at 1024×1024: the published network sizes. No tuned values were published for it.

    python -m sintrovae_jax.main --config configs/celebahq1024.py --config.data.source=folder:PATH

Like configs/celebahq.py, with a deeper and narrower network and gradient rematerialisation. This recipe has not been
run to completion yet.
"""

from sintrovae_jax.presets import images


def get_config():
    config = images.faces("tfds:celeb_a_hq/1024", size=1024, substeps=1)
    config.model.channels = (16, 32, 64, 128, 256, 512, 512, 512)
    config.model.remat = True
    return config
