"""Soft-IntroVAE on ShapeNet's point clouds, with the published networks and hyper-parameters of the 3D release.

    python -m sintrovae_jax.main --config configs/shapenet.py --config.data.source=clouds:PATH

PATH is the folder of one class of shape_net_core_uniform_samples_2048 (Achlioptas et al. 2018), such as 03001627, the
chairs: .ply files of 2,048 points, already centred and scaled. The number of steps is 2,000 epochs of the 5,761
training clouds, 85 % of the chairs; for another class pass its number of training clouds: configs/shapenet.py:COUNT.

The betas come from the released configuration; its README has 1.0, 0.2 and 20. Published JSD of the validation set:
chair 0.0175, table 0.0143, car 0.0113, airplane 0.0191. This recipe has not been run to completion yet.
"""

from sintrovae_jax.config import default
from sintrovae_jax.presets import set_lengths

CHAIRS = 5761  # of 6,778


def get_config(count=str(CHAIRS)):
    config = default()
    config.data.source = "clouds:shape_net_core_uniform_samples_2048/03001627"
    config.data.radius = 0.0
    config.data.test_fraction = 0.15
    config.model.family = "point_cloud"
    config.model.channels = (64, 128, 256, 256, 512)
    config.model.hidden = 256
    config.model.decoder_channels = (64, 128, 512, 1024)
    config.model.z_dim = 128
    config.objective.reconstruction = "chamfer"
    config.objective.beta_rec = 20.0
    config.objective.beta_kl = 1.0
    config.objective.beta_neg = 256.0
    config.objective.prior_std = 0.2
    steps = set_lengths(config, images=int(count), batch_size=32, epochs=2_000, substeps=10)
    config.optimizer.learning_rate = 5e-4
    config.optimizer.milestones = tuple(steps(epochs) for epochs in (350, 450, 550))
    config.optimizer.decay = 0.5
    config.eval.evaluators = ("latents", "clouds")
    config.eval.num_samples = 400
    return config
