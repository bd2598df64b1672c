"""Evaluators: one question each, named by `config.eval.evaluators`.

Each module has `evaluate(scoring) -> {figure: number}`, with what it works on in `scoring.Scoring`. A new one is a
module here and a line in `EVALUATORS`.
"""

import importlib
from types import ModuleType

from sintrovae_jax.errors import UserError
from sintrovae_jax.importance import observation_std

_CODES = ("class", "content")
_OF_SPRITES = ("transfer_error", "transfer_ratio")  # whose right answers are known
_TRANSFER = (*_OF_SPRITES, *(f"{what}_from_{code}" for what in _CODES for code in _CODES))
_SCORES = ("likelihood", "elbo", "kl", "reconstruction")
# Where each evaluator is, and the figures it gives that a checkpoint can be the best by.
EVALUATORS = {
    "density": ("density", ("gnelbo", "kl", "jsd", "paper_kl", "paper_jsd")),
    "latents": ("latents", ("rec_error", "kl_real", "kl_fake", "kl_recon", "kl_gap")),
    "fid": ("frechet", ("fid",)),
    "kid": ("kid", ("kid",)),
    "precision_recall": ("precision_recall", ("precision", "recall")),
    "likelihood": ("likelihood", ("log_likelihood", "elbo", "bits_per_dimension")),
    "transfer": ("transfer", _TRANSFER),
    "ood": ("ood", tuple(f"ood_{figure}_{score}" for figure in ("auroc", "aupr", "fpr95") for score in _SCORES)),
}
# Those that compare features of samples with those of real images, and so depend on whose features they are.
OF_FEATURES = ("fid", "kid", "precision_recall")
# Half of the side of the square over which a 2D density is plotted and scored (docs/method.md, "2D densities").
HALF_RANGE = {"gaussians8": 2.0, "spirals": 4.0, "checkerboard": 4.0, "rings": 4.0}


def names(config) -> list[str]:
    """The evaluators that the config names; the command line may give them as fid,kid,ood."""
    return [name.strip() for item in config.eval.evaluators for name in str(item).split(",") if name.strip()]


def figures_of(name: str, config) -> tuple[str, ...]:
    """The figures that an evaluator gives with this config."""
    figures = EVALUATORS[name][1]
    if name == "transfer" and config.data.source != "sprites":
        return tuple(f for f in figures if f not in _OF_SPRITES)
    return tuple(figure(f, config.eval.features) for f in figures) if name in OF_FEATURES else figures


def figure(name: str, features: str) -> str:
    """The name of a figure of features: Inception's Fréchet distance is `fid`, another's `frechet_EXTRACTOR`."""
    if features == "inception":
        return name
    return f"{'frechet' if name == 'fid' else name}_{features.partition(':')[2] or features}"


def check(config) -> None:
    """Raises `UserError` if the config names an evaluator, or a figure to be best at, that it cannot have."""
    for name in names(config):
        if name not in EVALUATORS:
            raise UserError(f"eval.evaluators: {name!r} is none of {', '.join(EVALUATORS)}")
        _check_one(name, config)
    figures = [figure for name in names(config) for figure in figures_of(name, config)]
    if config.checkpoint.best and config.checkpoint.best not in figures:
        known = ", ".join(figures) or "none"
        raise UserError(f"checkpoint.best={config.checkpoint.best!r} is no figure of eval.evaluators ({known})")


def _check_one(name, config):
    if name == "density" and config.data.source not in HALF_RANGE:
        raise UserError(f"the density evaluator scores {', '.join(HALF_RANGE)}, not data.source={config.data.source}")
    if name in (*OF_FEATURES, "ood") and not config.data.image_size:
        raise UserError(f"the {name} evaluator scores images, not data.source={config.data.source}")
    if name == "kid" and config.eval.kid_subset_size > config.eval.num_samples:
        raise UserError(
            f"eval.kid_subset_size={config.eval.kid_subset_size} needs as many samples: "
            f"eval.num_samples={config.eval.num_samples}"
        )
    if name == "ood" and not config.eval.ood_source:
        raise UserError("the ood evaluator needs eval.ood_source, a data.source to tell the test images from")
    if name == "transfer" and config.model.family != "two_encoder":
        raise UserError(f"the transfer evaluator is for model.family=two_encoder, not {config.model.family}")
    if name in ("ood", "likelihood") and not (config.eval.observation_std or observation_std(config.objective) > 0):
        raise UserError(f"the {name} evaluator has no standard deviation of p(x|z) here: set eval.observation_std")


def check_data(config, source) -> None:
    """Raises `UserError` if an evaluator lacks weights, labels or another source, before a run that ends with it."""
    chosen = names(config)
    if set(chosen) & set(OF_FEATURES):
        from sintrovae_jax.evaluators import features

        features.check(config, source)
    if "transfer" in chosen and source.factors is None:
        raise UserError(
            "the transfer evaluator needs images whose class is known, which those of "
            f"data.source={config.data.source} is not"
        )
    if "ood" in chosen:
        get("ood").outside_source(config)


def get(name: str) -> ModuleType:
    """The evaluator module of this name."""
    return importlib.import_module(f"sintrovae_jax.evaluators.{EVALUATORS[name][0]}")
