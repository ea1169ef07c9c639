"""Image tokens that arrive packed beside text, of lengths that change, against the oracle."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backend_helpers import GRIDS, self_attention, two_levels
from graphs import assert_close, unet_inputs
from oracle import attention, pooled_fused_attention, stand_ins
from torch import nn

import todo_compile

GRID = (8, 8)
HALF = (2, 2)


def compiled(model: nn.Module, dynamic: bool | None = None, **options: Any) -> Any:
    return torch.compile(
        model,
        backend="todo_inductor",
        dynamic=dynamic,
        options={"factors": 2, "inner": "eager", **options},
    )


def sd3() -> Any:
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
        pooled_projection_dim=8, out_channels=4, pos_embed_max_size=32,
    ).eval()  # fmt: skip


def flux() -> Any:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip


def sd3_inputs(text: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 4, 16, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, text, 16, generator=generator),
        "pooled_projections": torch.randn(2, 8, generator=generator),
        "timestep": torch.tensor([5.0, 5.0]),
        "return_dict": False,
    }


def flux_inputs(text: int, batch: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(*GRID, 3)
    ids[..., 1] += torch.arange(GRID[0])[:, None]
    ids[..., 2] += torch.arange(GRID[1])
    return {
        "hidden_states": torch.randn(batch, 64, 16, generator=generator),
        "encoder_hidden_states": torch.randn(batch, text, 16, generator=generator),
        "pooled_projections": torch.randn(batch, 8, generator=generator),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(text, 3),
        "return_dict": False,
    }


def check(run: Any, model: Any, given: dict[str, Any], offset: int, sites: int = 2) -> None:
    """The run equals attention with pooled image keys, which differs from dense attention."""
    text = given["encoder_hidden_states"].shape[1]
    with torch.no_grad():
        dense = model(**given)[0]
        with pooled_fused_attention({64 + text: (offset, GRID, HALF)}, "nearest") as seen:
            expected = model(**given)[0]
        assert len(seen) == sites
        assert not torch.allclose(dense, expected, atol=1e-3)
        assert_close((run(**given)[0],), expected)


@pytest.mark.parametrize("dynamic", [None, True])
def test_second_text_length_after_the_image(dynamic: bool | None) -> None:
    """SD3 puts the text behind the image, where no offset tells its length."""
    model = sd3()
    run = compiled(model, dynamic)
    for text in (7, 9):
        check(run, model, sd3_inputs(text), 0)
    assert {(s.kind, s.grid, s.factor) for s in self_attention()} == {("joint", GRID, HALF)}


@pytest.mark.slow
def test_packed_tokens_keep_their_grid_when_sizes_change() -> None:
    """Text of other lengths, another batch, and from the start; two layers after one another."""
    model = flux()
    run = compiled(model, res="128")
    for text, batch in ((5, 1), (16, 1), (7, 2)):
        check(run, model, flux_inputs(text, batch), text, 3)
    torch.compiler.reset()
    check(compiled(model, True, res="128"), model, flux_inputs(5), 5, 3)
    assert {(s.kind, s.grid, s.factor) for s in self_attention()} == {("joint", GRID, HALF)}
    assert all("res says so of the packed patches" in s.reason for s in self_attention())


def test_blocks_at_several_batches() -> None:
    model = two_levels()
    model.unet.compile_repeated_blocks(
        backend="todo_inductor", options={"kv_tokens": 16, "inner": "eager", "token_grids": GRIDS}
    )
    truth = two_levels({64: HALF})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in (1, 2, 3):
            given = unet_inputs(8, 8, batch)
            assert_close((model(*given),), truth(*given))
    assert {(s.grid, s.factor) for s in self_attention()} == {((8, 8), HALF), ((4, 4), (1, 1))}


def test_wrong_grids_are_named() -> None:
    model = two_levels()
    model.unet.compile_repeated_blocks(
        backend="todo_inductor",
        options={"kv_tokens": 4, "inner": "eager", "token_grids": {100: (10, 10), 25: (5, 5)}},
    )
    given = unet_inputs(8, 8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_close((model(*given),), two_levels()(*given))
    sites = self_attention()
    assert {s.action for s in sites} == {"refused"}
    assert "its 64 tokens" in sites[0].reason
    assert "token_grids names none of as many (100, 25)" in sites[0].reason


class Captioned(nn.Module):
    """A caption that attends to itself, and an image, packed or not, that does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.pool: Any = lambda t: t

    def attend(self, x: torch.Tensor, pool: Any = lambda t: t) -> torch.Tensor:
        q, k, v = (t[:, None] * 2 for t in (self.q(x), self.k(pool(x)), pool(x)))
        if self.training:
            return F.scaled_dot_product_attention(q, k, v)[:, 0]
        return attention(q, k, v)[:, 0]

    def forward(self, image: torch.Tensor, caption: torch.Tensor) -> torch.Tensor:
        tokens = image if image.dim() == 3 else image.flatten(2).mT
        return self.attend(tokens, self.pool).sum(1) + self.attend(caption).sum(1)


