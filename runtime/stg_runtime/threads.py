"""How many processor threads this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_threads(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may run on, bounded by the container's quota.

    Args:
        cgroup: the quota's file (cgroup v2); absent on other systems.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = cgroup.read_text().split()
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no file, or "max": no quota
        return cores or 1
    return max(1, min(cores or 1, limit))
