"""Image tokens that arrive packed beside text, of lengths that change, against the oracle."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backend_helpers import self_attention, two_levels
from graphs import assert_close, unet_inputs
from oracle import attention, pooled_fused_attention, stand_ins
from torch import nn

GRID = (8, 8)
HALF = (2, 2)


def compiled(model: nn.Module, dynamic: bool | None = None, **options: Any) -> Any:
    return torch.compile(
        model,
        backend="todo_inductor",
        dynamic=dynamic,
        options={"factors": 2, "inner": "eager", **options},
    )


def sd3() -> Any:
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
        pooled_projection_dim=8, out_channels=4, pos_embed_max_size=32,
    ).eval()  # fmt: skip


def flux() -> Any:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip


def sd3_inputs(text: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 4, 16, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, text, 16, generator=generator),
        "pooled_projections": torch.randn(2, 8, generator=generator),
        "timestep": torch.tensor([5.0, 5.0]),
        "return_dict": False,
    }


def flux_inputs(text: int, batch: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(*GRID, 3)
    ids[..., 1] += torch.arange(GRID[0])[:, None]
    ids[..., 2] += torch.arange(GRID[1])
    return {
        "hidden_states": torch.randn(batch, 64, 16, generator=generator),
        "encoder_hidden_states": torch.randn(batch, text, 16, generator=generator),
        "pooled_projections": torch.randn(batch, 8, generator=generator),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(text, 3),
        "return_dict": False,
    }


def check(run: Any, model: Any, given: dict[str, Any], offset: int) -> None:
    """The run equals attention with pooled image keys, which differs from dense attention."""
    text = given["encoder_hidden_states"].shape[1]
    with torch.no_grad():
        dense = model(**given)[0]
        with pooled_fused_attention({64 + text: (offset, GRID, HALF)}, "nearest") as seen:
            expected = model(**given)[0]
        assert len(seen) == 2
        assert not torch.allclose(dense, expected, atol=1e-3)
        assert_close((run(**given)[0],), expected)


@pytest.mark.parametrize("dynamic", [None, True])
def test_second_text_length_after_the_image(dynamic: bool | None) -> None:
    """SD3 puts the text behind the image, where no offset tells its length."""
    model = sd3()
    run = compiled(model, dynamic)
    for text in (7, 9):
        check(run, model, sd3_inputs(text), 0)
    assert {(s.kind, s.grid, s.factor) for s in self_attention()} == {("joint", GRID, HALF)}


@pytest.mark.slow
def test_packed_tokens_keep_their_grid_when_sizes_change() -> None:
    """Text that has the tokens of a grid (4×4) itself, another batch, and from the start."""
    model = flux()
    run = compiled(model, res="128")
    for text, batch in ((5, 1), (16, 1), (7, 2)):
        check(run, model, flux_inputs(text, batch), text)
    torch.compiler.reset()
    check(compiled(model, True, res="128"), model, flux_inputs(5), 5)
    assert {(s.kind, s.grid, s.factor) for s in self_attention()} == {("joint", GRID, HALF)}


def test_blocks_at_several_batches() -> None:
    model = two_levels()
    model.unet.compile_repeated_blocks(
        backend="todo_inductor", options={"kv_tokens": 16, "inner": "eager", "res": "64"}
    )
    truth = two_levels({64: HALF})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in (1, 2, 3):
            given = unet_inputs(8, 8, batch)
            assert_close((model(*given),), truth(*given))
    assert {(s.grid, s.factor) for s in self_attention()} == {((8, 8), HALF), ((4, 4), (1, 1))}


def test_wrong_resolution_is_named() -> None:
    model = two_levels()
    model.unet.compile_repeated_blocks(
        backend="todo_inductor", options={"kv_tokens": 4, "inner": "eager", "res": "80"}
    )
    given = unet_inputs(8, 8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_close((model(*given),), two_levels()(*given))
    sites = self_attention()
    assert {s.action for s in sites} == {"refused"}
    assert "its 64 tokens" in sites[0].reason
    assert "none of the grids of res or token_grids (100, 25, 9, 4 tokens)" in sites[0].reason


class Captioned(nn.Module):
    """A caption that attends to itself, and an image, packed or not, that does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.pool: Any = lambda t: t

    def attend(self, x: torch.Tensor, pool: Any = lambda t: t) -> torch.Tensor:
        q, k, v = (t[:, None] * 2 for t in (self.q(x), self.k(pool(x)), pool(x)))
        if self.training:
            return F.scaled_dot_product_attention(q, k, v)[:, 0]
        return attention(q, k, v)[:, 0]

    def forward(self, image: torch.Tensor, caption: torch.Tensor) -> torch.Tensor:
        tokens = image if image.dim() == 3 else image.flatten(2).mT
        return self.attend(tokens, self.pool).sum(1) + self.attend(caption).sum(1)


@pytest.mark.parametrize("packed", [True, False])
def test_text_is_no_image_for_having_its_length(packed: bool) -> None:
    image, caption = torch.randn(1, 8, 8, 8), torch.randn(1, 16, 8)
    given = image.flatten(2).mT if packed else image
    model, truth = Captioned().train(), Captioned().eval()
    if packed:  # else nothing proves the image's grid
        truth.pool = lambda t: stand_ins(t, 1, GRID, HALF)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = compiled(model, res="64", factors="2,2")(given, caption)
        assert_close((got,), truth(given, caption))
    picture, text = self_attention()
    assert (picture.action, text.action) == ("rewritten" if packed else "refused", "refused")
    assert "an input of more tokens" in text.reason
