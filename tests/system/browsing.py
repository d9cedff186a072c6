"""A real browser: Debian's Chromium, driven through selenium, and axe-core to look at its pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.system import packages

# Desktop and phone.
WIDTHS = (1280, 360)
SCHEMES = ("light", "dark")


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A headless browser of its own profile for the time of the block."""
    options = ChromeOptions()
    options.binary_location = str(packages.need("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
        "--hide-scrollbars", f"--user-data-dir={folder}", "--no-first-run",
    ):  # fmt: skip
        options.add_argument(argument)
    program = packages.need("chromedriver", "chromium-driver")
    libraries = packages.libraries() if program.is_relative_to(packages.ROOT) else ""
    service = Service(str(program), env=os.environ | {"LD_LIBRARY_PATH": libraries})
    driver = Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    """What the tests do with a browser, in their words."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def look_like(self, width: int, scheme: str) -> None:
        """Be so wide, and prefer light or dark."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def until(self, script: str, seconds: float = 60) -> Any:
        """Wait until a script returns something true."""
        return WebDriverWait(self.driver, seconds, poll_frequency=0.1).until(
            lambda driver: driver.execute_script(f"return {script}"), f"never: {script}"
        )

    def press(self, button: str) -> None:
        """Press the button with that text."""
        self.driver.find_element(By.XPATH, f"//button[normalize-space()='{button}']").click()

    def follow(self, link: str) -> None:
        """Click the link with that text."""
        self.driver.find_element(By.LINK_TEXT, link).click()

    def type_(self, *keys: str) -> None:
        """Type where the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def focus(self) -> str:
        """The text of what has the focus."""
        return str(self.driver.execute_script("return document.activeElement.textContent")).strip()

    def tab_to(self, what: str, most: int = 40) -> None:
        """Press Tab until the focus is on the control with that text; "" for a field."""
        for _ in range(most):
            self.type_(Keys.TAB)
            tag = self.driver.execute_script("return document.activeElement.tagName")
            if self.focus == what and tag in ("A", "BUTTON", "SUMMARY", "INPUT"):
                return
        raise AssertionError(f"the keyboard does not reach {what}: {self.text}")

    @property
    def text(self) -> str:
        """What can be read on the page; read again where another page came meanwhile."""
        return str(
            WebDriverWait(
                self.driver, 60, ignored_exceptions=[StaleElementReferenceException]
            ).until(lambda driver: driver.find_element(By.TAG_NAME, "body").text)
        )

    def complaints(self) -> list[str]:
        """What the browser itself had to say: errors, and what the policy forbade."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def violations(self) -> list[str]:
        """What axe-core finds."""
        axe = packages.MODULES / "axe-core" / "axe.min.js"
        if not axe.exists():
            pytest.skip(f"needs axe-core: {packages.missing().get('axe-core', 'not unpacked')}")
        self.driver.execute_script(axe.read_text(encoding="utf-8"))
        found = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run(document).then(found => done(found.violations))"
        )
        return [
            f"{rule['id']}: {node['target']} {node['failureSummary']}"
            for rule in found
            for node in rule["nodes"]
        ]

    def overflow(self) -> int:
        """How many pixels of the page lie beyond its width."""
        script = "return document.documentElement.scrollWidth - window.innerWidth"
        return int(self.driver.execute_script(script))
