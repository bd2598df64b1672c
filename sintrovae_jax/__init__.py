"""Soft-IntroVAE in JAX/Flax. `sintrovae_jax.load(workdir)` gives a trained model."""

from typing import TYPE_CHECKING

__all__ = ["Model", "__version__", "load"]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sintrovae_jax.inference import Model, load
else:

    def __getattr__(name: str):
        # On demand, so that the command line and the data pipeline do not import Orbax needlessly.
        if name in ("load", "Model"):
            from sintrovae_jax import inference

            return getattr(inference, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
