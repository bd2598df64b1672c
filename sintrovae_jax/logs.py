"""Writing the metrics of a run: to metrics.csv, TensorBoard, and the terminal."""

import csv
import io
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging as absl_logging

from sintrovae_jax import files, progress, workdirs
from sintrovae_jax.arrays import Array
from sintrovae_jax.errors import Unavailable, UserError
from sintrovae_jax.objectives import kl_gap
from sintrovae_jax.parallel import first_line

log = logging.getLogger(__name__)
_COLUMNS = ("step", "seconds", "examples_per_second")  # the columns that are read again
_REWRITES = 30  # seconds between two writes of a remote metrics.csv


def setup(main: bool) -> None:
    """Logs to stderr with the time of day. Processes other than the main one, and other libraries, only warn."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    # After a damaged checkpoint Orbax's abandoned tasks log long tracebacks; the error itself is reported elsewhere.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("sintrovae_jax")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO if main else logging.WARNING)


def summarise(window: Sequence[Mapping[str, Array]]) -> dict[str, float | None]:
    """{name: mean} over a window of host terms {name: [sum, count, first bad]}; None for a term that no step computed.

    This kl_gap is of training batches; results.json has the one of test images (`evaluators.latents`).
    """
    out: dict[str, float | None] = {}
    for name in window[0]:
        total, count = np.sum([np.asarray(terms[name], np.float64)[:2] for terms in window], axis=0)
        out[name] = total / count if count else None
    kls = {name: kl for name in ("kl_real", "kl_fake", "kl_recon") if (kl := out.get(name)) is not None}
    if len(kls) == 3:
        out["kl_gap"] = kl_gap(**kls)
    elif "kl_fake" in out:
        out["kl_gap"] = None
    return out


class Clock:
    """Wall-clock seconds since training began, over all its sessions, and the training rate without pauses."""

    def __init__(self, seconds_before: float):
        self._start = time.monotonic() - seconds_before
        self._examples, self._busy = 0, 0.0  # of this session
        self._stretch, self._mark = 0, time.monotonic()  # since the last pause

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def count(self, examples: int) -> None:
        """Counts training examples."""
        self._stretch += examples

    def resume(self) -> None:
        """Call this when training continues after compilation, an evaluation, figures or a save."""
        self._stretch, self._mark = 0, time.monotonic()

    def pause(self) -> float | None:
        """Call this when training pauses. Returns the examples per second since `resume`; None without examples."""
        busy = time.monotonic() - self._mark
        self._examples, self._busy = self._examples + self._stretch, self._busy + busy
        return self._stretch / busy if self._stretch else None

    def rate(self) -> float | None:
        """Examples per second of training in this session."""
        return self._examples / self._busy if self._examples else None


class Metrics:
    """Writes one row per log step to metrics.csv and TensorBoard. Raises `Unavailable` if that fails.

    Rows past `step` are from a run that was killed, and are dropped. Remote files cannot be appended to, so a remote
    metrics.csv is rewritten every half minute, and by `flush`. others: `clu.metric_writers.MetricWriter`s that get the
    same data as TensorBoard.
    """

    def __init__(self, workdir: Path, step: int, others: Sequence[Any] = ()):
        self._path, self._remote = workdir / workdirs.METRICS, files.is_remote(workdir)
        self._waiting, self._next = False, 0.0  # whether rows are pending; the earliest time to write them
        self._rows = [row for row in read(workdir) if int(row["step"]) <= step]
        self._events = workdir / "events.out.tfevents"
        with files.storing(self._events):
            self._writer = _writer(workdir, others)
        if self._path.exists():
            self._rewrite()

    def seconds(self) -> float:
        """The `seconds` of the last row; 0 if there are no rows."""
        return float(self._rows[-1]["seconds"]) if self._rows else 0.0

    def rate(self) -> float | None:
        """The last known `examples_per_second`."""
        return next((float(row["examples_per_second"]) for row in self._rows[::-1] if row["examples_per_second"]), None)

    def write(self, step: int, row: dict[str, float | None]) -> None:
        cells = {"step": str(step)} | {k: "" if v is None else f"{v:.8g}" for k, v in row.items()}
        same_columns = bool(self._rows) and self._rows[0].keys() == cells.keys()
        self._rows.append(cells)
        if self._remote:
            self._waiting = True
            if time.monotonic() >= self._next:
                self.flush()
        elif not same_columns:
            self._rewrite()
        else:
            with files.storing(self._path), self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._rows[0]).writerow(cells)
        self.scalars(step, {k: float(v) for k, v in cells.items() if v and k != "step"})

    def flush(self) -> None:
        """Writes pending rows. Call this before a checkpoint is saved, so that its rows are not missing.

        A failed write is retried later: a bucket that is unavailable for a while is no reason to end a run.
        """
        if not self._waiting:
            return
        self._next = time.monotonic() + _REWRITES
        try:
            self._rewrite()
            self._waiting = False
        except Unavailable as error:
            log.warning("%s; trying again later", first_line(error))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes values to TensorBoard and the other writers, but not to metrics.csv."""
        if self._writer:
            with files.storing(self._events):
                self._writer.write_scalars(step, values)

    def figures(self, step: int, paths: dict[str, Path]) -> None:
        """Writes PNG files {name: path} to TensorBoard and the other writers."""
        if self._writer:
            with files.storing(self._events):
                self._writer.write_images(step, {name: _pixels(path)[None] for name, path in paths.items()})

    def close(self) -> None:
        self.flush()
        if self._writer:
            with files.storing(self._events):
                self._writer.close()

    def _rewrite(self):
        if not self._rows:
            self._path.unlink()
            return
        text = io.StringIO(newline="")
        columns = dict.fromkeys(column for row in self._rows for column in row)
        self._rows = [dict.fromkeys(columns, "") | row for row in self._rows]
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self._rows)
        files.write_text(self._path, text.getvalue())


