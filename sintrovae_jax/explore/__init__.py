"""A page on which a model is explored in the browser: `python -m sintrovae_jax.explore MODEL` (docs/explore.md).

`build(model)` is the page itself, for notebooks and Spaces. It needs the extra `explore`; what computes (`views`) needs
the package alone.
"""

from typing import TYPE_CHECKING

from sintrovae_jax import extras
from sintrovae_jax.models import Model

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["build"]


def build(model: Model, name: str = "") -> "gr.Blocks":
    """The page of a model that `sintrovae_jax.load` gave, not launched yet. Compiles what it computes: a few seconds.

    name: what the page calls the model. Raises `UserError` if the extra `explore` is not installed.
    """
    extras.need_explore()
    from sintrovae_jax.explore.page import page

    return page(model, name)
