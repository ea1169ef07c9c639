"""`accelerate` gives every part of a pipeline the options that it can follow."""

from __future__ import annotations

from typing import Any

import torch
from graphs import Decoder, assert_close, make_unet
from oracle import OracleProcessor

import todo_compile


def test_accelerate_gives_the_decoder_the_first_levels_factor() -> None:
    class Pipe:
        def __init__(self) -> None:
            self.unet, self.vae = make_unet("both levels").unet, Decoder().vae

    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    pipe, truth = todo_compile.accelerate(Pipe(), factors="2,1", inner="eager"), Pipe()
    attention: Any = truth.vae.decoder.mid_block.attentions[0]  # type: ignore[index, union-attr]
    attention.set_processor(OracleProcessor({64: (8, 8)}, {64: (2, 2)}, "nearest"))
    with torch.no_grad():
        assert_close((pipe.vae.decoder(latent),), truth.vae.decoder(latent))
    (decoder,) = todo_compile.reports()
    assert (decoder.options["factors"], decoder.rewritten) == ([[2, 2]], 1)
