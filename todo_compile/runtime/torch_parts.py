"""Parts of a bundle that torch runs: read from its own files, by diffusers or transformers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.bundle.bundle import inside
from todo_compile.errors import BundleError, ModelError, first_line
from todo_compile.libraries import quiet_libraries
from todo_compile.models.trust import check_part, pipeline_module
from todo_compile.precision import dtype_of

if TYPE_CHECKING:
    from todo_compile.runtime.files import OpenBundle


def torch_part(opened: OpenBundle, name: str) -> Any:
    """A part in torch, on the CPU, in the bundle's precision.

    Raises:
        BundleError: its files do not make it.
    """
    from torch import nn

    entry = opened.bundle.torch[name]
    folder = inside(opened.folder, name)
    remedy = f"Build the bundle again, or hand it over: load_pipeline(…, {name}=…)"
    try:
        check_part(folder, opened.folder)
    except ModelError as error:
        raise BundleError(error.message, remedy=remedy) from error
    if entry.library in ("diffusers", "transformers"):
        library: Any = packages.load(entry.library, "A pipeline")
    else:
        library = pipeline_module(entry.library)
    found: Any = getattr(library, entry.class_name, None)
    loads = inspect.isclass(found) and issubclass(found, nn.Module)
    if not loads or not hasattr(found, "from_pretrained"):
        raise BundleError(
            f"The bundle's {name} is a {entry.class_name}, which {entry.library} does not know.",
            remedy=remedy,
        )
    cls: Any = found
    try:
        with quiet_libraries():
            made = cls.from_pretrained(
                str(folder),
                torch_dtype=dtype_of(opened.bundle.precision),
                local_files_only=True,
                use_safetensors=True,
            )
    except Exception as error:  # whatever files from elsewhere set off in the libraries
        raise BundleError(
            f"The bundle's {name} cannot be loaded: {first_line(error)}", remedy=remedy
        ) from error
    return made.eval().requires_grad_(False)
