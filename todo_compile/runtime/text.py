"""A compiled CLIP text encoder in transformers' calling convention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from todo_compile import packages
from todo_compile.errors import InputError
from todo_compile.runtime.component import Component


class CompiledTextEncoder(Component):
    """A compiled text encoder; stands where transformers' ``CLIPTextModel`` (or the one
    ``WithProjection``) stood."""

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

        Of the hidden states only those that the engine has can be read: the one before the last
        for SDXL.

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
        penultimate = found.get("hidden_states_penultimate")
        hidden = None
        if output_hidden_states:
            hidden = _HiddenStates(int(self.config.num_hidden_layers), penultimate, self)
        return _output(found, hidden, return_dict is not False)

    def _without(self, name: str) -> InputError:
        return InputError(
            f"The pipeline passes {name}; {self.origin.built_for} without it.",
            remedy="Leave it out, or use the torch text encoder.",
        )


class _HiddenStates(tuple[Any, ...]):
    """The states after every layer, of which an engine has one: reading another is refused.

    Index 0 is the embedding, index `layers` the last layer's output before the final norm.
    """

    _engine: CompiledTextEncoder

    def __new__(
        cls, layers: int, penultimate: Tensor | None, engine: CompiledTextEncoder
    ) -> _HiddenStates:
        states: list[Tensor | None] = [None] * (layers + 1)
        states[layers - 1] = penultimate
        made = super().__new__(cls, states)
        made._engine = engine
        return made

    def __getitem__(self, index: Any) -> Any:
        value = super().__getitem__(index)
        asked = value if isinstance(index, slice) else (value,)
        if any(state is None for state in asked):
            raise InputError(
                f"Hidden state {index} is asked for, which is not among the outputs; "
                f"{self._engine.origin.built_for}.",
                remedy="Leave clip_skip out, or use the torch text encoder.",
            )
        return value


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
