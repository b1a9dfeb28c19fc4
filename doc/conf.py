"""Sphinx builds the documentation's site: ``sphinx-build -W doc build/site``."""

import re
import sys
from functools import cache
from pathlib import Path

# rosdoc2 copies this folder and puts the package's own folder on the path.
ROOT = next(
    folder
    for folder in (Path(__file__).resolve().parents[1], *map(Path, sys.path))
    if (folder / "package.xml").is_file()
)
sys.path[:0] = [str(ROOT), str(ROOT / "doc")]

from _generate import Generator  # noqa: E402

project = "cosmos_policy_ros"
release = re.search(r"<version>(.+)</version>", (ROOT / "package.xml").read_text())[1]
copyright = "the cosmos_policy_ros maintainers, Apache License 2.0"  # noqa: A001 - Sphinx' name

extensions = ["myst_parser"]
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
nitpicky = True
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "fixed_sidebar": True}
html_show_sourcelink = False

# A line of a page that stands for what is made from the code:
# <!-- generated: parameters policy_node -->
GENERATED = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)


@cache
def code() -> Generator:
    """Read the code, once."""
    return Generator(ROOT)


def fill_in(app: object, page: str, content: list) -> None:
    """Put what is made from the code into a page."""
    if GENERATED.search(content[0]):
        content[0] = GENERATED.sub(lambda found: code().make(*found[1].split()), content[0])


def read_again(app: object, env: object, added: set, changed: set, removed: set) -> list:
    """Return the pages that the code changes: Sphinx sees no file of theirs change."""
    return [page for page in env.found_docs if GENERATED.search(env.doc2path(page).read_text())]


def setup(app: object) -> None:
    """Have Sphinx call the functions above."""
    app.connect("source-read", fill_in)
    app.connect("env-get-outdated", read_again)
