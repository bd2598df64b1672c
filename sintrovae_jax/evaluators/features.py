"""Features of images, and their statistics for the distribution metrics.

An extractor turns images into vectors. `fid`, `kid` and `precision_recall` compare the vectors of samples and of real
images. Their metrics are named after the extractor unless it is Inception, so that no other distance is mistaken for an
FID.
"""

import collections
import hashlib
import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import files, parallel, progress
from sintrovae_jax.arrays import Array, Variables
from sintrovae_jax.data import examples
from sintrovae_jax.data.source import Images, Source, of_images
from sintrovae_jax.errors import UserError

log = logging.getLogger(__name__)
_Used = TypeVar("_Used")
_VERSION = 1  # part of the key of `cached`: raise it when a change of this code changes features
# The extractors: functions `build(config, source) -> Extractor`. An optional function `check(config, source)` in the
# same module raises the errors of `build` that are cheap to detect. Nothing else is imported (see `trust`).
EXTRACTORS = {
    "inception": "sintrovae_jax.evaluators.inception_weights:build",
    "classifier": "sintrovae_jax.evaluators.classifier:build",
}


class Extractor(NamedTuple):
    """apply: jitted, (variables, images float32 [N, H, W, C] in [0, 1]) -> [N, D], row by row."""

    name: str
    fingerprint: str  # a text that changes with the weights and the network
    apply: Callable[[Variables, jax.Array], jax.Array]
    variables: Variables
    metrics: dict[str, float] = {}  # noqa: RUF012  # the extractor's own, reported with metrics that use it


def trust(name: str) -> None:
    """Adds the user's extractor MODULE:FUNCTION to `EXTRACTORS`.

    Call this only if the user named it: in a recipe, on the command line, or by `load(..., trust=True)`. A config.json
    may come from anyone, so the code that it names is not run.
    """
    if ":" in name:
        EXTRACTORS.setdefault(name, name)


def builder(name: str) -> Callable[[ConfigDict, Images], Extractor]:
    """The function that builds this extractor. Raises `UserError` if it does not exist or is not trusted."""
    known = ", ".join(EXTRACTORS)
    if name not in EXTRACTORS and ":" in name:
        raise UserError(
            f"eval.features={name!r} is none of {known}, and code that a config.json alone names is not run: give "
            f"--config.eval.features={name}, or trust=True to load"
        )
    if name not in EXTRACTORS:
        raise UserError(f"eval.features={name!r} is none of {known}, nor a MODULE:FUNCTION")
    module, _, function = EXTRACTORS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"eval.features={name!r} cannot be imported: {parallel.first_line(error)}") from None


def build(config: ConfigDict, source: Images) -> Extractor:
    """The extractor that `config.eval.features` names. Raises `UserError` if it does not exist or cannot be built."""
    return builder(config.eval.features)(config, source)


def metric(name: str, features: str) -> str:
    """The name of a metric with these features: Inception's Fréchet distance is `fid`, others' `frechet_EXTRACTOR`."""
    if features == "inception":
        return name
    return f"{'frechet' if name == 'fid' else name}_{features.partition(':')[2] or features}"


def metrics(config: ConfigDict, *names: str) -> tuple[str, ...]:
    """The names of metrics with the extractor of this config."""
    return tuple(metric(name, config.eval.features) for name in names)


def check_images(name: str, config: ConfigDict) -> None:
    """Raises `UserError` if the examples are not images. name: the evaluator that needs images."""
    if examples.of(config.data).kind != "images":
        raise UserError(f"the {name} evaluator scores images, not data.source={config.data.source}")


def check(config: ConfigDict, source: Source, kept: dict[Any, Any]) -> None:
    """Raises `UserError` if the extractor cannot be built, for reasons that are cheap to detect."""
    del kept
    build_it = builder(config.eval.features)
    look = getattr(importlib.import_module(build_it.__module__), "check", None)
    if look:
        look(config, of_images(source))


class Summary(NamedTuple):
    """Statistics of many feature vectors."""

    count: int  # type: ignore[assignment]  # a tuple has a method of this name
    mean: np.ndarray  # float64 [D]
    covariance: np.ndarray  # float64 [D, D], unbiased
    vectors: np.ndarray  # float32 [N, D], or [0, D] if only the moments are needed


class Moments:
    """Mean and covariance of a stream of vectors, in float64 (Chan, Golub & LeVeque 1983, for each new piece)."""

    def __init__(self, dimensions: int):
        self.count, self._mean, self._scatter = 0, np.zeros(dimensions), np.zeros((dimensions, dimensions))

    def add(self, vectors: np.ndarray) -> None:
        """vectors: [N, D]."""
        vectors = np.asarray(vectors, np.float64)
        mean = vectors.mean(0)
        centred, step = vectors - mean, mean - self._mean
        count = self.count + len(vectors)
        self._scatter += centred.T @ centred + np.outer(step, step) * (self.count * len(vectors) / count)
        self._mean += step * (len(vectors) / count)
        self.count = count

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """[D] and, divided by count - 1, [D, D]."""
        return self._mean, self._scatter / max(self.count - 1, 1)


