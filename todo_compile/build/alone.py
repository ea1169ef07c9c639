"""What a process that ends with one plan or one output need not import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from todo_compile.libraries import diffusers_alone
from todo_compile.models.architecture import TEXT_CLASSES

if TYPE_CHECKING:
    from todo_compile.models import Source


def import_network(source: Source) -> None:
    """Import the model's class, and what it needs to be made and traced; see `diffusers_alone`."""
    from todo_compile.capture.inputs import is_recorded
    from todo_compile.models.build import network_class

    # A pipeline that is run takes all that diffusers can do; a text encoder is transformers'.
    if not is_recorded(source) and source.class_name not in TEXT_CLASSES:
        with diffusers_alone():
            network_class(source.class_name)
