"""Finding and reading the weights of `inception`. Nothing is ever downloaded.

The weights come from pytorch-fid's file, which needs torch, or from an .npz made from it on a machine with torch:

    python -m sintrovae_jax.evaluators.inception_weights IN.pth OUT.npz
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sintrovae_jax import cli, downloads, files, npy
from sintrovae_jax.data.source import Images
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators.features import Extractor
from sintrovae_jax.evaluators.inception import SHA256, URL, InceptionV3, Params, from_published, published, verify
from sintrovae_jax.official import pth

_COMMAND = "python -m sintrovae_jax.evaluators.inception_weights IN.pth OUT.npz"
VARIABLE = "SINTROVAE_INCEPTION"  # environment variable with the path of the weights, if the config has none


@jax.jit
def _features(variables, x):
    return InceptionV3().apply(variables, x)


def check(config: ConfigDict, source: Images) -> None:
    """Raises `UserError` if there is no file of weights, or its checksum does not match its name."""
    del source
    _bytes(find(config.eval.inception))


def build(config: ConfigDict, source: Images) -> Extractor:
    """Inception with the weights that `config.eval.inception` names, or else the weights in a usual place.

    Raises `UserError` as `find` and `read` do.
    """
    del source
    params, digest = read(find(config.eval.inception))
    return Extractor("inception", digest, _features, {"params": params})


def find(configured: str) -> Path:
    """The file of weights, found by `downloads.find`, also where pytorch-fid or torch-fidelity put it.

    configured: the value of eval.inception. Raises `UserError`.
    """
    published_name = URL.rsplit("/", 1)[1]
    names = [published_name, published_name.replace("pt_", "weights-")]
    return downloads.find(
        "eval.inception", configured, VARIABLE, names, f"FID needs Inception's weights, {URL} (sha256 {SHA256})"
    )


def _bytes(path: Path) -> tuple[bytes, str]:
    """A file's contents and their sha256. Raises `UserError` if it is unreadable or its name has another checksum."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read Inception's weights {path}: {error.strerror}") from None
    digest = hashlib.sha256(data).hexdigest()
    if path.name.endswith(f"-{SHA256[:8]}.pth") and digest != SHA256:
        raise UserError(f"{path} is truncated or altered: its sha256 is {digest}, not {SHA256}; get it from {URL}")
    return data, digest


def read(path: Path) -> tuple[Params, str]:
    """The parameters of `InceptionV3` and the file's sha256 in hex, from an .npz or, if torch is installed, a .pth.

    Raises `UserError` if the file cannot be read, is damaged, or holds something else. Code in a file is never run.
    """
    arrays, digest = _weights(path)
    return from_published(arrays), digest


def _weights(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """A file's arrays, which include the network's, and its sha256. Raises `UserError` as `read` does."""
    arrays, digest = _arrays(path)
    try:
        verify(arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return arrays, digest


def _arrays(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """All arrays of a file, unchecked, and its sha256. Raises `UserError` if they cannot be read."""
    data, digest = _bytes(path)
    is_npz = path.suffix.lower() == ".npz"
    load, kind = (npy.load_npz, "an .npz of arrays") if is_npz else (pth.arrays, "a .pth of named tensors")
    try:
        return load(data), digest
    except UserError as error:
        raise UserError(f"{path}: {error}, or make an .npz once, where torch is, with {_COMMAND}") from None
    except Exception as error:  # whatever numpy, zipfile, pickle and torch raise for other files than theirs
        raise UserError(f"{path} is not {kind}, or is damaged ({type(error).__name__}); get it from {URL}") from None


def convert(source: Path, target: Path) -> None:
    """Writes the network's arrays to an .npz, float32, under their published names.

    Raises `UserError` if `source` is not pytorch-fid's file, or `target` is no .npz or cannot be written.
    """
    if target.suffix != ".npz":
        raise UserError(f"{target} must be named .npz")
    arrays, _ = _weights(source)
    try:
        with files.replacing(target) as temporary:
            wanted: dict[str, Any] = {name: arrays[name].astype(np.float32) for name in published()}
            np.savez(temporary, **wanted)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None


def main(argv: list[str]) -> None:
    """The command line: IN.pth OUT.npz. Raises `UserError`."""
    if len(argv) != 3:
        raise UserError(f"usage: {_COMMAND}")
    convert(files.place(argv[1]), files.place(argv[2]))


if __name__ == "__main__":
    cli.start(main)
