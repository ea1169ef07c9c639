"""Nodes that give a MODEL downsampled keys and values, through ComfyUI's own torch.compile wrapper.

ComfyUI is imported where a node runs and nowhere else, so that this file can be read and tested
without it. Nothing here is ComfyUI's code: it is called by its public names.

The wrapper puts the compiled module in place for the time of a sampling step and takes it out
again, so that weights, LoRAs and memory stay ComfyUI's business. A model carries one of them: the
last node that compiles wins, ours or ComfyUI's.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from todo_compile.errors import ConfigError, TodoError
from todo_compile.options import DEFAULT_KV_TOKENS, SAMPLINGS

BACKEND = "todo_inductor"
CATEGORY = "model/todo"


def backend_options(
    factors: str = "", sampling: str = "nearest", kv_tokens: int = 0, res: str = ""
) -> dict[str, Any]:
    """Options of the backend from what stands in the widgets; empty and 0 mean "not given".

    Raises:
        ConfigError: a value is impossible; said here, before a step is sampled.
    """
    from todo_compile.dynamo.backend_options import BackendOptions

    given = {
        "factors": factors.strip() or None,
        "sampling": sampling,
        "kv_tokens": kv_tokens or None,
        "res": res.strip() or None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    BackendOptions.parse(options, None)
    return options


class _Node:
    """What both nodes have in common: their inputs, the check of them, and the wrapper."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = CATEGORY
    DESCRIPTION = ""
    extra: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The widgets."""
        return {
            "required": {
                "model": ("MODEL",),
                "factors": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "A factor a level, largest grid first: 2 or 4,2 or 4x2,2. "
                        "Empty: by kv_tokens. off: dense.",
                    },
                ),
                "sampling": (
                    list(SAMPLINGS),
                    {"default": "nearest", "tooltip": "Which token stands for its cell."},
                ),
                "kv_tokens": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1 << 20,
                        "tooltip": "Most image tokens that keys and values keep, instead of "
                        f"factors. 0: {DEFAULT_KV_TOKENS}.",
                    },
                ),
                "res": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Pixels (2048 or 1920x1080): factors then go by the levels of "
                        "this size. Only where the log asks for it.",
                    },
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        factors: str | None = None,
        sampling: str | None = None,
        kv_tokens: int | None = None,
        res: str | None = None,
    ) -> bool | str:
        """True, or what is wrong and the remedy: ComfyUI shows it at the node and runs nothing.

        A value that comes from another node is None here, and is checked when the node runs.
        """
        try:
            backend_options(factors or "", sampling or "nearest", kv_tokens or 0, res or "")
        except TodoError as error:
            return str(error)
        return True

    def patch(
        self, model: Any, factors: str, sampling: str, kv_tokens: int, res: str
    ) -> tuple[Any]:
        """A clone of the model that is compiled when it is first sampled; the given one stays.

        Raises:
            ConfigError: an option is impossible, this ComfyUI has no torch.compile wrapper, or
                torch does not find our backend.
        """
        options = {**backend_options(factors, sampling, kv_tokens, res), **self.extra}
        wrap = _wrapper()
        _check_backend()
        changed = model.clone()
        _use_torch_attention(changed)
        wrap(model=changed, backend=BACKEND, options=options)
        return (changed,)


class ToDoCompile(_Node):
    """Rewritten, then compiled by Inductor."""

    DESCRIPTION = "Downsampled keys and values in self-attention, compiled by torch's Inductor."


class ToDoPatch(_Node):
    """Rewritten, and run operation by operation: Dynamo captures, nothing is generated."""

    DESCRIPTION = "Downsampled keys and values in self-attention; torch runs it without Inductor."
    extra: ClassVar[dict[str, Any]] = {"inner": "eager"}


class LoadToDoBundle:
    """A bundle's denoiser in place of a checkpoint's, and its VAE."""

    RETURN_TYPES = ("MODEL", "VAE")
    FUNCTION = "load"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "A todo-compile bundle (ONNX or engine) of Stable Diffusion 1 or 2 as MODEL and VAE. What "
        "sampling must know of the model comes from a checkpoint of the same kind."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The widgets."""
        return {
            "required": {
                "model": ("MODEL",),
                "bundle": ("STRING", {"default": "", "tooltip": "The bundle's folder."}),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, bundle: str | None = None) -> bool | str:
        """True, or what is wrong with the folder: said before anything runs."""
        if bundle is None:  # it comes from another node
            return True
        from todo_compile.bundle.bundle import read_bundle

        try:
            read_bundle(Path(bundle).expanduser())
        except TodoError as error:
            return str(error)
        return True

    def load(self, model: Any, bundle: str) -> tuple[Any, Any]:
        """A clone of the model that samples with the bundle's denoiser, and the bundle's VAE.

        Raises:
            BundleError: it is no bundle, or damaged.
            ConfigError: ComfyUI could not call what it holds.
        """
        from .bundle import instead, open_parts

        kind = _apply_model()
        denoiser, decoder = open_parts(bundle)
        changed = model.clone()
        changed.add_wrapper_with_key(kind, "todo_bundle", instead(denoiser))
        return changed, decoder


def _wrapper() -> Any:
    try:
        return importlib.import_module("comfy_api.torch_helpers").set_torch_compile_wrapper
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "This ComfyUI has no comfy_api.torch_helpers.set_torch_compile_wrapper.",
            remedy="Update ComfyUI: its own node TorchCompileModel goes the same way.",
        ) from error


