"""Soft-IntroVAE in JAX/Flax. `sintrovae_jax.load(workdir)` gives a trained model."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # On demand, so that `python -m sintrovae_jax.main` answers a wrong flag before it imports jax.
    if name in ("load", "Model"):
        from sintrovae_jax import inference

        return getattr(inference, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
