"""Checks of built pages: links inside the site, and what a browser makes of it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

# Attributes of what a browser loads by itself, and of what a reader follows.
_LOADED = {"img": "src", "script": "src", "source": "src", "iframe": "src"}
_LINKED_FILES = {"stylesheet", "icon", "preload", "shortcut icon"}
# What a page leaves for a reader to see, besides an error on the console.
_LOOK = """
const done = arguments[0];
const images = [...document.images];
images.forEach((image) => { image.loading = "eager"; });
Promise.allSettled(images.map((image) => image.decode())).then(() => {
  const root = document.documentElement;
  done({
    broken: images.filter((i) => i.naturalWidth === 0).map((i) => i.src),
    excess: root.scrollWidth - root.clientWidth,
  });
});
"""


class _Page(HTMLParser):
    """Anchors and references of one page."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in _LINKED_FILES:
            self.loads.append(given["href"])
        elif tag in _LOADED and given.get(_LOADED[tag]):
            self.loads.append(given[_LOADED[tag]])


def list_pages(site: Path) -> list[Path]:
    """Return the pages of a site, without what lies among a theme's own files."""
    pages = sorted(site.rglob("*.html"))
    return [page for page in pages if "_static" not in page.relative_to(site).parts]


def find_broken_links(site: Path) -> list[str]:
    """Return every reference that leads nowhere, or is loaded from elsewhere."""
    site = site.resolve()
    pages = {path: _Page(path.read_text("utf-8")) for path in list_pages(site)}
    problems = []
    for path, page in pages.items():
        where = path.relative_to(site)
        problems += [
            f"{where}: loads {url} from elsewhere"
            for url in page.loads
            if urlsplit(url).netloc
        ]
        problems += [
            f"{where}: {url} leads nowhere"
            for url in page.links + page.loads
            if not _leads_somewhere(url, path, pages)
        ]
    return sorted(problems)


def _leads_somewhere(url: str, path: Path, pages: dict[Path, _Page]) -> bool:
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:  # Elsewhere, or data in the page itself.
        return True
    target = path
    if parts.path:
        target = (path.parent / unquote(parts.path)).resolve()
    if not target.is_file():
        return False
    anchor = unquote(urldefrag(url).fragment)
    return not anchor or target not in pages or anchor in pages[target].anchors


@contextmanager
def serve(site: Path) -> Iterator[str]:
    """Serve a folder to this machine alone; give its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def open_browser(chromium: str, driver: str, profile: Path):
    """Start a headless Chromium that keeps to itself."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def look_at(browser, address: str, page: str, width: int) -> list[str]:
    """Open a page at a width in pixels; return what is wrong with it."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address + page)
    seen = browser.execute_async_script(_LOOK)
    problems = [f"broken image {url}" for url in seen["broken"]]
    if seen["excess"] > 0:
        problems.append(f"{seen['excess']} pixels wider than the window")
    problems += [
        f"console: {entry['message']}"
        for entry in browser.get_log("browser")
        if entry["level"] == "SEVERE"
    ]
    # Other schemes are the page's own data, and what a browser has built in.
    problems += [
        f"asks for {url}"
        for url in _requests(browser)
        if url.startswith(("http", "ws")) and not url.startswith(address)
    ]
    return [f"{page} at {width}: {problem}" for problem in problems]


def _requests(browser) -> Iterator[str]:
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"]
