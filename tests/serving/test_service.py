"""`masm serve`: what it answers is what the Scorer says, and nothing that a client sends brings it down."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from masm import registry
from masm.data.images import decode_image
from masm.serving.results import ImageResult
from masm.serving.scorer import Scorer
from masm.settings import Settings
from tests.data.videos import write_video
from tests.serving.service import Load, make_registry, set_champion, started
from tests.serving.workspace import SIZE, own_address, random_crop, tiny_detector
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]
KEY = "open sesame"
MAX_BYTES = 2**20


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Three versions, all sound at first."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "media").mkdir()
    limits = {"max_bytes": MAX_BYTES, "max_video_seconds": 4, "media_root": "media"}
    with own_address():
        yield make_registry(folder, *map(tiny_detector, (1, 2, 3)), **limits)


@pytest.fixture(scope="module")
def scorers(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scorer]:
    """The Scorers of the two sound versions."""
    client = registry.connect(settings.mlflow)

    def scorer(number: str) -> Scorer:
        version = registry.find_version(client, f"models:/{settings.mlflow.model}/{number}")
        return Scorer(registry.download(client, version, tmp_path_factory.mktemp("version")))

    return {number: scorer(number) for number in ("1", "2")}


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[httpx.Client]:
    with (
        started(settings, {"MASM_API_KEY": KEY}) as address,
        httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _stays_up(client: httpx.Client) -> Iterator[None]:
    """Whatever a test did, a good request is answered afterwards."""
    yield
    assert post_image(client, random_crop(0)).status_code == 200


def post_image(client: httpx.Client, image: bytes, **query: str) -> httpx.Response:
    return client.post("/score", content=image, headers={"Content-Type": "image/png"}, params=query)


def expected(result: ImageResult) -> dict[str, Any]:
    faces = [
        {"box": list(face.box), "score": face.score, "probability": face.probability, "verdict": face.verdict}
        for face in result.faces
    ]
    figures = {"score": result.score, "probability": result.probability, "verdict": result.verdict}
    return {"outcome": result.outcome, **figures, "faces": faces}


def assert_same(answer: dict[str, Any], result: ImageResult) -> None:
    """An image's answer is the Scorer's result; shares are looked at elsewhere."""
    wanted = expected(result)
    assert [answer["outcome"], answer["verdict"]] == [wanted["outcome"], wanted["verdict"]]
    assert len(answer["faces"]) == len(wanted["faces"])
    for name in ("score", "probability"):
        assert answer[name] == pytest.approx(wanted[name], abs=1e-5)
    for face, own in zip(answer["faces"], wanted["faces"], strict=True):
        assert face["box"] == pytest.approx(own["box"])
        assert face["score"] == pytest.approx(own["score"], abs=1e-5)


def test_batches_over_clients_give_the_scores_of_the_scorer_alone(
    client: httpx.Client, scorers: dict[str, Scorer]
) -> None:
    images = [random_crop(5, number) for number in range(40)]
    before = figures(client)
    with ThreadPoolExecutor(16) as pool:
        answers = [answer.json() for answer in pool.map(lambda image: post_image(client, image), images)]
    for image, answer in zip(images, answers, strict=True):
        assert answer["model"]["version"] == "1"
        assert_same(answer["images"][0], scorers["1"].score_image(image))
    after = figures(client)
    assert len({answer["images"][0]["score"] for answer in answers}) == len(images)
    passes = after["masm_batch_size_count"] - before["masm_batch_size_count"]
    assert after["masm_batch_size_sum"] - before["masm_batch_size_sum"] == len(images)
    assert passes < len(images)


def test_all_forms_of_a_request_give_the_same_answer(
    client: httpx.Client, settings: Settings, scorers: dict[str, Scorer]
) -> None:
    images = [random_crop(6, number) for number in range(3)]
    form = client.post("/score", files=[("file", (f"{n}.png", image)) for n, image in enumerate(images)])
    texts = [base64.encodebytes(image).decode() for image in images]
    listed = client.post("/score", json={"images": texts})
    for number, image in enumerate(images):
        (settings.root / "media" / f"{number}.png").write_bytes(image)
    named = client.post("/score", json={"paths": [f"{number}.png" for number in range(3)]})
    for answer in (form, listed, named):
        assert answer.status_code == 200, answer.text
        for got, image in zip(answer.json()["images"], images, strict=True):
            assert_same(got, scorers["1"].score_image(image))


def test_shares_come_when_asked_for(client: httpx.Client, scorers: dict[str, Scorer]) -> None:
    image = random_crop(7)
    (face,) = post_image(client, image, shares="true").json()["images"][0]["faces"]
    assert face["shares"] == pytest.approx(scorers["1"].score_image(image, shares=True).faces[0].shares, abs=1e-4)
    assert len(face["shares"]) == 2
    assert post_image(client, image).json()["images"][0]["faces"][0]["shares"] is None


def test_one_bad_image_leaves_the_others_alone(client: httpx.Client, settings: Settings) -> None:
    texts = [base64.b64encode(data).decode() for data in (random_crop(1), b"plain text")]
    body = {"images": [*texts, "%%%"], "paths": ["none.png", "large.png"]}
    (settings.root / "media" / "large.png").write_bytes(bytes(MAX_BYTES + 1))
    good, *bad = client.post("/score", json=body).json()["images"]
    assert good["outcome"] == "ok"
    assert bad[0] == {"outcome": "not an image", "score": None, "probability": None, "verdict": None, "faces": []}
    assert [each["outcome"] for each in bad[1:]] == [
        "images.2: not base64",
        "paths.0: no such file in the folder that files may come from",
        f"paths.1: the file has more than {MAX_BYTES} bytes",
    ]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two seconds of crops that change slowly; lossless enough to be worth a comparison."""
    frames = [cv2.resize(decode_image(random_crop(8, number // 10)), (SIZE, SIZE)) for number in range(50)]
    return write_video(tmp_path_factory.mktemp("video") / "crops.mp4", frames).read_bytes()


def test_video_has_the_scores_of_its_frames(
    client: httpx.Client, scorers: dict[str, Scorer], video: bytes, tmp_path: Path
) -> None:
    (tmp_path / "video.mp4").write_bytes(video)
    wanted = scorers["1"].score_video(tmp_path / "video.mp4")
    raw = client.post("/score/video", content=video, headers={"Content-Type": "video/mp4"})
    form = client.post("/score/video", files={"file": ("video.mp4", video)})
    assert len(wanted.frames) > 10
    for answer in (raw, form):
        got = answer.json()["video"]
        assert [got["outcome"], got["verdict"]] == [wanted.outcome, wanted.verdict]
        assert got["score"] == pytest.approx(wanted.score, abs=1e-5)
        assert [frame["score"] for frame in got["frames"]] == pytest.approx(
            [frame.score for frame in wanted.frames], abs=1e-5
        )
        assert [frame["frame_index"] for frame in got["frames"]] == [frame.frame_index for frame in wanted.frames]


def image_of(width: int, height: int) -> bytes:
    """A large image in a small file."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


PNG, JSON = {"Content-Type": "image/png"}, {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
GOOD = {"content": random_crop(1), "headers": PNG}


@pytest.mark.parametrize(
    ("status", "says", "request_"),
    [
        (422, "not an image", {"content": b"plain text", "headers": PNG}),
        (422, "decompression bomb", {"content": image_of(10_000, 10_000), "headers": PNG}),
        (422, "truncated", {"content": random_crop(1)[:900], "headers": PNG}),
        (400, "the body is empty", {"content": b"", "headers": PNG}),
        (400, "the body is empty", {"content": b"", "headers": JSON}),
        (400, "the form holds no file", {"content": b"--x--\r\n", "headers": FORM}),
        (400, "boundary", {"content": b"abc", "headers": {"Content-Type": "multipart/form-data"}}),
        (400, "Invalid JSON", {"content": b'{"images": [', "headers": JSON}),
        (422, "image: Extra inputs are not permitted", {"json": {"image": "abc"}}),
        (422, "images.0", {"json": {"images": [1]}}),
        (422, "it lists no image", {"json": {"images": []}}),
        (422, "paths.0: a path outside", {"json": {"paths": ["/etc/passwd"]}}),
        (422, "paths.0: a path outside", {"json": {"paths": ["../params.yaml"]}}),
        (422, "paths.0: no such file", {"json": {"paths": ["none.png"]}}),
        (422, "images: List should have at most 64", {"json": {"images": ["YWJj"] * 65}}),
        (422, "images.0: not base64", {"json": {"images": ["%%%"]}}),
        (415, "text/plain is not taken", {"content": b"hello", "headers": {"Content-Type": "text/plain"}}),
        (413, f"more than {MAX_BYTES} bytes", {"content": bytes(MAX_BYTES + 10_000_000), "headers": PNG}),
        (404, "version 99 does not serve", GOOD | {"params": {"version": "99"}}),
        (409, "the crops are of protocol abc", GOOD | {"params": {"protocol": "abc"}}),
        (422, "shares: Input should be a valid boolean", GOOD | {"params": {"shares": "so"}}),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(client: httpx.Client, status: int, says: str, request_: dict[str, Any]) -> None:
    answer = client.post("/score", **request_)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]


def test_bad_videos_get_a_sentence(client: httpx.Client, video: bytes, tmp_path: Path) -> None:
    frames = [np.full((SIZE, SIZE, 3), number, np.uint8) for number in range(130)]
    long = write_video(tmp_path / "long.mp4", frames).read_bytes()
    fast = write_video(tmp_path / "fast.mp4", frames * 4, times=[number * 2 for number in range(520)]).read_bytes()
    for content, says in (
        (fast, "520 frames"),
        (video[: len(video) // 2], "opened as a video"),
        (b"text", "opened as a video"),
        (long, "5 s"),
    ):
        answer = client.post("/score/video", content=content, headers={"Content-Type": "video/mp4"})
        assert answer.status_code == 422, answer.text
        assert says in answer.json()["detail"]
    playlist = b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"
    answer = client.post("/score/video", content=playlist, headers={"Content-Type": "video/mp4"})
    assert answer.status_code == 422


def test_a_body_without_a_length_is_limited_too(client: httpx.Client) -> None:
    answer = client.post("/score", content=(bytes(2**16) for _ in range(40)), headers=PNG)
    assert answer.status_code == 413


def test_the_named_version_and_protocol_are_served(client: httpx.Client, scorers: dict[str, Scorer]) -> None:
    protocol = scorers["1"].cropper.profile.hash
    answer = post_image(client, random_crop(1), version="1", protocol=protocol)
    assert answer.json()["model"]["protocol"] == protocol


@pytest.mark.parametrize("given", [None, "Bearer wrong", KEY, f"Bearer {KEY}x", "Bearer d\u00e9j\u00e0"])
def test_without_the_key_nothing_is_scored(client: httpx.Client, given: str | None) -> None:
    headers = {"Content-Type": "image/png"} | ({} if given is None else {"Authorization": given})
    encoded = {name: value.encode() for name, value in headers.items()}
    for path in ("/score", "/score/video"):
        answer = httpx.post(f"{client.base_url}{path}", content=random_crop(1), headers=encoded)
        assert answer.status_code == 401
        assert "Bearer KEY" in answer.json()["detail"]


def figures(client: httpx.Client) -> dict[str, float]:
    """Every sample of /metrics by its name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples)

    def name(labels: dict[str, str]) -> str:
        return "".join(f" {key}={value}" for key, value in sorted(labels.items()) if key != "replica")

    return {sample.name + name(sample.labels): sample.value for sample in samples}


def test_metrics_count_what_was_asked(client: httpx.Client) -> None:
    before = figures(client)
    for _ in range(3):
        post_image(client, random_crop(1))
    post_image(client, b"text")
    client.get("/no/such/path")

    def grew(name: str, by: float) -> bool:
        return figures(client).get(name, 0) - before.get(name, 0) == by

    wait_for("the scored requests", lambda: grew("masm_requests_total path=/score status=200", 3))
    wait_for("the request without an image", lambda: grew("masm_requests_total path=/score status=422", 1))
    wait_for("the request elsewhere", lambda: grew("masm_requests_total path=other status=404", 1))
    wait_for("the requests' seconds", lambda: grew("masm_request_seconds_count path=/score", 4))
    wait_for("the unusable image", lambda: grew("masm_images_total outcome=unusable", 1))
    wait_for("the faces", lambda: grew("masm_faces_total", 3))
    assert figures(client)["masm_model_info version=1"] == 1


def test_page_is_one_file_that_loads_nothing(client: httpx.Client) -> None:
    answer = client.get("/")
    for name in ("file", "drop", "verdict", "score", "frames", "shares", "model", "error"):
        assert f'id="{name}"' in answer.text
    assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_ray_lets_nobody_in(client: httpx.Client) -> None:
    """The dashboard is closed, and Ray's agent takes no job without its token."""
    own = {process.pid for process in psutil.Process().children(recursive=True)}
    connections = [each for each in psutil.net_connections("tcp") if each.pid in own]
    listening = {(each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN}
    assert [ip for ip, port in listening if port == client.base_url.port] == ["127.0.0.1"]
    assert not [port for _, port in listening if port == 8265]
    answers = [_submit_job(ip, port) for ip, port in listening]
    assert 401 in answers  # the agent's
    assert 200 not in answers


def _submit_job(ip: str, port: int) -> int | None:
    """What Ray's agent answers to a job; None of what does not speak HTTP."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(ip, f"[{ip}]" if ":" in ip else ip)
    try:
        return httpx.post(f"http://{host}:{port}/api/job_agent/jobs/", json={"entrypoint": "true"}).status_code
    except httpx.TransportError:
        return None


def test_swap_under_load_fails_no_request(
    client: httpx.Client, settings: Settings, scorers: dict[str, Scorer]
) -> None:
    image = random_crop(11)
    with Load(str(client.base_url), image, clients=6, headers={"Authorization": f"Bearer {KEY}"}) as load:
        time.sleep(1)
        set_champion(settings, "2")
        wait_for("the swap", lambda: any(body["model"]["version"] == "2" for *_, body in load.answers))
        time.sleep(1)
    assert not load.failures
    assert {status for _, _, status, _ in load.answers} == {200}
    for _, _, _, body in load.answers:  # no answer is of a mixture of two models
        assert_same(body["images"][0], scorers[body["model"]["version"]].score_image(image))
    set_champion(settings, "1")
    wait_for("the former version", lambda: client.get("/healthz").json()["model"]["version"] == "1")


def test_a_damaged_version_is_refused_and_the_old_one_goes_on(client: httpx.Client, settings: Settings) -> None:
    mlflow_client = registry.connect(settings.mlflow)
    version = mlflow_client.get_model_version(settings.mlflow.model, "3")
    stored = Path(mlflow_client.get_model_version_download_uri(version.name, "3").removeprefix("file://"))
    (weights,) = stored.rglob("artifacts/detector/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    set_champion(settings, "3")
    wait_for("the refusal", lambda: client.get("/healthz").json()["refused"] is not None)
    state = client.get("/healthz").json()
    assert state["ready"]
    assert state["model"]["version"] == "1"
    assert state["refused"]["version"] == "3"
    assert "model.safetensors" in state["refused"]["reason"]
    assert post_image(client, random_crop(1)).json()["model"]["version"] == "1"
    assert figures(client)["masm_swaps_total result=refused"] == 1
    set_champion(settings, "1")
    wait_for("the refusal's end", lambda: client.get("/healthz").json()["refused"] is None)


def test_without_an_answer_of_the_registry_the_model_goes_on(client: httpx.Client, settings: Settings) -> None:
    registry.connect(settings.mlflow).delete_registered_model_alias(settings.mlflow.model, "champion")
    wait_for("the version to be missed", lambda: "there is no models:/" in client.get("/healthz").json()["registry"])
    assert post_image(client, random_crop(1)).json()["model"]["version"] == "1"
    set_champion(settings, "1")
    wait_for("the version to be found", lambda: client.get("/healthz").json()["registry"] == "ok")


def _own_processes(title: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may have just ended
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_lost_counts_end_nothing(client: httpx.Client, settings: Settings) -> None:
    """The actor that counts and limits is ended; Ray starts it again, and the replicas report once more."""
    (actor,) = _own_processes("ray::Shared")
    actor.kill()
    for _ in range(5):
        assert post_image(client, random_crop(1)).status_code == 200
    assert client.get("/metrics").status_code == 200
    wait_for("the replica's report", lambda: list(client.get("/healthz").json()["replicas"].values()) == ["1"])
