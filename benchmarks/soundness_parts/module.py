"""The module of a case, with a hook where keys, values and the bias enter attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from soundness_parts.attend import SPELLINGS, Attend
from soundness_parts.case import SIDES, Case, another_picture, grid_of, side_lengths
from soundness_parts.inputs import DTYPES
from soundness_parts.keys import FUSED, KEY_MAPS, PROJECTIONS, REPEATS, SPLITS, Layers
from soundness_parts.masks import MASKS, Keys
from soundness_parts.sources import ORDERS, PICTURES, SOURCES, WIDTH
from soundness_parts.views import ALIASES, DETOURS
from soundness_parts.writes import PARTS, SHUFFLES, WRITES

Parts = tuple[Tensor, Tensor, Tensor]

Beside = tuple[Tensor | None, Tensor | None]
"""Text before and after the image's tokens."""


def filter_none(given: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """What is there."""
    return tuple(t for t in given if t is not None)


class Attention(nn.Module):
    """Tokens, a block with one attention, its output; `hook` replaces attention for the truth."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(case.seed)
        self.case = case
        source = SOURCES[case.source]
        rows, columns = grid_of(case)
        before, after = self.before, self.after = side_lengths(case)
        self.image = rows * columns * source.sequence
        keys = 2 * self.image + before + after
        self.key_heads = case.heads if case.repeat == "none" else max(1, case.heads // 2)
        self.stem = source.stem()
        self.table = nn.Parameter(torch.randn(2 * case.size[0] * case.size[1] + 9, WIDTH))
        # As the tokens are counted, so that its axes meet theirs.
        places = (columns, rows) if ORDERS[case.order].column_major else (rows, columns)
        self.places = nn.Parameter(torch.randn(*places, WIDTH))
        self.layer_norm = nn.LayerNorm(WIDTH)
        self.group_norm = nn.GroupNorm(2, WIDTH)
        self.batch_norm = nn.BatchNorm1d(WIDTH)
        self.layers = Layers(WIDTH, WIDTH // case.heads * self.key_heads, max(keys, 9))
        self.text_k, self.text_v = (nn.Linear(WIDTH, self.layers.to_k.out_features) for _ in "kv")
        self.own = nn.Parameter(torch.randn(1, 2, WIDTH))
        self.bias = nn.Parameter(torch.randn(case.heads, keys, keys).clamp(-2, 2))
        self.to_out = nn.Linear(WIDTH, WIDTH)
        tokens = case.size[0] * case.size[1] * source.sequence
        self.shuffled: Tensor
        self.register_buffer("shuffled", torch.randperm(tokens))
        self.hook: Attend | None = None
        # Looked up here, so that Dynamo need not follow the tables of choices.
        self.side, self.masking = SIDES[case.side], MASKS[case.mask]
        self.from_image, self.reorder = source.tokens, ORDERS[case.order].apply
        self.look, self.detour = ALIASES[case.alias], DETOURS[case.detour]
        self.picture = PICTURES[case.picture]
        self.part, self.change = PARTS[case.part], {**WRITES, **SHUFFLES}[case.write]
        self.map_key, self.map_value = KEY_MAPS[case.key_map].apply, KEY_MAPS[case.value_map].apply
        self.projected = PROJECTIONS.get(case.projection, PROJECTIONS["linear"])
        self.fused = FUSED.get(case.projection)
        self.split, self.repeat = SPLITS[case.split], REPEATS.get(case.repeat)
        self.attend = SPELLINGS[case.spelling].attend
        self.writes = case.write != "none"
        self.eval()
        self.to(DTYPES[case.dtype])

    # Tokens
    def tokens(self, image: Tensor) -> Tensor:
        case = self.case
        x = self.from_image(self.stem, self.picture(image), case.size, self.table)
        x = self.reorder(x, case.size, self.shuffled)
        return x + self.places.flatten(0, 1) if case.placed else x

    def tables(self) -> list[Tensor]:
        """What makes tokens differ by place before the block."""
        named = self.named_parameters()
        return [t for name, t in named if name in ("table", "places")]  # unless pruned

    def normed(self, x: Tensor) -> Tensor:
        match self.case.norm:
            case "layer_norm":
                return self.layer_norm(x)
            case "group_norm":
                return self.group_norm(x.mT).mT
            case "batch_norm":
                return self.batch_norm(x.mT).mT
            case _:
                return x

    # Keys
    def project(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return x if self.case.projection == "identity" else self.projected(layer, x)

    def value(self, key: Tensor, x: Tensor) -> Tensor:
        if self.case.projection == "shared":
            return key
        made = self.project(self.layers.to_v, x)
        return self.map_value(self.layers, made, x)

    def joined(self, x: Tensor, beside: Beside, dim: int) -> Tensor:
        before, after = beside
        if before is None:
            return x if after is None else torch.cat([x, after], dim)
        return torch.cat([before, x] if after is None else [before, x, after], dim)

    def beside(self, x: Tensor, text: Tensor | None) -> Beside:
        """Tokens before and after the image's, (B, S, C)."""
        before, after = self.before, self.after
        if not before and not after:
            return None, None
        if text is None:
            own = self.own if self.case.side != "zero_key" else torch.zeros_like(self.own)
            text = own[:, : before + after].expand(x.shape[0], -1, -1)
        elif x.shape[0] != text.shape[0] and not self.case.dynamic:
            text = text.repeat_interleave(x.shape[0] // text.shape[0], 0)
        parts = text.split([before, after], 1)
        return parts[0] if before else None, parts[1] if after else None

    def sequences(
        self, x: Tensor, text: Tensor | None, other: Tensor | None, crossed: bool
    ) -> tuple[Tensor, Tensor]:
        """What queries, and what keys are projected from."""
        match "other_picture" if crossed else self.case.side:
            case "cross":
                assert text is not None
                beside = self.beside(x, text)[0]
                assert beside is not None
                return x, beside
            case "two_pictures":
                assert other is not None
                return x, torch.cat([x, other], 1)
            case "twice":
                return x, torch.cat([x, x], 1)
            case "other_picture":
                assert other is not None
                return x, other
            case _:
                whole = self.joined(x, self.beside(x, text), 1)
                late = self.case.join != "tokens"
                asked = whole if self.side.joint else x
                return asked, x if late else whole

    # Writes
    def write(self, moment: str, **tensors: Tensor) -> None:
        case = self.case
        if self.writes and case.moment == moment and case.target in tensors:
            seen = tensors["early"] if case.early else self.look(tensors[case.target])
            self.change(self.part(seen))

    # Attention
    def mask(self, q: Tensor, k: Tensor, text_mask: Tensor | None, given: Tensor | None) -> Any:
        if self.case.mask == "none":
            return None
        before, after = self.before, self.after
        queries, keys = q.shape[2], k.shape[2]
        repeat = q.shape[0] // text_mask.shape[0] if text_mask is not None else 1
        if text_mask is not None and not self.case.dynamic and repeat > 1:
            text_mask = text_mask.repeat_interleave(repeat, 0)
        info = Keys(
            queries, before, keys - before - after, after, q,
            self.bias[:, :queries, :keys], text_mask, given,
        )  # fmt: skip
        return self.masking.make(info)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Where the truth comes in: no key or value is changed after this."""
        attend = self.attend if self.hook is None else self.hook
        return attend(q, k, v, bias)

    def qkv(
        self, x: Tensor, text: Tensor | None, other: Tensor | None, early: Tensor, crossed: bool
    ) -> Parts:
        case, layers = self.case, self.layers
        asked, source = self.sequences(x, text, other, crossed)
        now = {"tokens": x, "early": early}
        self.write("before", **now)
        q = self.project(layers.to_q, asked) if not case.query_last else x
        if self.fused is not None and not crossed:
            q, k, v = self.fused(layers.qkv(asked))
            k = self.map_key(layers, k, source)
            v = self.map_value(layers, v, source)
        else:
            k = self.project(layers.to_k, source)
            k = self.map_key(layers, k, source)
            self.write("between", key=k, query=q, **now)
            v = self.value(k, source)
        self.write("after", key=k, value=v, query=q, **now)
        if case.query_last and (self.fused is None or crossed):
            q = self.project(layers.to_q, asked)
        return self.joined_heads(x, text, q, k, v)

    def joined_heads(
        self, x: Tensor, text: Tensor | None, q: Tensor, k: Tensor, v: Tensor
    ) -> Parts:
        """Text joins late, and heads come apart."""
        case, late = self.case, self.beside(x, text)
        if case.join == "projected":
            k = self.joined(k, self.texts(late, self.text_k), 1)
            v = self.joined(v, self.texts(late, self.text_v), 1)
        q = self.split(q, case.heads)
        k, v = self.split(k, self.key_heads), self.split(v, self.key_heads)
        if case.join == "heads":
            k = self.joined(k, self.headed(late, self.text_k), 2)
            v = self.joined(v, self.headed(late, self.text_v), 2)
        if self.repeat is not None and case.repeat != "none":
            times = case.heads // self.key_heads
            k, v = self.repeat(k, times), self.repeat(v, times)
        return q, k, v

    def texts(self, late: Beside, layer: nn.Linear) -> Beside:
        before, after = late
        return (
            None if before is None else layer(before),
            None if after is None else layer(after),
        )

    def headed(self, late: Beside, layer: nn.Linear) -> Beside:
        if self.case.side == "zero_key":  # nothing but zeros, without a bias
            zeros = late[1]
            assert zeros is not None
            width = layer.out_features
            return None, self.split(zeros.new_zeros(zeros.shape[0], 1, width), self.key_heads)
        before, after = self.texts(late, layer)
        return (
            None if before is None else self.split(before, self.key_heads),
            None if after is None else self.split(after, self.key_heads),
        )

    def block(
        self,
        x: Tensor,
        text: Tensor | None,
        other: Tensor | None,
        text_mask: Tensor | None,
        given: Tensor | None,
        *,
        crossed: bool = False,
    ) -> tuple[Tensor, ...]:
        case = self.case
        x = self.normed(x)
        early = self.look(x) if case.early else x
        x = self.detour(x)
        q, k, v = self.qkv(x, text, other, early, crossed)
        bias = self.mask(q, k, text_mask, given)
        out = self.attention(q, k, v, bias).transpose(1, 2).flatten(2)
        self.write("end", tokens=x, early=early, key=k, value=v, query=q)
        if self.side.joint:
            out = out[:, self.before : out.shape[1] - self.after]
        out = self.to_out(out)
        match case.uses:
            case "residual":
                return (out + x,)
            case "keys":
                return out, k
            case "values":
                return out, v.sum(1)
            case "tokens":
                return out, x
            case "count":
                return (out * k.shape[2],)
            case "mean":
                return (out + k.mean(2).flatten(1)[:, None, :1] + v.amax(),)
            case _:
                return (out,)

    def blocks(
        self,
        x: Tensor,
        text: Tensor | None,
        other: Tensor | None,
        text_mask: Tensor | None,
        given: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """One attention, or two with the same weights."""
        one = self.block(x, text, other, text_mask, given)
        match self.case.blocks:
            case "sequence":
                return *one[1:], *self.block(x + one[0], text, other, text_mask, given)
            case "parallel":
                return *one, *self.block(x, text, other, text_mask, given)
            case "pictures":
                assert other is not None
                return *one, *self.block(other, text, None, text_mask, given)
            case "crossed":
                return *one, *self.block(x, text, other, text_mask, given, crossed=True)
            case _:
                return one

    def branch(self, x: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
        """The block under ``torch.cond``, which always takes the first branch."""
        if self.hook is not None or not torch.compiler.is_compiling():
            return self.blocks(x, *others)  # pyright: ignore[reportCallIssue, reportArgumentType]
        there = [t is not None for t in others]

        def whole(x: Tensor, *some: Tensor) -> tuple[Tensor, ...]:
            rest = iter(some)
            given = [next(rest) if here else None for here in there]
            return self.blocks(x, *given)  # pyright: ignore[reportCallIssue, reportArgumentType]

        def turned(x: Tensor, *some: Tensor) -> tuple[Tensor, ...]:
            return tuple(-t for t in whole(x, *some))

        return torch.cond(x.abs().sum() >= 0, whole, turned, (x, *filter_none(others)))

    def forward(self, image: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        case, rest = self.case, list(others)
        text = rest.pop(0) if self.side.text else None
        other = self.tokens(rest.pop(0)) if another_picture(case) else None
        masking = self.masking
        text_mask = rest.pop(0) if masking.text and not masking.given else None
        given = rest.pop(0) if masking.given else None
        x = self.tokens(image)
        body: Callable[..., Any] = self.blocks
        match case.nesting:
            case "checkpoint":
                return checkpoint(body, x, text, other, text_mask, given, use_reentrant=False)  # pyright: ignore[reportReturnType]
            case "autocast":
                with torch.autocast("cpu", torch.bfloat16):
                    return tuple(t.float() for t in body(x, text, other, text_mask, given))
            case "cond":
                return self.branch(x, text, other, text_mask, given)
            case "no_grad":
                with torch.no_grad():
                    return body(x, text, other, text_mask, given)
            case _:
                return body(x, text, other, text_mask, given)
