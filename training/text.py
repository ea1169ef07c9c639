"""A CLIP tokenizer and text encoder of the smallest useful size, made from the prompts."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.subjects import BACKGROUNDS, SUBJECTS, Subject

LENGTH = 77
"""Tokens that a prompt is padded to: what the compiler and every CLIP-based pipeline expect."""
WIDTH = 128
"""Width of the text encoder and of the UNet's cross-attention."""

_START, _END = "<|startoftext|>", "<|endoftext|>"


def words(subjects: Sequence[Subject] = SUBJECTS) -> list[str]:
    """Every word that a training prompt may hold, once, in order."""
    phrases = ["a picture of a pattern", "on a background"]
    phrases += [s.one for s in subjects] + list(BACKGROUNDS)
    return list(dict.fromkeys(" ".join(phrases).split()))


def byte_alphabet() -> list[str]:
    """The printable stand-ins of the 256 bytes in byte-level BPE, in the order of the bytes.

    Printable bytes stand for themselves; the others get the code points from 256 upwards.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def train_merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first, until every word is one token."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in split for pair in itertools.pairwise(parts))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merged(parts, best) for parts in split]


def write_tokenizer(folder: Path, subjects: Sequence[Subject]) -> None:
    """Write ``vocab.json`` and ``merges.txt`` of a CLIP tokenizer into `folder`."""
    merges = train_merges(words(subjects))
    letters = byte_alphabet()
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [left + right for left, right in merges]
    tokens = [*dict.fromkeys(tokens), _START, _END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    text = json.dumps(vocabulary, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_tokenizer(folder: Path, subjects: Sequence[Subject] = SUBJECTS) -> Any:
    """A ``CLIPTokenizer`` of the vocabulary in `folder`, which is written where it is missing."""
    from transformers import CLIPTokenizer

    if not (folder / "vocab.json").is_file():
        write_tokenizer(folder, subjects)
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH
    )


def make_text_encoder(tokenizer: Any) -> Any:
    """A ``CLIPTextModel`` of two layers, randomly initialised."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    index = 0
    while index < len(parts):
        if index + 1 < len(parts) and (parts[index], parts[index + 1]) == pair:
            out.append(parts[index] + parts[index + 1])
            index += 2
        else:
            out.append(parts[index])
            index += 1
    return out
