"""What people see: the champion is chosen on MLflow's pages, the service follows, and its own page judges files.

One registry, one MLflow server, one `masm serve` and one browser, as each takes seconds to start.
"""

from __future__ import annotations

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
from masm.data.faces import CropProfile
from masm.data.procedural import draw_face
from masm.serving.scorer import Scorer
from masm.settings import Settings, load_settings
from tests.browser import chromium, mlflow_ui
from tests.data.videos import scene, write_video
from tests.ports import free_port
from tests.serving import service
from tests.serving.workspace import SIZE, moved_detector, own_address
from tests.waiting import wait_for

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.ray]
PATIENCE = 60
PROFILE = CropProfile("cascade", SIZE, 1.3, None, frames=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def settings(folder: Path) -> Iterator[Settings]:
    """A running MLflow server with two versions, of which the first is champion."""
    with own_address(), mlflow_ui.started(folder) as address:
        settings = on_server(service.make_settings(folder), address)
        settings = service.configure(settings, port=free_port(), poll_seconds=0.5)
        for number in (1, 2):
            service.register(settings, moved_detector(number), folder / f"detector{number}", PROFILE)
        service.set_champion(settings, "1")
        yield settings


def on_server(settings: Settings, address: str) -> Settings:
    """The same params.yaml with the address of a server."""
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
    """Two people, drawn."""
    faces = {(20, 20): draw_face(0, 0, 0, 180).image, (300, 20): draw_face(0, 1, 0, 260).image}
    path = folder / "drawn.png"
    assert cv2.imwrite(str(path), scene(faces)[:, :, ::-1])
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


def test_page_shows_an_images_faces_and_their_scores(
    page: WebDriver, scorers: dict[str, Scorer], photograph: Path
) -> None:
    choose(page, photograph, "result")
    expected = scorers["1"].score_image(photograph.read_bytes(), shares=True)
    assert float(text(page, "score")) == pytest.approx(expected.score, abs=1e-3)
    assert text(page, "verdict") == expected.verdict
    assert text(page, "answered").endswith("version 1")
    boxes = page.find_elements(By.CSS_SELECTOR, "#boxes rect")
    drawn = [[float(box.get_attribute(side)) for side in ("x", "y", "width", "height")] for box in boxes]
    assert drawn == [pytest.approx(face.box) for face in expected.faces]
    assert len(drawn) >= 2
    bars = [float(bar.get_attribute("width")) for bar in page.find_elements(By.CSS_SELECTOR, "#shares rect")]
    shares = expected.faces[0].shares
    assert np.divide(bars, sum(bars)) == pytest.approx(np.abs(shares) / np.abs(shares).sum(), abs=1e-3)
    assert not shown("error")(page)


def test_page_draws_the_scores_along_a_video(page: WebDriver, scorers: dict[str, Scorer], folder: Path) -> None:
    face = draw_face(0, 0, 0, 220).image
    video = write_video(folder / "drawn.mp4", [scene({(20 + 4 * number, 40): face}) for number in range(12)])
    choose(page, video, "frames")
    expected = scorers["1"].score_video(video)
    assert text(page, "verdict") == expected.verdict
    assert float(text(page, "score")) == pytest.approx(expected.score, abs=1e-3)
    dots = page.find_elements(By.CSS_SELECTOR, "#frames circle title")
    scores = [float(dot.get_attribute("textContent").split(": ")[1]) for dot in dots]
    assert scores == pytest.approx([frame.score for frame in expected.frames], abs=2e-3)
    assert len(scores) >= 6  # of 8 frames that are looked at


def test_video_without_a_face_says_so(page: WebDriver, folder: Path) -> None:
    video = write_video(folder / "grey.mp4", [np.full((240, 320, 3), 120, np.uint8)] * 10)
    choose(page, video, "result")
    assert text(page, "verdict") == "no face"
    assert not shown("error")(page)
    assert not shown("frames")(page)


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
    wait_for("the service to follow", lambda: health(address)["model"]["version"] == "2")
    browser.get(address)
    WebDriverWait(browser, PATIENCE).until(lambda page: text(page, "model").endswith("version 2"))
    choose(browser, photograph, "result")
    both = [scorers[number].score_image(photograph.read_bytes()).score for number in ("1", "2")]
    assert float(text(browser, "score")) == pytest.approx(both[1], abs=1e-3)
    assert abs(both[0] - both[1]) > 0.01  # or the line above says little


def test_promotion_on_mlflows_page_is_on_record(settings: Settings) -> None:
    """After the test above; the service enters it."""
    client, name = registry.connect(settings.mlflow), settings.mlflow.model
    wait_for("the promotion's entry", lambda: "promoted_by" in client.get_model_version(name, "2").tags)
    assert "outside" in client.get_model_version(name, "2").tags["promoted_by"]
    wait_for("the former champion's mark", lambda: "previous_champion" in client.get_model_version(name, "1").tags)
    assert registry.former_champion(client, name).version == "1"


def health(address: str) -> dict[str, Any]:
    return httpx.get(f"{address}/healthz", timeout=10).json()
