"""What a tuning run need not do twice, within bounds: pictures, and calls of the dense denoiser."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from todo_compile.runtime.variants import GraphSession

PICTURES = 2**29
CALLS = 2**28
"""Bytes. A picture of 1024 px has 12 MB, and a run of default size draws hundreds."""


class KeptPictures:
    """Pictures by plan and pair. The dense ones stay, of the others the latest.

    Args:
        dense: whether a key is of a dense picture.
        most: bytes of the others.
    """

    def __init__(self, dense: Callable[[Any], bool], most: int = PICTURES) -> None:
        self._dense, self._most = dense, most
        self._stay: dict[Any, Any] = {}
        self._others: OrderedDict[Any, Any] = OrderedDict()
        self._bytes = 0

    def get(self, key: Any) -> Any:
        """The picture, or None."""
        return self._stay.get(key, self._others.get(key))

    def add(self, key: Any, picture: Any) -> None:
        """Keep one."""
        if self._dense(key):
            self._stay[key] = picture
            return
        if key not in self._others:
            self._bytes += picture.nbytes
        self._others[key] = picture
        while self._bytes > self._most and len(self._others) > 1:
            self._bytes -= self._others.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget all."""
        self._stay.clear()
        self._others.clear()
        self._bytes = 0


class RememberedSession:
    """A session that knows the results of its latest calls by all that they were given.

    A plan that is dense in its first steps goes the dense way there, and two of them share it.

    Args:
        inner: what runs.
        most: bytes of results that are kept.

    Attributes:
        hear: told of every call's inputs.
    """

    def __init__(self, inner: GraphSession, most: int = CALLS) -> None:
        self._inner, self._most = inner, most
        self.device, self.inputs, self.outputs = inner.device, inner.inputs, inner.outputs
        self.hear: Callable[[Mapping[str, Tensor]], None] | None = None
        self._known: OrderedDict[bytes, dict[str, Tensor]] = OrderedDict()
        self._bytes = 0

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the inner one's."""
        if self.hear is not None:
            self.hear(feeds)
        key = _digest(feeds)
        found = self._known.get(key)
        if found is None:
            found = self._inner.run(feeds)
            self._known[key] = found
            self._bytes += _bytes_of(found)
            while self._bytes > self._most and len(self._known) > 1:
                self._bytes -= _bytes_of(self._known.popitem(last=False)[1])
        # Schedulers may write into what they get.
        return {name: value.clone() for name, value in found.items()}


def _digest(feeds: Mapping[str, Tensor]) -> bytes:
    made = hashlib.sha256()
    for name, value in feeds.items():
        made.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        flat = value.detach().contiguous().reshape(-1).cpu()
        made.update(flat.view(torch.uint8).numpy().tobytes())
    return made.digest()


def _bytes_of(results: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in results.values())
