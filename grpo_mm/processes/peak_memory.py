"""The most memory that this process has had so far."""

from __future__ import annotations

import sys

import torch

GIB = 2**30


def peak_gib(device: torch.device) -> dict[str, float]:
    """GiB by name since the process began. host_peak: resident, without child processes. device_peak: tensors on a CUDA device.

    What the system does not tell is left out.
    """
    found = {}
    try:
        import resource

        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["host_peak"] = resident / (GIB if sys.platform == "darwin" else GIB / 1024)  # KiB but on macOS
    except ImportError:
        pass
    if device.type == "cuda":
        found["device_peak"] = torch.cuda.max_memory_allocated(device) / GIB
    return found
