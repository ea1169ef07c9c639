"""What libraries ask of a module and a compiled one cannot do: an error, and nothing half done.

An engine holds no weights that could be moved, saved, pickled or given hooks. A copy shares it, as
nothing in it ever changes.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn, Self

from torch import nn

from todo_compile.errors import InputError

# Hooks with which accelerate and diffusers move a module's weights: attribute → what uses it.
_HOOKS = {
    "_hf_hook": "offloading (enable_model_cpu_offload, enable_sequential_cpu_offload)",
    "_diffusers_hook": "hooks of diffusers (group offloading, layerwise casting, caches)",
}


class CompiledError(InputError, AttributeError):
    """A compiled component was asked for something that only weights and layers can do.

    Also an AttributeError, so that ``hasattr`` says no.
    """


class Sealed(nn.Module):
    """A module without weights of its own."""

    @property
    def _called(self) -> str:
        """For messages."""
        return type(self).__name__

    @property
    def _shared(self) -> tuple[object, ...]:
        """What copies share."""
        return ()

    def state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: an empty table would pass for the weights.

        Raises:
            CompiledError: always.
        """
        del args, kwargs
        raise CompiledError(
            f"{self._called} is compiled: its weights are inside the engine.",
            remedy="Take them from the model that it was made from, and leave offloading out.",
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that runs the same engine."""
        memo |= {id(part): part for part in self._shared}
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return copied

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refused, as every way of pickling.

        Raises:
            CompiledError: always.
        """
        del protocol
        raise CompiledError(
            f"{self._called} is compiled: it cannot be pickled.",
            remedy="Send the path of its file or bundle, and load it where it shall run "
            "(todo_compile.load, load_pipeline).",
        )


class Compiled(Sealed):
    """A part of a pipeline without weights of its own, as diffusers may hold it."""

    def __init__(self) -> None:
        super().__init__()
        _let_diffusers_know()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: an engine holds no weights that could be saved.

        diffusers' ``pipe.save_pretrained`` ends here too, before it would write a pipeline that
        lacks this component.

        Raises:
            CompiledError: always.
        """
        del args, kwargs
        raise CompiledError(
            f"{self._called} is compiled: it cannot be saved in diffusers' format.",
            remedy="Copy the bundle's folder (or the file and its manifest), or save the pipeline "
            "that it was made from.",
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOOKS and bool(value):
            raise CompiledError(
                f"{self._called} is compiled, and {_HOOKS[name]} cannot be used with it.",
                remedy="Leave it out: the engine keeps its weights where it was loaded. Several "
                "engines share a GPU best when built with --weight-streaming.",
            )
        super().__setattr__(name, value)


def _let_diffusers_know() -> None:
    """Tell diffusers that `Compiled` has a `save_pretrained`.

    Without that it would save a pipeline that lacks the component, with no more than a log line.
    """
    from diffusers.pipelines import pipeline_loading_utils

    classes: Any = pipeline_loading_utils.LOADABLE_CLASSES
    classes.setdefault(__name__, {"Compiled": ["save_pretrained", "from_pretrained"]})
