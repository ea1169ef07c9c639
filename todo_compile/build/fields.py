"""Every option of a build, once: its type, default, check and help.

A new option is a new field here, and code that does what it says: the command, files of builds,
Python, manifests and the search for equal outputs read the fields (a test adds one).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from todo_compile.build.option import Batch, Factors, Option, Plan, Several, Tokens, path_named
from todo_compile.options import PRESETS, SAMPLINGS, PlanOptions

_WHAT, _DOWN, _ENGINE, _OUTPUT = "What", "Downsampling", "Engine", "Output"
Model = Annotated[str, path_named("model")]
Out = Annotated[str, path_named("out")]
Weights = Annotated[str, path_named("weights")]


class BuildOptions(BaseModel):
    """The options of ``todo-compile compile``, with ``_`` for ``-``, and some for Python alone."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        alias_generator=lambda name: name.replace("_", "-"),
        protected_namespaces=(),
    )

    model: Annotated[
        Model | None,
        Option(
            "A name from `todo-compile models` (sd15, sdxl, demo, …), a diffusers folder, a "
            "checkpoint (FILE.safetensors), or a hub id.",
            _WHAT,
            "-m",
            file=True,
        ),
    ] = None
    module: Annotated[
        str | Any | None,
        Option(
            "A module of your own in place of --model: FILE.py:FACTORY or PACKAGE.MODULE:FACTORY. "
            "Its code is executed, and FACTORY() returns (module, args) or (module, args, kwargs).",
            _WHAT,
            file=True,
        ),
    ] = None
    res: Annotated[
        Several,
        Field(min_length=1),
        Option(
            "Pixels: 2048, or WIDTHxHEIGHT. A bundle takes several: --res 1024 --res 2048x1152; "
            "what runs is chosen by the picture's size.",
            _WHAT,
            "-r",
            only="model",
        ),
    ] = ()
    out: Annotated[
        Out,
        Option(
            "FILE.plan or .engine: TensorRT; FILE.onnx: ONNX; FILE.pt2: AOTInductor, for this "
            "machine's CPU. A manifest, FILE.….json, is written beside it. FOLDER/: a bundle with "
            "all components.",
            _OUTPUT,
            "-o",
            decides="",
            file=True,
            placeholders=True,
        ),
    ]
    weights: Annotated[
        Weights,
        Option(
            "auto (folder, hub cache, hub), random[:SEED] (for sizing, not for pictures), or a "
            "path to safetensors.",
            _WHAT,
            only="model",
            file=True,
        ),
    ] = "auto"
    component: Annotated[
        str | None,
        Option(
            "unet (whatever denoises), vae-decoder, text-encoder, text-encoder-2, or all (into a "
            "folder). [default: unet; for a folder: all]",
            _WHAT,
            only="model",
        ),
    ] = None
    format: Annotated[
        str | None,
        Option(
            "A bundle's: tensorrt, onnx, or pt2 for this machine's CPU. [default: tensorrt]",
            _OUTPUT,
            only="bundle",
        ),
    ] = None
    batch: Annotated[
        Batch | None,
        Option(
            "Rows of the denoising model. Classifier-free guidance runs the prompt and the empty "
            "prompt together: one image needs 2. A range takes every batch in it: 1..4 (1..2..4 "
            "tunes the engine for 2, else for the most). [default: what one image needs]",
            _WHAT,
            metavar="N|MIN..MAX",
            only="model",
        ),
    ] = None
    text_tokens: Annotated[
        Tokens | None,
        Option(
            "Tokens of the text that the denoising model takes. Of a model that looks at its text "
            "apart from the picture a range takes every length in it: 77..308. [default: as many "
            "as its pipeline passes at most, or as few as it likes where it fills no text up]",
            _WHAT,
            metavar="N|MIN..MAX",
            only="model",
        ),
    ] = None
    frames: Annotated[
        int | None,
        Option(
            "Of a video: how many frames it has. [default: the pipeline's own number]",
            _WHAT,
            metavar="N",
            only="model",
        ),
    ] = None
    dynamic_batch: Annotated[
        Batch | None,
        Option(
            "Of a module: every batch in a range, 1..4 (1..2..4 tunes the engine for 2). [default: "
            "the batch of its example inputs]",
            _WHAT,
            metavar="MIN..MAX",
            only="module",
        ),
    ] = None
    precision: Annotated[
        str | None,
        Option("fp16, bf16 or fp32. [default: fp16; SDXL's own VAE: fp32]", _WHAT, only="model"),
    ] = None
    vae_precision: Annotated[
        str | None,
        Option(
            "The precision of a bundle's VAE decoder. [default: as --precision]",
            _WHAT,
            only="bundle",
        ),
    ] = None
    kv_tokens: Annotated[
        int | None,
        Option(
            "Most key/value tokens a site keeps. Default: what the model saw in training at its "
            "highest attention level (SD1.5, SDXL: 4096).",
            _DOWN,
            decides="plan",
        ),
    ] = None
    factors: Annotated[
        Factors | None,
        Option(
            "Factor a level, largest grid first: 4,2,1; WIDTHxHEIGHT pairs: 4x2,2; or off.",
            _DOWN,
            decides="plan",
            joined=True,
        ),
    ] = None
    sampling: Annotated[
        str | None,
        Option(
            f"Which token stands for a cell: {', '.join(SAMPLINGS)} (blend takes any weight "
            "between 0 and 1). [default: nearest]",
            _DOWN,
            decides="plan",
        ),
    ] = None
    preset: Annotated[
        str | None,
        Option(f"Published settings by name: {', '.join(PRESETS)}.", _DOWN, decides="plan"),
    ] = None
    plan: Annotated[
        Plan | None,
        Option(
            "A plan from `todo-compile tune`, in place of the options for factors: for the model, "
            "weights and size that it was tuned for.",
            _DOWN,
            metavar="FILE",
            only="model",
            decides="plan",
            file=True,
        ),
    ] = None
    masks: Annotated[
        str | None,
        Option(
            "Of attention with a mask: prove rewrites where no key can be hidden; pool takes that "
            "for granted, at your own risk. [default: prove]",
            _DOWN,
            decides="plan",
        ),
    ] = None
    vae_factors: Annotated[
        Factors | None,
        Option(
            "The factor of a bundle's VAE decoder: 4, or off. [default: bounded by what it saw in "
            "training]",
            _DOWN,
            only="bundle",
            joined=True,
        ),
    ] = None
    lora: Annotated[
        Several,
        Option(
            "FILE.safetensors[:SCALE], fused into the weights; may be given several times.",
            _WHAT,
            only="model",
            file=True,
        ),
    ] = ()
    controlnet: Annotated[
        bool,
        Option(
            "Let the UNet take a ControlNet's residuals, as further inputs: for any number of "
            "ControlNets, which run in torch.",
            _WHAT,
            only="model",
        ),
    ] = False
    ip_adapter: Annotated[
        str | None,
        Option(
            "FILE.safetensors[:SCALE]: give the UNet an IP-Adapter's layers, and a picture's "
            "embedding as a further input. The scale is fixed.",
            _WHAT,
            only="model",
            file=True,
        ),
    ] = None
    t2i_adapter: Annotated[
        bool,
        Option(
            "Let the UNet take a T2I-Adapter's residuals, as further inputs: for any number of "
            "T2I-Adapters, which run in torch.",
            _WHAT,
            only="model",
        ),
    ] = False
    dense_after: Annotated[
        float | None,
        Option(
            "Add a dense denoiser to the bundle, for the steps after this share, e.g. 0.7.",
            _DOWN,
            only="bundle",
        ),
    ] = None
    opset: Annotated[
        int | None,
        Option(
            "ONNX opset, 18 to 23. 23 keeps attention whole and needs 4x less scratch memory in "
            "TensorRT. [default: 23]",
            _ENGINE,
            only="onnx",
        ),
    ] = None
    target: Annotated[
        str | None,
        Option(
            "GPU architectures, e.g. sm89,sm120, or current. [default: the GPU in this machine; "
            "without one sm89]",
            _ENGINE,
            only="engine",
            joined=True,
        ),
    ] = None
    library: Annotated[str, Option("tensorrt, tensorrt_rtx or auto.", _ENGINE, only="engine")] = (
        "auto"
    )
    timing_cache: Annotated[
        Path | None,
        Option(
            "TensorRT's timing cache: read and written.",
            _ENGINE,
            only="engine",
            decides="",
            file=True,
        ),
    ] = None
    weight_streaming: Annotated[
        bool, Option("Let the engine keep weights in host memory.", _ENGINE, only="engine")
    ] = False
    verify: Annotated[
        bool,
        Option(
            "Prove it on these weights: every rewritten site against subsampling at the site, and "
            "the ONNX file in onnxruntime (or the package in torch) against the rewritten graph. "
            "Builds anew.",
            _OUTPUT,
            decides="",
        ),
    ] = False
    gate: Annotated[
        str | None,
        Option(
            "Draw with what was built, against dense, before it is published, and fail with status "
            "10 if the pictures drift further: drift=1e-3 or psnr=30, and if need be "
            ",pairs=16,steps=20,guidance=7.5. onnxruntime draws, or torch with the rewritten graph "
            "where that cannot. Builds anew if it was not judged so before.",
            _OUTPUT,
            metavar="drift=X",
            only="model",
            decides="",
            joined=True,
        ),
    ] = None
    force: Annotated[
        bool, Option("Rebuild even if an equal output exists.", _OUTPUT, decides="")
    ] = False
    dump: Annotated[
        Path | None,
        Option(
            "Write the graph before and after every pass to this folder.",
            _OUTPUT,
            decides="",
            placeholders=True,
        ),
    ] = None
    options: Annotated[
        InstanceOf[PlanOptions] | None,
        Option("How factors are chosen, in place of the options for it.", decides="plan"),
    ] = None
    vae_options: Annotated[
        InstanceOf[PlanOptions] | None,
        Option("The same for a bundle's VAE decoder.", only="bundle", decides="plan"),
    ] = None

    args: Annotated[
        Any,
        Field(repr=False),
        Option("Of a module: its example inputs, a tuple.", only="module", decides=""),
    ] = None
    kwargs: Annotated[
        Any,
        Field(repr=False),
        Option("Of a module: further ones by name.", only="module", decides=""),
    ] = None
    token_grids: Annotated[
        Any,
        Option(
            "Of a module: tokens → ([frames,] rows, columns), where they arrive packed.",
            only="module",
        ),
    ] = None
    native_kv_tokens: Annotated[
        int | None,
        Option(
            "Of a module: key/value tokens that it saw in training.", only="module", decides="plan"
        ),
    ] = None
