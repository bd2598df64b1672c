"""The common parts of recipes of one kind, as functions that return a config to be changed. Recipes are in configs/."""


def steps_of(epochs: float, images: int, batch_size: int, substeps: int) -> int:
    """The steps of `epochs` passes over `images` training images, rounded to a multiple of `substeps`."""
    return round(epochs * images / batch_size / substeps) * substeps
