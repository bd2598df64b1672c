"""PyTorch's files, read as tensors alone. Needs torch (the extra `convert`), which is imported only here."""

import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sintrovae_jax import files
from sintrovae_jax.errors import UserError

# Before this, a file could run code or corrupt memory although it was read as tensors alone (CVE-2025-32434,
# CVE-2026-24747).
_SAFE = (2, 10)


def torch() -> ModuleType:
    """The module. Raises `UserError` if it is not installed, or too old to read untrusted files."""
    try:
        import torch
    except ImportError:
        raise UserError("PyTorch's files need torch: install the extra `convert`") from None
    version = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2])
    if version < _SAFE:
        raise UserError(f"torch {torch.__version__} may run code that a file holds: install torch 2.10 or newer")
    return torch


def load(data: bytes, ignored: Sequence[type] = ()) -> Any:
    """The contents of a file, without running its code. Raises what torch raises for damaged files and for other
    objects than tensors, and `ValueError` for what torch does not write.

    ignored: other classes that the file may name. Raises `UserError` as `torch` does.
    """
    module = torch()
    _refuse_compressed(data)
    with module.serialization.safe_globals(list(ignored)):
        return module.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def arrays(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a file that has nothing else, by their names. Raises as `load` and `array` do."""
    return {name: array(tensor) for name, tensor in load(data).items()}


def hub() -> Path:
    """Where torch puts the files that it downloads. Raises `UserError` without a home folder."""
    return files.place(os.environ.get("TORCH_HOME") or files.user_cache() / "torch") / "hub" / "checkpoints"


def _refuse_compressed(data: bytes) -> None:
    """Raises `ValueError` for a zip file that takes more memory than its size, which torch would allocate."""
    if not data.startswith(b"PK"):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(data):
            raise ValueError("it is compressed")


def array(tensor: Any) -> np.ndarray:
    """A tensor as an array of its own type, bfloat16 as float32. Raises TypeError if numpy has no such array."""
    module = torch()
    if not isinstance(tensor, module.Tensor) or tensor.layout != module.strided or tensor.is_complex():
        raise TypeError(f"not a plain tensor: {type(tensor).__name__}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise TypeError("a tensor larger than what is stored of it")
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == module.bfloat16 else tensor).numpy()
