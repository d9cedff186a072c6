"""The report in a real browser: whole without a network, in any width, light, dark and on paper."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import variants
from tests.acceptance.conftest import Product
from tests.system.browsing import SCHEMES, WIDTHS, Browser, open_browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with open_browser(tmp_path / "browser") as found:
        yield found


@pytest.fixture
def page(product: Product) -> str:
    """The address of the report of a run with quarantined rows."""
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 600)
    with product.worker():
        assert product.run("enqueue-all", "--wait", "--json").status == 3
    file = product.folder / "report.html"
    assert product.run("report", "--output", str(file)).status == 0
    return file.as_uri()


def test_it_is_right_in_every_width_and_scheme_and_on_paper(page: str, browser: Browser) -> None:
    browser.driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    papers = set()
    for width in WIDTHS:
        for scheme in SCHEMES:
            browser.look_like(width, scheme)
            browser.driver.get(page)
            assert browser.violations() == [], (width, scheme)
            assert browser.overflow() <= 0, (width, scheme)
            assert len(heights(browser)) == 2 and min(heights(browser)) > 100
            papers.add(browser.driver.execute_script(
                "return getComputedStyle(document.body).backgroundColor"
                " + getComputedStyle(document.querySelector('.plot text')).fill"))  # fmt: skip
    # Light and dark differ, in the plots too.
    assert len(papers) == 2
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    assert browser.complaints() == []


def heights(browser: Browser) -> list[float]:
    """How high the plots are on the screen."""
    script = (
        "return [...document.querySelectorAll('svg.plot')]"
        ".map(plot => plot.getBoundingClientRect().height)"
    )
    return list(browser.driver.execute_script(script))
