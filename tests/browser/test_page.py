"""What people see: the champion is chosen on MLflow's pages, the service follows, and its own page judges files.

One registry, one MLflow server, one `masm serve` and one browser, as each takes seconds to start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import yaml
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from masm import registry
from masm.data.procedural import draw_face
from masm.serving.scorer import Scorer
from masm.settings import Settings, load_settings
from tests.browser import chromium, mlflow_ui
from tests.data.videos import write_video
from tests.serving import service
from tests.serving.workspace import own_address, tiny_detector

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.ray]
PATIENCE = 60
FOLLOWED = 10
"""Seconds within which a version answers that was made champion."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def settings(folder: Path) -> Iterator[Settings]:
    """Two versions, of which the first is champion, on a running MLflow server."""
    with own_address():
        made = service.make_registry(folder, *map(tiny_detector, (1, 2)))
        artifacts = folder / "artifacts"
        with mlflow_ui.started(folder / "mlflow.db", artifacts) as address:
            yield on_server(made, address)


def on_server(settings: Settings, address: str) -> Settings:
    """The workspace, its registry now reached by a server's address."""
    path = settings.root / "params.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["mlflow"]["tracking_uri"] = address
    path.write_text(yaml.safe_dump(tree))
    return load_settings(path)


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[WebDriver]:
    with chromium.opened(folder / "profile") as browser:
        yield browser


@pytest.fixture(scope="module")
def address(settings: Settings) -> Iterator[str]:
    """Where the service is."""
    with service.started(settings) as address:
        yield address


@pytest.fixture(scope="module")
def scorers(settings: Settings, folder: Path) -> dict[str, Scorer]:
    client = registry.connect(settings.mlflow)
    found = {}
    for number in ("1", "2"):
        version = registry.find_version(client, f"models:/{settings.mlflow.model}/{number}")
        found[number] = Scorer(registry.download(client, version, folder / f"version-{number}"))
    return found


@pytest.fixture(scope="module")
def photograph(folder: Path) -> Path:
    path = folder / "drawn.png"
    assert cv2.imwrite(str(path), draw_face(7, 0, 0).image[:, :, ::-1])
    return path


@pytest.fixture
def page(browser: WebDriver, address: str) -> WebDriver:
    browser.get(address)
    return browser


def text(page: WebDriver, name: str) -> str:
    return page.find_element(By.ID, name).text


def shown(name: str) -> Callable[[WebDriver], bool]:
    return lambda page: page.find_element(By.ID, name).is_displayed()


def choose(page: WebDriver, file: Path, awaited: str) -> None:
    """Choose a file on the page and wait for what it brings."""
    page.find_element(By.ID, "file").send_keys(str(file))
    WebDriverWait(page, PATIENCE).until(shown(awaited))


def champion(settings: Settings) -> str:
    client = registry.connect(settings.mlflow)
    return str(client.get_model_version_by_alias(settings.mlflow.model, "champion").version)


def make_champion(browser: WebDriver, settings: Settings, version: str) -> str:
    return mlflow_ui.add_alias(browser, settings.mlflow.tracking_uri, settings.mlflow.model, version, "champion")


def test_person_sets_the_champion_on_mlflows_page(browser: WebDriver, settings: Settings) -> None:
    assert champion(settings) == "1"
    said = make_champion(browser, settings, "2")
    assert champion(settings) == "2"
    assert '"champion" alias is also being used on version 1' in said
    service.set_champion(settings, "1")


def test_page_shows_the_score_and_the_verdict_of_an_image(
    page: WebDriver, scorers: dict[str, Scorer], photograph: Path
) -> None:
    choose(page, photograph, "result")
    expected = scorers["1"].score_image(photograph.read_bytes())
    assert float(text(page, "score")) == pytest.approx(expected.score, abs=1e-3)
    assert text(page, "verdict") == expected.verdict
    assert text(page, "answered").endswith("version 1")
    assert len(page.find_elements(By.CSS_SELECTOR, "#boxes rect")) == 1
    assert len(page.find_elements(By.CSS_SELECTOR, "#shares rect")) == 2  # the detector has two subspaces
    assert not shown("error")(page)


def test_page_draws_the_scores_along_a_video(page: WebDriver, scorers: dict[str, Scorer], folder: Path) -> None:
    rng = np.random.default_rng(0)
    still = draw_face(7, 1, 0).image
    frames = [np.clip(still + rng.normal(0, 20, still.shape), 0, 255).astype(np.uint8) for _ in range(12)]
    video = write_video(folder / "drawn.mp4", frames)
    choose(page, video, "frames")
    expected = scorers["1"].score_video(video)
    assert text(page, "verdict") == expected.verdict
    assert float(text(page, "score")) == pytest.approx(expected.score, abs=1e-3)
    dots = page.find_elements(By.CSS_SELECTOR, "#frames circle title")
    scores = [float(dot.get_attribute("textContent").split(": ")[1]) for dot in dots]
    assert scores == pytest.approx([frame.score for frame in expected.frames], abs=2e-3)
    assert len(set(scores)) > 1


def test_bad_file_gets_its_sentence_and_the_next_one_a_score(page: WebDriver, folder: Path, photograph: Path) -> None:
    bad = folder / "notes.png"
    bad.write_bytes(b"no picture at all")
    choose(page, bad, "error")
    assert text(page, "error") == "not an image"
    assert not shown("result")(page)
    choose(page, photograph, "result")
    assert not shown("error")(page)


def test_service_and_page_follow_the_champion_of_mlflows_page(
    browser: WebDriver, address: str, settings: Settings, scorers: dict[str, Scorer], photograph: Path
) -> None:
    assert health(address)["model"]["version"] == "1"
    make_champion(browser, settings, "2")
    begun = time.monotonic()
    service.eventually(lambda: health(address)["model"]["version"] == "2", FOLLOWED)
    browser.get(address)
    WebDriverWait(browser, PATIENCE).until(lambda page: text(page, "model").endswith("version 2"))
    choose(browser, photograph, "result")
    both = [scorers[number].score_image(photograph.read_bytes()).score for number in ("1", "2")]
    assert float(text(browser, "score")) == pytest.approx(both[1], abs=1e-3)
    assert abs(both[0] - both[1]) > 0.01  # or the line above says little
    print(f"the page answered by version 2 {time.monotonic() - begun:.1f} s after the alias was saved")


def health(address: str) -> dict[str, Any]:
    return httpx.get(f"{address}/healthz", timeout=10).json()
