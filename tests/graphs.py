"""What the pass tests rewrite: tiny models, and their graphs in both dialects."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from todo_compile._torch import static_inputs
from todo_compile.capture.trace import constants_of
from todo_compile.options import PlanOptions
from todo_compile.passes import ops
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.passes.report import Report, SiteReport

DIALECTS = ("export", "dynamo")
Tensors = tuple[torch.Tensor, ...]


# Capturing ----------------------------------------------------------------------------------------
@dataclass(slots=True)
class Captured:
    """A graph of either dialect, with what it takes to run it again after editing."""

    module: GraphModule
    run: Callable[[], Tensors]
    dialect: str
    copy: Callable[[], Captured]
    """A graph of its own to edit: capturing is slow, copying is not."""
    constants: Mapping[str, torch.Tensor]
    """Weights and buffers among the inputs, by the name of their node."""

    @property
    def nodes(self) -> list[Node]:
        return list(self.module.graph.nodes)

    def count(self, *names: str) -> int:
        """Nodes whose canonical operation is one of `names`."""
        return sum(ops.op(n) in names for n in self.nodes)

    def shape(self, node: Node) -> tuple[int, ...]:
        return tuple(node.meta.get("val", node.meta.get("example_value")).shape)

    def signature(self) -> list[str]:
        """One line a node: equal signatures mean that nothing was touched."""
        return [f"{n.op} {n.name} {n.target} {n.args} {n.kwargs}" for n in self.nodes]

    def rewrite(self, options: PlanOptions | None = None, **keywords: Any) -> Report:
        return rewrite_graph(self.module, options, constants=self.constants, **keywords)


def _tensors(result: Any) -> Tensors:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def capture(model: nn.Module, inputs: Sequence[Any], dialect: str) -> Captured:
    """The graph of `model` as ``torch.export`` or as a ``torch.compile`` backend sees it."""
    if dialect == "export":
        with torch.no_grad():
            return _exported(torch.export.export(model, tuple(inputs)), inputs)
    found: list[tuple[GraphModule, Sequence[Any]]] = []

    def backend(module: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        def call(*real: Any) -> Any:
            found.append((module, real))
            return module.forward(*real)

        return call

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(*inputs)
    assert len(found) == 1, "one graph"
    return _compiled(*found[0])


def _exported(program: torch.export.ExportedProgram, inputs: Sequence[Any]) -> Captured:
    def run() -> Tensors:
        program.validate()
        with torch.no_grad():
            return _tensors(program.module()(*inputs))

    return Captured(
        program.graph_module,
        run,
        "export",
        lambda: _exported(copy.deepcopy(program), inputs),
        constants_of(program),
    )


def _compiled(module: GraphModule, real: Sequence[Any]) -> Captured:
    def run() -> Tensors:
        with torch.no_grad():
            return _tensors(module.forward(*real))

    return Captured(
        module,
        run,
        "dynamo",
        lambda: _compiled(copy.deepcopy(module), real),
        static_inputs(module, real),
    )


def only_site(report: Report) -> SiteReport:
    assert len(report.sites) == 1, [s.name for s in report.sites]
    return report.sites[0]


def assert_close(got: Tensors, expected: Any, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    wanted = _tensors(expected)
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert torch.isfinite(other.float()).all(), "the truth must be finite to prove anything"
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


# Spellings of attention ---------------------------------------------------------------------------
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(B, heads, Nq, d), (B, heads, Nk, d), (B, heads, Nk, dv) → (B, heads, Nq, dv)."""


def _scale(q: torch.Tensor) -> float:
    return 1 / math.sqrt(q.shape[-1])


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def sdpa_scaled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=0.7)