def _apply_model() -> Any:
    try:
        return importlib.import_module("comfy.patcher_extension").WrappersMP.APPLY_MODEL
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "This ComfyUI has no comfy.patcher_extension.WrappersMP.APPLY_MODEL.",
            remedy="Update ComfyUI: bundles take the place of a denoiser by such a wrapper.",
        ) from error


def _use_torch_attention(model: Any) -> None:
    """Let this MODEL's attention be torch's, however ComfyUI was started: nothing can be rewritten
    in the kernels of others, and the sub-quadratic kind splits the graph.

    Another node's choice of attention stays, as does that of a ComfyUI that lets no MODEL have its
    own; a warning says so.
    """
    try:
        module = importlib.import_module("comfy.ldm.modules.attention")
    except ImportError:
        return
    if not hasattr(module, "get_attention_function"):
        used = getattr(getattr(module, "optimized_attention", None), "__name__", "")
        if used != "attention_pytorch":
            _warn(
                f"This ComfyUI computes attention by {used or 'a way of its own'}, which stays "
                "dense. Start it with --use-pytorch-cross-attention."
            )
        return
    torchs = _by(module.get_attention_function("pytorch"))
    options = model.model_options.setdefault("transformer_options", {})
    if options.setdefault("optimized_attention_override", torchs) is not torchs:
        _warn(
            "Another node chose how this MODEL computes attention; where that is not torch's, it "
            "stays dense. Leave that node out."
        )


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)


@functools.cache
def _by(attention: Callable[..., Any]) -> Callable[..., Any]:
    """`attention` for whatever would be called; one object, so that nothing is compiled again."""

    def override(_: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        return attention(*args, **keywords)

    return override


def _check_backend() -> None:
    from todo_compile._torch import dynamo_backend

    try:
        dynamo_backend(BACKEND)
    except LookupError as error:
        raise ConfigError(
            f"torch does not find the backend {BACKEND}: the package is not installed here.",
            remedy="Install it with the Python that runs ComfyUI: python -m pip install PATH, "
            "where PATH is the checkout of todo-compile.",
        ) from error


NODE_CLASS_MAPPINGS = {
    "ToDoCompile": ToDoCompile,
    "ToDoPatch": ToDoPatch,
    "LoadToDoBundle": LoadToDoBundle,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ToDoCompile": "ToDo compile",
    "ToDoPatch": "ToDo patch",
    "LoadToDoBundle": "Load ToDo bundle",
}
