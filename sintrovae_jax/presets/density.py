"""Shared by the 2D recipes (docs/method.md, "2D densities"). Not a recipe itself."""

from ml_collections import ConfigDict

from sintrovae_jax.config import default


def get_config(source: str, *, beta_kl: float, beta_rec: float, beta_neg: float) -> ConfigDict:
    config = default()
    config.seed = 92
    config.data.source = source
    config.objective.beta_kl = beta_kl
    config.objective.beta_rec = beta_rec
    config.objective.beta_neg = beta_neg
    config.objective.num_vae = 2_000
    config.optimizer.milestones = (10_000, 15_000)
    config.train.steps = 30_000
    config.train.batch_size = 512
    config.train.substeps = 50
    config.checkpoint.every = 5_000
    config.checkpoint.best = "jsd"
    config.log.every = 500
    config.log.figures_every = 5_000
    config.eval.every = 10_000
    config.eval.evaluators = ("density",)
    return config
