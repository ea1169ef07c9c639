"""``pad_sequence`` in a captured graph: written as what it is, with the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from todo_compile.capture.trace import capture


class Padded(nn.Module):
    def __init__(self, turned: bool = False, **options: Any) -> None:
        super().__init__()
        self.turned, self.options = turned, options
        self.table = torch.polar(torch.ones(7, 4), torch.arange(28.0).reshape(7, 4))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        made = pad_sequence([first, second], **self.options)
        if not self.turned:
            return made
        table = pad_sequence([self.table[: made.shape[1]]] * 2, batch_first=True)
        pairs = torch.view_as_complex(made.reshape(*made.shape[:-1], 4, 2))
        return torch.view_as_real(pairs * table).flatten(2)


def values(*lengths: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(n, 8) for n in lengths)


@pytest.mark.parametrize("lengths", [(5, 5), (3, 6)])
@pytest.mark.parametrize(
    "module",
    [
        Padded(),
        Padded(batch_first=True, padding_value=2.5),
        Padded(turned=True, batch_first=True),
    ],
    ids=["plain", "batch first", "complex tables"],
)
def test_it_is_padding_and_a_stack(module: Padded, lengths: tuple[int, ...]) -> None:
    given = values(*lengths)
    program = capture(module, given)
    targets = {str(node.target) for node in program.graph.nodes}
    assert not {name for name in targets if "pad_sequence" in name or "complex" in name}
    assert ("aten.constant_pad_nd.default" in targets) == (lengths[0] != lengths[1])
    torch.testing.assert_close(program.module()(*given), module(*given))


def test_padding_on_the_left_stays() -> None:
    module, given = Padded(batch_first=True, padding_side="left"), values(3, 6)
    program = capture(module, given)
    assert any("pad_sequence" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*given), module(*given))
