"""What diffusers' UNets are used with, rewritten, against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backend_helpers import GRID, TOKENS, inputs, small_unet, with_oracle
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
)
from graphs import assert_close
from oracle import OracleProcessor, attention, stand_ins

import todo_compile


def run(
    unet: Any, *arguments: Any, fullgraph: bool = True, masks: str = "prove", **keywords: Any
) -> torch.Tensor:
    """The result of the compiled UNet."""
    options = {"factors": 2, "inner": "eager", "masks": masks}
    function = torch.compile(unet, backend="todo_inductor", options=options, fullgraph=fullgraph)
    with torch.no_grad():
        return function(*arguments, return_dict=False, **keywords)[0]


def rewritten() -> int:
    return sum(report.rewritten for report in todo_compile.reports())


def eager(unet: Any, *arguments: Any, **keywords: Any) -> torch.Tensor:
    with torch.no_grad():
        return unet(*arguments, return_dict=False, **keywords)[0]


@pytest.mark.parametrize(
    ("processor", "batch"),
    [
        (AttnProcessor, 2),
        (AttnProcessor2_0, 1),
        (lambda: SlicedAttnProcessor(slice_size=3), 1),
        (lambda: SlicedAttnProcessor(slice_size=3), 2),  # slices across the batch
    ],
)
def test_processors(processor: Callable[[], Any], batch: int) -> None:
    unet = small_unet()
    unet.set_attn_processor(processor())
    arguments = inputs(batch)
    expected = eager(with_oracle(unet), *arguments)
    assert not torch.allclose(expected, eager(unet, *arguments), atol=1e-3)
    assert_close((run(unet, *arguments),), expected)
    sliced = isinstance(next(iter(unet.attn_processors.values())), SlicedAttnProcessor)
    assert rewritten() == (3 * -(-2 * batch // 3) if sliced else 3)  # one attention a slice


def test_fused_qkv_projections() -> None:
    unet = small_unet()
    expected = eager(with_oracle(unet), *inputs())
    unet.fuse_qkv_projections()
    assert_close((run(unet, *inputs()),), expected)
    assert rewritten() == 3


def test_lora_unfused_and_scaled() -> None:
    from peft import LoraConfig

    unet = small_unet()
    dense = eager(unet, *inputs())
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets), "style")
    torch.manual_seed(7)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    unet.set_adapters("style", 0.5)
    expected = eager(with_oracle(unet), *inputs())
    assert not torch.allclose(eager(unet, *inputs()), dense, atol=1e-2)
    assert_close((run(unet, *inputs()),), expected)
    assert rewritten() == 3
    # Pooled before the adapters: the low-rank products see a quarter of the tokens.
    hoist = next(p for p in todo_compile.reports()[0].passes if p.name == "hoist")
    assert hoist.detail["linear"] >= 3 * 2 * 3


def test_controlnet_residuals_and_encoder_attention_mask() -> None:
    unet = small_unet()
    generator = torch.Generator().manual_seed(8)
    extra = {
        "down_block_additional_residuals": tuple(
            torch.randn(2, 8, *GRID, generator=generator) for _ in range(2)
        ),
        "mid_block_additional_residual": torch.zeros(1),
        "encoder_attention_mask": torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]),
    }
    expected = eager(with_oracle(unet), *inputs(), **extra)
    for name in ("down_block_additional_residuals", "encoder_attention_mask"):
        without = {**extra, name: None}
        if name.startswith("down"):
            without.pop("mid_block_additional_residual")
        assert not torch.allclose(
            expected, eager(with_oracle(unet), *inputs(), **without), atol=1e-3
        )
    assert_close((run(unet, *inputs(), **extra),), expected)
    assert rewritten() == 3


class MaskedOracle(OracleProcessor):
    """Self-attention with a bias (B, 1, N) on its keys, which loses the same keys."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **keywords: Any) -> Any:
        own = self.pooled(hidden_states)
        bias = keywords["attention_mask"]
        bias = stand_ins(bias, 2, self.grids[TOKENS], self.factors[TOKENS], self.sampling)
        q, k, v = (
            t.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for t in (attn.to_q(hidden_states), attn.to_k(own), attn.to_v(own))
        )
        out = attention(q, k, v, scale=attn.scale, bias=bias[:, None])
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
def test_mask_on_self_attention_loses_the_same_keys(processor: Callable[[], Any]) -> None:
    unet = small_unet()
    unet.set_attn_processor(processor())
    mask = (torch.arange(2 * TOKENS).view(2, TOKENS) % 5 != 0).float()
    expected = eager(with_oracle(unet, oracle=MaskedOracle), *inputs(), attention_mask=mask)
    assert_close((run(unet, *inputs(), attention_mask=mask, masks="pool"),), expected)
    assert rewritten() == 3


def test_a_mask_that_could_hide_keys_leaves_the_attention_dense() -> None:
    unet = small_unet()
    mask = (torch.arange(2 * TOKENS).view(2, TOKENS) % 5 != 0).float()
    expected = eager(unet, *inputs(), attention_mask=mask)
    assert_close((run(unet, *inputs(), attention_mask=mask),), expected)
    reasons = [s.reason for r in todo_compile.reports() for s in r.sites if s.action == "refused"]
    assert len(reasons) == 3
    assert all("could hide image keys" in reason for reason in reasons)


def test_ip_adapter() -> None:
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    unet = small_unet()
    torch.manual_seed(9)
    projection = ImageProjection(image_embed_dim=6, cross_attention_dim=12, num_image_text_embeds=2)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    cross = IPAdapterAttnProcessor2_0(hidden_size=8, cross_attention_dim=12, num_tokens=(2,))
    unet.set_attn_processor(
        {n: cross if "attn2" in n else AttnProcessor2_0() for n in unet.attn_processors}
    )
    unet.eval()
    added = {"added_cond_kwargs": {"image_embeds": [torch.randn(2, 1, 6)]}}
    expected = eager(with_oracle(unet), *inputs(), **added)
    assert_close((run(unet, *inputs(), **added),), expected)
    assert rewritten() == 3


def test_free_u() -> None:
    unet = small_unet()
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    expected = eager(with_oracle(unet), *inputs())
    # FreeU's filter goes through FFTs and may break the graph, as under plain Inductor.
    assert_close((run(unet, *inputs(), fullgraph=False),), expected)
    assert rewritten() >= 1


@pytest.mark.parametrize("grids", [None, {24: (6, 4)}])
def test_regional_compilation(grids: Any) -> None:
    """A block sees (B, N, C) only: on the grid that is named; `res` says nothing of a block."""
    unet = small_unet()
    dense, expected = eager(unet, *inputs()), eager(with_oracle(unet), *inputs())
    options: dict[str, Any] = {"factors": 2, "inner": "eager", "res": "32x48"}
    if grids is None:
        unet.compile_repeated_blocks(backend="todo_inductor", options=options, fullgraph=True)
        with pytest.warns(UserWarning, match="res counts for a whole denoiser's patches alone"):
            assert_close((eager(unet, *inputs()),), dense)
        assert rewritten() == 0
        return
    unet.compile_repeated_blocks(
        backend="todo_inductor", options={**options, "token_grids": grids}, fullgraph=True
    )
    assert_close((eager(unet, *inputs()),), expected)
    assert rewritten() >= 1
    # The blocks share one graph where torch can: what counts is that none of them ran dense.
    assert not torch.allclose(expected, dense, atol=1e-3)
