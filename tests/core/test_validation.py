"""Argument checks (invariant 5: arguments are checked at once): every refusal has one wording, ``OWNER(NAME=VALUE); give ...``."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lightning_explain.core import validation as v

WHOLE = partial(v.check_whole, "Lime", "n_samples")
EITHER = partial(v.check_whole, "", "every", also=(None, "auto"))


@pytest.mark.parametrize(
    ("check", "allowed", "refused", "error", "match"),
    [
        (
            WHOLE,
            [1, 10**6],
            [0, -1, 10**6 + 1, 10**10, 1.0, True, "1", None, np.int64(1), torch.tensor(1)],
            ValueError,
            "Lime",
        ),
        (EITHER, [1, None, "auto"], [0, "many", False, np.ones(2)], ValueError, "every="),
        (
            partial(v.check_number, "M", "eps"),
            [1, 1e-9, float("inf")],
            [0, -1, float("nan"), True, "1"],
            ValueError,
            "M",
        ),
        (
            partial(v.check_range, "", "share", high=1),
            [0, 0.5, 1],
            [-1, 1.1, float("nan"), False, None],
            ValueError,
            "share=",
        ),
        (partial(v.check_flag, "M", "abs"), [True, False], [1, 0, "yes", None], TypeError, "M"),
        (partial(v.check_callable, "M", "f"), [None, abs, v.is_whole], [1, "abs"], TypeError, "M"),
        (partial(v.check_choice, "M", "kind", choices=("a", "b")), ["a", "b"], ["c", 1, None, ["a"]], ValueError, "M"),
    ],
)
def test_what_is_allowed_passes_and_all_else_names_itself(
    check: Any, allowed: list[Any], refused: list[Any], error: type[Exception], match: str
) -> None:
    for value in allowed:
        check(value=value)
    for value in refused:
        with pytest.raises(error, match=rf"(?s)^{match}.*; give .*\.$") as caught:
            check(value=value)
        assert repr(value) in str(caught.value)


def test_the_words_say_what_is_allowed_besides() -> None:
    with pytest.raises(ValueError, match=r"^every=0; give a whole number of at least 1, or None, or 'auto'\.$"):
        EITHER(value=0)
    with pytest.raises(ValueError, match=r"^Lime\(n_samples=0\); give a whole number of at least 1\.$"):
        WHOLE(value=0)


def test_a_wrong_type_can_be_told_from_a_wrong_number() -> None:
    check = partial(v.check_whole, "ProbeSelection", "count", wrong_type=TypeError)
    with pytest.raises(TypeError, match=r"count='16'\); give a whole number"):
        check(value="16")
    with pytest.raises(ValueError, match=r"count=0\); give a whole number"):
        check(value=0)
