"""Our nodes in ComfyUI's own executor: loaded by its loader, sampled by its KSampler.

The checkpoint is tiny and random. Text is given as numbers, since ComfyUI's text encoders have one
size alone. The truth is ComfyUI's own model with attention by definition (`compiled.Truth`).
"""

from __future__ import annotations

import asyncio
import importlib
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

import todo_compile
from comfyui_parts.compiled import Truth, attention_by, distance
from tests import original_names

PACKAGE = Path(__file__).parents[2] / "integrations" / "comfyui"
WIDTH, HEIGHT = 64, 48  # pixels, of 8 to a latent cell
SEGMENTS = {48: (0, (6, 8), (2, 2)), 12: (0, (3, 4), (2, 2))}
WIDER = {64: (0, (8, 8), (2, 2)), 16: (0, (4, 4), (2, 2))}
WIDGETS = {"factors": "2,2", "sampling": "nearest", "kv_tokens": 0, "res": ""}


def unet() -> Any:
    """Two levels with attention, far from uniform."""
    torch.manual_seed(0)
    made: Any = UNet2DConditionModel(
        sample_size=6, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D",) * 2, attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip
    for name, value in made.named_parameters():
        if "to_q" in name or "to_k" in name:
            value.data *= 4
    return made.eval()


def vae() -> Any:
    """An AutoencoderKL with eight pixels a cell, as ComfyUI takes it to be."""
    torch.manual_seed(1)
    cls: Any = AutoencoderKL
    return cls(
        block_out_channels=(32,) * 4, norm_num_groups=8, sample_size=48,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip


def checkpoint() -> Any:
    """A MODEL of ComfyUI's with the weights of `unet`, through its own detection and loading."""
    known: Any = importlib.import_module("comfy.supported_models")
    if not any(one.__name__ == "Tiny" for one in known.models):
        facts = {**known.SD15.unet_config, "context_dim": 24, "model_channels": 32}
        extra = {"num_heads": 2, "num_head_channels": -1}
        tiny = type("Tiny", (known.SD15,), {"unet_config": facts, "unet_extra_config": extra})
        known.models.insert(0, tiny)
    load = importlib.import_module("comfy.sd").load_state_dict_guess_config
    tensors = original_names.unet(unet().state_dict(), layers=1)
    return load(tensors, output_vae=False, output_clip=False)[0]


def lora() -> dict[str, torch.Tensor]:
    """In kohya's names, for every projection of the first block."""
    noise = torch.Generator().manual_seed(5)
    made: dict[str, torch.Tensor] = {}
    for attention, width in (("attn1", 32), ("attn2", 24)):
        for part in ("to_q", "to_k", "to_v"):
            root = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
            name, wide = f"{root}_{attention}_{part}", 32 if part == "to_q" else width
            made[f"{name}.lora_down.weight"] = torch.randn(4, wide, generator=noise)
            made[f"{name}.lora_up.weight"] = torch.randn(32, 4, generator=noise) * 0.1
            made[f"{name}.alpha"] = torch.tensor(4.0)
    return made


class Anything(str):
    """A type that ComfyUI takes for the same as every other: it asks for a difference."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


class Given:
    """A node that hands on what Python has: a MODEL, a conditioning."""

    values: ClassVar[dict[str, Any]] = {}
    RETURN_TYPES = (Anything("*"),)
    FUNCTION = "get"
    CATEGORY = "benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The name of the value."""
        return {"required": {"name": ("STRING", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any) -> bool:
        """Whatever the type: who takes `input_types` checks them itself."""
        del input_types
        return True

    def get(self, name: str) -> tuple[Any]:
        """The value."""
        return (self.values[name],)


class Kept(Given):
    """The end of a workflow: what comes in is kept for Python."""

    RETURN_TYPES = ()
    FUNCTION = "keep"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Anything."""
        return {"required": {"name": ("STRING", {}), "value": ("*",)}}

    def keep(self, name: str, value: Any) -> dict[str, Any]:
        """Nothing to show."""
        self.values[name] = value
        return {}


def sampled(more: dict[str, Any], model: list[Any], *, height: int = HEIGHT) -> dict[str, Any]:
    """A workflow that samples the model at an output of a node, three steps."""
    return {
        "m": {"class_type": "Given", "inputs": {"name": "model"}},
        "p": {"class_type": "Given", "inputs": {"name": "positive"}},
        "n": {"class_type": "Given", "inputs": {"name": "negative"}},
        "e": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": WIDTH, "height": height, "batch_size": 1},
        },
        **more,
        "s": {
            "class_type": "KSampler",
            "inputs": {
                "model": model, "seed": 7, "steps": 3, "cfg": 5.0, "sampler_name": "euler",
                "scheduler": "normal", "positive": ["p", 0], "negative": ["n", 0],
                "latent_image": ["e", 0], "denoise": 1.0,
            },
        },
        "k": {"class_type": "Kept", "inputs": {"name": "latents", "value": ["s", 0]}},
    }  # fmt: skip


def execute(workflow: dict[str, Any]) -> None:
    """Checked and run by ComfyUI.

    Raises:
        RuntimeError: it refuses the workflow, or a node fails.
    """
    execution: Any = importlib.import_module("execution")
    good, error, outputs, errors = asyncio.run(execution.validate_prompt("b", workflow, None))
    if not good:
        raise RuntimeError(f"{error} {errors}")
    server = SimpleNamespace(
        client_id=None, last_node_id=None, last_prompt_id=None, sockets_metadata={},
        send_sync=lambda *_, **__: None,
    )  # fmt: skip
    executor = execution.PromptExecutor(server)
    executor.execute(workflow, "b", {}, outputs)
    if not executor.success:
        raise RuntimeError(str(executor.status_messages[-1])[:2000])


def latents(workflow: dict[str, Any]) -> torch.Tensor:
    """What a workflow samples."""
    execute(workflow)
    return Given.values["latents"]["samples"].clone()


def rows() -> list[dict[str, Any]]:
    """What each node samples, relative to the truth."""
    nodes: Any = importlib.import_module("nodes")
    if not asyncio.run(nodes.load_custom_node(str(PACKAGE))):
        raise RuntimeError("ComfyUI does not load the package of nodes.")
    nodes.NODE_CLASS_MAPPINGS |= {"Given": Given, "Kept": Kept}
    text = torch.randn(2, 1, 77, 24, generator=torch.Generator().manual_seed(2))
    Given.values |= {
        "model": checkpoint(),
        "positive": [[text[0], {}]],
        "negative": [[text[1], {}]],
    }
    patch = {"class_type": "ToDoPatch"}
    found = [_row("ToDo patch", patch), *_bundle()]
    plain = Given.values["model"]
    add = importlib.import_module("comfy.sd").load_lora_for_models
    Given.values["model"] = add(plain, None, lora(), 1.0, 0.0)[0]
    found.append(_row("ToDo patch, with a LoRA by ComfyUI's loader", patch))
    Given.values["model"] = plain
    found.append(_row("ToDo patch, another size", patch, height=64))
    return [*found, _row("ToDo compile", {"class_type": "ToDoCompile"})]


def _row(name: str, node: dict[str, Any], height: int = HEIGHT) -> dict[str, Any]:
    ours = {**node, "inputs": {"model": ["m", 0], **WIDGETS}}
    dense = latents(sampled({}, ["m", 0], height=height))
    truth = Truth(SEGMENTS if height == HEIGHT else WIDER)
    with attention_by(truth):
        wanted = latents(sampled({}, ["m", 0], height=height))
    torch.compiler.reset()
    todo_compile.clear_reports()
    drawn = latents(sampled({"t": ours}, ["t", 0], height=height))
    again = latents(sampled({}, ["m", 0], height=height))
    reports = todo_compile.reports()
    row = {
        "node": name,
        "graphs": len(reports),
        "rewritten": sum(s.action == "rewritten" for r in reports for s in r.sites),
        "error": distance(drawn, wanted),
        "moved": distance(dense, wanted),
        "the_given_model_stays": torch.equal(again, dense),
    }
    print(json.dumps(row), flush=True)
    return row


def _bundle() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unet().save_pretrained(folder / "model" / "unet")
        vae().save_pretrained(folder / "model" / "vae")
        todo_compile.compile(
            folder / "model", res=f"{WIDTH}x{HEIGHT}", out=f"{folder / 'bundle'}/", format="onnx",
            precision="fp32", factors="2,2", vae_factors="off",
        )  # fmt: skip
        with attention_by(Truth(SEGMENTS)):
            wanted = latents(sampled({}, ["m", 0]))
        loaded = {
            "class_type": "LoadToDoBundle",
            "inputs": {"model": ["m", 0], "bundle": str(folder / "bundle")},
        }
        picture = {
            "d": {"class_type": "VAEDecode", "inputs": {"samples": ["s", 0], "vae": ["t", 1]}},
            "q": {"class_type": "Kept", "inputs": {"name": "picture", "value": ["d", 0]}},
        }
        drawn = latents({**sampled({"t": loaded}, ["t", 0]), **picture})
    with torch.no_grad():
        decoded = vae().decode(drawn).sample
    decoded = (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    found = [
        {"node": "Load ToDo bundle, MODEL", "error": distance(drawn, wanted)},
        {"node": "Load ToDo bundle, VAE", "error": distance(Given.values["picture"], decoded)},
    ]
    print(*map(json.dumps, found), sep="\n", flush=True)
    return found
