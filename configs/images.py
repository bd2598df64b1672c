"""What the convolutional recipes share (docs/method.md, "Convolutional networks"). Not a recipe itself."""

from configs import common


def get_config(source: str, *, size: int, channels: int, images: int, batch_size: int, epochs: int, substeps: int):
    """images: how many the training split has, to derive steps from epochs. Lengths are multiples of `substeps`."""
    config = common.get_config()
    config.data.source = source
    config.data.image_size = size
    config.data.image_channels = channels
    config.model.family = "conv"

    def steps(epochs):
        return round(epochs * images / batch_size / substeps) * substeps

    config.train.batch_size = batch_size
    config.train.substeps = substeps
    config.train.steps = steps(epochs)
    if epochs > 350:
        config.optimizer.milestones = (steps(350),)
    config.checkpoint.every = steps(max(1, epochs // 50))
    config.log.every = 50 * substeps
    config.log.figures_every = steps(max(1, epochs // 25))
    config.eval.evaluators = ("latents",)
    config.eval.num_samples = 1_000
    config.eval.batch_norm = "standing"
    return config
