"""Law 2 for detectors and several targets over ranks: the numbers of one process; law 5: a target that fails takes no other with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from targets_run import METHODS, SIZES

from processes import finish

pytestmark = pytest.mark.ddp

SCRIPT = Path(__file__).parents[1] / "targets_run.py"
Found = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each rank saw, by the number of ranks."""
    folder = tmp_path_factory.mktemp("targets")
    finish(SCRIPT, folder, 100)
    result: Found = torch.load(folder / "found.pt", weights_only=True)
    return result


def assert_close(ours: Any, theirs: Any) -> None:
    """In float64, whatever is no count of passes."""
    left, right = ({k: v for k, v in one.items() if k not in ("passes", "failures")} for one in (ours, theirs))
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize("name", [*SIZES, "several"])
def test_two_ranks_find_what_one_finds(found: Found, name: str) -> None:
    (alone,) = found[1]
    maps = alone[name]["attributions"]
    assert list(maps) == (
        list(METHODS) if name in SIZES else [f"{key}@{of}" for of in ("age", "sex") for key in METHODS]
    )
    assert all(value.flatten(1).any(1).all() for key, value in maps.items() if not key.startswith("occlusion"))
    assert set(alone[name]["scores"]["infidelity"]) >= set(maps) - {"occlusion"}
    for rank in found[2]:
        assert_close(rank[name], alone[name])
        assert rank[name]["failures"] == {}
    torch.testing.assert_close(found[2][1][name], found[2][0][name], rtol=0, atol=0, equal_nan=True)


def test_samples_of_all_targets_are_counted(found: Found) -> None:
    (alone,), ranks = found[1], found[2]
    assert all(rank["several"]["passes"][1] == alone["several"]["passes"][1] > 0 for rank in ranks)


@pytest.mark.parametrize(("name", "rank"), [("failing", 1), ("failing first", 0), ("failing everywhere", None)])
def test_a_target_that_fails_on_one_rank_is_left_out_on_all_and_the_other_is_explained(
    found: Found, name: str, rank: int | None
) -> None:
    (alone,) = found[1]
    for number, one in enumerate(found[2]):
        assert list(one[name]["attributions"]) == [f"{key}@age" for key in METHODS]
        assert list(one[name]["by_target"]) == ["age"]
        for part in ("attributions", "scores", "standard_errors"):
            torch.testing.assert_close(one[name][part], alone["age"][part], rtol=1e-9, atol=1e-11)
        failed = {f"{key}@sex" for key in METHODS} if rank in (None, number) else set()
        assert set(one[name]["failures"]) == failed
        assert all("ArithmeticError: no target" in text for text in one[name]["failures"].values())


def test_if_no_target_is_left_or_errors_are_raised_the_explanation_fails_on_all_ranks(found: Found) -> None:
    for name in ("all failing", "raising"):
        zero, one = (rank[name]["error"] for rank in found[2])
        assert zero.startswith("FailedElsewhereError")
        assert one == "ArithmeticError: no target"
