"""Recognizes errors that mean that the memory of a device is not enough."""

from __future__ import annotations

import torch

#: Parts of the messages of errors without a type of their own: of torch for the CPU, of other devices, and of cuBLAS
#: and cuDNN.
_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error means that the memory of a device is not enough.

    Args:
        error: Any error.

    Returns:
        Whether it does. torch raises a plain RuntimeError on the CPU.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _MESSAGES)
