"""Complex arithmetic is captured as real arithmetic: against eager PyTorch, and onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import todo_compile
from todo_compile.capture.complex_numbers import write_real
from todo_compile.capture.recording.call import flatten, wrapper
from todo_compile.capture.trace import capture
from todo_compile.errors import ExportError


def table(tokens: int = 6, width: int = 4) -> Tensor:
    angles = torch.outer(torch.arange(tokens, dtype=torch.float32), torch.linspace(0.1, 1, width))
    return torch.polar(torch.ones_like(angles), angles)


class Rotary(nn.Module):
    """x of (2, 6, 8) as (2, 6, 4) complex numbers, something done to them, and back."""

    def __init__(self, do: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.do = do
        self.held = table()  # a plain attribute, as Qwen-Image has it

    def forward(self, x: Tensor) -> Tensor:
        z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(self.do(z, self.held)).flatten(-2)


DONE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "table": lambda z, t: z * t,
    "table and unsqueeze": lambda z, t: (z.unsqueeze(-2) * t.unsqueeze(1)).squeeze(-2),
    "split and cat": lambda z, t: z * torch.cat(t.split([1, 3], dim=1)[::-1], dim=-1),
    "slice and cat": lambda z, t: z * torch.cat([t[-2:], t[:4]]),
    "view and expand": lambda z, t: z * t.view(1, 2, 3, -1).expand(2, -1, -1, -1).reshape(2, 6, -1),
    "select and stack": lambda z, t: torch.stack([z[0], z[1] * t], dim=0),
    "stack last": lambda z, t: (torch.stack([z, z * t], dim=-1)).flatten(-2),
    "flatten in the middle": lambda z, t: (z * t).flatten(0, -2),
    "transpose": lambda z, t: (z.transpose(-1, -2) * t.transpose(0, 1)).transpose(1, 2),
    "permute": lambda z, t: (z.permute(-1, 0, 1) * t.t()[:, None]).permute(1, 2, 0),
    "index": lambda z, t: z * t[torch.tensor([5, 0, 1, 1, 2, 3])],
    "real factor": lambda z, t: (z * torch.linspace(1, 2, 4)) * 3.5 * t,
    "clone": lambda z, t: z.transpose(0, 1).contiguous().transpose(0, 1).clone() * t,
    "square": lambda z, t: z * z * t,
}


def x() -> Tensor:
    return torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))


def complexes(program: Any) -> int:
    values = [node.meta.get("val") for node in program.graph.nodes]
    return sum(isinstance(v, Tensor) and v.is_complex() for v in values)


@pytest.mark.parametrize("name", list(DONE))
def test_every_operator_equals_eager(name: str) -> None:
    module = Rotary(DONE[name])
    program = capture(module, (x(),))
    assert complexes(program) == 0
    torch.testing.assert_close(program.module()(x()), module(x()), rtol=1e-6, atol=1e-6)
    assert not write_real(program), "a second run changes nothing"


def test_a_table_made_in_the_call() -> None:
    class Made(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            angles = torch.arange(24.0).view(6, 4)
            z = torch.view_as_complex(x.reshape(2, 6, 4, 2))
            return torch.view_as_real(z * torch.polar(torch.full_like(angles, 2.0), angles))

    program = capture(Made(), (x(),))
    assert complexes(program) == 0
    torch.testing.assert_close(program.module()(x()), Made()(x()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "do",
    [
        lambda z, t: torch.fft.fft(z) * t,
        lambda z, t: z * t.conj(),
        lambda z, t: torch.complex(z.abs(), t.angle().expand(2, -1, -1)),
        lambda z, t: z * t * (1 + 2j),
        lambda z, t: z / t,
        lambda z, t: torch.cat([z.real, z * t]),
    ],
    ids=["fft", "conj", "abs", "complex constant", "division", "mixed"],
)
def test_what_is_not_understood_stays_as_it_was(do: Callable[..., Tensor]) -> None:
    module = Rotary(do)
    program = capture(module, (x(),))
    assert complexes(program) > 0
    torch.testing.assert_close(program.module()(x()), module(x()))


def test_complex_inputs_and_results_stay() -> None:
    class Whole(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z * 2

    z = table()
    program = capture(Whole(), (z,))
    torch.testing.assert_close(program.module()(z), z * 2)


def test_onnx_of_complex_rotary_embeddings(tmp_path: Path) -> None:
    module = Rotary(DONE["split and cat"])
    todo_compile.compile(module, (x(),), out=tmp_path / "x.onnx")
    found = todo_compile.load(tmp_path / "x.onnx")(x())
    torch.testing.assert_close(found, module(x()), rtol=1e-5, atol=1e-5)


def test_writes_reach_what_they_reached() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.view_as_complex(x.reshape(2, 6, 4, 2) * 1)
            copied, other = z.clone(), torch.view_as_real(z)
            other.add_(1)
            return torch.view_as_real(copied * z)

    program = capture(Written(), (x(),))
    torch.testing.assert_close(program.module()(x()), Written()(x()))


class Turned(nn.Module):
    """The table goes in."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * table)


def test_onnx_has_no_complex_inputs(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="table holds complex numbers") as caught:
        todo_compile.compile(Turned(), (x(), table()), out=tmp_path / "x.onnx")
    assert ".pt2" in str(caught.value.remedy)
    assert not list(tmp_path.iterdir())


def test_what_a_pipeline_passes_as_complex_goes_in_as_pairs() -> None:
    """Lumina's table: a recorded call has real inputs alone, and real arithmetic."""
    flat = flatten({"x": x(), "table": table()})
    assert (flat.names, flat.pairs) == (("x", "table"), {"table"})
    torch.testing.assert_close(torch.view_as_complex(flat.tensors[1]), table())
    module = wrapper(flat, "net", "Turned")(Turned())
    program = capture(module, flat.tensors)
    assert complexes(program) == 0
    for found in (module(*flat.tensors), program.module()(*flat.tensors)):
        torch.testing.assert_close(found, Turned()(x(), table()), rtol=1e-6, atol=1e-6)
