"""No attention without a row: attention is counted in an eager run, and every one has its row.

Counted by other means than the passes': calls of the fused kernel, and products whose operands both
change when the inputs of the model do (weights and tables don't). Two such products are one
attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from graphs import Decoder, capture, make_unet, unet_inputs
from test_passes_transformers import Called, Case, flux, pixart, randn, sd3
from torch import nn
from torch.overrides import TorchFunctionMode

from todo_compile.options import PlanOptions

FUSED = (F.scaled_dot_product_attention, F.multi_head_attention_forward)
PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm,
            torch.baddbmm, torch.Tensor.baddbmm, torch.einsum)  # fmt: skip
LINEAR = "linear attention"


class Seen(TorchFunctionMode):
    """Counts fused attention, and keeps the operands of products."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0
        self.products: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in FUSED:
            self.fused += 1
        elif func in PRODUCTS:
            listed = (
                args[1] if func is torch.einsum and isinstance(args[1], (list, tuple)) else args
            )
            tensors = [a for a in listed if isinstance(a, torch.Tensor)]
            if len(tensors) > 1:  # einsum of one tensor only turns its axes
                self.products.append((tensors[-2].detach().clone(), tensors[-1].detach().clone()))
        return func(*args, **(kwargs or {}))


def attentions(model: nn.Module, inputs: Sequence[torch.Tensor]) -> int:
    """Attentions that an eager run does."""
    others = [t + 0.1 * torch.randn_like(t) if t.dim() > 2 else t for t in inputs]
    runs: list[Seen] = []
    for given in (inputs, others):
        with torch.no_grad(), Seen() as seen:
            model(*given)
        runs.append(seen)
    assert runs[0].fused == runs[1].fused
    changed = [
        all(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in zip(runs[0].products, runs[1].products, strict=True)
    ]
    assert sum(changed) % 2 == 0
    return runs[0].fused + sum(changed) // 2


def unet(variant: str = "both levels", **keywords: Any) -> Case:
    return make_unet(variant, **keywords), list(unet_inputs(8, 8))  # type: ignore[return-value]


def unet_products() -> Case:
    return unet(processor=AttnProcessor())


def unet_added_kv() -> Case:
    """Kandinsky 2 and DeepFloyd IF: text beside the image's own tokens."""
    return unet("added kv")


def decoder() -> Case:
    return Decoder(), [randn(1, 4, 6, 6)]  # type: ignore[return-value]


def sana() -> Case:
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

    model = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
        caption_channels=6, sample_size=8,
    )  # fmt: skip
    names = ("hidden_states", "encoder_hidden_states", "timestep")
    return Called(model.eval(), names), [randn(1, 4, 8, 6), randn(1, 5, 6), torch.tensor([3])]


class Compressed(nn.Module):
    """The autoencoder of Sana, whose attention is linear."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

        torch.manual_seed(0)
        kinds, widths = ("ResBlock", "EfficientViTBlock"), (8, 16)
        self.vae = AutoencoderDC(
            latent_channels=4, attention_head_dim=4, encoder_block_types=kinds,
            decoder_block_types=kinds, encoder_block_out_channels=widths,
            decoder_block_out_channels=widths, encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)), decoder_norm_types="rms_norm",
        ).eval()  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        latents: Any = self.vae.encode(x, return_dict=False)
        out: Any = self.vae.decode(latents[0], return_dict=False)
        return out[0]


def autoencoder_dc() -> Case:
    return Compressed(), [randn(1, 3, 16, 16)]  # type: ignore[return-value]


def hunyuan_dit() -> Case:
    from diffusers.models.transformers.hunyuan_transformer_2d import HunyuanDiT2DModel

    model = HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8,
        hidden_size=16, num_layers=2, mlp_ratio=2.0, cross_attention_dim=8,
        cross_attention_dim_t5=8, pooled_projection_dim=4, text_len=3, text_len_t5=4,
        use_style_cond_and_image_meta_size=False,
    )  # fmt: skip
    names = (
        "hidden_states", "timestep", "encoder_hidden_states", "text_embedding_mask",
        "encoder_hidden_states_t5", "text_embedding_mask_t5", "image_rotary_emb",
    )  # fmt: skip
    inputs = [
        randn(1, 4, 8, 8), torch.tensor([3.0]), randn(1, 3, 8), torch.ones(1, 3), randn(1, 4, 8),
        torch.ones(1, 4), randn(2, 16, 8)[:, :, :],
    ]  # fmt: skip

    class Rotated(Called):
        """The two tables of the rotation are one input."""

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            named: dict[str, Any] = dict(zip(self.names, tensors, strict=True))
            named["image_rotary_emb"] = tuple(named["image_rotary_emb"].unbind())
            return self.model(**named, return_dict=False)[0]

    return Rotated(model.eval(), names), inputs


def unet_3d() -> Case:
    """Every block attends over the picture and over the frames."""
    from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel

    model = UNet3DConditionModel(
        block_out_channels=(8, 8), down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    names = ("sample", "timestep", "encoder_hidden_states")
    return Called(model.eval(), names), [randn(1, 4, 3, 8, 8), torch.tensor([3]), randn(1, 5, 8)]


def stable_video() -> Case:
    from diffusers.models.unets.unet_spatio_temporal_condition import (
        UNetSpatioTemporalConditionModel,
    )

    model = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), in_channels=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=12, layers_per_block=1,
        cross_attention_dim=8, num_attention_heads=(2, 4), num_frames=3,
    )  # fmt: skip
    names = ("sample", "timestep", "encoder_hidden_states", "added_time_ids")
    inputs = [randn(1, 3, 8, 8, 8), torch.tensor([3.0]), randn(1, 1, 8), randn(1, 3)]
    return Called(model.eval(), names), inputs


CASES: dict[Callable[[], Case], tuple[int, tuple[str, ...]]] = {
    unet: (0, ()),
    unet_products: (0, ()),
    unet_added_kv: (0, ()),
    decoder: (0, ()),
    pixart: (0, ()),
    sd3: (0, ()),
    flux: (2, ("cannot be proved",)),
    sana: (2, (LINEAR,)),
    autoencoder_dc: (2, (LINEAR,)),
    hunyuan_dit: (0, ()),
    unet_3d: (10, ("grid of its 3 tokens",)),
    stable_video: (4, ("grid of its 3 tokens",)),
}
"""Model → how many of its attentions are refused, and the reasons: the others are rewritten or
cross-attention."""


@pytest.mark.parametrize("case", CASES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dialect", ["export", "dynamo"])
def test_every_attention_of_an_eager_run_has_a_row(case: Callable[[], Case], dialect: str) -> None:
    if dialect == "dynamo" and case not in (unet_products, sd3, sana):
        pytest.skip("the search is the same in both dialects: three models are enough")
    model, inputs = case()
    report = capture(model, inputs, dialect).rewrite(PlanOptions(kv_tokens=4))
    assert len(report.sites) == attentions(model, inputs)
    refused = [s.reason for s in report.sites if s.action == "refused"]
    count, reasons = CASES[case]
    assert len(refused) == count, refused
    assert all(any(r in reason for r in reasons) for reason in refused), refused
    left = [s.kind for s in report.sites if s.action == "dense"]
    assert set(left) <= {"cross"}, left
