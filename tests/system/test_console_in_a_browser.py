"""An operator's night in a real browser: a batch fails, is fixed and retried, the end is green."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from producer.demo import sample
from tests import variants
from tests.acceptance.conftest import Product, count
from tests.acceptance.test_serve import serving
from tests.system.browsing import SCHEMES, WIDTHS, Browser, open_browser

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def change(product: Product, statement: str) -> None:
    with product.engine.begin() as connection:
        connection.execute(text(statement))


def log_in(browser: Browser, address: str) -> None:
    browser.driver.get(address)
    browser.driver.execute_script(
        "document.querySelector('[name=name]').value = 'Ada';"
        f"document.querySelector('[name=password]').value = '{PASSWORD}'"
    )
    browser.press("Log in")
    browser.until("document.querySelector('h1').textContent === 'Runs'")


def look_at(browser: Browser) -> list[str]:
    """What is wrong with the page that is open, in any width and either scheme."""
    found = []
    for width in WIDTHS:
        for scheme in SCHEMES:
            browser.look_like(width, scheme)
            if browser.overflow() > 0:
                found.append(f"{width} {scheme}: {browser.overflow()} pixels too wide")
            found += [f"{width} {scheme}: {violation}" for violation in browser.violations()]
    browser.look_like(WIDTHS[0], SCHEMES[0])
    return found + browser.complaints()


@pytest.mark.timeout(400)
def test_from_a_failed_batch_over_the_retry_to_the_green_end(
    product: Product, browser: Browser
) -> None:
    with product.engine.begin() as connection:
        # Nothing is wrong with its rows: the end is green.
        sample.load(connection, 2_000, dirty=False)
    # Opened before the constraint is there: what is there before is found by the trial.
    product.run("enqueue-all")
    change(product, "ALTER TABLE organizations ADD CONSTRAINT mine"
           " CHECK (name <> 'Default Organization')")  # fmt: skip
    with product.worker(), serving(product, MIGRATION_CONSOLE_PASSWORD=PASSWORD) as served:
        product.run("status", "--watch", "--json")
        log_in(browser, served.address)
        assert look_at(browser) == []
        browser.driver.find_element("css selector", "tbody a").click()
        browser.until("document.querySelector('#state').textContent === 'failed'")
        assert "Failed batches: 1" in browser.text
        failed = browser.driver.find_element("id", "failed").text
        assert "organization" in failed and "CheckViolation (23514)" in failed
        assert look_at(browser) == []
        change(product, "ALTER TABLE organizations DROP CONSTRAINT mine")
        browser.press("Retry what failed or is quarantined")
        browser.until("document.querySelector('#state').textContent !== 'failed'")
        assert "Done: retry." in browser.text
        assert look_at(browser) == []
        # Without a hand on it: the page follows the run to its end.
        browser.until("document.querySelector('#state').textContent === 'completed'", seconds=200)
        assert "nothing differs" in browser.text
        assert "Failed batches" not in browser.text
        assert look_at(browser) == []
        assert ["operator: retry", "Ada (console)"][1] in browser.text
    assert count(product, "SELECT count(*) FROM migration.batches WHERE state = 'failed'") == 0
    assert count(product, "SELECT count(*) FROM migration.audit WHERE actor = 'Ada (console)'") == 1


@pytest.mark.timeout(300)
def test_pause_resume_and_cancel_from_a_browser_while_the_run_goes_on(
    product: Product, browser: Browser
) -> None:
    product.environment["MIGRATION_BATCH_SIZE"] = "20"
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 3_000)
    with product.worker(), serving(product, MIGRATION_CONSOLE_PASSWORD=PASSWORD) as served:
        product.run("enqueue-all", "--json")
        log_in(browser, served.address)
        browser.driver.find_element("css selector", "tbody a").click()
        # The page is as it was loaded, its live part is not.
        browser.driver.execute_script("window.sameDocument = true")
        browser.until("document.querySelector('#live progress').value > 0.02")
        assert browser.driver.execute_script("return window.sameDocument")
        for button, state in (("Pause", "paused"), ("Resume", "running")):
            browser.press(button)
            browser.until(f"document.querySelector('#state').textContent === '{state}'")
            assert look_at(browser) == []
        browser.driver.find_element("css selector", ".confirm summary").click()
        browser.press("Cancel the run")
        browser.until("document.querySelector('#state').textContent === 'cancelled'")
    assert count(product, "SELECT count(*) FROM migration.runs WHERE state = 'cancelled'") == 1


def test_without_script_the_page_reloads_itself(product: Product, browser: Browser) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 60)
    product.run("enqueue-all", "--json")
    with serving(product, MIGRATION_CONSOLE_PASSWORD=PASSWORD) as served:
        log_in(browser, served.address)
        address = browser.driver.find_element("css selector", "tbody a").get_attribute("href")
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        try:
            browser.driver.get(str(address))
            assert "pending" in browser.text
            change(
                product, "UPDATE migration.stages SET state = 'done' WHERE name = 'organization'"
            )
            done = "//th[normalize-space()='organization']/following-sibling::td[.='done']"
            from selenium.webdriver.support.ui import WebDriverWait

            WebDriverWait(browser.driver, 20).until(lambda d: d.find_elements("xpath", done))
        finally:
            browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
