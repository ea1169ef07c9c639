"""A stand-in for every tokenizer: real machinery of transformers, with three words.

A pipeline pads, truncates, fills templates and asks for masks; all that is the library's own code.
Vocabularies are not needed: the ids go into networks without weights.
"""

from __future__ import annotations

from typing import Any

import torch

UNBOUNDED = 512
"""Tokens of a text where neither tokenizer nor pipeline has a bound."""
_WORDS = 2048
# Templates of chats: the words of all messages, which may come in pieces.
_TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for piece in m['content'] %}{{ piece['text'] }}{% endfor %}{% endif %} {% endfor %}"
)


def prompt(count: int = _WORDS) -> str:
    """A text of `count` tokens."""
    return " ".join(["a"] * count)


def tokenizer(limit: int, *, positions: bool = False) -> Any:
    """A tokenizer that gives at most `limit` tokens, by words, with one at the end.

    Args:
        limit: of tokens.
        positions: it also gives every token's position, as some do.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    machine = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    machine.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    machine.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
    )

    class Positioned(PreTrainedTokenizerFast):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            found: Any = super().__call__(*args, **kwargs)
            ids = torch.as_tensor(found["input_ids"])
            found["position_ids"] = torch.arange(ids.shape[-1]).expand(ids.shape)
            return found

    made: Any = Positioned if positions else PreTrainedTokenizerFast
    return made(
        tokenizer_object=machine,
        model_max_length=limit,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="</s>",
        unk_token="a",
        chat_template=_TEMPLATE,
    )
