from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pandas as pd
import pytest

from masm.costs import Cost, Costs
from masm.data.table import write_table
from masm.delong import Difference
from masm.errors import UserError
from masm.evaluation import evaluate, paired_bootstrap
from masm.plots.embeddings import _group_styles, embedding_map
from masm.plots.subspaces import MaskState, free_shares, mask_course
from masm.promotion import Condition, Verdict
from masm.report import DatasetCard, Mistake, ReportInputs, hardest_mistakes, insert_verdict, write_report
from masm.report.render import flatten
from masm.robustness import robustness
from masm.scorecard import Estimate, number, signed
from masm.separability import GROUPINGS, separability
from masm.slices import slice_table
from tests.data import tables
from tests.test_evaluation import DECISIONS, make_scores
from tests.test_robustness import with_distortions
from tests.test_search_plots import make_outcome
from tests.test_separability import make_embeddings

COSTS = Costs(
    stages=(Cost("search", 120.0, 230.0, 2**30, 0.04), Cost("train", 600.0, 1100.0, 3 * 2**30, 0.2)),
    total=Cost("all", 720.0, 1330.0, 3 * 2**30, 0.24),
    trials=(Cost("trial 0", 50.0, None, None, 0.0083),),
    price_per_hour=1.2,
)


def make_inputs(names: tuple[str, ...] = ("upsample", "denoise", "phone")) -> ReportInputs:
    methods = {"phone": ("swap", "reenact")}
    scores = {
        "adapted": pd.concat([make_scores(n, methods.get(n, (n,)), seed=i) for i, n in enumerate(names)]),
        "probe": pd.concat([make_scores(n, methods.get(n, (n,)), quality=0.5, seed=i) for i, n in enumerate(names)]),
    }
    rng = np.random.default_rng((1,))
    layers = [f"blocks.{b}.{kind}" for b in range(6) for kind in ("attn.qkv.q", "attn.qkv.v", "mlp.fc1")]
    numbers = scores["adapted"]["video_id"].str.split("_").str[0].astype(int)
    scores["adapted"] = with_distortions(scores["adapted"].assign(face_size=60.0 + numbers), people=8)
    frames = scores["adapted"].query("frame_index == 0 and level == 0").assign(sample_id="s")
    return ReportInputs(
        model="masm on the starter backbone",
        method="masm",
        verdict="Promoted: mean video AUC rises by 0.15 over the champion.",
        scores=scores,
        scorecards={name: evaluate(table, DECISIONS, draws=300) for name, table in scores.items()},
        differences={
            **{n: paired_bootstrap(scores["adapted"], scores["probe"], [n], draws=300) for n in names},
            "macro": paired_bootstrap(scores["adapted"], scores["probe"], names, draws=300),
        },
        decisions=dict.fromkeys(scores, DECISIONS),
        delong={names[0]: Difference(Estimate(0.123, 0.045, 0.201), 0.00231)},
        robustness=robustness(scores["adapted"], draws=100, seed=0),
        slices=slice_table(scores["adapted"], "face_size", draws=100, seed=0),
        mistakes=[Mistake(names[0], "real", "v<7>", 0, 0.987, "AAAA")],
        history=pd.DataFrame(
            {"epoch": [1, 2, 3, 4], "loss": [0.7, 0.4, 0.3, 0.25], "val_auc": [0.7, 0.9, 0.95, 0.94]}
        ),
        masks=[
            {"step": step, "free": {layer: (rng.random(4) < 0.6).tolist() for layer in layers}} for step in (0, 20, 60)
        ],
        steps=100,
        shares=pd.DataFrame(
            [
                (name, method, index, 0.125 * index - 0.3, 64)
                for name in names
                for method in ("real", "fake")
                for index in (1, 2, 3, 4)
            ],
            columns=["dataset", "method", "subspace", "share", "frames"],
        ),
        separability=separability(frames, make_embeddings(frames), seed=0),
        search=make_outcome(),
        costs=COSTS,
        datasets=[
            DatasetCard("swap", "train", 80, 640, 2560, "d41d8cd98f00b204e9800998ecf8427e", "CC BY 4.0"),
            DatasetCard("phone", "test", 20, 120, 360, "9e107d9d372bb6826bd81d3542a419d6", "ours", "another camera"),
        ],
        candidates=3,
        settings={"train": {"lr": 0.001, "workers": 2}, "datasets": {"swap": {"role": "train"}}},
        versions={"masm": "0.1.0", "torch": "2.15.0"},
    )


