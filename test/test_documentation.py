"""Pins that the code printed in the documentation runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_models_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "doc/model.md").read_text(), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(code, {})  # noqa: S102
    assert "(2, 50, 14) 3 (64, 64, 3)" in capsys.readouterr().out
