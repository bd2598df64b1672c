"""A model's networks, with only two batch sizes, so that all views together compile few programs.

The page computes either a few examples at once, as for sliders, or a table of examples; a few must not take as long as
a table. Incomplete batches are filled up with their first examples.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from sintrovae_jax import standing
from sintrovae_jax.models import Model
from sintrovae_jax.models.style import StyleModel

FEW, MANY = 10, 32
_MANY_LARGE, _LARGE = 8, 128  # the large batch for images of at least this many pixels per side


class Batches:
    """Encodes and decodes any number of examples, like the methods of `Model`. Arrays in, numpy arrays out.

    many: the number of examples in a large batch; tables should not be larger.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.many = _MANY_LARGE if len(model.shape) == 3 and model.shape[0] >= _LARGE else MANY
        self._roles = standing.has_batch_norm(model)  # without BatchNorm both roles are one program

    def encode(self, x: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """x [N, *shape] -> the posterior's mean and logvar, [N, Z] each."""
        both = self._filled(lambda x, labels: np.stack(self.model.encode(x, labels), 1), x, labels)
        return both[:, 0], both[:, 1]

    def decode(
        self, z: np.ndarray, role: str, labels: np.ndarray | None = None, noise: np.ndarray | None = None
    ) -> np.ndarray:
        """z [N, Z] -> x̂ [N, *shape], not clipped. noise: numbers [N], equal ones get equal noise; None: all equal."""
        if isinstance(self.model, StyleModel):
            return self.synthesize(self.styles(z), noise)
        role = role if self._roles else "posterior"
        return self._filled(lambda z, labels: np.asarray(self.model.decode(z, True, role, labels)), z, labels)

    def styles(self, z: np.ndarray, truncation: float = 1.0) -> np.ndarray:
        """z [N, Z] -> styles [N, layers, Z], for a style-based model."""
        model = self.model
        assert isinstance(model, StyleModel)
        return self._filled(lambda z, _: np.asarray(model.styles(z, truncation)), z, None)

    def synthesize(self, styles: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Styles [N, layers, Z] -> x̂ [N, *shape], for a style-based model. noise: as in `decode`."""
        model = self.model
        assert isinstance(model, StyleModel)
        numbers = np.zeros(len(styles), np.int32) if noise is None else noise
        return self._filled(lambda x, noise: np.asarray(model.synthesize(x, jnp.asarray(noise))), styles, numbers)

    def _filled(
        self, function: Callable[[np.ndarray, np.ndarray | None], np.ndarray], x: np.ndarray, extra: np.ndarray | None
    ) -> np.ndarray:
        size = FEW if len(x) <= FEW else self.many
        parts = []
        for start in range(0, len(x), size):
            places = np.arange(start, start + size) % len(x)
            parts.append(function(x[places], None if extra is None else extra[places]))
        return np.concatenate(parts)[: len(x)]
