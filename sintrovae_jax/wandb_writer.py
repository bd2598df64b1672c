"""Weights & Biases as one of clu's metric writers, for `log.wandb`. Its failures never end a run.

Imported only if `log.wandb` is set, because it imports clu, and wandb when it starts.
"""

import json
import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from clu import metric_writers

from sintrovae_jax import files, workdirs
from sintrovae_jax.arrays import Array
from sintrovae_jax.parallel import first_line

log = logging.getLogger(__name__)
_STEP = "step"  # of training: the axis of all charts
_START, _FINISH = 60, 120  # seconds that a server that does not answer may take, at the start and at the end


def start(project: str, workdir: Path, hyperparameters: Mapping[str, Any]) -> "WandbWriter | None":
    """The writer of a workdir's run. project: PROJECT or ENTITY/PROJECT. None, after a warning, if it cannot start.

    A resumed run continues the same W&B run, whose id is kept in the workdir. WANDB_MODE and wandb's other variables
    apply; wandb's files go to the workdir, unless that is remote or WANDB_DIR is set.
    """
    try:
        return _started(project, workdir, hyperparameters)
    except Exception as error:  # from the network, the account, or wandb
        log.warning("log.wandb: not logged to Weights & Biases (%s)", first_line(error))
        return None


def _started(project, workdir, hyperparameters):
    import wandb

    entity, _, name = project.rpartition("/")
    folder = None if files.is_remote(workdir) or os.environ.get("WANDB_DIR") else str(workdir)
    offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun")
    run = wandb.init(
        entity=entity or None,
        project=name,
        id=run_id(workdir, project),
        name=workdir.name,
        dir=folder,
        resume=None if offline else "allow",  # offline, wandb cannot look up the run, and warns
        # This program handles its standard streams itself (streams.py).
        settings=wandb.Settings(console="off", quiet=True, init_timeout=_START, finish_timeout=_FINISH),
    )
    writer = WandbWriter(run)
    writer.write_hparams(hyperparameters)
    return writer


def run_id(workdir: Path, project: str) -> str:
    """The id of the workdir's run in this project, from wandb.json; created if it does not exist yet."""
    path = workdir / workdirs.WANDB
    try:
        stored = files.read_json(path)
    except (OSError, ValueError):
        stored = {}
    known = stored if isinstance(stored, dict) else {}
    if not isinstance(known.get(project), str):
        known[project] = uuid.uuid4().hex[:16]
        files.write_text(path, json.dumps(known, indent=2) + "\n")
    return str(known[project])


class WandbWriter(metric_writers.MetricWriter):
    """Writes to a W&B run. After the first failure it warns once, and writes nothing more.

    Every row has the training step, which is the axis of the charts. wandb's own step counter is not used: after a
    killed run is resumed, it would drop the rows after the last checkpoint, which are logged a second time.
    """

    def __init__(self, run: Any) -> None:
        self._run, self._failed = run, False
        self._try(lambda: (run.define_metric(_STEP, hidden=True), run.define_metric("*", step_metric=_STEP)))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._log(step, {name: float(value) for name, value in scalars.items()})

    def write_images(self, step: int, images: Mapping[str, Array]) -> None:
        """images: [N, H, W, C] or [H, W, C] each, bytes or floats in [0, 1]."""
        import wandb

        self._try(lambda: self._log(step, {k: [wandb.Image(_bytes(x)) for x in _each(v)] for k, v in images.items()}))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        self._log(step, dict(texts))

    def write_histograms(
        self, step: int, arrays: Mapping[str, Array], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        import wandb

        bins = num_buckets or {}

        def histogram(name, values):
            return wandb.Histogram(np.asarray(values).ravel().tolist(), num_bins=bins.get(name) or 64)

        self._try(lambda: self._log(step, {name: histogram(name, values) for name, values in arrays.items()}))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        # A resumed run may have other values, such as train.steps.
        self._try(lambda: self._run.config.update(dict(hparams), allow_val_change=True))

    def write_summaries(
        self, step: int, values: Mapping[str, Array], metadata: Mapping[str, Any] | None = None
    ) -> None:
        raise NotImplementedError("TensorBoard's summaries have no counterpart in Weights & Biases")

    def write_videos(self, step: int, videos: Mapping[str, Array]) -> None:
        raise NotImplementedError("videos are not written to Weights & Biases")

    def write_audios(self, step: int, audios: Mapping[str, Array], *, sample_rate: int) -> None:
        raise NotImplementedError("sounds are not written to Weights & Biases")

    def flush(self) -> None:
        """Does nothing: wandb sends its data continuously."""

    def close(self) -> None:
        """Ends the run. Waits for uploads for at most two minutes."""

        def finish():
            self._run.finish()  # looking it up may fail, too

        self._try(finish)

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self._try(lambda: self._run.log(values | {_STEP: step}))

    def _try(self, call: Any) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # from the network, the server, or wandb
            self._failed = True
            log.warning("log.wandb: no more is logged to Weights & Biases (%s)", first_line(error))


def _each(images: Array) -> np.ndarray:
    array = np.asarray(images)
    return array if array.ndim == 4 else array[None]


def _bytes(image: np.ndarray) -> np.ndarray:
    """An image [H, W, C] as bytes, because wandb would stretch floats to their own range."""
    pixels = image if image.dtype == np.uint8 else (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
