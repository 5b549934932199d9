"""The tape: what is spent, what is refused, and what it says."""

from __future__ import annotations

import numpy as np
import pytest

from microgpt import Tensor, no_grad
from microgpt.errors import DTypeError, ShapeError, UsageError


def test_a_spent_tape_is_refused() -> None:
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    middle = x * 2.0
    first, second = (middle * 3.0).sum(), (middle * 5.0).sum()
    first.backward()
    assert x.grad.tolist() == [6, 6, 6]
    for loss in (first, second):
        with pytest.raises(UsageError, match="already used; compute the loss again"):
            loss.backward()


def test_backward_needs_a_tape_and_a_gradient_that_fits() -> None:
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    with no_grad():
        y = x * 2.0
    with pytest.raises(UsageError, match="does not require gradients"):
        y.backward()
    with pytest.raises(ShapeError, match=r"pass a gradient of shape \(3,\)"):
        (x * 2.0).backward()
    for wrong in (np.ones(2, np.float32), np.ones((3, 1), np.float32), np.ones(3, np.float64)):
        with pytest.raises(ShapeError, match=r"backward: expected float32\(3,\), got "):
            (x * 2.0).backward(wrong)
    with pytest.raises(DTypeError, match="only floating-point tensors can require gradients, got int64"):
        Tensor([1, 2], requires_grad=True)
    with pytest.raises(ShapeError, match=r"item: expected one element, got shape \(3,\)"):
        x.item()
