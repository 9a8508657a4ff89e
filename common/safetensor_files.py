"""Weights as safetensors: tensors and a few strings, no code, readable by others without torch's pickles."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.errors import UserError
from common.files import replacing, sha256_of


def write_tensors(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> str:
    """Write named tensors, and strings about them, whole or not at all; the sha256 of the file."""
    save = _library().torch.save_file
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save(plain, temporary, metadata=dict(said))
        except _library().SafetensorError as error:          # what it makes of the system's errors
            code = re.search(r"os error (\d+)", str(error))
            number = int(code[1]) if code else errno.EIO
            raise OSError(number, os.strerror(number)) from error
    return sha256_of(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; a missing or damaged file is a UserError."""
    library = _library()
    try:
        return library.torch.load_file(path, device="cpu")
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}") from error
    except (OSError, library.SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file, or damaged: {error}") from error


def _library():
    """The package, which only this needs."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError("safetensors is not installed: make setup, or install it in your own environment") from error
    return safetensors
