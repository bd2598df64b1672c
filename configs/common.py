"""Defaults that every recipe starts from. A recipe sets what differs; the command line overrides either.

Not a recipe itself: it names no data.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    # Several processes: 'auto' (ask Slurm's or a TPU pod's environment), 'on', 'off' or 'HOST:PORT,COUNT,INDEX'.
    config.distributed = "auto"

    config.data = ConfigDict()
    config.data.source = ""  # gaussians8, spirals, checkerboard, rings, digits
    config.data.image_size = 0  # pixels a side; 0: points, not images
    config.data.image_channels = 1

    config.model = ConfigDict()
    config.model.family = "mlp"
    config.model.z_dim = 2
    config.model.channels = (256, 256, 256, 256)  # widths of the hidden layers
    config.model.output = "linear"  # of the decoder; 'sigmoid' for bce

    config.objective = ConfigDict()
    config.objective.name = "soft_intro"  # soft_intro, vae, intro
    config.objective.reconstruction = "mse"  # mse, l1, bce, each summed over an example's dimensions
    config.objective.beta_rec = 1.0
    config.objective.beta_kl = 1.0
    config.objective.beta_neg = 1.0  # weight of the KL of generated data, in the encoder's exponential term
    config.objective.alpha = 2.0
    config.objective.gamma = 1.0
    config.objective.gamma_r = 0.0
    config.objective.scale = placeholder(float)  # default: 1 / (dimensions of an example)
    config.objective.num_vae = 0  # first steps that train a plain VAE
    config.objective.prior_std = 1.0
    config.objective.kl_weights = ()  # one per latent dimension; empty: all 1
    config.objective.intro_alpha = 0.25  # IntroVAE's weight of the hinge
    config.objective.margin = 110.0  # IntroVAE's m, in nats

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-4  # of Adam, for both networks
    config.optimizer.milestones = ()  # steps at which the learning rate is multiplied by `decay`
    config.optimizer.decay = 0.1

    config.train = ConfigDict()
    config.train.steps = 1000
    config.train.batch_size = 128  # over all devices
    config.train.substeps = 1  # steps of one dispatch; all lengths below are multiples of it
    config.train.dtype = "float32"  # what the networks compute in; 'bfloat16' keeps losses and parameters float32

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000
    config.checkpoint.keep = 2  # newest ones
    config.checkpoint.best = ""  # also keep the best by this figure of an evaluator; '': none
    config.checkpoint.best_mode = "min"

    config.log = ConfigDict()
    config.log.every = 100
    config.log.figures_every = 0  # pictures during training; 0: at the end only

    config.eval = ConfigDict()
    config.eval.every = 0  # evaluation during training; 0: at the end only
    config.eval.evaluators = ()  # density, latents
    config.eval.num_samples = 5000  # that the evaluators draw, and --mode sample writes
    return config
