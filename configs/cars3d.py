"""Unsupervised translation of Cars3D at 64×64: class is the car model, content the view.

    python -m sintrovae_jax.main --config configs/cars3d.py --config.data.source=cars3d:PATH

PATH is the folder of the published .mat files, or the .npz made from them (`data/cars3d.py`). 20 of the 183 models are
held out. --config.objective.reconstruction=perceptual selects LORD's own loss. This recipe has not been run to
completion yet.
"""

from sintrovae_jax.presets import translation


def get_config():
    return translation.get_config(
        "cars3d:data/cars3d.npz", channels=3, images=163 * 96, batch_size=64, epochs=200, substeps=10
    )
