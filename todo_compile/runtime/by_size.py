"""Several engines of one component, one for each resolution, as one session.

    sample of 128 × 128 latent cells → unet.onnx
    sample of 144 × 256              → unet.2048x1152.onnx

What runs is read from the size of the call's first input, so a component, a denoiser of several
phases and a pipeline need not know that there are several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from todo_compile.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from todo_compile.bundle.tensors import Tensor as Spec
    from todo_compile.runtime.files import Output
    from todo_compile.runtime.session import Session


class SessionBySize:
    """The sessions of a component's outputs; each is opened when it is first needed, and kept.

    Args:
        outputs: checked; of one component and precision, each for another resolution.
        open_one: opens one, and checks those again that are opened later. The first is opened at
            once, so that what is missing on this machine shows when the component is loaded.

    Raises:
        TodoError: as `open_one`.
    """

    def __init__(self, outputs: Sequence[Output], open_one: Callable[[Output], Session]) -> None:
        self._outputs = {_size(next(iter(o.manifest.inputs)).shape): o for o in outputs}
        self._open_one = open_one
        self._sessions: dict[tuple[int, ...], Session] = {}
        self._first = self._session(next(iter(self._outputs)))

    @property
    def device(self) -> torch.device:
        """See `Session`."""
        return self._first.device

    @property
    def inputs(self) -> Mapping[str, Spec]:
        """Of the first resolution."""
        return self._first.inputs

    @property
    def outputs(self) -> Mapping[str, Spec]:
        """Of the first resolution."""
        return self._first.outputs

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session.run`.

        Raises:
            InputError: none of the engines is for this size.
        """
        main = next(iter(self._first.inputs))
        if main not in feeds:
            return self._first.run(feeds)  # which says what is missing
        size = _size(tuple(feeds[main].shape))
        if size not in self._outputs:
            named = ", ".join(
                str(o.manifest.model.get("resolution")) for o in self._outputs.values()
            )
            raise InputError(
                f"{main} has the shape {tuple(feeds[main].shape)}; this bundle was built for "
                f"{named} px.",
                remedy="Ask for one of these sizes (height=, width=), or build the bundle with "
                "one more --res.",
            )
        return self._session(size).run(feeds)

    def _session(self, size: tuple[int, ...]) -> Session:
        found = self._sessions.get(size)
        if found is None:
            found = self._sessions[size] = self._open_one(self._outputs[size])
        return found


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(height, width) in latent cells."""
    return shape[2:]
