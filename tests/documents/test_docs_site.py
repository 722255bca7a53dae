"""The site builds without a warning and without a network: every page can be reached, every link leads somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
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


PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 800}


class Silent(SimpleHTTPRequestHandler):
    """Serves files and does not write down which."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address(site):
    """Of the site, served on this machine, as search needs it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


OF_EACH_KIND = (
    *("index.html", "tutorial.html", "adding_a_layer.html", "speed_table.html", "loihi_report.html", "api.html"),
    *("architecture.html", "notebooks/1_from_ann_to_spikes.html"),
)
"""Text, code, tables, pictures, what docstrings say, and a notebook."""


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["of each kind", "every"])
def test_pages_in_a_browser(browser, address, site, pages, viewport, every):
    """Nothing is said in the console, no picture is missing, and nothing sticks out at the side, on a phone neither."""
    from playwright.sync_api import TimeoutError

    wrong: list[str] = []
    names = [path.relative_to(site).as_posix() for path in pages]
    assert {*OF_EACH_KIND} <= {*names}

    def failed(request: Any) -> None:
        if "ERR_ABORTED" not in (request.failure or ""):  # the next page is opened before this one has all it wants
            wrong.append(f"{tab.url}: cannot load {request.url}: {request.failure}")

    tab = browser.new_page(viewport=viewport)
    tab.on("console", lambda message: wrong.append(f"{tab.url}: {message.text}"))
    tab.on("pageerror", lambda error: wrong.append(f"{tab.url}: {error}"))
    tab.on("requestfailed", failed)
    for path in names if every else OF_EACH_KIND:
        tab.goto(address + path, wait_until="load")
        broken = tab.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
        wrong += [f"{path}: no picture at {source}" for source in broken]
        if tab.evaluate("document.scrollingElement.scrollWidth") <= viewport["width"]:
            continue
        try:  # the page's own script lets wide tables scroll, soon after it is there
            tab.wait_for_function(f"document.scrollingElement.scrollWidth <= {viewport['width']}", timeout=5000)
        except TimeoutError:
            wide = tab.evaluate("document.scrollingElement.scrollWidth")
            wrong.append(f"{path} is {wide} pixels wide where there are {viewport['width']}")
    tab.close()
    assert not wrong, "\n".join(wrong)
