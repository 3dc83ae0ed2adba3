"""The built documentation has no broken link and no broken page.

The pages are those in the folder that ``SKPATCHCORE_DOCS`` names::

    sphinx-build docs docs/_build/html
    SKPATCHCORE_DOCS=docs/_build/html pytest tests/test_site.py
"""

import os
import shutil
from pathlib import Path

import pytest

from site_checks import find_broken_links, list_pages, look_at, open_browser, serve

WIDTHS = (1280, 390)


@pytest.fixture(scope="session")
def site():
    if "SKPATCHCORE_DOCS" not in os.environ:
        pytest.skip("no built pages: set SKPATCHCORE_DOCS")
    return Path(os.environ["SKPATCHCORE_DOCS"])


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    pytest.importorskip("selenium", reason="no selenium: pip install '.[docs]'")
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("no chromium and chromedriver on the path")
    with open_browser(*programs, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def write(folder, **pages):
    for name, body in pages.items():
        (folder / f"{name}.html").write_text(
            f"<!doctype html><link rel='icon' href='data:,'><body>{body}</body>"
        )
    return folder


def test_links_inside_are_followed(tmp_path):
    write(
        tmp_path,
        here="<a href='there.html#top'>x</a><a href='#me'>x</a><p id='me'>"
        "<a href='https://example.org/'>x</a><img src='data:image/png;base64,x'>",
        there="<p id='top'><a href='here.html'>x</a>",
    )
    assert find_broken_links(tmp_path) == []


@pytest.mark.parametrize(
    "body",
    [
        "<a href='gone.html'>x</a>",
        "<a href='#gone'>x</a>",
        "<a href='other.html#gone'>x</a>",
        "<img src='gone.png'>",
        "<link rel='stylesheet' href='gone.css'>",
        "<script src='https://example.org/x.js'></script>",
    ],
)
def test_broken_links_are_found(tmp_path, body):
    write(tmp_path, other="", page=body)
    assert len(find_broken_links(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("<p>all is well", None),
        ("<img src='gone.png'>", "broken image"),
        ("<script>undefined_name</script>", "console: "),
        ("<div style='width: 600px'>wide</div>", "wider than the window"),
        ("<img src='http://127.0.0.1:9/x.png'>", "asks for http://127.0.0.1:9/x.png"),
    ],
)
def test_browser_finds_what_is_wrong(tmp_path, browser, body, problem):
    with serve(write(tmp_path, page=body)) as address:
        found = look_at(browser, address, "page.html", 390)
    if problem is None:
        assert found == []
    else:
        assert any(problem in text for text in found)


def test_links_of_the_documentation(site):
    problems = find_broken_links(site)
    assert not problems, "\n".join(problems)


def test_every_page_of_the_reference_links_to_the_source(site):
    pages = list((site / "api" / "generated").glob("*.html"))
    assert pages
    assert [p.name for p in pages if "viewcode-link" not in p.read_text("utf-8")] == []


@pytest.mark.slow
def test_documentation_in_a_browser(site, browser):
    pages = [path.relative_to(site).as_posix() for path in list_pages(site)]
    assert "index.html" in pages
    with serve(site) as address:
        problems = [
            problem
            for width in WIDTHS
            for page in pages
            for problem in look_at(browser, address, page, width)
        ]
    assert not problems, "\n".join(problems)
