"""Compiled UNets and transformers in diffusers' calling conventions."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from todo_compile.errors import InputError
from todo_compile.models.controlnet import MID, residual_names, residual_shapes
from todo_compile.models.ip_adapter import INPUT
from todo_compile.models.t2i_adapter import FIRST, adapter_names, adapter_shapes
from todo_compile.runtime.component import Component
from todo_compile.runtime.session import dtype_named

if TYPE_CHECKING:
    from typing import Unpack

    from todo_compile.runtime.component import ComponentOptions
    from todo_compile.runtime.files import Origin
    from todo_compile.runtime.session import Session

_SHARED = frozenset({"timestep"})
# Numbers that callers hand over in any type: they are labels, sizes and times, not activations.
_ANY_TYPE = frozenset({"timestep", "time_ids", "class_labels", "resolution", "aspect_ratio"})


class _Denoiser(Component):
    def __init__(
        self, session: Session, origin: Origin, **options: Unpack[ComponentOptions]
    ) -> None:
        super().__init__(session, origin, **options)
        _, _, height, width = next(iter(session.inputs.values())).shape
        if height == width:
            # What pipelines take for the size of pictures when the user names none.
            self._change_config(sample_size=height)

    def _predict(self, given: dict[str, Any], refused: dict[str, Any]) -> Tensor:
        """The noise prediction.

        Args:
            given: inputs by their names in the engine; None is an absent one.
            refused: arguments that no engine takes, for the message.
        """
        for name, value in refused.items():
            if value is not None and value != {}:
                raise InputError(
                    f"The pipeline passes {name}; {self.origin.built_for} without it.",
                    remedy=_REMEDIES.get(name, "Leave it out, or use the torch module."),
                )
        feeds: dict[str, Tensor] = {}
        for name, value in given.items():
            if value is None:
                continue
            if name not in self.session.inputs:
                raise InputError(
                    f"The pipeline passes {name}; {self.origin.built_for} without it.",
                    remedy=_REMEDIES.get(name, "Use the pipeline class of the compiled model."),
                )
            if name in _ANY_TYPE:
                wanted = dtype_named(self.session.inputs[name].dtype)
                value = torch.as_tensor(value, dtype=wanted, device=self.device)  # noqa: PLW2901
            feeds[name] = value
        feeds["timestep"] = self._one_time(feeds["timestep"])
        return next(iter(self._run(feeds, shared=_SHARED).values()))

    def _one_time(self, timestep: Tensor) -> Tensor:
        """(1,): the engine has one time for the whole batch."""
        times = timestep.reshape(-1)
        if len(times) > 1 and not bool((times == times[0]).all()):
            raise InputError(
                f"The rows of a batch have different timesteps; {self.origin.built_for} with one "
                "timestep for the batch.",
                remedy="Call it once for each timestep, or compile the module with a timestep a "
                "row among its example inputs: todo_compile.compile(module, args=(), kwargs=…).",
            )
        return times[:1]


_REMEDIES = {
    INPUT: "Compile the UNet with --ip-adapter FILE, or use the torch UNet.",
    "cross_attention_kwargs": "A LoRA scale, for one, cannot be changed after compiling.",
    "timestep_cond": "The compiled model is not guidance-distilled.",
}


class CompiledUNet(_Denoiser):
    """A compiled UNet; call it as diffusers' ``UNet2DConditionModel``."""

    def __init__(
        self, session: Session, origin: Origin, **options: Unpack[ComponentOptions]
    ) -> None:
        super().__init__(session, origin, **options)
        # SDXL's pipelines compare it with the length of the conditions that they make.
        width = self.config.get("projection_class_embeddings_input_dim")
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))
        if INPUT in session.inputs:  # whose projection pipelines ask what it takes of a picture
            from diffusers.models.embeddings import ImageProjection

            # Of the layer, which is compiled, they ask the class: this one takes one embedding.
            one = len(session.inputs[INPUT].shape) == 3
            taken = ImageProjection(1, 1, 1) if one else SimpleNamespace()
            self.encoder_hid_proj = SimpleNamespace(image_projection_layers=[taken])

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: tuple[Tensor, ...] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Noise prediction, shape of `sample` but for the channels; see diffusers.

        Raises:
            InputError: the engine was not built for it.
        """
        residuals = self._residuals(
            sample, down_block_additional_residuals, mid_block_additional_residual
        )
        prediction = self._predict(
            {
                "sample": sample,
                "timestep": timestep,
                "encoder_hidden_states": encoder_hidden_states,
                "class_labels": class_labels,
                "timestep_cond": timestep_cond,
                **(added_cond_kwargs or {}),
                INPUT: self._pictured((added_cond_kwargs or {}).get(INPUT)),
                **self._adapted(sample, down_intrablock_additional_residuals or ()),
                **residuals,
            },
            {
                "attention_mask": None if attention_mask is None else True,
                "encoder_attention_mask": None if encoder_attention_mask is None else True,
                "cross_attention_kwargs": cross_attention_kwargs,
            },
        )
        if not return_dict:
            return (prediction,)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=prediction)

    def _pictured(self, embeddings: Any) -> Tensor | None:
        """The embedding for an IP-Adapter: pipelines pass a list, of one for each adapter."""
        found: list[Tensor] = list(embeddings) if isinstance(embeddings, (list, tuple)) else (
            [] if embeddings is None else [embeddings[:, None]]
        )  # fmt: skip
        if INPUT not in self.session.inputs:
            return found[0] if found else None  # refused, with a remedy
        if len(found) != 1:
            raise InputError(
                f"The pipeline passes pictures for {len(found)} IP-Adapters; "
                f"{self.origin.built_for} with one.",
                remedy="Give a picture: ip_adapter_image=…, or ip_adapter_image_embeds=[…].",
            )
        return found[0]

    def _adapted(self, sample: Tensor, given: Sequence[Tensor]) -> dict[str, Tensor]:
        """A T2I-Adapter's residuals by their names in the engine; zeros where it has none."""
        if FIRST not in self.session.inputs:
            if given:
                raise InputError(
                    "The pipeline passes T2I-Adapter residuals; "
                    f"{self.origin.built_for} without it.",
                    remedy="Compile the UNet with --t2i-adapter, or use the torch UNet.",
                )
            return {}
        height, width = sample.shape[-2:]
        shapes = adapter_shapes(self.config, (height, width))
        if len(given) not in (0, len(shapes) - 1, len(shapes)):
            raise InputError(
                f"The pipeline passes {len(given)} residuals of a T2I-Adapter; "
                f"{self.origin.built_for} with {len(shapes) - 1}, and one for the middle.",
                remedy="Use a T2I-Adapter for this architecture.",
            )
        missing = [
            torch.zeros((len(sample), *shape), dtype=sample.dtype, device=sample.device)
            for shape in shapes[len(given) :]
        ]
        return dict(zip(adapter_names(len(shapes)), (*given, *missing), strict=True))

    def _residuals(
        self, sample: Tensor, down: Sequence[Tensor] | None, mid: Tensor | None
    ) -> dict[str, Tensor]:
        """A ControlNet's residuals by their names in the engine; zeros if the pipeline has none."""
        if MID not in self.session.inputs:
            if down is not None or mid is not None:
                raise InputError(
                    "The pipeline passes ControlNet residuals; "
                    f"{self.origin.built_for} without it.",
                    remedy="Compile the UNet with --controlnet, or use the torch UNet.",
                )
            return {}
        height, width = sample.shape[-2:]  # not the session's: it may have several resolutions
        shapes = residual_shapes(self.config, (height, width))
        names = residual_names(len(shapes))
        if down is None and mid is None:
            return {
                name: torch.zeros((len(sample), *shape), dtype=sample.dtype, device=sample.device)
                for name, shape in zip(names, shapes, strict=True)
            }
        if down is None or mid is None:
            raise InputError(
                "The pipeline passes only one kind of residuals (down blocks, middle block).",
                remedy="A ControlNet makes both; a T2I-Adapter's have a name of their own.",
            )
        if len(down) != len(shapes) - 1:
            raise InputError(
                f"The pipeline passes {len(down)} residuals of down blocks; {self.origin.built_for}"
                f" with {len(shapes) - 1}.",
                remedy="Use a ControlNet for this architecture.",
            )
        return {
            name: _spread(value, shape)
            for name, shape, value in zip(names, shapes, (*down, mid), strict=True)
        }