@pytest.mark.parametrize("packed", [True, False])
def test_text_is_no_image_for_having_its_length(packed: bool) -> None:
    image, caption = torch.randn(1, 8, 8, 8), torch.randn(1, 16, 8)
    given = image.flatten(2).mT if packed else image
    model, truth = Captioned().train(), Captioned().eval()
    if packed:  # else nothing proves the image's grid
        truth.pool = lambda t: stand_ins(t, 1, GRID, HALF)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = compiled(model, token_grids=GRIDS, factors="2,2" if packed else "2")(given, caption)
        assert_close((got,), truth(given, caption))
    picture, text = self_attention()
    assert (picture.action, text.action) == ("rewritten" if packed else "refused", "refused")
    assert "a larger picture goes in too" in text.reason


@pytest.mark.parametrize("shape", [(1, 8, 8, 8), (1, 8, 2, 4, 4), (1, 2, 8, 4, 4)])
def test_text_beside_a_larger_picture_or_video(shape: tuple[int, ...]) -> None:
    """A video shows frames × rows × columns; none of its sides is in `token_grids`."""

    class Beside(Captioned):
        def forward(self, image: torch.Tensor, caption: torch.Tensor) -> torch.Tensor:
            return self.attend(caption) + image.mean()

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled(Beside().train(), token_grids={16: (4, 4)})(
            torch.randn(shape), torch.randn(1, 16, 8)
        )
    (text,) = self_attention()
    assert text.action == "refused"
    assert "a larger picture goes in too" in text.reason


def test_two_inputs_of_as_many_tokens() -> None:
    """Which of them is the image is told by what is returned; where neither is, nothing is."""

    class Both(Captioned):
        back = True

        def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            text = self.attend(text).mean(1, keepdim=True)
            out = self.attend(image, self.pool) + text
            return out if self.back else out.mean(1)

    image, text = torch.randn(1, 64, 8), torch.randn(1, 64, 8)
    model, truth = Both().train(), Both().eval()
    truth.pool = lambda t: stand_ins(t, 1, GRID, HALF)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = compiled(model, token_grids=GRIDS)(image, text)
        assert_close((got,), truth(image, text))
        assert [site.action for site in self_attention()] == ["refused", "rewritten"]
        todo_compile.clear_reports()
        model.back = False
        compiled(model, token_grids=GRIDS)(image, text)
    assert [site.action for site in self_attention()] == ["refused", "refused"]


def test_text_beside_tokens_of_no_known_grid() -> None:
    """What came in packed is a part of the keys: nobody is told that it must be the image."""

    class Joint(Captioned):
        def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return self.attend(torch.cat((text, image.flatten(2).mT), 1)).mean(1)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled(Joint())(torch.randn(1, 8, 6, 8), torch.randn(1, 5, 8))
    (site,) = self_attention()
    assert site.action == "refused"
    assert "l_text_ came in packed (5 of them)" in site.reason
    assert "the other 48 are the rows and columns" in site.reason


