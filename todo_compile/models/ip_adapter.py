"""IP-Adapters: cross-attention that also looks at a picture, ``--ip-adapter FILE[:SCALE]``.

    image_embeds (B, 1, D) ─ linear ─ norm ─ (B, 4, C) ─ to_k_ip, to_v_ip of every cross-attention
    softmax(QKᵀ)V  +  scale · softmax(QK_ipᵀ)V_ip

(Ye et al., arXiv 2308.06721, section 3.2). The file's layers become the UNet's own before it is
traced, so the embedding is one more input, and the scale is a number in the graph. What a picture's
encoder makes of it stays outside. Two kinds of published files are taken, others are refused:

* linear: one embedding a picture (ip-adapter_sd15, _light, _vit-G, ip-adapter_sdxl, _vit-h);
* plus: all states of the encoder's last layer but one, (B, 1, S, D), through a resampler
  (ip-adapter-plus_sd15, -plus-face_sd15, -plus_sdxl_vit-h). How many there are the file does not
  say: the encoder's configuration does, where it lies beside it as published.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile.errors import ConfigError, ModelError, first_line
from todo_compile.foreign import ForeignError, open_regular, read_object
from todo_compile.models.architecture import UNET
from todo_compile.models.scaled_file import file_and_scale
from todo_compile.models.stfile import Entry, check_floating, read_header, read_into

if TYPE_CHECKING:
    import torch
    from torch import nn

    from todo_compile.models.source import Source

_LATENTS = "image_proj.latents"
INPUT = "image_embeds"
"""Name of the further input."""
_TOKENS = 4
"""That one embedding becomes, in all files of the linear kind."""
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
        states: of a picture's encoder, for the kind plus; None where one embedding is taken.
    """

    path: Path
    scale: float
    sha256: str
    entries: Mapping[str, Entry] = field(hash=False, repr=False)
    states: int | None = None

    @property
    def picture(self) -> tuple[int, ...]:
        """Shape of what is taken of a row's picture."""
        return (1, *(() if self.states is None else (self.states,)), _width(self.entries))

    @property
    def tokens(self) -> int:
        """What a picture becomes, beside the text."""
        return _TOKENS if self.states is None else self.entries[_LATENTS].shape[1]

    def describe(self) -> dict[str, Any]:
        """What decides whether an output can be reused."""
        return {"sha256": self.sha256, "scale": self.scale, "states": self.states}


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
            remedy="Give one of the kinds linear or plus (ip-adapter_sd15, ip-adapter-plus_sd15, "
            "ip-adapter_sdxl_vit-h, …), or compile pipeline.unet, loaded with this one, as a "
            "module of your own: todo_compile.compile(unet, args=(), kwargs=…).",
        )
    check_floating(entries)
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    states = _states(path, _width(entries)) if _LATENTS in entries else None
    return IpAdapter(path, scale, digest, entries, states)


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
    from diffusers.models.embeddings import MultiIPAdapterImageProjection

    from todo_compile.models.build import making

    net: Any = unet
    processors: dict[str, Any] = dict(net.attn_processors)
    crossing = [name for name in processors if not name.endswith("attn1.processor")]
    if odd := [name for name in crossing if not name.endswith("attn2.processor")]:
        raise _not_for(adapter, f"its attention {odd[0]} is of another kind")
    targets: dict[str, torch.Tensor] = {}
    with making(dtype):
        projection = _projection(net, adapter, targets, fill)
        for number, name in enumerate(crossing):
            keys: Any = unet.get_submodule(f"{name.removesuffix('.processor')}.to_k")
            made = IPAdapterAttnProcessor2_0(
                keys.out_features, keys.in_features, (adapter.tokens,), adapter.scale
            )
            processors[name] = made.eval().requires_grad_(False)
            for part, weight in made.state_dict().items():  # to_k_ip.0.weight
                targets[f"ip_adapter.{2 * number + 1}.{part.replace('.0.', '.')}"] = weight
    _check_fits(adapter, targets)
    for name, target in targets.items() if fill else ():
        read_into(adapter.entries[name], target)
    net.set_attn_processor(processors)
    net.encoder_hid_proj = MultiIPAdapterImageProjection([projection.eval().requires_grad_(False)])
    net.config.encoder_hid_dim_type = "ip_image_proj"  # as diffusers' own loader says it


def _projection(
    net: Any, adapter: IpAdapter, targets: dict[str, torch.Tensor], fill: bool
) -> nn.Module:
    """What makes tokens of a picture; its tensors join `targets`, where they are not filled yet."""
    import torch
    from diffusers.models.embeddings import ImageProjection

    width, entries = _width(adapter.entries), adapter.entries
    if adapter.states is None:
        made = ImageProjection(width, entries["image_proj.norm.weight"].shape[0], _TOKENS)
        own = made.state_dict()
        targets |= {name: own[there] for name, there in _PROJECTION.items()}
        return made
    state = {
        name.removeprefix("image_proj."): torch.empty(entry.shape)
        for name, entry in entries.items()
        if name.startswith("image_proj.")
    }
    for name, tensor in state.items() if fill else ():
        read_into(entries[f"image_proj.{name}"], tensor)
    try:  # diffusers knows how its resampler's layers are called in files
        return net._convert_ip_adapter_image_proj_to_diffusers(state, low_cpu_mem_usage=False)
    except (RuntimeError, KeyError, IndexError, ZeroDivisionError) as error:
        raise _not_for(adapter, f"its resampler cannot be read ({first_line(error)})") from error


def _width(entries: Mapping[str, Entry]) -> int:
    """Channels of what a picture's encoder gives."""
    name = "image_proj.proj_in.weight" if _LATENTS in entries else "image_proj.proj.weight"
    return entries[name].shape[1]


def _states(path: Path, width: int) -> int:
    """States of the encoder whose configuration lies beside a file: its patches, and one for all.

    Raises:
        ModelError: none lies there, or of another width.
    """
    for folder in (path.parent, path.parent.parent / "models"):
        file = folder / "image_encoder" / "config.json"
        if not file.is_file():
            continue
        try:
            config = read_object(file)
        except (OSError, ForeignError) as error:
            raise ModelError(f"{file} cannot be read as JSON: {error}.") from error
        side, patch = config.get("image_size"), config.get("patch_size")
        if not (isinstance(side, int) and isinstance(patch, int) and 0 < patch <= side <= 2**14):
            continue
        if config.get("hidden_size") == width:
            return (side // patch) ** 2 + 1
    raise ModelError(
        f"{path} looks at all states of a picture's encoder, and nothing says how many these are.",
        remedy=f"Put the encoder's config.json, of hidden_size {width}, beside it: "
        "image_encoder/config.json, as where it was published.",
    )


def _other_kind(entries: Mapping[str, Entry]) -> str | None:
    """What a file is instead of an adapter that is taken, a clause; None if it is one."""
    heads = {name.partition(".")[0] for name in entries}
    if not {"image_proj", "ip_adapter"} <= heads:
        return "no IP-Adapter: it lacks image_proj or ip_adapter"
    if any("lora" in name for name in entries):
        return "an IP-Adapter for faces (FaceID), which also changes weights: not supported"
    if _LATENTS in entries:
        wanted = {"image_proj.proj_in.weight": 2, "image_proj.proj_out.weight": 2, _LATENTS: 3}
        whole = all(n in entries and len(entries[n].shape) == rank for n, rank in wanted.items())
        return None if whole else "an IP-Adapter with part of a resampler"
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
    if adapter.states is not None:  # those of its resampler were read by their own names
        shapes = {n: s for n, s in shapes.items() if n.startswith("ip_adapter.")}
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
