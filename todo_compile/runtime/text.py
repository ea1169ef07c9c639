"""A compiled CLIP text encoder in transformers' calling convention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from todo_compile import packages
from todo_compile.errors import InputError
from todo_compile.runtime.component import Component

if TYPE_CHECKING:
    from typing import Unpack

    from todo_compile.runtime.component import ComponentOptions
    from todo_compile.runtime.files import Origin
    from todo_compile.runtime.session import Session


class CompiledTextEncoder(Component):
    """A compiled text encoder; stands where transformers' ``CLIPTextModel`` (or the one
    ``WithProjection``) stood."""

    def __init__(
        self, session: Session, origin: Origin, **options: Unpack[ComponentOptions]
    ) -> None:
        super().__init__(session, origin, **options)
        self._norm = _Norm()

    def _make_config(self, values: dict[str, Any]) -> Any:
        transformers = packages.load("transformers", "A text encoder's pipeline")
        return transformers.CLIPTextConfig.from_dict(values)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **refused: Any,
    ) -> Any:
        """Embeddings of token ids, (B, 77, width) and pooled; see transformers.

        Raises:
            InputError: the engine was not built for it.
        """
        for name, value in refused.items():
            if value is not None:
                raise self._without(name)
        # CLIP's own mask is causal; a padding mask is what few pipelines pass.
        if attention_mask is not None and not bool(attention_mask.all()):
            raise self._without("attention_mask")
        found = self._run({"input_ids": input_ids}, shared=frozenset())
        states = found["hidden_states"].unbind(1)
        if "normed_states" in found:
            self._norm.given = tuple(zip(states, found["normed_states"].unbind(1), strict=True))
        return _output(found, states if output_hidden_states else None, return_dict is not False)

    @property
    def text_model(self) -> Any:
        """Of CLIP's inner model what pipelines use when they skip layers: ``final_layer_norm``."""
        return SimpleNamespace(final_layer_norm=self._norm)

    def _without(self, name: str) -> InputError:
        return InputError(
            f"The pipeline passes {name}; {self.origin.built_for} without it.",
            remedy="Leave it out, or use the torch text encoder.",
        )


class _Norm:
    """CLIP's last norm, of the states of the latest call, for which the engine has computed it.

    Attributes:
        given: (state, the same after the norm).
    """

    given: tuple[tuple[Tensor, Tensor], ...] = ()

    def __call__(self, state: Tensor) -> Tensor:
        """The norm of a state.

        Raises:
            InputError: it is of something else.
        """
        for known, normed in self.given:
            if known is state:
                return normed
        raise InputError(
            "A compiled text encoder has its last norm for the states of its latest call alone.",
            remedy="Hand over one of its hidden_states as it is, or use the torch text encoder.",
        )


def _output(found: dict[str, Tensor], hidden: Any, return_dict: bool) -> Any:
    """transformers' output; its first entry is what pipelines take by index."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.models.clip.modeling_clip import CLIPTextModelOutput

    if "text_embeds" in found:
        result: Any = CLIPTextModelOutput(
            text_embeds=found["text_embeds"],
            last_hidden_state=found["last_hidden_state"],
            hidden_states=hidden,
        )
    else:
        result = BaseModelOutputWithPooling(
            last_hidden_state=found["last_hidden_state"],
            pooler_output=found["pooler_output"],
            hidden_states=hidden,
        )
    return result if return_dict else result.to_tuple()
