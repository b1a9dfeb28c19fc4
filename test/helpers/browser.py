"""The machine's own Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
# It runs as root in a container, draws without a GPU, and talks to no other machine.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
DESKTOP = {"width": 1280, "height": 720}
PATIENCE = 60_000  # ms
# Controls without a name for those who cannot see where they stand.
UNNAMED = """() => [...document.querySelectorAll("input, select, textarea, button, canvas, a")]
  .filter((each) => !(each.labels?.length || each.getAttribute("aria-label")
    || each.textContent.trim()))
  .map((each) => each.outerHTML)"""
# Texts whose contrast to what is behind them is below 4.5, as WCAG measures it.
DIM = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = parse(color).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    const solid = (parse(color)[3] ?? 1) > 0;
    return solid || !element.parentElement ? color : behind(element.parentElement);
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${texts.currentNode.data}: ${ratio}`);
  }
  return found;
}"""


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
        assert not failed, failed
    hosts = {urlsplit(each).netloc for each in asked}
    assert hosts == {urlsplit(url).netloc}, "a request left for another host"


def text_of(page: Page, selector: str) -> str:
    """Return the text of an element."""
    return str(page.locator(selector).inner_text())
