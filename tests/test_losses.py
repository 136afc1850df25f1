from __future__ import annotations

import numpy as np
import torch

from masm.losses import classification_loss


def test_is_the_mean_negative_log_likelihood() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(scale=3, size=50), rng.integers(0, 2, size=50)
    probability = 1 / (1 + np.exp(-logits))
    expected = -np.mean(np.log(np.where(labels == 1, probability, 1 - probability)))
    found = classification_loss(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.item(), expected, rtol=1e-5)


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([300.0, -300.0], dtype=torch.bfloat16, requires_grad=True)
    loss = classification_loss(logits, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 300
    assert bool(logits.grad.isfinite().all())
