"""All config keys: defaults, meanings and checks. Evaluators add their own, under `eval.NAME`.

A recipe overrides these defaults, and the command line overrides both.
"""

from typing import Any

from sintrovae_jax import evaluators, models, objectives, seeds
from sintrovae_jax.data import examples
from sintrovae_jax.keys import (
    ABOVE_0,
    COLOUR,
    PROJECT,
    Check,
    Key,
    Optional,
    at_least,
    between,
    each_at_least,
    one_of,
    widths,
)

_RUN = {
    "seed": Key(
        0, "seed of the parameters, the noise and the order of the data", Check(seeds.fits, f"must be {seeds.RANGE}")
    ),
    "distributed": Key(
        "auto", "several processes: 'auto' asks Slurm or a TPU pod; or 'on', 'off', HOST:PORT,COUNT,INDEX"
    ),
    "distributed_heartbeat": Key(
        60, "seconds without a heartbeat from one process after which all processes end", at_least(10)
    ),
}
_DATA = {
    "source": Key("", f"the dataset, one of {', '.join(examples.NAMES)}; PATH may be a gs:// path"),
    "image_size": Key(0, "resolution: pixels per side; 0: points or clouds, not images", at_least(0)),
    "image_channels": Key(1, "channels of an image: 1 for grey, 3 for colour", one_of(1, 3)),
    "max_pixels": Key(
        178_956_970, "largest image file, in pixels; larger ones are skipped without being decoded", at_least(1)
    ),
    "crop": Key(True, "crop images to the largest central square; False: squeeze the whole image into a square"),
    "background": Key(
        (255, 255, 255), "colour behind transparent images, and of the edges that translations uncover", COLOUR
    ),
    "points": Key(2048, "number of points in a cloud", at_least(1)),
    "radius": Key(
        0.5,
        "radius of the sphere that each cloud is centred in and scaled to; 0: clouds are left as they are",
        at_least(0),
    ),
    "test_fraction": Key(
        0.05, "fraction of the examples held out as a test split, if the source has none", between(0, 0.5)
    ),
    "memory_gib": Key(2.0, "a set larger than this many GiB is read from disk during training", ABOVE_0),
    "shuffle_buffer": Key(
        10_000, "size of the shuffle buffer, in encoded images, for a TFDS set that is read from disk", at_least(1)
    ),
    "dir": Key("", "folder of the TFDS sets; '': TFDS's own default"),
    "download": Key(False, "download and prepare a TFDS set that is missing"),
    "accept_changes": Key(False, "for this command: use other data than the workdir was trained on"),
    # Augmentation, drawn per example from (seed, step), in this order.
    "translate": Key(0, "images: largest shift in each direction, in pixels", at_least(0)),
    "hue": Key(
        0.0,
        "images: largest hue shift either way, as a part of the colour circle; 0.5 covers all of it",
        between(0, 0.5),
    ),
    "flip": Key(False, "images: mirror left to right with probability 1/2"),
    "rotate": Key(0.0, "clouds: largest rotation about the vertical axis (y), in degrees", between(0, 360)),
}
_MODEL = {
    "family": Key("mlp", f"the network family: {', '.join(models.FAMILIES)}"),
    "z_dim": Key(2, "number of latent dimensions", at_least(1)),
    "channels": Key(
        (256, 256, 256, 256),
        "mlp: width of each hidden layer; point_cloud: width of each of the encoder's per-point layers; others: width "
        "of each stage, from the finest",
        widths(64),
    ),
    "decoder_channels": Key((), "point_cloud: width of each of the decoder's hidden layers", widths(64)),
    "classes": Key(
        0, "conv, mlp: number of labels 0, 1, … of the examples, given to both networks; 0: no labels", at_least(0)
    ),
    "class_dim": Key(0, "two_encoder: size of the class code; the rest of z_dim is the content code", at_least(0)),
    "kernel": Key(7, "two_encoder: pixels per side of the outermost convolutions; the last but one has 2 less"),
    "hidden": Key(256, "two_encoder, point_cloud: width of the encoders' dense layers", at_least(1)),
    "output": Key("linear", "activation of the decoder's output; bce needs sigmoid", one_of("linear", "sigmoid")),
    "augment": Key(False, "images: in training, shift the encoder's inputs and erase parts of them"),
    "prior": Key(
        "normal",
        "N(0, prior_std²), or a mixture of Gaussians that is learnt with the decoder",
        one_of("normal", "mixture"),
    ),
    "components": Key(10, "number of Gaussians in the mixture", at_least(1)),
    "remat": Key(False, "conv, style, two_encoder: recompute activations in the backward pass, to save memory"),
}
# For families that grow: a value for each level, from the coarsest up.
_GROWTH = {
    "steps": Key(
        (),
        "steps of each level; the last one continues to the end; empty: the last level from the start",
        each_at_least(1, int),
    ),
    "batch_sizes": Key((), "batch size of each level; empty: train.batch_size", each_at_least(1, int)),
    "learning_rates": Key((), "learning rate of each level; empty: optimizer.learning_rate", each_at_least(0)),
    "beta_neg": Key((), "beta_neg of each level; empty: objective.beta_neg", each_at_least(0)),
    "ema_images": Key(0.0, "half-life of the averaged networks, in images; 0: train.ema", at_least(0)),
}
_OBJECTIVE = {
    "name": Key("soft_intro", "Soft-IntroVAE, IntroVAE or a plain VAE", one_of(*objectives.OBJECTIVES)),
    "reconstruction": Key(
        "mse",
        "reconstruction error, summed over the dimensions of an example",
        one_of(*objectives.RECONSTRUCTION_ERRORS, "perceptual"),
    ),
    "vgg": Key("", "perceptual: the file of VGG-16's weights; '': the usual places, see perceptual.py"),
    "beta_rec": Key(1.0, "weight of the reconstruction error", at_least(0)),
    "beta_kl": Key(1.0, "weight of the KL of real data, and in the decoder's loss", at_least(0)),
    "beta_neg": Key(1.0, "weight of the KL of generated data, in the encoder's exponential term", at_least(0)),
    "alpha": Key(2.0, "α of the exponential term", ABOVE_0),
    "gamma": Key(1.0, "weight of generated data in the decoder's loss", at_least(0)),
    "gamma_r": Key(0.0, "weight of the reconstruction error of generated data in the decoder's loss", at_least(0)),
    "scale": Key(Optional(float), "s; default: 1 / (dimensions of an example)", ABOVE_0),
    "num_vae": Key(0, "number of first steps, which train a VAE with the objective's scale", at_least(0)),
    "target_period": Key(0, "bootstrap: steps between refreshes of the target decoder; 0: no target", at_least(0)),
    "prior_std": Key(1.0, "standard deviation of the prior; for a learnt prior, the initial one", ABOVE_0),
    "kl_weights": Key((), "weight of each latent dimension's KL; empty: all 1", each_at_least(0)),
    "kl_samples": Key(100, "model.prior=mixture: number of latents that each KL is estimated from", at_least(1)),
    "responsibility": Key(
        0.0, "model.prior=mixture: weight of a term that makes the encoder use all components equally", at_least(0)
    ),
    "intro_alpha": Key(0.25, "IntroVAE: weight of the hinge terms", at_least(0)),
    "margin": Key(110.0, "IntroVAE: the margin m, in nats", at_least(0)),
}
_OPTIMIZER = {
    "learning_rate": Key(2e-4, "Adam's learning rate, for both networks", ABOVE_0),
    "prior_learning_rate": Key(
        Optional(float),
        "learning rate of a learnt prior, decayed like `learning_rate`, which is the default; 0: the prior stays fixed",
        Check(lambda v: v is None or v >= 0, "must be at least 0"),
    ),
    "milestones": Key((), "steps at which the learning rate is multiplied by `decay`", each_at_least(1, int)),
    "decay": Key(0.1, "factor that the learning rate is multiplied by at each milestone", at_least(0)),
}
_TRAIN = {
    "steps": Key(1000, "length of the run; lengths are never in epochs", at_least(1)),
    "batch_size": Key(128, "examples per step, over all devices", at_least(1)),
    "substeps": Key(1, "steps per dispatch; all lengths are multiples of it", at_least(1)),
    "dtype": Key("float32", "precision of the networks; bfloat16 keeps losses, statistics and parameters float32"),
    "ema": Key(
        0.0,
        "decay per step of the averaged networks, which figures and evaluation use; 0: no averaging",
        Check(lambda v: 0 <= v < 1, "must be at least 0 and below 1"),
    ),
}
_CHECKPOINT = {
    "every": Key(1000, "steps between checkpoints", at_least(1)),
    "keep": Key(2, "number of newest checkpoints to keep", at_least(1)),
    "best": Key("", "also keep the best checkpoint by this metric of an evaluator; '': do not"),
    "best_mode": Key("min", "whether the best checkpoint has the smallest or the largest metric", one_of("min", "max")),
}
_LOG = {
    "every": Key(100, "steps between rows of metrics", at_least(1)),
    "figures_every": Key(0, "steps between figures during training; 0: at the end only", at_least(0)),
    "figures": Key(True, "draw figures at the end of training"),
    "report": Key(True, "end training with report.html"),
    "wandb": Key("", "also log to Weights & Biases (extra wandb): PROJECT or ENTITY/PROJECT; '': do not", PROJECT),
}
_EVAL = {
    "every": Key(0, "steps between evaluations during training; 0: at the end only", at_least(0)),
    "evaluators": Key((), f"the evaluators to run, any of {', '.join(evaluators.EVALUATORS)}"),
    "batch_size": Key(256, "examples per batch, limited by the device's memory; no metric depends on it", at_least(1)),
    "batch_norm": Key(
        "running",
        "BatchNorm's statistics in evaluation and figures; standing: re-estimated from `standing_batches` training "
        "batches and as many batches of prior samples",
        one_of("running", "standing"),
    ),
    "standing_batches": Key(100, "number of batches of each kind that standing statistics average over", at_least(1)),
    "truncation": Key(
        1.0, "style, --mode sample: how far styles stay from their average; 1: no truncation", between(0, 1)
    ),
    "num_samples": Key(5000, "number of samples that evaluators draw and --mode sample writes", at_least(1)),
    # For fid, kid and precision_recall, which compare the features of samples and of real images.
    "features": Key(
        "inception", "inception, classifier (trained on the labels of the training set) or MODULE:FUNCTION"
    ),
    "inception": Key("", "the file of Inception's weights; '': the usual places, see evaluators/inception_weights.py"),
    "reference": Key("train", "the split that samples are compared with", one_of("train", "test")),
    "num_real": Key(50_000, "largest number of real images that samples are compared with", at_least(1)),
    "cache": Key("~/.cache/sintrovae_jax", "folder for the statistics of real images; '': no cache"),
}
_SECTIONS = {
    "data": _DATA,
    "model": _MODEL,
    "growth": _GROWTH,
    "objective": _OBJECTIVE,
    "optimizer": _OPTIMIZER,
    "train": _TRAIN,
    "checkpoint": _CHECKPOINT,
    "log": _LOG,
    "eval": _EVAL,
}


def keys() -> dict[str, Key]:
    """All keys, by their full names, including the keys of evaluators that were added from outside the package."""
    sections = _SECTIONS | {f"eval.{name}": e.keys for name, e in evaluators.EVALUATORS.items() if e.keys}
    return _RUN | {f"{name}.{last}": key for name, section in sections.items() for last, key in section.items()}


def defaults() -> dict[str, Any]:
    """The default of every key, by its full name."""
    return {name: key.default for name, key in keys().items()}
