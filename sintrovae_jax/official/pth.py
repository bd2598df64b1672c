"""Reads only the tensors of PyTorch's files. Needs torch (the extra `convert`), which only this module imports."""

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

# In older versions, a file could run code or corrupt memory even if only tensors were read (CVE-2025-32434,
# CVE-2026-24747).
_SAFE = (2, 10)


def torch() -> ModuleType:
    """Imports torch. Raises `UserError` if it is not installed, or too old to read untrusted files."""
    try:
        import torch
    except ImportError:
        raise UserError("PyTorch's files need torch: install the extra `convert`") from None
    version = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2])
    if version < _SAFE:
        raise UserError(f"torch {torch.__version__} may run code that a file holds: install torch 2.10 or newer")
    return torch


def load(data: bytes, ignored: Sequence[type] = ()) -> Any:
    """The contents of a file, without running its code. Raises torch's errors for damaged files and for other objects
    than tensors, and `ValueError` for files that torch does not write.

    ignored: other classes that the file may name. Raises `UserError` as `torch` does.
    """
    module = torch()
    _refuse_compressed(data)
    with module.serialization.safe_globals(list(ignored)):
        return module.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def arrays(data: bytes) -> dict[str, np.ndarray]:
    """{name: array} for a file that contains only tensors. Raises as `load` and `array` do."""
    return {name: array(tensor) for name, tensor in load(data).items()}


def hub() -> Path:
    """The folder of torch's downloads. Raises `UserError` if there is no home folder."""
    return files.place(os.environ.get("TORCH_HOME") or files.user_cache() / "torch") / "hub" / "checkpoints"


def _refuse_compressed(data: bytes) -> None:
    """Raises `ValueError` for a zip file that takes more memory than its size, which torch would allocate."""
    if not data.startswith(b"PK"):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(data):
            raise ValueError("it is compressed")


def array(tensor: Any) -> np.ndarray:
    """A tensor as an array of the same dtype; bfloat16 becomes float32. Raises TypeError if numpy has no such array."""
    module = torch()
    if not isinstance(tensor, module.Tensor) or tensor.layout != module.strided or tensor.is_complex():
        raise TypeError(f"not a plain tensor: {type(tensor).__name__}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise TypeError("a tensor larger than what is stored of it")
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == module.bfloat16 else tensor).numpy()