def _spread(residual: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A residual in full size: ControlNets with ``global_pool_conditions`` make 1×1."""
    if residual.ndim == 4 and tuple(residual.shape[-2:]) == (1, 1):
        return residual.expand(-1, -1, *shape[1:])
    return residual


class CompiledTransformer(_Denoiser):
    """A compiled PixArt or DiT; call it as diffusers' classes of these names."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | float | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Noise prediction and variance; see diffusers.

        Raises:
            InputError: the engine was not built for it.
        """
        if timestep is None:
            raise InputError("The transformer was called without a timestep.")
        prediction = self._predict(
            {
                "hidden_states": hidden_states,
                "encoder_hidden_states": encoder_hidden_states,
                "timestep": timestep,
                "class_labels": class_labels,
                "encoder_attention_mask": self._mask(encoder_attention_mask),
                **(added_cond_kwargs or {}),
            },
            {
                "attention_mask": None if attention_mask is None else True,
                "cross_attention_kwargs": cross_attention_kwargs,
            },
        )
        if not return_dict:
            return (prediction,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=prediction)

    def _mask(self, mask: Tensor | None) -> Tensor | None:
        """A mask of 0 and 1 in the engine's type: tokenizers make integers."""
        spec = self.session.inputs.get("encoder_attention_mask")
        return mask if mask is None or spec is None else mask.to(dtype_named(spec.dtype))
