"""What a single file is: a whole pipeline in the original layout, recognised by its tensors.

Nothing but the header is read: the names say that the layout is the original one, the shapes which
model it is. Configurations are those of the registry, with what the shapes say in their place; no
network is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from todo_compile.errors import ModelError
from todo_compile.models.builtin import COMPONENT_CONFIGS, SCHEDULERS
from todo_compile.models.files import refuse_gguf, refuse_pickle
from todo_compile.models.original import UNET_PREFIX, has_part, is_original, part_of
from todo_compile.models.registry import REGISTRY
from todo_compile.models.stfile import Entry, read_header, read_metadata


@dataclass(frozen=True)
class Family:
    """Models of one layout.

    Attributes:
        name: for people.
        unet: configuration of the UNet with four input channels.
        others: of the other components, by name.
        scheduler: its configuration.
        pipelines: diffusers' pipeline by the UNet's input channels: plain, with the picture to be
            edited (8), with a mask and the picture under it (9).
        inpainting_side: latent side that the one with a mask was trained at.
        hub_ids: repositories whose tokenizers fit.
        settings: of the pipeline.
        undecided: there are models that predict noise and such that predict v.
    """

    name: str
    unet: Mapping[str, Any] = field(hash=False, repr=False)
    others: Mapping[str, Mapping[str, Any]] = field(hash=False, repr=False)
    scheduler: Mapping[str, Any] = field(hash=False, repr=False)
    pipelines: Mapping[int, str] = field(hash=False, repr=False)
    inpainting_side: int
    hub_ids: tuple[str, ...]
    settings: Mapping[str, bool] = field(default_factory=dict[str, bool], hash=False, repr=False)
    undecided: bool = False

    @property
    def marks(self) -> tuple[object, ...]:
        """What tells it from the others: width, text width, and that of further conditions."""
        unet = self.unet
        return (
            unet["block_out_channels"][0],
            unet["cross_attention_dim"],
            unet.get("projection_class_embeddings_input_dim"),
        )


def _family(name: str, title: str, pipeline: str, inpainting_side: int) -> Family:
    entry = REGISTRY[name]
    plain = f"{pipeline}Pipeline"
    pipelines = {4: plain, 9: f"{pipeline}InpaintPipeline"}
    pipelines[8] = f"{pipeline}InstructPix2PixPipeline"
    ids = () if entry.hub_id is None else (entry.hub_id, *entry.former_hub_ids)
    others = COMPONENT_CONFIGS[name]
    return Family(title, entry.config, others, SCHEDULERS[name], pipelines, inpainting_side, ids)


FAMILIES: tuple[Family, ...] = (
    _family("sd15", "Stable Diffusion 1", "StableDiffusion", 64),
    replace(_family("sd21", "Stable Diffusion 2", "StableDiffusion", 64), undecided=True),
    _family("sdxl", "Stable Diffusion XL", "StableDiffusionXL", 128),
    Family(
        "Stable Diffusion XL's refiner",
        REGISTRY["sdxl-refiner"].config,
        {k: v for k, v in COMPONENT_CONFIGS["sdxl"].items() if k != "text_encoder"},
        SCHEDULERS["sdxl"],
        {4: "StableDiffusionXLImg2ImgPipeline"},
        128,
        (str(REGISTRY["sdxl-refiner"].hub_id), str(REGISTRY["sdxl"].hub_id)),
        {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
    ),
)


@dataclass(frozen=True)
class SingleFile:
    """A recognised checkpoint.

    Attributes:
        path: absolute.
        family: what it is.
        configs: of the components that the file holds, the denoising model's under ``unet``.
        scheduler: configuration of the scheduler.
        pipeline: diffusers' class.
        remark: what was taken for granted, for people; empty if nothing.
    """

    path: Path
    family: Family
    configs: Mapping[str, Mapping[str, Any]] = field(hash=False, repr=False)
    scheduler: Mapping[str, Any] = field(hash=False, repr=False)
    pipeline: str = ""
    remark: str = ""


def recognise(path: Path) -> SingleFile:
    """Read a file's header and say what model it is.

    Raises:
        ModelError: it is a pickle, a GGUF file or damaged; it is not in the original layout, or of
            a model that is not known.
    """
    _refuse_others(path)
    entries = read_header(path)
    family, channels = _family_of(path, entries)
    unet = {**family.unet, "in_channels": channels}
    scheduler = dict(family.scheduler)
    remark = f"{path.name} is {family.name}"
    if channels != family.unet.get("in_channels", 4):
        unet["sample_size"] = family.inpainting_side
        remark += f" with {channels} input channels"
    if family.undecided:
        remark += _second_version(unet, scheduler, read_metadata(path))
    if "v_pred" in entries:  # put there by those who train SDXL so
        scheduler["prediction_type"] = "v_prediction"
        remark += ", predicting v"
    if "ztsnr" in entries:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        remark += ", with zero terminal signal-to-noise ratio"
    others = {name: config for name, config in family.others.items() if has_part(entries, name)}
    configs = {"unet": unet, **others}
    return SingleFile(path, family, configs, scheduler, family.pipelines[channels], remark)


def _refuse_others(path: Path) -> None:
    refuse_pickle(path)
    refuse_gguf(path)
    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"--model {path} is a file, and not a safetensors file.",
            remedy="Give a .safetensors checkpoint, a diffusers folder, a registry name or a hub "
            "id.",
        )


def _family_of(path: Path, entries: Mapping[str, Entry]) -> tuple[Family, int]:
    """The family and the number of input channels."""
    if not is_original(entries) or not has_part(entries, "unet"):
        raise ModelError(
            f"{path} is not a checkpoint in the original layout with a denoising UNet "
            f"({_other_kind(entries)}).",
            remedy="Give the architecture with --model (sd15, sd21, sdxl or a diffusers folder) "
            "and the file with --weights.",
        )
    unet = {
        name.removeprefix(UNET_PREFIX): entry.shape
        for name, entry in part_of(entries, "unet").items()
    }
    first = unet["input_blocks.0.0.weight"]
    text = next((s for n, s in unet.items() if n.endswith("attn2.to_k.weight")), None)
    marks = (
        first[0] if len(first) == 4 else None,
        text[-1] if text else None,
        unet.get("label_emb.0.0.weight", (None, None))[-1],
    )
    channels = first[1] if len(first) == 4 else 0
    for family in FAMILIES:
        if family.marks == marks and channels in family.pipelines and "edm_mean" not in entries:
            return family, channels
    raise ModelError(
        f"{path} is in the original layout, but of a model that is not known: {marks[0]} channels "
        f"at the top, {channels} of input, text {marks[1]} wide, further conditions {marks[2]}.",
        remedy=f"Known: {', '.join(family.name for family in FAMILIES)}, for inpainting and "
        "editing too. Convert others with diffusers (from_single_file, save_pretrained).",
    )


def _other_kind(entries: Mapping[str, Entry]) -> str:
    """What kind of file it is, judged by the names of its tensors."""
    if any("lora_" in name or "hada_" in name or "lokr_" in name for name in entries):
        return "it looks like a LoRA: give that as --lora FILE[:SCALE], beside a --model"
    if any(name.startswith(("down_blocks.", "transformer_blocks.")) for name in entries):
        return "it has diffusers' names, and the configuration is not in it"
    if any("double_blocks." in name or "joint_blocks." in name for name in entries):
        return "it looks like FLUX or Stable Diffusion 3"
    if has_part(entries, "vae_decoder"):
        return "it holds an autoencoder only"
    return f"its first tensor is {next(iter(entries), 'missing')}"


def _second_version(
    unet: dict[str, Any], scheduler: dict[str, Any], header: Mapping[str, str]
) -> str:
    """Whether a model of Stable Diffusion 2 predicts noise (512 px) or v (768 px).

    Its tensors do not tell; those with more input channels predict noise. Else the header says it
    (ModelSpec), or it is taken for one that predicts v, as diffusers does.
    """
    prediction = header.get("modelspec.prediction_type", "").lower()
    if unet["in_channels"] != 4 or prediction.startswith("eps"):
        scheduler["prediction_type"] = "epsilon"
        unet["sample_size"] = 64
        return ", predicting noise at 512 px"
    if prediction.startswith("v"):
        return ", predicting v"
    return (
        "; taken for one that predicts v at 768 px, as diffusers takes it (the file does not say; "
        "convert one of 512 px with diffusers)"
    )
