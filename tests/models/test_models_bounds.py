"""Configurations that no module can be made of are refused before one is, and quickly."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import diffusers
import pytest
import torch
from tiny_models import TINY
from torch import nn

from todo_compile._torch import fake_mode
from todo_compile.errors import ModelError
from todo_compile.models.architecture import UNET
from todo_compile.models.bounds import Account, check_config
from todo_compile.models.build import build
from todo_compile.models.builtin import COMPONENT_CONFIGS
from todo_compile.models.registry import REGISTRY

CLIP = {
    "architectures": ["CLIPTextModel"],
    "vocab_size": 99,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
DIT = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 1,
    "sample_size": 8,
}


def test_known_models_pass() -> None:
    for entry in REGISTRY.values():
        check_config(entry.config)
    for parts in COMPONENT_CONFIGS.values():
        for config in parts.values():
            check_config(config)


@pytest.mark.parametrize("given", [[], [0, 1, 2], (12,)])
def test_which_layers_is_no_number_of_layers(given: Any) -> None:
    """SD3's and SD3.5's ``dual_attention_layers``, and neighbours of it."""
    for key in ("dual_attention_layers", "skip_layers", "layers"):
        check_config({key: given})
    with pytest.raises(ModelError, match="num_layers"):
        check_config({"num_layers": []})


def test_defaults_of_diffusers_pass() -> None:
    """What its networks are made of when nothing is said; some counts are 0."""
    found: list[Any] = [getattr(diffusers.models, name) for name in dir(diffusers.models)]
    networks = [one for one in found if isinstance(one, type) and issubclass(one, nn.Module)]
    assert len(networks) > 100
    for network in networks:
        signature = inspect.signature(network.__init__).parameters.values()
        config = {p.name: p.default for p in signature if p.default is not inspect.Parameter.empty}
        check_config(config, network.__name__)


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (TINY, {"layers_per_block": 10**6}),
        (TINY, {"layers_per_block": 500}),
        (TINY, {"layers_per_block": 0}),
        (TINY, {"layers_per_block": [1, -1]}),
        (TINY, {"transformer_layers_per_block": [500, [500] * 3]}),
        (TINY, {"block_out_channels": [-16, 32]}),
        (TINY, {"block_out_channels": [0, 32]}),
        (TINY, {"block_out_channels": [2**40, 2**40]}),
        (TINY, {"block_out_channels": [2**31 - 8, 2**31 - 8]}),
        (TINY, {"block_out_channels": [16.5, 32]}),
        (TINY, {"block_out_channels": [16] * 10**5}),
        (TINY, {"block_out_channels": "16"}),
        (TINY, {"block_out_channels": [[[[[[16]]]]]]}),
        (TINY, {"down_block_types": ["DownBlock2D"] * 10**5}),
        (TINY, {"attention_head_dim": 0}),
        (TINY, {"attention_head_dim": -2}),
        (TINY, {"norm_num_groups": 0}),
        (TINY, {"norm_eps": float("nan")}),
        (TINY, {"norm_eps": "small"}),
        (TINY, {"dropout": float("inf")}),
        (TINY, {"sample_size": -1}),
        (TINY, {"sample_size": 10**9}),
        (TINY, {"sample_size": [8, 0]}),
        (TINY, {"cross_attention_dim": 2**60}),
        (TINY, {"in_channels": 10**9}),
        (TINY, {"num_class_embeds": 10**12}),
        (TINY, {"act_fn": "none of these"}),
        (TINY, {"act_fn": {}}),
        (TINY, {"down_block_types": {"a": 1}}),
        (CLIP, {"vocab_size": 10**15}),
        (CLIP, {"vocab_size": 2**31 - 1, "hidden_size": 2**20}),
        (CLIP, {"max_position_embeddings": 10**12}),
        (CLIP, {"num_hidden_layers": 10**6}),
        (CLIP, {"num_attention_heads": 0}),
        (CLIP, {"hidden_size": "x"}),
        (CLIP, {"hidden_act": []}),
        (DIT, {"num_layers": 10**6}),
        (DIT, {"patch_size": 0}),
    ],
)
def test_refused(base: dict[str, Any], changes: dict[str, Any], real: bool) -> None:
    """With memory to be taken, and without."""
    config = {"_class_name": UNET, **base, **changes} if base is not CLIP else {**base, **changes}
    with nullcontext() if real else fake_mode(), pytest.raises(ModelError):
        build(config, torch.float16)


def test_account() -> None:
    account = Account()
    account.add(2**37)
    with pytest.raises(ModelError, match="137 billion parameters"):
        account.add(1)
    account = Account()
    for _ in range(10_000):
        account.add(0)
    with pytest.raises(ModelError, match="more than 10,000 tensors"):
        account.add(0)
