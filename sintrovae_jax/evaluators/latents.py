"""Reconstruction errors, the KLs of test images, samples and reconstructions, and the KL gap."""

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

    rec_error (summed over an image's dimensions); kl_real, kl_fake, kl_recon (nats, unweighted); and kl_gap, which is
    not the kl_gap of training batches that `logs.summarise` gives (docs/method.md, "The KL gap"). With a learnt prior,
    also components_used: the effective number of components that test images use.
    """
    model, seed = scoring.model, scoring.seed
    x, labels = scoring.test(scoring.num_samples)
    objective = model.config.objective
    rec = reconstruction.error(objective.reconstruction, reconstruction.weights(objective))

    def kl(posterior):
        return float(np.mean(model.kl(posterior, seed)))

    real, recon = model.encode(x, labels), model.reconstruct(x, labels)
    fake = model.encode(model.sample(seed, len(x), labels=labels), labels)
    kls = {"kl_real": kl(real), "kl_fake": kl(fake), "kl_recon": kl(model.encode(recon, labels))}
    out = {"rec_error": float(np.mean(rec(jnp.asarray(x), recon)))} | kls | {"kl_gap": objectives.kl_gap(**kls)}
    if model.mixture is not None:
        out["components_used"] = _used(model.mixture, real.mean)
    return out


def _used(mixture, z):
    """The effective number of components: exp(entropy) of the responsibilities averaged over latents z [N, Z]."""
    mean = np.asarray(mixture.responsibilities(z).mean(0), np.float64)
    return float(np.exp(-(mean * np.log(np.maximum(mean, 1e-300))).sum()))


def _metrics(config):
    learnt = ("components_used",) if config.model.prior == "mixture" else ()
    return ("rec_error", "kl_real", "kl_fake", "kl_recon", "kl_gap", *learnt)


EVALUATOR = Evaluator(evaluate, _metrics)
