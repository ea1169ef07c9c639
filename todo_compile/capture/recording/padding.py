"""Texts that a pipeline passes as long as they are, filled up beside a mask.

A denoiser that hides what its mask does not name draws the same from a text that was filled up: so
a graph of one length serves every shorter text. Which denoisers do is written here, since a mask
among the parameters does not say it (Kandinsky 3 takes the mean of its text, filled up or not); the
tests compare each with torch's pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Padding:
    """How a denoiser's text is filled up.

    Attributes:
        text: the parameter with the text, (rows, tokens, channels).
        mask: the parameter with its mask, (rows, tokens), true where a token counts.
    """

    text: str
    mask: str

    @property
    def described(self) -> dict[str, str]:
        """For manifests."""
        return {"text": self.text, "mask": self.mask}

    def masked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A recorded call with a mask, where its pipeline left it out since all tokens count.

        The last quarter is hidden, so that proofs see what the mask does.
        """
        found = dict(arguments)
        text = found.get(self.text)
        if isinstance(text, Tensor) and found.get(self.mask) is None:
            rows, tokens = text.shape[:2]
            counts = torch.arange(tokens) < tokens - tokens // 4
            found[self.mask] = counts.expand(rows, tokens).clone()
        return found

    def filled(self, arguments: Mapping[str, Any], tokens: int) -> dict[str, Any]:
        """A call's arguments with the text filled up to `tokens`; longer ones stay as they are."""
        found = dict(arguments)
        text = found.get(self.text)
        if not isinstance(text, Tensor):
            return found
        mask = found.get(self.mask)
        if mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        mask = cast("Tensor", mask).to(torch.bool)
        missing = max(0, tokens - text.shape[1])
        found[self.text] = torch.nn.functional.pad(text, (0, 0, 0, missing))
        found[self.mask] = torch.nn.functional.pad(mask, (0, missing), value=False)
        return found


PADDED: Mapping[str, Padding] = {
    "QwenImageTransformer2DModel": Padding("encoder_hidden_states", "encoder_hidden_states_mask"),
}
"""Denoisers by their class in diffusers."""