def read(workdir: Path) -> list[dict[str, str]]:
    """The rows of a workdir's metrics.csv, without an incomplete last line that a kill may have left.

    Raises `UserError` if the file holds no metrics.
    """
    path = workdir / workdirs.METRICS
    if not path.exists():
        return []
    try:
        text = path.read_text()
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or _COLUMNS)]:
            raise ValueError(f"it has no column {missing[0]}")
        rows = [row for row in reader if None not in row.values() and None not in row and row["step"].isdecimal()]
        for row in rows:
            float(row["seconds"]), float(row["examples_per_second"] or 0)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): restore it, or move it away") from None
    return rows


def _pixels(path):
    from PIL import Image  # from the extra `train`

    with path.open("rb") as file:
        return np.asarray(Image.open(file).convert("RGB"))


def _writer(workdir, others):
    """A clu writer to TensorBoard and the other writers; None if TensorFlow is not installed."""
    try:
        from clu import metric_writers
    except ImportError as error:
        log.warning("no TensorBoard files: %s", error)
        return None
    return metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(workdir)), *others])


class Progress:
    """A progress bar on a terminal, log lines elsewhere."""

    def __init__(self, step: int, steps: int):
        self._step, self._steps = step, steps
        self._said = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)

    def advance(self, steps: int, *, quiet: bool = False) -> None:
        """Counts steps that were sent to the devices. Logs a line if the last one was a while ago, unless quiet."""
        self._step += steps
        if self._bar:
            self._bar.update(steps)
        elif not quiet and time.monotonic() - self._said >= progress.SECONDS:
            self._said = time.monotonic()
            log.info("step %d/%d", self._step, self._steps)

    def report(self, step: int, row: dict[str, float | None], steps_per_second: float | None) -> None:
        terms = {
            k: row[k]
            for k in ("loss_encoder", "loss_decoder", "rec_real", "kl_real", "kl_gap")
            if row.get(k) is not None
        }
        text = "  ".join(f"{k} {v:.4g}" for k, v in terms.items())
        if self._bar:
            self._bar.set_postfix_str(text)
            return
        pace = ""
        if steps_per_second:
            left = (self._steps - step) / steps_per_second
            pace = f"  {steps_per_second:.1f} steps/s, {int(left // 60)}:{int(left % 60):02d} left"
        self._said = time.monotonic()
        log.info("step %d/%d  %s%s", step, self._steps, text, pace)

    def close(self) -> None:
        if self._bar:
            self._bar.close()
