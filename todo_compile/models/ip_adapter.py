"""IP-Adapters: cross-attention that also looks at a picture, ``--ip-adapter FILE[:SCALE]``.

    image_embeds (B, 1, D) ─ linear ─ norm ─ (B, 4, C) ─ to_k_ip, to_v_ip of every cross-attention
    softmax(QKᵀ)V  +  scale · softmax(QK_ipᵀ)V_ip

(Ye et al., arXiv 2308.06721, section 3.2). The file's layers become the UNet's own before it is
traced, so the embedding is one more input, and the scale is a number in the graph. What a picture's
encoder makes of it stays outside. Of the published files those with one embedding a picture are
taken (ip-adapter_sd15, _sd15_light, _sd15_vit-G, ip-adapter_sdxl, _sdxl_vit-h); others are refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile.errors import ConfigError, ModelError
from todo_compile.foreign import open_regular
from todo_compile.models.architecture import UNET
from todo_compile.models.lora import file_and_scale
from todo_compile.models.stfile import Entry, check_floating, read_header, read_into

if TYPE_CHECKING:
    import torch
    from torch import nn

    from todo_compile.models.source import Source

INPUT = "image_embeds"
"""Name of the further input."""
_TOKENS = 4
"""That a picture's embedding becomes, in all files of this kind."""
_PROJECTION = {
    "image_proj.proj.weight": "image_embeds.weight", "image_proj.proj.bias": "image_embeds.bias",
    "image_proj.norm.weight": "norm.weight", "image_proj.norm.bias": "norm.bias",
}  # fmt: skip
"""Name in the file → in diffusers' projection."""


@dataclass(frozen=True)
class IpAdapter:
    """An IP-Adapter's file, its header read.

    Attributes:
        path: the file.
        scale: strength of the picture, fixed in what is built; 1 is as trained.
        sha256: of the file.
        entries: its tensors.
    """

    path: Path
    scale: float
    sha256: str
    entries: Mapping[str, Entry] = field(hash=False, repr=False)

    @property
    def width(self) -> int:
        """Channels of a picture's embedding."""
        return self.entries["image_proj.proj.weight"].shape[1]

    @property
    def channels(self) -> int:
        """Of the text that the picture's tokens stand beside."""
        return self.entries["image_proj.norm.weight"].shape[0]

    def describe(self) -> dict[str, Any]:
        """What decides whether an output can be reused."""
        return {"sha256": self.sha256, "scale": self.scale}


def parse_ip_adapter(text: str) -> IpAdapter:
    """Read ``FILE`` or ``FILE:SCALE``; reads the file's header and hash, not its tensors yet.

    Raises:
        ConfigError: the scale is not a finite number.
        ModelError: the file is absent, damaged, no safetensors, or of a kind that is not supported.
    """
    path, scale = file_and_scale(text, "--ip-adapter", "IP-Adapter")
    entries = read_header(path)
    if (kind := _other_kind(entries)) is not None:
        raise ModelError(
            f"{path} is {kind}.",
            remedy="Give one with a linear projection of one embedding (ip-adapter_sd15, "
            "ip-adapter_sdxl_vit-h, …), or compile pipeline.unet, loaded with this one, as a "
            "module of your own: todo_compile.compile(unet, args=(), kwargs=…).",
        )
    check_floating(entries)
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return IpAdapter(path, scale, digest, entries)


def with_ip_adapter(source: Source, adapter: IpAdapter) -> Source:
    """The variant of a UNet that takes a picture's embedding as a further input.

    Raises:
        ConfigError: it is no UNet of Stable Diffusion's kind.
        ModelError: the adapter is for another one.
    """
    if source.class_name != UNET or source.config.get("encoder_hid_dim_type") is not None:
        raise ConfigError(
            f"--ip-adapter is for UNets of Stable Diffusion; this {source.component} is a "
            f"{source.class_name}" + (", with conditions of its own." if source.class_name == UNET
                                      else "."),
            remedy="Leave it out.",
        )  # fmt: skip
    _check(json.dumps(dict(source.config)), adapter)
    return replace(source, ip_adapter=adapter)


