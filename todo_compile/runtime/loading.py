"""`load`: from a file to a component that diffusers takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile.bundle.bundle import is_bundle
from todo_compile.errors import BundleError, ConfigError, given_path
from todo_compile.runtime.by_size import SessionBySize
from todo_compile.runtime.decoder import CompiledVAE
from todo_compile.runtime.denoisers import CompiledTransformer, CompiledUNet
from todo_compile.runtime.files import (
    OpenPhase,
    Origin,
    Output,
    Verify,
    check_again,
    open_bundle,
    open_output,
)
from todo_compile.runtime.how import How, Wrapping
from todo_compile.runtime.module import COMPONENT, CompiledModule
from todo_compile.runtime.onnx_session import OnnxSession
from todo_compile.runtime.package_session import PackageSession
from todo_compile.runtime.recorded import CompiledCall
from todo_compile.runtime.switching import PhasedDenoiser
from todo_compile.runtime.tensorrt_session import TensorRTSession
from todo_compile.runtime.text import CompiledTextEncoder

if TYPE_CHECKING:
    from torch import nn

    from todo_compile.runtime.component import Batching, Component
    from todo_compile.runtime.session import Session


_DEFAULT = How()
_KINDS = {
    "unet": CompiledUNet,
    "transformer": CompiledTransformer,
    "text_encoder": CompiledTextEncoder,
    "text_encoder_2": CompiledTextEncoder,
}


def load(
    path: str | Path,
    *,
    component: str = "unet",
    device: str | None = None,
    provider: str | None = None,
    verify: Verify = "full",
    batching: Batching = "split",
    cast: bool = False,
    encoder: nn.Module | None = None,
    threads: int | None = None,
    cuda_graph: bool = False,
    specialise: str | None = None,
    runtime_cache: str | Path | None = None,
    res: str | int | None = None,
) -> Any:
    """A compiled component as the diffusers module that it was made from.

    ::

        pipe.unet = todo_compile.load("unet.onnx")

    Its ``config``, ``dtype``, ``device`` and call are those of the module, and `torch.nn.Module` is
    its base. It serves the resolution that it was compiled for.

    Args:
        path: engine, ONNX file, package (``.pt2``) or manifest; or a bundle, of which `component`
            is taken.
        component: only for a bundle: ``unet``, ``transformer``, ``vae_decoder``, ``text_encoder``,
            ``text_encoder_2``. A denoiser of several phases comes as a `PhasedDenoiser`.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU where there is one.
        provider: onnxruntime's, where another one is installed: ``openvino``; by any name that it
            gives itself. It gets its inputs from the CPU, and what it does not take runs there.
        verify: ``full`` hashes every file first (about a second a gigabyte); ``size`` compares
            sizes only: for files that were checked before.
        batching: ``split`` runs other batches in pieces, ``strict`` refuses them.
        cast: accept inputs of another float type, and answer in it.
        encoder: torch VAE for the `encode` of a decoder, which image-to-image needs.
        threads: of onnxruntime on the CPU; None for one a core.
        cuda_graph: TensorRT: record the kernels once, replay them at every call.
        specialise: TensorRT for RTX, of an engine with a range of batches: kernels for the very
            batch that comes are compiled beside the run (``lazy``), before it (``eager``) or not at
            all (``none``).
        runtime_cache: TensorRT for RTX: file that keeps the kernels compiled for this GPU.
        res: only for a bundle of several resolutions: take this one alone. Without, the engine is
            chosen by the size of each call; it is loaded when it is first needed, and stays.

    Raises:
        BundleError: the file or its manifest is missing, damaged, or not what was built.
        EngineError: what would run it is absent, of another version, or refuses it here.
        ConfigError: an option does not go with it.
    """
    path = given_path(path, "path")
    cache = Path(runtime_cache) if runtime_cache is not None else None
    how = How(device, provider, threads, cuda_graph, specialise, cache)
    options = Wrapping(how, verify, batching, cast, encoder)
    if not is_bundle(path):
        if res is not None:
            raise ConfigError(
                "res chooses from a bundle of several resolutions.",
                remedy=f"Leave it out: {path.name} has one.",
            )
        output = open_output(path, verify)
        if output.origin.component == COMPONENT:
            return _module(output, options)
        return wrap([output], options)
    opened = open_bundle(path, verify, res=res)
    if component not in opened.components:
        raise ConfigError(
            f"{path} has no {component}.", remedy=f"It has {', '.join(opened.components)}."
        )
    if component == opened.bundle.denoiser:
        return wrap_phases(opened.phases, options)
    return wrap(opened.components[component], options)


def _module(output: Output, options: Wrapping) -> CompiledModule:
    """A compiled module; the options of a pipeline's components are not for it.

    Raises:
        ConfigError: one was given.
    """
    for name in ("batching", "cast", "encoder"):
        if getattr(options, name) != getattr(Wrapping, name):
            raise ConfigError(
                f"{name} is for components of pipelines, and {output.path.name} is a module.",
                remedy="Leave it out.",
            )
    session = open_session(output, options.how)
    return CompiledModule(session, output.manifest, output.path.name)


def wrap_phases(phases: Sequence[OpenPhase], options: Wrapping) -> nn.Module:
    """`wrap` for each phase of the schedule; one component if it is the same in all steps."""
    made: dict[Path, Component] = {}
    for phase in phases:
        output = phase.outputs[0]
        if output.path in made:
            continue  # an earlier phase comes again
        how = options.how.with_cache_of(output) if made else options.how
        made[output.path] = wrap(phase.outputs, replace(options, how=how))
    return phased(
        [made[phase.outputs[0].path] for phase in phases],
        [phase.start for phase in phases],
        dense=next((number for number, phase in enumerate(phases) if phase.dense), None),
    )


def phased(
    parts: Sequence[nn.Module], starts: Sequence[float], *, dense: int | None = None
) -> nn.Module:
    """The components of a schedule's phases as one, see `PhasedDenoiser`; one alone as it is."""
    if len(parts) == 1:
        return parts[0]
    return PhasedDenoiser(parts, starts, dense=dense)