@pytest.fixture(scope="module")
def inputs() -> ReportInputs:
    return make_inputs()


@pytest.fixture(scope="module")
def html(inputs: ReportInputs, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, inputs)
    assert list(path.parent.iterdir()) == [path]
    return path.read_text()


class _Elements(HTMLParser):
    """Attributes of all elements, and whether every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_holds_every_figure(inputs: ReportInputs, html: str) -> None:
    for card in inputs.scorecards.values():
        for row in card.datasets:
            for figure in (number(row.frame.auc), number(row.video_auc.value), row.video_auc.interval()):
                assert figure in html
        assert card.video_auc.interval() in html
    for difference in inputs.differences.values():
        assert signed(difference.value) in html
        assert difference.interval() in html
    for grouping in inputs.separability.groupings:
        assert number(grouping.knn_balanced_accuracy) in html
        assert number(grouping.silhouette) in html
    for row in inputs.separability.datasets:
        assert number(row.knn_auc) in html
    for text in (
        inputs.model,
        inputs.verdict,
        "phone: reenact",
        "d41d8cd98f00b204e9800998ecf8427e",
        "CC BY 4.0",
        "train.lr",
        "p = 0.0023",
        "v&lt;7&gt;",
        number(inputs.robustness.area.value),
        number(inputs.robustness.drop.value),
        "not judged yet",
    ):
        assert text in html


def test_report_needs_nothing_from_outside(html: str) -> None:
    elements = _Elements(html)
    assert elements.open == []
    for tag, name, value in elements.attributes:
        if not name.startswith("xmlns"):
            assert "://" not in value, (tag, name, value)
        if name in ("href", "xlink:href", "src"):
            assert value.startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,"))
    assert set(re.findall(r"https?://[^\"'<\s]+", html)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "<script" not in html


def test_plots_are_well_formed_and_refer_to_identifiers_that_are_there(html: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(plots) == 2 + 3 + 3 + 3 + 6 + 3 + 1 + 3 + 2 + 2 + 3
    for svg in plots:
        ElementTree.fromstring(svg)
        referred = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
        assert referred <= set(re.findall(r'id="([^"]+)"', svg))


def test_the_same_inputs_give_the_same_bytes(inputs: ReportInputs, html: str, tmp_path: Path) -> None:
    write_report(tmp_path / "again.html", inputs)
    assert (tmp_path / "again.html").read_text() == html


def test_names_are_escaped_in_tables_and_plots(tmp_path: Path) -> None:
    name = "<script>alert('$x^')</script> & co"
    path = tmp_path / "report.html"
    write_report(path, make_inputs((name,)))
    html = path.read_text()
    assert "<script" not in html
    assert _Elements(html).open == []
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)
    assert html.count("alert(") >= 4


def test_a_dataset_of_one_class_is_said_to_be_undefined(inputs: ReportInputs, tmp_path: Path) -> None:
    def reals_of_phone(table: pd.DataFrame) -> pd.DataFrame:
        return table[(table["dataset"] != "phone") | (table["label"] == 0)]

    scores = {model: reals_of_phone(table) for model, table in inputs.scores.items()}
    cards = {model: evaluate(table, DECISIONS, draws=100) for model, table in scores.items()}
    path = tmp_path / "report.html"
    write_report(path, replace(inputs, scores=scores, scorecards=cards))
    html = path.read_text()
    assert "undefined (one class)" in html
    assert "nan" not in re.sub(r"<[^>]*>", " ", html).lower().split()


def test_parts_that_did_not_run_are_said_to_be_absent(inputs: ReportInputs, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    empty = pd.DataFrame()
    none = replace(inputs.separability, groupings=(), datasets=(), points=empty)
    write_report(
        path,
        replace(
            inputs,
            history=empty,
            masks=[],
            search=replace(make_outcome(1, 1), ranges={}),
            differences={},
            delong={},
            shares=empty,
            separability=none,
            robustness=replace(inputs.robustness, table=inputs.robustness.table.iloc[:0]),
            slices=empty,
            mistakes=None,
        ),
    )
    html = path.read_text()
    absent = ["No embeddings", "No history", "no layer mask", "nothing to search", "no artifact subspaces"]
    for sentence in (*absent, "No frames were distorted", "No column", "No pictures were asked for"):
        assert sentence in html


def test_each_training_dataset_has_its_course_or_is_undefined(inputs: ReportInputs, tmp_path: Path) -> None:
    several = inputs.history.assign(**{"val_auc.swap": [0.6, 0.7, 0.8, 0.8], "val_auc.reals": [None] * 4})
    write_report(tmp_path / "report.html", replace(inputs, history=several))
    html = (tmp_path / "report.html").read_text()
    assert "Validation AUC: swap<" in html.replace("-->", "<")
    assert "Validation AUC: reals (undefined)" in html


def test_the_verdict_takes_the_place_of_not_judged_yet_and_of_a_former_one(html: str) -> None:
    conditions = (Condition("gain", 0.01, -0.123, False), Condition("latency", 50, math.nan, True, "not measured"))
    judged = Verdict(False, "not better: <tie>", Estimate(0.9, 0.8, 0.95), conditions=conditions)
    first = insert_verdict(html, judged)
    for cell in ("gain", "-0.123", "0.01", "no", "undefined", "50", "yes"):
        assert f"<td>{cell}</td>" in first
    assert "not measured" in first
    assert "not judged yet" not in first
    assert "<b>Held</b>: not better: &lt;tie&gt;." in first
    assert _Elements(first).open == []
    second = insert_verdict(first, Verdict(True, r"better by \1", Estimate(0.9, 0.8, 0.95)))
    assert "not better" not in second
    assert r"<b>Promoted</b>: better by \1." in second
    assert second.replace(second[second.index("<!-- gate") : second.index("<!-- /gate")], "") == html.replace(
        html[html.index("<!-- gate") : html.index("<!-- /gate")], ""
    )
    with pytest.raises(UserError, match="no section for the gate"):
        insert_verdict("<p>an older report</p>", Verdict(True, "better", Estimate(0.9, 0.8, 0.95)))


def test_datasets_of_two_sources_are_said_to_be_out_of_the_mean(inputs: ReportInputs, tmp_path: Path) -> None:
    cards = {
        model: evaluate(table, DECISIONS, draws=100, left_out={"phone"}) for model, table in inputs.scores.items()
    }
    write_report(tmp_path / "report.html", replace(inputs, scorecards=cards))
    html = (tmp_path / "report.html").read_text()
    slices = (inputs.slices["dataset"] == "phone").sum()
    assert slices > 1
    assert html.count("not in the mean: two sources") == 1 + slices + 1  # table of results, slices, ladder
    assert html.index("phone<br>") < html.index("not in the mean") < html.index("macro mean")


def test_the_hardest_errors_are_found_and_shown(tmp_path: Path) -> None:
    """Each video's picture is of a grey of its own, so that a thumbnail says what it shows."""
    scores = make_scores("a", people=10, photographs=1, frames=2)
    scores["sample_id"] = "a/" + scores["method"] + "/" + scores["video_id"] + "/" + scores["frame_index"].astype(str)
    greys = {name: 20 + 5 * index for index, name in enumerate(scores["sample_id"])}
    rows = []
    for name, grey in greys.items():
        image = cv2.imencode(".png", np.full((40, 40, 3), grey, np.uint8))[1].tobytes()
        method, video, frame = name.split("/")[1:]
        rows.append(tables.row("a", method, video, int(frame), image))
    write_table(tmp_path / "a", rows, [])
    videos = scores.groupby(["method", "video_id"])["score"].mean()
    found = hardest_mistakes(scores, 0.5, 2, {"a": tmp_path / "a"})
    real, fake = videos["real"].sort_values(ascending=False), videos["upsample"].sort_values()
    expected = [*real[real >= 0.5].index[:2], *fake[fake < 0.5].index[:2]]
    assert [each.video_id for each in found] == expected
    assert {each.label for each in found} == {0, 1}
    for each in found:
        own = scores[(scores["method"] == each.method) & (scores["video_id"] == each.video_id)]
        worst = own.sort_values("score", ascending=bool(each.label)).iloc[0]
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(each.jpeg), np.uint8), cv2.IMREAD_COLOR)
        assert pixels.mean() == pytest.approx(greys[worst["sample_id"]], abs=1)
        assert max(pixels.shape) == 112
        assert each.score == pytest.approx(videos[each.method, each.video_id])
    right = scores.assign(score=scores["label"].astype(float))
    assert hardest_mistakes(right, 0.5, 2, {}) == []


