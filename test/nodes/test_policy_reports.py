"""A reason is told however soon the next one follows; numbers that run are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from cosmos_policy_ros.nodes import policy_reports
from cosmos_policy_ros.nodes.policy_reports import TEXT_PERIOD, PolicyReports


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return []


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> PolicyReports:
    node: Any = Mock()
    node.create_publisher.return_value.publish = lambda state: told.append(state.message)
    monkeypatch.setattr(policy_reports, "PolicyState", lambda **fields: Mock(**fields))
    worker: Any = SimpleNamespace(
        status="ready", message="", info=SimpleNamespace(digest="", warning="")
    )
    return PolicyReports(node, worker, Mock(), Mock(), "cosmos", "", images="raw")


def test_what_happened_between_two_polls_is_told(reports: PolicyReports, told: list[str]) -> None:
    """A busy machine restarted the inference process before the node looked: nobody was told."""
    messages = ["asking", "inference process 7 was killed by SIGKILL", "asking", "asking"]
    for message in messages:
        reports.report(None, None, True, "task", "", message)
    assert told == messages[:3]


def test_running_numbers_are_told_now_and_then(
    reports: PolicyReports, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(policy_reports.time, "monotonic", lambda: now)
    for tick in range(11):
        now = 100.0 + tick * TEXT_PERIOD / 5
        reports.report(None, None, True, "task", "", f"last image is {tick * 0.125} s old")
    assert told == [f"last image is {tick * 0.125} s old" for tick in (0, 5, 10)]
