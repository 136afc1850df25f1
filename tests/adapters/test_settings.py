from __future__ import annotations

import pytest

from masm.adapters import MaskSettings
from masm.errors import UserError
from tests.adapters.models import adapter


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "masn"}, "adapter.method = 'masn'"),
        ({"grouping": "random"}, "adapter.grouping = 'random'"),
        ({"rank": -1}, "adapter.rank = -1"),
        ({"rank": 1.5}, "adapter.rank = 1.5"),
        ({"subspaces": True}, "adapter.subspaces = True"),
        ({"targets": ("q", "kk")}, "adapter.targets = 'kk'"),
        ({"targets": ("q", "q")}, "twice"),
        ({"targets": ()}, "adapter.targets is empty"),
        ({"method": "lora", "targets": ()}, "adapter.targets is empty"),
        ({"method": "lora", "rank": 0}, "adapter.rank = 0: give a whole number of at least 1"),
    ],
)
def test_adapter_settings_refuse(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        adapter(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "on"}, "mask.kind = 'on'"),
        ({"over": "video"}, "mask.over = 'video'"),
        ({"threshold_kind": "percent"}, "mask.threshold_kind = 'percent'"),
        ({"threshold": 1.1}, "mask.threshold = 1.1"),
        ({"threshold": float("nan")}, "mask.threshold = nan"),
        ({"threshold_kind": "absolute", "threshold": -1.0}, "mask.threshold = -1.0"),
        ({"interval": 1}, "mask.interval = 1"),
        ({"momentum": 1.0}, "mask.momentum = 1.0"),
    ],
)
def test_mask_settings_refuse(changes: dict[str, object], said: str) -> None:
    values = {
        "kind": "adaptive",
        "over": "batch",
        "threshold_kind": "quantile",
        "threshold": 0.5,
        "interval": 4,
        "momentum": 0.9,
    }
    with pytest.raises(UserError, match=said):
        MaskSettings(**{**values, **changes})


def test_an_absolute_threshold_may_be_above_one() -> None:
    assert MaskSettings("static", "batch", "absolute", 3.0, 4, 0.9).threshold == 3.0