def attach(unet: nn.Module, adapter: IpAdapter, dtype: torch.dtype, *, fill: bool = True) -> None:
    """Make an adapter's layers those of a UNet, in `dtype`.

    Args:
        fill: with the file's numbers; False leaves what memory held (under a fake mode: nothing).

    Raises:
        ModelError: it is for another UNet, or the file changed.
    """
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    from todo_compile.models.build import making

    net: Any = unet
    processors: dict[str, Any] = dict(net.attn_processors)
    crossing = [name for name in processors if not name.endswith("attn1.processor")]
    if odd := [name for name in crossing if not name.endswith("attn2.processor")]:
        raise _not_for(adapter, f"its attention {odd[0]} is of another kind")
    targets: dict[str, torch.Tensor] = {}
    with making(dtype):
        projection = ImageProjection(adapter.width, adapter.channels, _TOKENS)
        for number, name in enumerate(crossing):
            keys: Any = unet.get_submodule(f"{name.removesuffix('.processor')}.to_k")
            made = IPAdapterAttnProcessor2_0(
                keys.out_features, keys.in_features, (_TOKENS,), adapter.scale
            )
            processors[name] = made.eval().requires_grad_(False)
            for part, weight in made.state_dict().items():  # to_k_ip.0.weight
                targets[f"ip_adapter.{2 * number + 1}.{part.replace('.0.', '.')}"] = weight
    own = projection.state_dict()
    targets |= {name: own[there] for name, there in _PROJECTION.items()}
    _check_fits(adapter, targets)
    for name, target in targets.items() if fill else ():
        read_into(adapter.entries[name], target)
    net.set_attn_processor(processors)
    net.encoder_hid_proj = MultiIPAdapterImageProjection([projection.eval().requires_grad_(False)])
    net.config.encoder_hid_dim_type = "ip_image_proj"  # as diffusers' own loader says it


def _other_kind(entries: Mapping[str, Entry]) -> str | None:
    """What a file is instead of an adapter with a linear projection; None if it is one."""
    heads = {name.partition(".")[0] for name in entries}
    if not {"image_proj", "ip_adapter"} <= heads:
        return "no IP-Adapter: it lacks image_proj or ip_adapter"
    if any("lora" in name for name in entries):
        return "an IP-Adapter for faces (FaceID), which also changes weights: not supported"
    if any("latents" in name for name in entries):
        return "an IP-Adapter of the kind “plus”, which looks at all states of a picture's " \
            "encoder: not supported"  # fmt: skip
    own = {name for name in entries if name.startswith("image_proj.")}
    if own != _PROJECTION.keys():
        return "an IP-Adapter with another projection of pictures (full, FaceID): not supported"
    weight, norm = (entries[f"image_proj.{part}.weight"].shape for part in ("proj", "norm"))
    if len(weight) != 2 or len(norm) != 1 or weight[0] != _TOKENS * norm[0]:
        return f"an IP-Adapter that makes other than {_TOKENS} tokens of a picture: not supported"
    return None


@functools.lru_cache(maxsize=64)  # a file of builds asks for many sizes of one model
def _check(config: str, adapter: IpAdapter) -> None:
    import torch

    from todo_compile._torch import fake_mode
    from todo_compile.models.build import build

    with fake_mode():
        attach(build(json.loads(config), torch.float32), adapter, torch.float32, fill=False)


def _check_fits(adapter: IpAdapter, targets: Mapping[str, torch.Tensor]) -> None:
    """Compare names and shapes with those that the UNet asks for."""
    shapes = {name: entry.shape for name, entry in adapter.entries.items()}
    wanted = {name: tuple(target.shape) for name, target in targets.items()}
    if missing := wanted.keys() - shapes.keys():
        raise _not_for(adapter, f"it lacks {min(missing)}")
    if more := shapes.keys() - wanted.keys():
        raise _not_for(adapter, f"it has {min(more)}, which the UNet has no attention for")
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise _not_for(adapter, f"{name} is {shapes[name]} instead of {shape}")


def _not_for(adapter: IpAdapter, why: str) -> ModelError:
    return ModelError(
        f"The IP-Adapter {adapter.path} is for another UNet: {why}.",
        remedy="Give one that was trained for this model (sd15 for SD 1.x, sdxl for SDXL).",
    )