def wrap(outputs: Sequence[Output], options: Wrapping) -> Component:
    """The component of checked outputs: one, or one for each resolution.

    Raises:
        BundleError: no pipeline has such a component.
        EngineError: it cannot run here.
        ConfigError: an option does not go with it.
    """
    first = outputs[0]

    def open_one(output: Output) -> Session:
        if options.opener is not None:
            return options.opener(output)
        if output is first:
            return open_session(output, options.how)
        # Perhaps hours after the bundle was checked, and builds write into the same folder.
        check_again(output, options.verify)
        return open_session(output, options.how.with_cache_of(output))

    session = open_one(first) if len(outputs) == 1 else SessionBySize(outputs, open_one)
    return adapt(
        session,
        first.origin,
        encoder=options.encoder,
        batching=options.batching,
        cast=options.cast,
    )


def adapt(
    session: Session,
    origin: Origin,
    *,
    encoder: nn.Module | None = None,
    batching: Batching = "split",
    cast: bool = False,
) -> Component:
    """The component for any session.

    Args:
        session: runs it.
        origin: what it was made from.
        encoder: of a decoder alone.
        batching, cast: see `load`.

    Raises:
        BundleError: no pipeline has such a component.
    """
    if origin.component == "vae_decoder":
        return CompiledVAE(session, origin, encoder=encoder, batching=batching)
    if origin.call is None and origin.component not in _KINDS:
        raise BundleError(
            f"{origin.name} is a {origin.component!r}, which no pipeline here has a place for.",
            remedy="Build it again with todo-compile.",
        )
    kind = CompiledCall if origin.call is not None else _KINDS[origin.component]
    return kind(session, origin, batching=batching, cast=cast)


def open_session(output: Output, how: How = _DEFAULT) -> Session:
    """What runs an output: TensorRT for engines, onnxruntime for ONNX, torch for packages.

    Raises:
        EngineError: it is absent, or refuses the output here.
        ConfigError: options of TensorRT for another file.
    """
    how.check(output)
    if output.manifest.packaged:
        return PackageSession(output, device=how.device, threads=how.threads)
    if output.manifest.library is not None:
        return TensorRTSession(
            output,
            device=how.device,
            cuda_graph=how.cuda_graph,
            specialise=how.specialise,
            runtime_cache=how.runtime_cache,
        )
    return OnnxSession(output, device=how.device, provider=how.provider, threads=how.threads)
