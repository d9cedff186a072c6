"""An operator's night in a real browser: a batch fails, is fixed and retried, the end is green."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver.common.keys import Keys
from sqlalchemy import text

from producer.demo import sample
from tests import variants
from tests.acceptance.conftest import Product, count
from tests.acceptance.test_serve import serving
from tests.system.browsing import SCHEMES, WIDTHS, Browser, open_browser

PASSWORD = "correct horse"
STATE = "document.querySelector('#state')?.textContent"


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


@pytest.mark.timeout(600)
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
        browser.until(f"{STATE} === 'failed'")
        assert "Failed batches: 1" in browser.text
        failed = browser.driver.find_element("id", "failed").text
        assert "organization" in failed and "CheckViolation (23514)" in failed
        assert look_at(browser) == []
        change(product, "ALTER TABLE organizations DROP CONSTRAINT mine")
        browser.press("Retry what failed, differs or is quarantined")
        browser.until(f"{STATE} !== 'failed'")
        assert "Retrying failed batches" in browser.text
        assert look_at(browser) == []
        # Without a hand on it: the page follows the run to its end.
        browser.until(f"{STATE} === 'completed'", seconds=200)
        assert "nothing differs" in browser.text
        assert "Failed batches" not in browser.text
        assert look_at(browser) == []
        # Somebody damages what was migrated: the verification finds it, a retry fixes it.
        change(product, "UPDATE ai_tools SET name = 'forged' WHERE id IN"
               " (SELECT id FROM ai_tools ORDER BY id LIMIT 3)")  # fmt: skip
        browser.press("Verify again")
        browser.until(f"{STATE} === 'failed'", seconds=200)
        browser.follow("All differences, and what fixes them")
        assert "wrong_value" in browser.text and "producer retry" in browser.text
        assert look_at(browser) == []
        browser.press("Retry what failed, differs or is quarantined")
        browser.until(f"{STATE} === 'completed'", seconds=200)
        assert "Differences" not in browser.text
        assert count(product, "SELECT count(*) FROM ai_tools WHERE name = 'forged'") == 0
        browser.press("Doctor")
        assert "waits for nothing" in browser.text and look_at(browser) == []
        browser.driver.get(f"{served.address}/repairs/credits")
        browser.press("Look")
        # It reads the whole table first.
        browser.until("document.body.textContent.includes('changes would be made')")
        assert "0 changes would be made" in browser.text and look_at(browser) == []
        browser.follow("Runs")
        browser.driver.find_element("css selector", "tbody a").click()
        browser.follow("The report of this run")
        # Its policy allows no script: axe-core looks at it as a file, in a test of its own.
        browser.until("document.querySelector('svg.plot')?.getBoundingClientRect().height > 100")
        assert browser.complaints() == []
    assert count(product, "SELECT count(*) FROM migration.batches WHERE state = 'failed'") == 0
    assert count(product, "SELECT count(*) FROM migration.audit WHERE actor = 'Ada (console)'") == 3


@pytest.mark.timeout(300)
def test_a_run_is_started_steered_and_undone_with_the_keyboard_alone(
    product: Product, browser: Browser
) -> None:
    product.environment["MIGRATION_BATCH_SIZE"] = "20"
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 3_000)
    with product.worker(), serving(product, MIGRATION_CONSOLE_PASSWORD=PASSWORD) as served:
        browser.driver.get(served.address)
        browser.type_("Ada", Keys.TAB, PASSWORD, Keys.ENTER)
        browser.until("document.querySelector('h1').textContent === 'Runs'")
        for button in ("Start a run …", "Check", "Start the run"):
            browser.tab_to(button)
            assert look_at(browser) == []
            browser.type_(Keys.ENTER)
            browser.until(f"document.activeElement.textContent.trim() !== '{button}'")
        # The page is as it was loaded, and what it shows is not; the focus stays where it was.
        browser.driver.execute_script("window.sameDocument = true")
        browser.tab_to("Pause")
        browser.until("document.querySelector('#overall progress').value > 0.02")
        assert browser.driver.execute_script("return window.sameDocument")
        assert browser.focus == "Pause"
        browser.type_(Keys.ENTER)
        browser.until(f"{STATE} === 'paused'")
        assert look_at(browser) == []
        assert (
            "Paused by Ada (console)" in browser.text and "Next: Resume, or Cancel" in browser.text
        )
        assert "left" not in browser.driver.find_element("id", "overall").text
        browser.tab_to("Resume")
        browser.type_(Keys.ENTER)
        browser.until(f"{STATE} === 'running'")
        browser.tab_to("Cancel …")
        browser.type_(Keys.ENTER)
        browser.tab_to("Cancel the run")
        browser.type_(Keys.ENTER)
        browser.until(f"{STATE} === 'cancelled'")
        browser.tab_to("Roll back …")
        browser.type_(Keys.ENTER)
        browser.until("document.querySelector('[name=typed]')")
        assert look_at(browser) == []
        run_id = browser.driver.find_element("tag name", "strong").text
        browser.tab_to("")
        browser.type_(run_id, Keys.ENTER)
        browser.until(f"{STATE} === 'rolled back'", seconds=120)
        assert look_at(browser) == []
    assert count(product, "SELECT count(*) FROM ai_suites") == 0


def test_a_page_says_since_when_it_has_no_connection_and_then_continues(
    product: Product, browser: Browser
) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 60)
    product.run("enqueue-all", "--json")
    with serving(product, MIGRATION_CONSOLE_PASSWORD=PASSWORD) as served:
        log_in(browser, served.address)
        browser.driver.find_element("css selector", "tbody a").click()
        browser.until("document.querySelector('#alarm')")
        product.run("pause")
        # Without a hand on it: also what is not the progress of a stage.
        browser.until("document.querySelector('#paused')")
        assert not browser.driver.find_element("id", "connection").is_displayed()
        browser.driver.execute_cdp_cmd("Network.enable", {})
        network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        offline = {"offline": True, **network}
        browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        browser.until("!document.querySelector('#connection').hidden")
        assert "No connection since" in browser.text
        assert browser.violations() == []
        online = {"offline": False, **network}
        browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", online)
        browser.until("document.querySelector('#connection').hidden")
        product.run("resume")
        browser.until(f"{STATE} === 'running'")


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
