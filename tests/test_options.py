"""What `PlanOptions` takes from Python: everything else is refused in our words, at once."""

from __future__ import annotations

from typing import Any

import pytest

from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions


@pytest.mark.parametrize(
    ("field", "given", "said"),
    [
        ("factors", 2, "factors must be pairs"),
        ("factors", "4,2", "factors must be pairs"),
        ("factors", {1: 2}, "factors must be pairs"),
        ("factors", (2, 2), "2 is not a pair"),
        ("factors", ((2, 0),), r"\(2, 0\) is not a pair"),
        ("factors", ((2, True),), r"\(2, True\) is not a pair"),
        ("sites", "mid", "sites must be a mapping"),
        ("sites", None, "sites must be a mapping"),
        ("sites", (1, 2), "does not pair sites"),
        ("sites", ((1, 2, 3),), "does not pair sites"),
        ("sites", {"mid": 2}, "2 is not a pair"),
        ("sites", {"mid": (2, 2, "best")}, "best"),
        ("kv_tokens", 4096.0, "kv_tokens must be"),
        ("kv_tokens", True, "kv_tokens must be"),
        ("hoist", "no", "hoist must be True or False"),
        ("keep_mass", 3, "keep_mass must be True or False"),
        ("masks", "all", "masks must be"),
        ("sampling", 4, "4"),
    ],
)
def test_a_wrong_option_is_refused(field: str, given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        PlanOptions(**{field: given})
    assert caught.value.remedy


def test_any_sequence_and_mapping_will_do() -> None:
    options = PlanOptions(factors=[[4, 2]], sites={"mid": [2, 2]})  # type: ignore[arg-type]
    assert options.factors == ((4, 2),)
    assert options.sites == (("mid", (2, 2)),)
    assert hash(options) == hash(PlanOptions(factors=((4, 2),), sites=(("mid", (2, 2)),)))