def test_free_share_weighs_each_decision_by_the_steps_it_held() -> None:
    history = [
        {"step": 0, "free": {"a": [True, True]}},
        {"step": 10, "free": {"a": [False, True]}},
        {"step": 40, "free": {"a": [True, False]}},
    ]
    np.testing.assert_allclose(free_shares(history, 50)["a"], [0.4, 0.8])  # type: ignore[arg-type]


def test_the_course_of_the_mask_shows_every_subspace_at_every_step() -> None:
    """The picture holds one pixel for each step and subspace: light where it could move."""
    history: list[MaskState] = [
        {"step": 0, "free": {"blocks.0.a": [True, True], "blocks.1.a": [False]}},
        {"step": 3, "free": {"blocks.0.a": [False, True], "blocks.1.a": [True]}},
    ]
    svg = mask_course(history, 4)
    encoded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", svg)
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(encoded[0]), np.uint8), cv2.IMREAD_GRAYSCALE)
    rows, columns = ((np.arange(n) + 0.5) / n for n in (3, 4))
    sampled = pixels[(rows * len(pixels)).astype(int)][:, (columns * pixels.shape[1]).astype(int)]
    expected = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]], bool)
    assert ((sampled > 127) == expected).all() or ((sampled[::-1] > 127) == expected).all()  # SVG may turn it over
    assert svg.count("block 0 a") == svg.count("block 1 a") == 1


