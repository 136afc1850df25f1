"""How champion moves, on SQLite: by us, by a person in MLflow, and by processes that did not come to their end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, PERMISSION_DENIED

from masm import registry
from masm.errors import UserError
from masm.promotion import FIGURES, Verdict
from masm.registry import lock as locks
from masm.registry.promotions import OUTSIDE
from masm.scorecard import Estimate
from masm.settings import Settings
from tests.registry.runs import Logged, aliases, check_whole, log, own_model, register
from tests.serving.workspace import make_workspace, own_address, tiny_detector, use_detector


class Place(NamedTuple):
    client: MlflowClient
    settings: Settings
    logged: Logged

    @property
    def model(self) -> str:
        return self.settings.mlflow.model


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Logged]]:
    folder = tmp_path_factory.mktemp("promotions")
    with own_address():
        settings = make_workspace(folder / "workspace", folder / "mlflow.db")
        yield settings, log(settings, use_detector(settings, tiny_detector(0)))


@pytest.fixture
def place(logged: tuple[Settings, Logged]) -> Place:
    """A registry with champion 1 and challenger 2."""
    settings = own_model(logged[0])
    place = Place(registry.connect(settings.mlflow), settings, logged[1])
    register(place.client, settings, place.logged, True)
    register(place.client, settings, place.logged, False)
    assert aliases(place.client, settings) == {1: ("champion",), 2: ("challenger",)}
    return place


def tags(place: Place, version: int) -> dict[str, str]:
    return place.client.get_model_version(place.model, str(version)).tags


def test_promotion_says_who_when_and_in_place_of_which(place: Place) -> None:
    register(place.client, place.settings, place.logged, True)
    assert aliases(place.client, place.settings) == {1: ("challenger",), 2: (), 3: ("champion",)}
    first, second = registry.trail(place.client, place.model)
    assert (first.version, first.over, second.version, second.over) == ("1", None, "3", "1")
    assert second.by == f"{locks.person()}, test"
    assert (tags(place, 3)["promoted_by"], tags(place, 3)["promoted"]) == (second.by, second.time)
    assert tags(place, 1)["previous_champion"] == second.time
    check_whole(place.client, place.settings)


def test_person_who_sets_the_alias_in_mlflow_is_entered(place: Place) -> None:
    place.client.set_registered_model_alias(place.model, "champion", "2")
    registry.notice(place.client, place.model)
    assert tags(place, 2)["promoted_by"] == OUTSIDE
    assert tags(place, 1)["previous_champion"] == tags(place, 2)["promoted"]
    assert aliases(place.client, place.settings) == {1: ("challenger",), 2: ("champion",)}
    assert str(registry.former_champion(place.client, place.model).version) == "1"
    check_whole(place.client, place.settings)
    entries = registry.trail(place.client, place.model)
    registry.notice(place.client, place.model)
    assert registry.trail(place.client, place.model) == entries


def test_next_promotion_notices_the_person_too(place: Place) -> None:
    place.client.set_registered_model_alias(place.model, "champion", "2")
    register(place.client, place.settings, place.logged, True)
    assert [entry.by for entry in registry.trail(place.client, place.model)][1] == OUTSIDE
    assert registry.trail(place.client, place.model)[2].over == "2"
    check_whole(place.client, place.settings)


def test_noticing_waits_for_nobody(place: Place) -> None:
    place.client.set_registered_model_alias(place.model, "champion", "2")
    with locks.held(place.client, place.model):
        registry.notice(place.client, place.model)
        assert "promoted_by" not in tags(place, 2)
    registry.notice(place.client, place.model)
    assert tags(place, 2)["promoted_by"] == OUTSIDE


class Refusing:
    """A client whose store refuses these calls with this error."""

    def __init__(self, client: MlflowClient, code: int, *calls: str) -> None:
        self._client, self._code, self._calls = client, code, calls

    def __getattr__(self, name: str) -> Any:
        def refuse(*arguments: object, **named: object) -> None:
            raise MlflowException("refused by the test", error_code=self._code)

        return refuse if name in self._calls else getattr(self._client, name)


def locked(place: Place) -> bool:
    return f"{place.model}.promoting" in {model.name for model in place.client.search_registered_models()}


def test_noticing_without_the_right_to_write_leaves_no_lock(place: Place) -> None:
    place.client.set_registered_model_alias(place.model, "champion", "2")
    reader = Refusing(place.client, PERMISSION_DENIED, "set_model_version_tag", "set_registered_model_tag")
    registry.notice(reader, place.model)
    assert not locked(place)
    assert "promoted_by" not in tags(place, 2)


@pytest.mark.parametrize(("code", "kept"), [(PERMISSION_DENIED, False), (INTERNAL_ERROR, True)])
def test_lock_is_kept_where_the_store_does_not_answer_alone(place: Place, code: int, kept: bool) -> None:
    with (
        pytest.raises(MlflowException, match="refused by the test"),
        locks.held(Refusing(place.client, code, "set_registered_model_alias"), place.model) as lock,
    ):
        lock.client.set_registered_model_alias(place.model, "champion", "2")
    assert locked(place) == kept


def test_waiting_ends_where_the_lock_cannot_be_broken(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "INTERVAL", 0.001)
    locks.new_lock(place.client, place.model).take()
    reader = Refusing(place.client, PERMISSION_DENIED, "rename_registered_model")
    with pytest.raises(MlflowException, match="refused by the test"), locks.held(reader, place.model):
        pass
    place.client.set_registered_model_tag(f"{place.model}.promoting", locks.HOLDER, "another")
    with locks.held(place.client, place.model):
        pass
    assert not locked(place)
    place.client.create_registered_model(f"{place.model}.promoting")  # by hand, of nobody
    with locks.held(place.client, place.model):
        pass
    assert not locked(place)


def test_tag_that_somebody_wrote_by_hand_is_no_entry(place: Place) -> None:
    entries = registry.trail(place.client, place.model)
    for key, text in (("note", "by hand"), ("2026-01-01", "by hand"), ("2026-01-02", "{}"), ("2026-01-03", "[1]")):
        place.client.set_registered_model_tag(place.model, f"promotion.{key}", text)
    assert registry.trail(place.client, place.model) == entries
    register(place.client, place.settings, place.logged, True)
    check_whole(place.client, place.settings)


def test_new_verdict_takes_the_figures_of_the_former_away(place: Place) -> None:
    own = Estimate(0.5, 0.4, 0.6)
    for verdict in (Verdict(False, "compared", own, own, own), Verdict(False, "not compared", own)):
        with registry.promoting(place.client, place.model) as lock:
            registry.settle(lock, "2", verdict, "test")
        figures = {key: text for key, text in tags(place, 2).items() if key in FIGURES}
        assert set(figures) == set(verdict.tags()) & set(FIGURES)
    assert set(figures) == {"video_auc", "video_auc_low", "video_auc_high"}


def test_alias_or_version_that_somebody_removed_is_entered(place: Place) -> None:
    place.client.delete_registered_model_alias(place.model, "champion")
    registry.notice(place.client, place.model)
    assert registry.trail(place.client, place.model)[-1].version is None
    assert str(registry.former_champion(place.client, place.model).version) == "1"
    register(place.client, place.settings, place.logged, True)
    assert registry.trail(place.client, place.model)[-1].over is None
    place.client.delete_model_version(place.model, "3")
    register(place.client, place.settings, place.logged, True)
    assert registry.trail(place.client, place.model)[-1].version == "4"
    assert str(registry.champion(place.client, place.model).version) == "4"


def test_version_promoted_before_its_alias_moved_is_marked(place: Place) -> None:
    intent = {"time": "2026-01-01T00:00:00.000000Z", "version": None, "over": "1", "by": "test", "reason": "gate"}
    place.client.set_model_version_tag(place.model, "2", "promoting", json.dumps(intent))
    place.client.set_model_version_tag(place.model, "2", "verdict", "promoted")
    with registry.promoting(place.client, place.model):
        pass
    assert tags(place, 2)["verdict"] == "interrupted"
    assert "cut short" in tags(place, 2)["reason"]
    check_whole(place.client, place.settings)


def test_promotion_whose_alias_moved_is_entered_as_what_it_was(place: Place) -> None:
    intent = {"time": "2099-01-01T00:00:00.000000Z", "version": None, "over": "1", "by": "ann, test", "reason": "gate"}
    place.client.set_model_version_tag(place.model, "2", "promoting", json.dumps(intent))
    place.client.set_registered_model_alias(place.model, "champion", "2")
    registry.notice(place.client, place.model)
    assert tags(place, 2)["promoted_by"] == "ann, test"
    check_whole(place.client, place.settings)


def test_trail_stays_in_order_where_a_clock_was_ahead(place: Place) -> None:
    ahead = "2099-01-01T00:00:00.000000Z"
    entry = {"time": ahead, "version": "1", "over": None, "by": "a machine of the future", "reason": "gate"}
    place.client.set_registered_model_tag(place.model, f"promotion.{ahead}", json.dumps(entry))
    register(place.client, place.settings, place.logged, True)
    last = registry.trail(place.client, place.model)[-1]
    assert (last.version, last.time) == ("3", "2099-01-01T00:00:00.000001Z")
    registry.notice(place.client, place.model)
    assert registry.trail(place.client, place.model)[-1] == last


def test_without_a_former_champion_there_is_nothing_to_roll_back_to(place: Place) -> None:
    with pytest.raises(UserError, match="no former champion"):
        registry.former_champion(place.client, place.model)
    assert registry.trail(place.client, "no-such-model") == []
    registry.notice(place.client, "no-such-model")


@pytest.mark.parametrize("said", ["1", "champion", "@champion", "models:/{}@champion", "models:/{}/1"])
def test_people_may_name_a_version_in_several_ways(place: Place, said: str) -> None:
    assert str(registry.resolve(place.client, place.model, said.format(place.model)).version) == "1"


@pytest.mark.parametrize("said", ["9", "winner", "models:/{}/9", "models:/nobody@champion", ""])
def test_version_that_is_not_there_is_the_users_mistake(place: Place, said: str) -> None:
    with pytest.raises(UserError, match=r"models:/"):
        registry.resolve(place.client, place.model, said.format(place.model))