def sdpa_keywords(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(value=v, query=q, key=k, dropout_p=0.0)


def sdpa_merged_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    b, h = q.shape[:2]
    q, k, v = (t.reshape(b * h, t.shape[2], t.shape[3]) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).unflatten(0, (b, h))


def bmm_scaled_query(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    b, h = q.shape[:2]
    q, k, v = ((t.flatten(0, 1)) for t in (q * _scale(q), k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).unflatten(0, (b, h))


def bmm_scaled_key(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    b, h = q.shape[:2]
    q, k, v = ((t.flatten(0, 1)) for t in (q, k * _scale(q), v))
    return torch.bmm(torch.bmm(q, k.mT.contiguous()).softmax(2), v).unflatten(0, (b, h))


def baddbmm_empty(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """diffusers' ``Attention.get_attention_scores``."""
    b, h, n, _ = q.shape
    scale = _scale(q)
    q, k, v = (t.reshape(b * h, t.shape[2], t.shape[3]) for t in (q, k, v))
    empty = torch.empty(b * h, n, k.shape[1], dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(empty, q, k.transpose(-1, -2), beta=0, alpha=scale)
    return torch.bmm(scores.softmax(dim=-1).to(v.dtype), v).unflatten(0, (b, h))


def matmul_after(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) * _scale(q), dim=-1) @ v


def matmul_divided(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.matmul(q, k.permute(0, 1, 3, 2)) / math.sqrt(q.shape[-1])
    return torch.matmul(F.softmax(scores, dim=3), v)


def matmul_inplace_scale(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(-2, -1)
    scores *= _scale(q)
    return F.softmax(scores, dim=-1) @ v


def matmul_method_scale(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1)).mul_(_scale(q)).softmax(-1) @ v


def einsum_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * _scale(q)
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v)


def einsum_heads_last(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    scores = torch.einsum("b i h d, b j h d -> b h i j", q, k) * _scale(q)
    return torch.einsum("b h i j, b j h d -> b h i d", scores.softmax(dim=-1), v)


def einsum_ellipsis(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("...id,...jd->...ij", q, k) * _scale(q)
    return torch.einsum("...ij,...jd->...id", scores.softmax(dim=-1), v)


def transposed_scores(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = torch.softmax(k @ q.mT * _scale(q), dim=-2)
    return weights.transpose(-1, -2) @ v


def value_left(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """CompVis' AttnBlock: channels before tokens, value on the left."""
    b, h = q.shape[:2]
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    weights = torch.bmm(q, k.permute(0, 2, 1)) * _scale(q)
    weights = F.softmax(weights, dim=2).permute(0, 2, 1)
    return torch.bmm(v.permute(0, 2, 1), weights).permute(0, 2, 1).unflatten(0, (b, h))


def upcast_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.mT * _scale(q)).float()
    return scores.softmax(-1).type_as(q) @ v


def softmax_dtype(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = F.softmax(q @ k.mT * _scale(q), dim=-1, dtype=torch.float32).to(q.dtype)
    return weights @ v


def upcast_all(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q.float() @ k.float().mT * _scale(q)
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


def dropout_off(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = F.dropout(torch.softmax(q @ k.mT * _scale(q), -1), p=0.0, training=True)
    return F.dropout(weights, p=0.1, training=False) @ v


def viewed_scores(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    b, h, n, _ = q.shape
    scores = torch.bmm(q.flatten(0, 1) * _scale(q), k.flatten(0, 1).mT)
    weights = scores.view(b, h, n, k.shape[2]).softmax(-1).view(b * h, n, k.shape[2])
    return torch.bmm(weights, v.flatten(0, 1)).view(b, h, n, -1)


SPELLINGS: dict[str, Attend] = {
    f.__name__: f
    for f in (
        sdpa, sdpa_scaled, sdpa_keywords, sdpa_merged_heads, bmm_scaled_query, bmm_scaled_key,
        baddbmm_empty, matmul_after, matmul_divided, matmul_inplace_scale, matmul_method_scale,
        einsum_heads, einsum_heads_last, einsum_ellipsis, transposed_scores, value_left,
        upcast_softmax, softmax_dtype, upcast_all, dropout_off, viewed_scores,
    )
}  # fmt: skip


# Hand-written models ------------------------------------------------------------------------------
def unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


class ImageAttention(nn.Module):
    """Convolution, tokens, projections, attention, projection: (B, 3, H, W) → (B, N, C).

    `pool` stands where keys and values (B, heads, N, d) enter the attention; tests put the oracle's
    subsampling there to get the truth, and leave it alone for what is captured.
    """

    def __init__(
        self, attend: Attend = sdpa, *, heads: int = 2, head_dim: int = 4, seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width = heads * head_dim
        self.heads, self.attend = heads, attend
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.pool: Callable[[torch.Tensor], torch.Tensor] = unchanged
        for layer in (self.stem, self.to_q, self.to_k):  # weights far from uniform
            layer.weight.data *= 3
        self.eval()

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        return self.stem(image).flatten(2).transpose(1, 2)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) → (B, heads, N, d)."""
        return x.view(x.shape[0], -1, self.heads, x.shape[2] // self.heads).transpose(1, 2)

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        return self.split(self.to_k(x))

    def values(self, x: torch.Tensor) -> torch.Tensor:
        return self.split(self.to_v(x))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.tokens(image)
        out = self.attend(
            self.split(self.to_q(x)), self.pool(self.keys(x)), self.pool(self.values(x))
        )
        return self.to_out(out.transpose(1, 2).flatten(2))


def image(
    rows: int, columns: int, batch: int = 1, channels: int = 3, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, rows, columns, generator=generator)


# diffusers ----------------------------------------------------------------------------------------
_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
UNETS: dict[str, dict[str, Any]] = {
    "both levels": {},
    "lower level": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
        "transformer_layers_per_block": 2,
    },
    "upper level": {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 4),
        "upcast_attention": True,
    },
    "added kv": {
        "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "encoder_hid_dim": 12,
    },
}


class Denoiser(nn.Module):
    """A diffusers UNet as a function of tensors, its output as a tensor."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        return self.unet(sample, timestep, text, return_dict=False)[0]


def make_unet(variant: str = "both levels", *, processor: Any = None, **changes: Any) -> Denoiser:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(2)
    unet = UNet2DConditionModel(**{**_UNET, **UNETS[variant], **changes}).eval()
    for name, parameter in unet.named_parameters():  # so that attention is not nearly uniform
        if name.endswith(("to_q.weight", "to_k.weight")):
            parameter.data *= 4
    if processor is not None:
        unet.set_attn_processor(processor)
    return Denoiser(unet)


def unet_inputs(rows: int, columns: int, batch: int = 2, text: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(batch, 4, rows, columns, generator=generator),
        torch.tensor([500.0] * batch),
        torch.randn(batch, text, 12, generator=generator),
    )


class Decoder(nn.Module):
    """The decoder of a tiny AutoencoderKL: one head as wide as the block."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        torch.manual_seed(4)
        self.vae = AutoencoderKL(
            block_out_channels=(8,), norm_num_groups=4, latent_channels=4
        ).eval()

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return cast(Any, self.vae.decode(latents, return_dict=False))[0]