def test_the_map_says_its_groups_to_who_cannot_see_it(inputs: ReportInputs, html: str) -> None:
    spoken = re.findall(r'<svg role="img" aria-label="(.*?)"', html)
    assert [text.split(":")[0] for text in spoken] == [f"Map of the embeddings by {by}" for by in GROUPINGS]
    points = inputs.separability.points
    for label, name in ((0, "real"), (1, "fake")):
        assert f"{name} ({(points['label'] == label).sum()} frames)" in spoken[0]
        assert html.count(f">{name} ({(points['label'] == label).sum()})<") >= 1


def test_every_group_is_in_the_legend() -> None:
    svg = embedding_map("by dataset", np.zeros((3, 2)), ["mine", "_mine", "_mine"])
    assert ">mine (1)<" in svg
    assert ">_mine (2)<" in svg


def test_no_two_groups_of_a_map_look_alike() -> None:
    names = ["real", "fake", *(f"method {index}" for index in range(30))]
    assert len(set(_group_styles(names))) == len(names)


def test_settings_are_shown_flat() -> None:
    settings = {"a": {"b": 1, "c": {"d": ["x", None]}}, "e": "text", "f": {}}
    assert flatten(settings) == {"a.b": "1", "a.c.d": '["x", null]', "e": "text", "f": "{}"}


def test_what_it_took_is_shown(inputs: ReportInputs, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", inputs)
    shown = (tmp_path / "report.html").read_text()
    for text in ("10 min 00 s", "18 min 20 s", "3.0 GiB", "0.200", "0.240", "50.0 s", "0.008"):
        assert f">{text}<" in shown
    assert "1.2 per hour" in " ".join(shown.split())
    free = replace(inputs, costs=Costs((), Cost("all", 0, 0, 0, None), (), None))
    write_report(tmp_path / "free.html", free)
    assert "None of them was timed here" in (tmp_path / "free.html").read_text()
    assert "per hour" not in (tmp_path / "free.html").read_text()
