"""The site builds without a warning and without a network: every page can be reached, every link leads somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
ASSETS = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
LOADED = {"stylesheet", "preload", "modulepreload", "preconnect", "dns-prefetch", "icon", "manifest"}
"""Kinds of ``<link>`` at which a browser loads something, or opens a connection."""


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.in_nav: list[str] = []
        self.assets: list[str] = []
        self.anchors: set[str] = set()
        self._navs = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self._navs += tag == "nav"
        if tag == "a" and "href" in values:
            (self.in_nav if self._navs else self.links).append(values["href"])
        if tag == "link" and LOADED & set(values.get("rel", "").split()):
            self.assets.append(values["href"])
        if ASSETS.get(tag) in values:
            self.assets.append(values[ASSETS[tag]])
        self.assets += re.findall(r"url\(['\"]?([^)'\"]+)", values.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self._navs -= tag == "nav"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("mkdocs") is None:
        message = 'mkdocs is not installed; pip install -e ".[docs]"'
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    found = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 20
    return found


def target(page: Path, link: str) -> tuple[Path, str] | None:
    """The file and the anchor in it that a local `link` of `page` leads to; None if it leads elsewhere."""
    if urlsplit(link).scheme:
        return None
    path, anchor = urldefrag(link)
    return (page.parent / unquote(path)).resolve() if path else page, unquote(anchor)


def test_every_page_is_reached_from_the_navigation(site, pages):
    reached, waiting = set(), [site / "index.html"]
    while waiting:
        page = waiting.pop()
        if page in reached or page not in pages:
            continue
        reached.add(page)
        found = (target(page, link) for link in pages[page].in_nav)
        waiting += [each[0] for each in found if each is not None]
    assert reached == set(pages)


def test_local_links_and_images_exist(pages):
    missing = []
    for path, page in pages.items():
        for link in (*page.links, *page.in_nav, *page.assets):
            found = target(path, link)
            if found is None:
                continue
            file, anchor = found
            if not file.exists() or (anchor and file in pages and anchor not in pages[file].anchors):
                missing.append((path.name, link))
    assert not missing


def test_nothing_is_loaded_from_elsewhere(site, pages):
    elsewhere = [(path.name, asset) for path, page in pages.items() for asset in page.assets if _is_remote(asset)]
    for path in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import\s+)['\"]?([^)'\";]+)", path.read_text(encoding="utf-8"))
        elsewhere += [(path.name, asset) for asset in found if _is_remote(asset)]
    assert not elsewhere


def _is_remote(asset: str) -> bool:
    return asset.startswith("//") or urlsplit(asset).scheme not in ("", "data")


def test_notebooks_have_pages(site):
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.stem for path in (site / "notebooks").glob("*.html")} == notebooks
