"""`accelerate` gives every part of a pipeline the options that it can follow; `restore`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from backend_helpers import GRIDS, inputs, small_unet, with_oracle
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


def test_every_denoiser_and_controlnet_is_compiled() -> None:
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

    unet = small_unet(mid_block_type="UNetMidBlock2DCrossAttn")
    nets = [ControlNetModel.from_unet(unet).eval() for _ in range(2)]
    for net in nets:
        for parameter in net.parameters():  # its outputs begin as zero convolutions
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
    sample, time, text = inputs()
    condition = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = [with_oracle(n)(sample, time, text, condition, return_dict=False) for n in nets]
        wanted_second = with_oracle(unet)(sample, time, text).sample
        pipe = SimpleNamespace(
            unet=small_unet(), transformer_2=unet, controlnet=MultiControlNetModel(nets)
        )
        todo_compile.accelerate(pipe, factors="2", inner="eager")
        for net, (down, mid) in zip(nets, wanted, strict=True):
            got = net(sample, time, text, condition, return_dict=False)
            assert_close((*got[0], got[1]), (*down, mid))
        assert_close((pipe.transformer_2(sample, time, text).sample,), (wanted_second,))
    # Both nets run one graph: their weights are its inputs.
    assert [report.rewritten for report in todo_compile.reports()] == [2, 4]


def test_without_factors_each_part_keeps_what_it_saw_in_training() -> None:
    pipe = SimpleNamespace(unet=make_unet("both levels").unet, vae=Decoder().vae)
    pipe.vae.register_to_config(sample_size=4)  # pixels, and latent cells: it has one level
    todo_compile.accelerate(pipe, inner="eager")
    with torch.no_grad():
        pipe.vae.decoder(torch.randn(1, 4, 8, 8))
        pipe.unet(torch.randn(1, 4, 16, 16), torch.tensor(3.0), torch.randn(1, 5, 12))
    decoder, unet = todo_compile.reports()
    assert decoder.options["kv_tokens"] == 16
    assert unet.options["kv_tokens"] == pipe.unet.config.sample_size**2 == max(GRIDS)


def test_restore_gives_back_what_the_user_had_compiled() -> None:
    """By plain Inductor, say: neither of two calls of `accelerate` forgets it."""
    calls: list[int] = []

    def own(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.append(1)
        return graph.forward

    unet = small_unet()
    unet.compile(backend=own)
    pipe = SimpleNamespace(unet=unet)
    with torch.no_grad():
        dense = unet(*inputs()).sample
        compiled = len(calls)
        assert compiled
        for _ in range(2):
            todo_compile.accelerate(pipe, factors="2", inner="eager")
        assert not torch.allclose(unet(*inputs()).sample, dense, atol=1e-4)
        todo_compile.restore(pipe)
        todo_compile.restore(pipe)  # nothing is left to undo
        assert torch.equal(unet(*inputs()).sample, dense)
        torch.compiler.reset()
        unet(*inputs())
    assert len(calls) > compiled
