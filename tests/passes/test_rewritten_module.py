"""What `rewrite` gives back is a module like others: switched, trained, copied, compiled."""

from __future__ import annotations

import copy

import pytest
import torch
from graphs import ImageAttention, assert_close, image
from oracle import stand_ins
from torch import nn

import todo_compile
from todo_compile.errors import CaptureError, ConfigError
from todo_compile.options import PlanOptions

OPTIONS = PlanOptions(factors=((2, 2),))


class WithDropout(ImageAttention):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(rate)
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.dropout(super().forward(image))


class WithNorm(ImageAttention):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(image))


def truth(x: torch.Tensor) -> ImageAttention:
    model = ImageAttention()
    grid = (x.shape[2], x.shape[3])
    model.pool = lambda t: stand_ins(t, 2, grid, (2, 2), "nearest")
    return model


def rewritten(module: nn.Module, x: torch.Tensor) -> nn.Module:
    found, report = todo_compile.rewrite(module, (x,), options=OPTIONS)
    assert report.rewritten == 1
    return found


def test_it_can_be_switched_trained_copied_and_compiled() -> None:
    x = image(8, 6)
    original = ImageAttention()
    module, expected = rewritten(original, x), truth(x)
    assert not module.training
    wanted = expected(x)
    for one in (module, module.train(), module.eval(), copy.deepcopy(module).train()):
        assert_close((one(x),), wanted)
    assert not module.training
    with torch.no_grad():
        assert_close((torch.compile(module, backend="eager")(x),), wanted)
        assert_close((torch.export.export(module, (x,)).module()(x),), wanted)
    # It shares the original's weights, whose gradients are those of the truth.
    assert module.state_dict().keys() == original.state_dict().keys()
    module(x).square().sum().backward()
    expected(x).square().sum().backward()
    for mine, right in zip(original.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, right.grad, rtol=1e-4, atol=1e-4)


def test_a_dropout_of_zero_changes_nothing() -> None:
    x = image(8, 6)
    module = rewritten(WithDropout(0.0), x)
    assert_close((module.train()(x),), truth(x)(x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [lambda: WithDropout(0.5), WithNorm])
def test_what_differs_between_the_modes_keeps_its_own(
    make: type[nn.Module], training: bool
) -> None:
    x = image(8, 6, batch=2)
    original = make().train(training)
    module = rewritten(original, x)
    assert module.training is training
    assert module.train(training) is module
    other = copy.deepcopy(module)
    assert other.train(training) is other
    with pytest.raises(CaptureError):
        other.train(not training)
    with pytest.raises(CaptureError, match="captured in " + ("train" if training else "eval")):
        module.train(not training)
    if training:
        with pytest.raises(CaptureError):
            module.eval()
    assert module.training is training


def test_grids_of_packed_tokens_are_checked() -> None:
    with pytest.raises(ConfigError, match="47 tokens are a grid of"):
        todo_compile.rewrite(ImageAttention(), (image(8, 6),), token_grids={47: (8, 6)})
