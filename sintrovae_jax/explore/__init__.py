"""A web page to explore a model: `python -m sintrovae_jax.explore MODEL` (docs/explore.md).

`build(model)` returns the page itself, for notebooks and Spaces. It needs the extra `explore`; the computations
(`views`) need only the package.
"""

from typing import TYPE_CHECKING

from sintrovae_jax import extras
from sintrovae_jax.models import Model

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["build"]


def build(model: Model, name: str = "") -> "gr.Blocks":
    """The page for a model from `sintrovae_jax.load`, not launched yet. Compiles its computations, in a few seconds.

    name: the model's name on the page. Raises `UserError` if the extra `explore` is not installed.
    """
    extras.need_explore()
    from sintrovae_jax.explore.page import page

    return page(model, name)
