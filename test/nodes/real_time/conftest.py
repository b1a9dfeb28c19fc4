"""Tests that keep real time: their nodes have deadlines of a third of a second, as on a rig.

Where other programs keep a node waiting for longer, the arms are rightly held, and a test of
something else fails. What fails while the machine was busy is tried again, on a graph of its own;
what fails beside another graph, once that has ended (``scripts/test``).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from helpers.realtime import RealTimeGraph

ATTEMPTS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 4
ATTEMPT = pytest.StashKey[int]()
BUSY = 0.5  # of the time something waited for a processor
PRESSURE = Path("/proc/pressure/cpu")
WAITED = re.compile(r"^some .*total=(\d+)", re.MULTILINE)


def waited() -> float:
    """Return the seconds in which something has waited for a processor so far; 0 if unknown."""
    found = WAITED.search(PRESSURE.read_text()) if PRESSURE.is_file() else None
    return int(found[1]) / 1e6 if found else 0.0


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test until it passes, or fails while the machine keeps nobody waiting."""
    attempt = item.stash.get(ATTEMPT, 1)
    began, before = time.monotonic(), waited()
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    share = (waited() - before) / (time.monotonic() - began)
    failed = [report for report in reports if report.failed]
    if failed and share > BUSY and attempt < ATTEMPTS:
        lines = failed[0].longreprtext.splitlines()
        said = [next((line[1:].strip() for line in lines if line.startswith("E ")), "no words")]
        said += [name for name, _ in failed[0].sections if " ended with " in name]
        item.warn(
            pytest.PytestWarning(
                f"attempt {attempt}, {100 * share:.0f} % of it waited: {'; '.join(said)}"
            )
        )
        # Every fixture is made anew, the graph of the file too; the hook's wrappers are, as well:
        # the next attempt has a time limit of its own.
        item.session._setupstate.teardown_exact(None)
        item.stash[ATTEMPT] = attempt + 1
        item.ihook.pytest_runtest_protocol(item=item, nextitem=nextitem)
        return True
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure what the nodes of its graph have said: one that has died tells why."""
    report = yield
    if report.failed:
        for value in (getattr(item, "funcargs", None) or {}).values():
            if isinstance(value, RealTimeGraph):
                report.sections += value.last_words().items()
    return report
