"""A benchmark that is a file of NumPy, run by this interpreter as if it were another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

ADAPTER = Path(__file__).parents[1] / "stand_ins" / "benchmark.py"


def write_benchmark(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Return a benchmark's file, and its environment's folder."""
    environment = folder / "environment"
    (environment / "bin").mkdir(parents=True)
    program = environment / "bin" / "python"  # a link would lose this environment's packages
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    settings = {
        "image_size": 32,
        "cameras": {"wrist": "hand", "primary": "front"},
        "wait_steps": 10,
        "wait_action": [0, 0, 0, 0, 0, 0, -1],
    }
    content = {
        "title": "Stand-in",
        "adapter": str(ADAPTER),
        "environment": ".venv-stand-in",
        "executed": 16,
        "dt": 0.05,
        "action_dims": 7,
        "state_dims": 9,
        "settings": settings | changes.pop("settings", {}),
        "suites": {
            "near": {"title": "Near", "tasks": ["a", "b"], "limit": 40},
            "far": {"title": "Far", "tasks": ["a"], "limit": 50, "limits": {"a": 60}},
        },
        "table": "Stand-in, success rates",
        "published": [{"name": "Somebody", "rates": [50.0, None, None]}],
        "deadlines": {"open": 120.0, "reset": 120.0, "execute": 120.0},
    }
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path, environment
