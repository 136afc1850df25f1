"""MLflow's server, and what a person does on its pages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support import expected_conditions as condition
from selenium.webdriver.support.ui import WebDriverWait

from tests.ports import free_port
from tests.waiting import answers, wait_for

START = 120
"""Seconds that a server may take to start, and a page to be drawn: two busy cores are slow."""


@contextmanager
def started(folder: Path) -> Iterator[str]:
    """An MLflow server that keeps everything in `folder`, for as long as the context lasts; its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination": str(folder / "artifacts"),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *(word for option in options.items() for word in option)],
        cwd=folder,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
    )
    try:
        wait_for("MLflow's server", lambda: answers(f"{address}/health"), START, process=process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its children would outlive a gentler end
        process.wait(30)


def add_alias(browser: WebDriver, address: str, model: str, version: str, alias: str) -> str:
    """Open a version's page, add an alias in its dialog and save; what the dialog said before that."""
    browser.get(f"{address}/#/models/{model}/versions/{version}")
    wait = WebDriverWait(browser, START)
    button = (By.CSS_SELECTOR, "button[title='Add aliases'], button[title='Edit aliases']")
    wait.until(condition.element_to_be_clickable(button)).click()
    dialog = wait.until(condition.visibility_of_element_located((By.CSS_SELECTOR, "[role='dialog']")))
    entry = dialog.find_element(By.CSS_SELECTOR, "input[role='combobox']")
    entry.send_keys(alias)
    wait.until(condition.presence_of_element_located((By.XPATH, f"//*[@role='option'][normalize-space()='{alias}']")))
    entry.send_keys(Keys.ENTER)
    save = (By.XPATH, "//*[@role='dialog']//button[normalize-space()='Save aliases']")
    wait.until(condition.element_to_be_clickable(save))
    said = dialog.text
    browser.find_element(*save).click()
    wait.until(condition.invisibility_of_element(dialog))
    return said
