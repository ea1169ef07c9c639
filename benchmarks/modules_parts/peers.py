"""One stage each of imagen-pytorch and dalle2-pytorch, as their users make them.

Neither imports torchvision, datasets or T5's tokenizer for what a stage computes; where these are
absent, names without content stand for them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Tensor, ...]]
SIDES = (16, 24)  # of the picture: levels of 16×24 and 8×12
WORDS = 5
_UNUSED = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional",
           "torchvision.utils", "torchvision.models", "torchvision.io", "torchvision.datasets",
           "datasets", "datasets.utils", "datasets.utils.file_utils")  # fmt: skip


class _Name:
    """Whatever is asked for of a package that is not used."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> _Name:
        return self

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return ()


class _Empty(ModuleType):
    """A package that is not used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []
        self.__file__ = __file__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name


def reach(folder: Path | None) -> None:
    """Let the packages in `folder` be imported."""
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))
    for name in _UNUSED:
        sys.modules.setdefault(name, _Empty(name))
    from transformers import T5Config

    # Its width is asked for at import, from the hub; the stage is given its own.
    T5Config.from_pretrained = classmethod(lambda cls, *_, **__: cls())  # type: ignore[assignment]


def is_there(package: str, folder: Path | None) -> bool:
    """Whether a package can be imported, from `folder` too."""
    here = importlib.util.find_spec(package) is not None
    return here or (folder is not None and (folder / package).is_dir())


class _Imagen(nn.Module):
    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, picture: Tensor, level: Tensor, text: Tensor) -> Tensor:
        return self.stage(picture, level, text_embeds=text, cond_drop_prob=0.0)


class _Decoder(nn.Module):
    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, picture: Tensor, level: Tensor, image: Tensor, text: Tensor) -> Tensor:
        return self.stage(picture, level, image_embed=image, text_encodings=text)


def _spread(stage: nn.Module) -> nn.Module:
    """Weights of a size that lets every layer matter: some are zero when a stage is made."""
    generator = torch.Generator().manual_seed(1)
    for parameter in stage.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return stage


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def imagen(attention: tuple[bool, bool] = (True, True), **options: Any) -> Made:
    """A text-conditional stage with attention at both levels."""
    package = importlib.import_module("imagen_pytorch.imagen_pytorch")
    stage = package.Unet(
        dim=16, cond_dim=16, text_embed_dim=12, dim_mults=(1, 2), num_resnet_blocks=1,
        attn_heads=2, attn_dim_head=8, layer_attns=attention, layer_cross_attns=(False, True),
        max_text_len=8, **options,
    )  # fmt: skip
    return _Imagen(_spread(stage)), (
        _noise(1, 3, *SIDES),
        torch.tensor([0.5]),
        _noise(1, WORDS, 12),
    )


def imagen_linear() -> Made:
    """… with linear attention at the first level."""
    return imagen((False, True), use_linear_attn=True)


def dalle2() -> Made:
    """A decoder's stage with attention at both levels."""
    package = importlib.import_module("dalle2_pytorch.dalle2_pytorch")
    stage = package.Unet(
        dim=16, image_embed_dim=12, text_embed_dim=12, cond_dim=16, channels=3, dim_mults=(1, 2),
        attn_heads=2, attn_dim_head=8, self_attn=(True, True), cond_on_text_encodings=True,
        max_text_len=8, resnet_groups=4, num_resnet_blocks=1, cosine_sim_self_attn=True,
    )  # fmt: skip
    inputs = (_noise(1, 3, *SIDES), torch.tensor([7]), _noise(1, 12), _noise(1, WORDS, 12))
    return _Decoder(_spread(stage)), inputs


PEERS: dict[str, tuple[str, str, Callable[[], Made]]] = {
    "imagen": ("imagen_pytorch", "imagen-pytorch, a stage", imagen),
    "imagen linear": (
        "imagen_pytorch", "imagen-pytorch, linear attention at one level", imagen_linear,
    ),
    "dalle2": ("dalle2_pytorch", "dalle2-pytorch, a stage of the decoder", dalle2),
}  # fmt: skip
"""Row → (package, title, how it is made)."""
