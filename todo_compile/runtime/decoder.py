"""A compiled VAE decoder in diffusers' calling convention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from todo_compile.errors import InputError
from todo_compile.runtime.component import Component

if TYPE_CHECKING:
    from todo_compile.runtime.component import Batching
    from todo_compile.runtime.files import Origin
    from todo_compile.runtime.session import Session


class CompiledVAE(Component):
    """A compiled decoder; stands where diffusers' ``AutoencoderKL`` stood.

    Latents of another float type are cast to the decoder's: it may be built in another precision
    than the denoiser (SDXL's overflows in fp16).

    Args:
        encoder: a torch VAE for `encode`, which image-to-image needs; moves with the pipeline.
    """

    def __init__(
        self,
        session: Session,
        origin: Origin,
        *,
        encoder: nn.Module | None = None,
        batching: Batching = "split",
    ) -> None:
        super().__init__(session, origin, batching=batching, cast=True)
        self.torch_vae = encoder
        # Pipelines would move a torch decoder to fp32 and back; ours is what it was built as.
        self._change_config(force_upcast=False)

    @property
    def post_quant_conv(self) -> nn.Module:
        """Nothing but the decoder's type: pipelines ask the parameters of this layer for it."""
        empty = nn.Parameter(torch.empty(0, dtype=self.dtype), requires_grad=False)
        return nn.ParameterList([empty])

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> Any:
        """Pictures of latents that were divided by ``config.scaling_factor``.

        Args:
            z: (B, latent channels, H/8, W/8).
            return_dict: whether to wrap the result.
            generator: ignored, as by diffusers: decoding draws nothing.

        Raises:
            InputError: the decoder was built for another size.
        """
        del generator
        picture = next(iter(self._run({"latent_sample": z}, shared=frozenset()).values()))
        if not return_dict:
            return (picture,)
        from diffusers.models.autoencoders.vae import DecoderOutput

        return DecoderOutput(sample=picture)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Latents of pictures, by the torch VAE that was given as `encoder`.

        Raises:
            InputError: none was given.
        """
        if self.torch_vae is None:
            raise InputError(
                f"{self.origin.name} only decodes, and this pipeline encodes a picture.",
                remedy="Hand over a torch VAE for that: todo_compile.load(path, encoder=vae), or "
                "load_pipeline(bundle, encoder=vae).",
            )
        vae: Any = self.torch_vae
        return vae.encode(x.to(vae.dtype), return_dict=return_dict)

    def forward(self, sample: Tensor, return_dict: bool = True, **_: Any) -> Any:
        """Encode and decode, as diffusers does; needs `encoder`."""
        return self.decode(self.encode(sample).latent_dist.mode(), return_dict=return_dict)

    def enable_slicing(self) -> None:
        """Nothing to do: a batch is cut into the decoder's own anyway."""

    def disable_slicing(self) -> None:
        """Nothing to do."""

    def enable_tiling(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the decoder has one size.

        Raises:
            InputError: always.
        """
        del args, kwargs
        raise InputError(
            f"A compiled decoder has no tiles; {self.origin.built_for}.",
            remedy="Leave enable_vae_tiling() out: the compiled decoder needs less memory already.",
        )

    def disable_tiling(self) -> None:
        """Nothing to do."""
