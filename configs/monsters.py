"""Soft-IntroVAE on the Digital Monsters, or any folder of a few thousand pictures, with the published hyper-parameters.

    python -m sintrovae_jax.main --config configs/monsters.py --config.data.source=folder:PATH

128×128, colour, 400 epochs at batch 16 on about 4,000 pictures, augmented by shifts of up to 5 pixels, hue rotations
over the whole circle, and mirroring. The published data set is not part of this repository. This recipe has not been
run to completion yet.
"""

from sintrovae_jax.presets import images


def get_config():
    config = images.get_config(
        "folder:data/monsters", size=128, channels=3, images=3_800, batch_size=16, epochs=400, substeps=10
    )
    config.data.translate = 5
    config.data.hue = 0.5
    config.data.flip = True
    config.model.z_dim = 128
    config.model.channels = (64, 128, 256, 512, 512)
    config.objective.beta_kl = 0.2
    config.objective.beta_rec = 0.2
    config.objective.beta_neg = 256.0
    return config
