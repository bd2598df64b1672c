"""An evaluator as somebody would add it: how bright samples are, with a key of its own."""

import numpy as np

from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators.evaluator import Evaluator
from sintrovae_jax.keys import Key, at_least


def evaluate(scoring) -> dict:
    options = scoring.model.config.eval.brightness
    return {"brightness": options.times * float(np.mean(scoring.model.sample(scoring.seed, scoring.num_samples)))}


def check(config) -> None:
    if config.data.image_channels != 1:
        raise UserError("the brightness evaluator scores grey images")


EVALUATOR = Evaluator(evaluate, lambda config: ("brightness",), {"times": Key(1, "multiplies it", at_least(1))}, check)
