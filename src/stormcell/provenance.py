"""Where a number was made: the commit of this code, the machine, the versions of what it stands on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path


def commit() -> str | None:
    """Of the checkout that this code runs from, with "-dirty" where that was changed; None if it was installed otherwise."""
    here = Path(__file__)
    if _output("git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name) is None:
        return None  # a repository around an installed package is not ours
    return _output(
        "git", "-C", str(here.parent), "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40"
    )


def cpu() -> str:
    """Its name, as far as the system says it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def machine(device: str = "cpu") -> dict[str, str | int | None]:
    """What numbers depend on besides the code, for a `device` of torch."""
    found: dict[str, str | int | None] = {"cpu": cpu(), "cores": os.cpu_count()}
    if device.startswith("cuda"):
        import torch

        found["gpu"] = torch.cuda.get_device_name(device)
    return {
        **found,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
