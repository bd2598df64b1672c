"""Unsupervised translation of KTH's frames, 64×64 and grey: class is the actor, content the pose.

    python -m sintrovae_jax.main --config configs/kth.py --config.data.source=kth:PATH

PATH has a folder of pictures for every actor, with file names in the order of the frames; the last twentieth of each
folder is held out. --config.objective.reconstruction=perceptual selects LORD's own loss. This recipe has not been run
to completion yet.
"""

from sintrovae_jax.presets import translation


def get_config():
    return translation.get_config("kth:data/kth", channels=1, images=25 * 450, batch_size=64, epochs=200, substeps=10)
