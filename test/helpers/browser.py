"""The machine's own Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
# It runs as root in a container, draws without a GPU, and has nobody to talk to.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
DESKTOP = {"width": 1280, "height": 720}
PATIENCE = 60_000  # ms


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser without a window."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    assert found is not None, f"none of {', '.join(NAMES)} is installed: run scripts/setup --tests"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def tab(browser: Browser, url: str, size: dict[str, int] | None = None) -> Iterator[Page]:
    """Open the panel in a browser of its own; it must talk to the panel alone, and never fail."""
    with browser.new_context(viewport=size or DESKTOP) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        asked: list[str] = []
        failed: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(url)
        yield page
        assert not failed
    hosts = {urlsplit(each).netloc for each in asked}
    assert hosts == {urlsplit(url).netloc}, "a request left for another host"


def text_of(page: Page, selector: str) -> str:
    """Return the text of an element."""
    return str(page.locator(selector).inner_text())


def in_order(page: Page, selectors: Sequence[str]) -> list[Locator]:
    """Return the elements of some selectors."""
    return [page.locator(selector) for selector in selectors]
