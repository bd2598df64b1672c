"""Soft-IntroVAE on SVHN's cropped digits (32×32, colour), with the published hyper-parameters.

    python -m sintrovae_jax.main --config configs/svhn.py --config.data.download=True

250 epochs at batch 32. This recipe has not been run to its end yet.
"""

from configs import images


def get_config():
    config = images.get_config(
        "tfds:svhn_cropped", size=32, channels=3, images=73_257, batch_size=32, epochs=250, substeps=10
    )
    config.model.z_dim = 128
    config.model.channels = (64, 128, 256)
    config.objective.beta_neg = 256.0
    return config
