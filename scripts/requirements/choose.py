"""Prints what pip is to install beside a distro's ROS: files of requirements, and what to keep.

Run by ``scripts/setup`` once the environment is there; needs nothing installed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LEAST_TORCH = (2, 6)  # diffusers reads torch.accelerator when it is imported
FOUND_TORCH = """
import torch
print(torch.__version__, torch.version.cuda or getattr(torch.version, "hip", None) or "")
"""


def ask(python: str, program: str) -> list[str]:
    """Return the words that a program prints, none where it fails: a package may be broken."""
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def choose(system: str, own: str) -> list[str]:
    """Return arguments for pip.

    A distro's compiled extensions (cv_bridge) that were built with NumPy 1 cannot load NumPy 2. And
    a torch that fits the machine's GPU is not replaced.

    Args:
        system: the interpreter that ROS runs under.
        own: the environment's.
    """
    numpy = ask(system, "import numpy; print(numpy.__version__)")
    files = ["numpy1.txt" if numpy and numpy[0].startswith("1.") else "numpy2.txt"]
    kept = []
    torch = ask(own, FOUND_TORCH)
    if len(torch) == 2 and tuple(map(int, torch[0].split(".")[:2])) >= LEAST_TORCH:
        kept.append(f"torch=={torch[0]}")
        print(f"setup: keeping torch {torch[0]} (for {torch[1]})", file=sys.stderr)
    else:
        if len(torch) == 2:
            least = ".".join(map(str, LEAST_TORCH))
            print(
                f"setup: torch {torch[0]} (for {torch[1]}) is older than {least}, which diffusers "
                "needs: one without a GPU is installed; put a newer one for the GPU into .venv",
                file=sys.stderr,
            )
        files.append("torch.txt")
    return [*(f"--requirement={FOLDER / name}" for name in files), *kept]


if __name__ == "__main__":
    print(*choose(*sys.argv[1:3]), sep="\n")
