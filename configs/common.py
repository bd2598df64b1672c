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
    config.distributed_heartbeat = 60  # seconds without a sign of life of one of them after which all end

    config.data = ConfigDict()
    # gaussians8, spirals, checkerboard, rings; digits, letters, sprites; tfds:NAME[/CONFIG], folder:PATH (local or gs://),
    # npz:PATH, cars3d:PATH, kth:PATH
    config.data.source = ""
    config.data.image_size = 0  # pixels a side; 0: points, not images
    config.data.image_channels = 1  # 1 or 3
    config.data.crop = True  # the largest square in the middle of a picture; False: all of it, squeezed
    config.data.background = (255, 255, 255)  # behind transparent pictures, and what translations bring in
    config.data.test_fraction = 0.05  # held out where a set has no test split of its own
    config.data.memory_gib = 2.0  # a set larger than this is read from disk as training goes
    config.data.shuffle_buffer = 10_000  # of a TFDS set read from disk: encoded images waiting for their turn
    config.data.dir = ""  # where TFDS sets lie; '': TFDS's own default
    config.data.download = False  # download and prepare a TFDS set that is not there
    # Augmentation, drawn per example from (seed, step), in this order.
    config.data.translate = 0  # pixels, at most, in each direction
    config.data.hue = 0.0  # at most this part of the colour circle, either way; 0.5 is all of it
    config.data.flip = False  # left to right, one in two

    config.model = ConfigDict()
    config.model.family = "mlp"  # mlp, conv, style, two_encoder
    config.model.z_dim = 2
    config.model.channels = (256, 256, 256, 256)  # mlp: of the hidden layers; others: of the stages, finest first
    config.model.class_dim = 0  # two_encoder: how many of z_dim are the class code; the rest is the content code
    config.model.kernel = 7  # two_encoder: pixels a side of the outermost convolutions; the last but one has 2 less
    config.model.hidden = 256  # two_encoder: width of the encoders' dense layers
    config.model.output = "linear"  # of the decoder; 'sigmoid' for bce
    config.model.remat = False  # all but mlp: recompute activations in the backward pass, to save memory

    # Growing (style), a value a level from 4×4 up, where model.channels end; empty: the key named here, at all levels.
    config.growth = ConfigDict()
    config.growth.steps = ()  # the last level goes on to the end; empty: the last level from the start
    config.growth.batch_sizes = ()  # train.batch_size
    config.growth.learning_rates = ()  # optimizer.learning_rate
    config.growth.beta_neg = ()  # objective.beta_neg
    config.growth.ema_images = 0.0  # half-life of the averaged networks, in images; 0: train.ema

    config.objective = ConfigDict()
    config.objective.name = "soft_intro"  # soft_intro, vae, intro
    config.objective.reconstruction = "mse"  # mse, l1, bce, each summed over an example's dimensions; perceptual
    config.objective.vgg = ""  # perceptual: the file of VGG-16's weights; '': where others keep it, see perceptual.py
    config.objective.beta_rec = 1.0
    config.objective.beta_kl = 1.0
    config.objective.beta_neg = 1.0  # weight of the KL of generated data, in the encoder's exponential term
    config.objective.alpha = 2.0
    config.objective.gamma = 1.0
    config.objective.gamma_r = 0.0
    config.objective.scale = placeholder(float)  # default: 1 / (dimensions of an example)
    config.objective.num_vae = 0  # first steps that train a plain VAE, in the scale of the objective that follows
    config.objective.target_period = 0  # bootstrap: steps between refreshes of the target decoder; 0: no target
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
    config.train.ema = 0.0  # decay a step of the averaged networks that pictures and evaluation use; 0: none

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
    config.eval.evaluators = ()  # density, latents, fid, kid, precision_recall, likelihood, ood, transfer; in any order
    config.eval.batch_size = 256  # what fits the device; no figure depends on it
    # BatchNorm's averages that evaluation and pictures use, kept apart for decoded posterior and prior samples:
    # 'running', or 'standing': estimated anew from `standing_batches` training batches and as many of prior samples.
    config.eval.batch_norm = "running"
    config.eval.standing_batches = 100
    config.eval.truncation = 1.0  # style, --mode sample: how far styles stay from their average; 1: no truncation
    config.eval.num_samples = 5000  # that the evaluators draw, and --mode sample writes
    # What fid, kid and precision_recall compare: the features of samples with those of `num_real` images at most.
    config.eval.features = "inception"  # or classifier (trained on the set's own labels), or MODULE:FUNCTION
    config.eval.inception = ""  # the weights file; '': where others keep it, see evaluators/inception_weights.py
    config.eval.reference = "train"  # or 'test': the split that samples are compared with
    config.eval.num_real = 50_000
    config.eval.cache = "~/.cache/sintrovae_jax"  # what was computed of real images; '': do not keep it
    config.eval.kid_subsets = 100
    config.eval.kid_subset_size = 1000
    config.eval.neighbours = 3  # of precision and recall
    # What likelihood and ood score: so many test images, with so many importance samples each.
    config.eval.num_scored = 1000
    config.eval.importance_samples = 1000
    # Standard deviation of p(x|z), a Gaussian around the decoded image; default: that of the trained objective,
    # sqrt(beta_kl / (2 beta_rec)).
    config.eval.observation_std = placeholder(float)
    config.eval.ood_source = ""  # a data.source to tell the test images from
    config.eval.bootstrap = 1000  # resamplings behind the intervals of ood
    return config
