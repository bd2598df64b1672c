"""Reconstruction errors, KLs of test images, of samples and of reconstructions, and the KL gap."""

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from sintrovae_jax import objectives, reconstruction
from sintrovae_jax.evaluators.evaluator import Evaluator

if TYPE_CHECKING:
    from sintrovae_jax.evaluators.scoring import Scoring


def evaluate(scoring: "Scoring") -> dict[str, float]:
    """Means over up to `eval.num_samples` test images and as many samples, reconstructing from the posterior's mean.

    Samples of a conditional model have the labels of the test images.

    rec_error (summed over an image's dimensions), kl_real, kl_fake, kl_recon (nats, unweighted) and kl_gap: not that of
    training batches, which `logs.summarise` gives (docs/method.md, "The KL gap").
    """
    model, seed = scoring.model, scoring.seed
    x, labels = scoring.test(scoring.num_samples)
    objective = model.config.objective
    rec = reconstruction.error(objective.reconstruction, reconstruction.weights(objective))

    def kl(images):
        return float(np.mean(objectives.kl(*model.encode(images, labels), model.config.objective.prior_std)))

    recon = model.reconstruct(x, labels)
    kls = {"kl_real": kl(x), "kl_fake": kl(model.sample(seed, len(x), labels=labels)), "kl_recon": kl(recon)}
    return {"rec_error": float(np.mean(rec(jnp.asarray(x), recon)))} | kls | {"kl_gap": objectives.kl_gap(**kls)}


EVALUATOR = Evaluator(evaluate, lambda config: ("rec_error", "kl_real", "kl_fake", "kl_recon", "kl_gap"))