def test_whose_grid_is_asked_for() -> None:
    """The longest of several packed inputs, and res as another way, unless it was given."""
    image, text = torch.randn(1, 64, 8), torch.randn(1, 5, 8)

    class Joint(Captioned):
        def forward(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            return self.attend(torch.cat((text, image), 1)).mean(1)

    for given in ({}, {"res": "128"}):
        todo_compile.clear_reports()
        torch.compiler.reset()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled(Joint(), **given)(text, image)
        (site,) = self_attention()
        assert site.action == "refused"
        assert "token_grids={64: (rows, columns)}" in site.reason
        assert ("give res for a whole denoiser" in site.reason) == (not given)


def test_residuals_of_as_many_tokens_are_the_same_picture() -> None:
    """A ControlNet's outputs are added token by token."""

    class Controlled(Captioned):
        def forward(self, image: torch.Tensor, control: torch.Tensor) -> torch.Tensor:
            return self.attend(image + control, self.pool).mean(1)

    given = torch.randn(1, 64, 8), torch.randn(1, 64, 8)
    model, truth = Controlled().train(), Controlled().eval()
    truth.pool = lambda t: stand_ins(t, 1, GRID, HALF)
    with torch.no_grad():
        assert_close((compiled(model, token_grids=GRIDS)(*given),), truth(*given))
    assert [site.action for site in self_attention()] == ["rewritten"]


class Denoiser(Captioned):
    """(B, N, C) tokens and a noise level an item → as many tokens."""

    def forward(self, tokens: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        out = self.attend(tokens, self.pool)
        for other in given:
            mean = other.float().flatten(1).mean(1) if other.dim() > 1 else other
            out = out + mean[:, None, None]
        return out


def test_resolution_of_a_denoiser_of_packed_patches() -> None:
    x, level = torch.randn(2, 64, 8), torch.tensor([0.1, 0.9])
    model, truth = Denoiser().train(), Denoiser().eval()
    truth.pool = lambda t: stand_ins(t, 1, GRID, HALF)
    with torch.no_grad():
        assert_close((compiled(model, res="128")(x, level),), truth(x, level))
    (site,) = self_attention()
    assert (site.action, site.grid) == ("rewritten", GRID)
    assert "on 8×8 since res says so of the packed patches" in site.reason


LEVEL = torch.tensor([0.1, 0.9])
TOKENS = torch.randn(2, 64, 8)
NO_DENOISERS: dict[str, tuple[str, tuple[torch.Tensor, ...]]] = {
    "no noise level: a block": ("128", (TOKENS,)),
    "a vector an item, no level": ("128", (TOKENS, torch.randn(2, 8))),
    "unpatched latent": ("64", (TOKENS, LEVEL)),
    "second level": ("256", (TOKENS, LEVEL)),
    "four pictures of a level": ("64", (torch.randn(2, 4 * 16, 8), LEVEL)),
    "another input of as many": ("128", (TOKENS, LEVEL, torch.randn(2, 64, 8))),
    "a picture goes in": ("128", (TOKENS, LEVEL, torch.randn(2, 3, 4, 4))),
    "a video goes in": ("128", (TOKENS, LEVEL, torch.randn(2, 3, 2, 4, 4))),
}


@pytest.mark.parametrize("name", NO_DENOISERS)
def test_resolution_says_nothing_of_other_graphs(name: str) -> None:
    res, given = NO_DENOISERS[name]
    model = Denoiser().train()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_close((compiled(model, res=res)(*given),), model(*given))
    assert [site.action for site in self_attention()] == ["refused"]


@pytest.mark.parametrize("what", ["prior", "side input", "shuffled"])
def test_resolution_says_nothing_of_tokens_that_are_not_returned(what: str) -> None:
    class Other(Captioned):
        def forward(self, x: torch.Tensor, level: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            out = self.attend(x) + level[:, None, None]
            if what == "shuffled":
                return out[:, torch.arange(63, -1, -1)]
            return out.mean(1) if what == "prior" else y + out.mean(1, keepdim=True)

    model, given = Other().train(), (TOKENS, LEVEL, torch.randn(2, 5, 8))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_close((compiled(model, res="128")(*given),), model(*given))
    assert [site.action for site in self_attention()] == ["refused"]


@pytest.mark.parametrize("frames", [False, True])
def test_accelerate_names_the_grid_that_its_pipeline_packs(frames: bool) -> None:
    class Pipe:
        vae_scale_factor = 8

        def __init__(self) -> None:
            self.transformer = Denoiser().train()

        def _pack_latents(self) -> None:
            """That it has one tells that it packs."""

        def __call__(self) -> None:
            """Of pictures."""

    class Video(Pipe):
        def __call__(self, num_frames: int = 1) -> None:
            """Of frames."""

    pipe = (Video if frames else Pipe)()
    todo_compile.accelerate(pipe, res="128", factors=2, inner="eager")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.transformer(TOKENS)  # no noise level: its number alone would prove nothing
    assert [s.action for s in self_attention()] == ["refused" if frames else "rewritten"]


def test_attention_over_frames_is_not_asked_for_a_grid() -> None:
    class Frames(Captioned):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, video: torch.Tensor) -> torch.Tensor:
            b, f = video.shape[:2]
            x = self.conv(video.flatten(0, 1)).flatten(2).unflatten(0, (b, f))
            return self.attend(x.permute(0, 3, 1, 2).flatten(0, 1))

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled(Frames().train(), res="128")(torch.randn(1, 4, 8, 6, 6))
    (site,) = self_attention()
    assert site.action == "refused"
    assert "these are frames, or points in time" in site.reason