@jax.jit
def as_stored(images: Array) -> jax.Array:
    """Floats or bytes as a PNG file would hold them: clipped to [0, 1], rounded to 256 levels. Returns float32."""
    floats = jnp.astype(images, jnp.float32)
    return (floats if images.dtype == jnp.uint8 else jnp.round(floats.clip(0, 1) * 255)) / 255


def vectors(extractor: Extractor, images: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The features [n, D] of batches of images [n, H, W, C], n at most `size`, computed on all local devices."""
    variables, size = parallel.on_local_devices(extractor.variables), parallel.chunk(size)

    def apply(x):
        return _nan_unless_finite(x, extractor.apply(variables, as_stored(x)))

    # The devices compute the next batch while the host fetches this one.
    waiting: collections.deque[tuple[jax.Array, int]] = collections.deque()
    for piece in progress.counted(images, "features of images", each=size):
        whole = piece[np.arange(size) % len(piece)]  # pads the last batch, so that it does not compile again
        waiting.append((parallel.in_chunks(apply, size, whole), len(piece)))
        if len(waiting) > 1:
            yield _arrived(*waiting.popleft())
    yield from (_arrived(*piece) for piece in waiting)


@jax.jit
def _nan_unless_finite(images, vectors):
    """The vectors, with NaN for images that are not finite: ReLUs and pooling could turn these into numbers."""
    finite = jnp.isfinite(images.astype(jnp.float32)).reshape(len(images), -1).all(1, keepdims=True)
    return jnp.where(finite, vectors, jnp.nan)


def _arrived(vectors: jax.Array, count: int) -> np.ndarray:
    return np.asarray(vectors)[:count]


def summarise(pieces: Iterable[np.ndarray], keep: bool) -> Summary:
    """Summarises features that come in batches. keep: whether to keep the vectors too."""
    moments, kept = None, []
    for piece in pieces:
        moments = moments or Moments(piece.shape[1])
        moments.add(piece)
        kept.append(piece if keep else piece[:0])
    if moments is None:
        raise UserError("there is not one image to compare with")
    return Summary(moments.count, *moments.mean_and_covariance(), np.concatenate(kept))


def limited(pieces: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yields the pieces, cut off after `count` rows in total."""
    for piece in pieces:
        if count > 0:
            yield piece[:count]
        count -= len(piece)
        if count <= 0:
            return


def cached(folder: str, what: Iterable[object], compute: Callable[[], Summary]) -> Summary:
    """A summary from the cache folder, or computed and stored there (`stored`).

    what: everything that the summary depends on besides this code.
    """
    name = hashlib.sha256("\n".join(map(str, (_VERSION, *what))).encode()).hexdigest()[:32]

    def summary(arrays: Mapping[str, np.ndarray]) -> Summary:
        return Summary(int(arrays["count"]), *(arrays[key] for key in Summary._fields[1:]))

    return stored(folder, f"reference-{name}", lambda: compute()._asdict(), summary)


def stored(
    folder: str,
    name: str,
    compute: Callable[[], Mapping[str, Any]],
    use: Callable[[Mapping[str, np.ndarray]], _Used],
) -> _Used:
    """use(arrays), with arrays from NAME.npz in the cache folder, or computed and stored there; '' stores nothing.

    Arrays from a file that is unreadable, or on which `use` fails, are computed again. If another process has stored
    the arrays meanwhile, those are used, so that all processes use the same arrays.
    """
    if not folder:
        return use(_arrays(compute()))
    try:
        path = files.place(folder) / f"{name}.npz"
    except UserError as error:
        log.warning("cannot keep %s in %s (%s)", name, folder, error)
        return use(_arrays(compute()))
    damaged = path.exists()
    kept = _read(path, use)
    if kept is not None:
        return kept
    arrays = _arrays(compute())
    if not damaged and (kept := _read(path, use)) is not None:
        return kept
    try:
        with files.replacing(path) as temporary:
            np.savez(temporary, **arrays)
    except OSError as error:
        log.warning("cannot keep %s (%s)", path, error.strerror)
    return use(arrays)


def _arrays(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value) for name, value in values.items()}


def _read(path: Path, use: Callable[[Mapping[str, np.ndarray]], _Used]) -> _Used | None:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return use(dict(arrays))
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy and zipfile raise all kinds of errors for damaged files
        log.warning("%s cannot be read (%s); computing it again", path, parallel.first_line(error))
        return None
