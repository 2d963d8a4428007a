"""Law 2 over ranks: one to four of them, or a sharded model, find what one process finds; law 5: they agree, or all end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gather_run import BETWEEN, LOST_AFTER, METHODS, METRICS, SHARDED
from lightning_explain.distributed.ranks import ALONE, Ranks
from lightning_explain.distributed.trees import check_entries, digest
from networks import trained
from processes import finish

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

SCRIPT = Path(__file__).parents[1] / "gather_run.py"
DEADLINE = 150
Found = dict[int, list[dict[str, Any]]]
Lost = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all ranks have run."""
    folder = tmp_path_factory.mktemp("gather")
    torch.save(trained().state_dict(), folder / "weights.pt")
    finish(SCRIPT, folder, DEADLINE)
    return folder


@pytest.fixture(scope="module")
def found(finished: Path) -> Found:
    """What each rank saw, by the number of ranks."""
    result: Found = torch.load(finished / "found.pt", weights_only=True)
    return result


@pytest.fixture(scope="module")
def lost(finished: Path) -> Lost:
    """What ranks were told that lost each other, by how they did."""
    result: Lost = torch.load(finished / "lost.pt", weights_only=True)
    return result


def assert_close(ours: dict[str, Any], theirs: dict[str, Any], *names: str) -> None:
    """In float64; what is a rounding error on one side is one on the other, too."""
    for name in names or (
        "attributions",
        "scores",
        "standard_errors",
        "maps",
        "outputs",
        "predictions",
        "targets",
        "ids",
    ):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_any_number_of_ranks_finds_what_one_finds(found: Found, world: int) -> None:
    (alone,) = found[1]
    assert list(alone["seven"]["attributions"]) == list(METHODS)
    assert set(METRICS) <= set(alone["seven"]["scores"])
    for rank in found[world]:
        assert_close(rank["seven"], alone["seven"])
        assert rank["seven"]["failures"] == {}


def test_two_samples_on_three_ranks_are_those_of_one_rank(found: Found) -> None:
    for rank in found[3]:
        assert_close(rank["two"], found[1][0]["two"])


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_report_is_the_same_on_all_ranks_to_the_last_bit(found: Found, world: int) -> None:
    first, *others = (rank["seven"] for rank in found[world])
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_rank_has_its_own_batch_statistics_back(found: Found, world: int) -> None:
    assert all(rank["seven"]["restored"] for rank in found[world])


def test_samples_sent_are_summed(found: Found) -> None:
    (alone,), (two, _) = found[1], found[2]
    assert two["seven"]["passes"][1] == alone["seven"]["passes"][1]
    # The strongest unit is sought on all samples by each rank, a sample of zeros and one to find the layers are sent by each.
    assert alone["seven"]["passes"][0] <= two["seven"]["passes"][0] <= alone["seven"]["passes"][0] + 20


def test_a_sharded_model_gives_the_numbers_of_a_whole_one(found: Found) -> None:
    (alone,) = found[1]
    for world, key, whole in ((2, "sharded", "seven"), (3, "two_sharded", "two")):
        for rank in found[world]:
            expected = {name: alone[whole]["attributions"][name] for name in SHARDED}
            assert_close(rank[key], {"attributions": expected}, "attributions")
            scores = {name: alone[whole]["scores"]["infidelity"][name] for name in SHARDED}
            assert_close(rank[key]["scores"], {"infidelity": scores}, "infidelity")


def test_a_model_with_collectives_of_its_own_gives_the_numbers_of_one_without(found: Found) -> None:
    (alone,) = found[1]
    for rank in found[2]:
        expected = {name: alone["seven"]["attributions"][name] for name in SHARDED}
        assert_close(rank["wired"], {"attributions": expected}, "attributions")
        assert set(rank["wired"]["scores"]["infidelity"]) == set(SHARDED)
        assert rank["wired"]["measured"] == rank["wired"]["limit"], (
            "no sizes are tried, which would be calls of the model"
        )
    assert "ArithmeticError: no map on rank 1" in found[2][1]["wired"]["failures"]["bad"]


def test_a_model_that_does_not_fit_on_one_rank_is_refused_on_all(found: Found) -> None:
    assert [rank["not_ready"]["error"] for rank in found[2]] == ["FailedElsewhereError", "ValueError"]


@pytest.mark.parametrize("target", ["each", "callable"])
def test_steps_of_a_forecast_and_numbers_that_know_their_sample_are_those_of_one_rank(
    found: Found, target: str
) -> None:
    (alone,) = (rank["forecasts"][target] for rank in found[1])
    assert alone["failures"] == {}
    assert set(alone["scores"]) >= {"infidelity", "deletion"}
    if target == "each":
        assert alone["ids"].tolist() == [5 * i + step for i in (7, 3, 5) for step in range(5)]
        assert alone["explained"]["step"].tolist() == [*range(5)] * 3
    for rank in found[2]:
        assert rank["forecasts"][target]["failures"] == {}
        assert_close(rank["forecasts"][target], alone)
        assert_close(rank["forecasts"][target], alone, "explained", "values")


# -- what fails on one rank ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["failing", "failing_sharded"])
@pytest.mark.parametrize("how", ["apart", "in_sweep"])
def test_a_method_that_fails_on_one_rank_is_left_out_on_all(found: Found, kind: str, how: str) -> None:
    zero, one = (rank[kind][how] for rank in found[2])
    assert list(zero["attributions"]) == list(one["attributions"]) == ["saliency"]
    assert_close(zero, one)
    assert zero["failures"] == {}
    assert "ArithmeticError: no map on rank 1" in one["failures"]["bad"]
    assert zero["restored"]
    assert one["restored"]


@pytest.mark.parametrize("kind", ["failing", "failing_sharded"])
def test_a_metric_that_fails_on_one_rank_is_left_out_on_all(found: Found, kind: str) -> None:
    zero, one = (rank[kind]["metric"] for rank in found[2])
    assert list(zero["scores"]) == list(one["scores"]) == ["infidelity"]
    assert "ArithmeticError: no score on rank 0" in zero["failures"]["worse"]
    assert one["failures"] == {}


@pytest.mark.parametrize("kind", ["failing", "failing_sharded"])
def test_what_is_of_another_form_on_one_rank_is_left_out_on_all_and_alone(found: Found, kind: str) -> None:
    zero, one = (rank[kind]["unlike"] for rank in found[2])
    assert list(zero["attributions"]) == list(one["attributions"]) == ["saliency"]
    assert list(zero["scores"]["infidelity"]) == ["saliency"]
    assert_close(zero, one)
    assert zero["failures"] == {}
    said = "Rank 0 found float64 (N, 1, 8, 8), which cannot be joined with float64 (N, 1, 8, 7) of rank 1."
    assert one["failures"]["bad"] == said
    assert "with float32 (N, 1, 8, 8) of rank 1" in one["failures"]["worse"]


@pytest.mark.parametrize("kind", ["failing", "failing_sharded"])
def test_scores_that_one_rank_omits_are_left_out_on_all_and_alone(found: Found, kind: str) -> None:
    zero, one = (rank[kind]["unlike_metric"] for rank in found[2])
    assert list(zero["scores"]) == list(one["scores"]) == ["infidelity"]
    assert_close(zero, one)
    assert list(one["failures"]) == ["bad", "worse"]
    said = "Rank 0 found {}, which cannot be joined with {'bad': {'saliency': (float64 (N,), None)}"
    assert one["failures"]["bad"].startswith(said)


def test_who_wants_errors_gets_one_on_all_ranks_for_unlike_forms(found: Found) -> None:
    zero, one = (rank["failing"]["unlike_raising"] for rank in found[2])
    assert one["error"].startswith("ValueError: 'bad' differs over ranks: Rank 0 found")
    assert (
        zero["error"]
        == "FailedElsewhereError: Gave up because a method or metric failed on rank 1; read the traceback printed there."
    )


@pytest.mark.parametrize("kind", ["failing", "failing_sharded"])
def test_who_wants_errors_gets_one_on_all_ranks(found: Found, kind: str) -> None:
    zero, one = (rank[kind]["raising"] for rank in found[2])
    assert one["error"] == "ArithmeticError: no map on rank 1"
    what = "a method or metric" if kind == "failing" else "a pass"
    assert (
        zero["error"]
        == f"FailedElsewhereError: Gave up because {what} failed on rank 1; read the traceback printed there."
    )


def test_without_a_target_on_one_rank_there_is_no_explanation_on_any(found: Found) -> None:
    zero, one = (rank["target"]["error"] for rank in found[2])
    assert one == "ArithmeticError: no target on rank 1"
    assert zero.startswith("FailedElsewhereError")


def test_a_rank_that_runs_out_of_memory_goes_on_in_smaller_passes(found: Found) -> None:
    zero, one = (rank["failing"] for rank in found[2])
    assert (zero["limits"], one["limits"]) == ([64], [2, 2])
    assert_close(zero["memory"], one["memory"])


def test_ranks_of_a_sharded_model_go_on_in_smaller_passes_together(found: Found) -> None:
    zero, one = (rank["failing_sharded"] for rank in found[2])
    # Four samples each: one of the seven is repeated.
    assert zero["limits"][-2:] == one["limits"] == [2, 2]
    assert_close(zero["memory"], one["memory"])
    assert_close(zero["memory"], found[2][0]["failing"]["memory"])


def test_uneven_calls_of_a_sharded_model_end_the_method_and_not_the_run(found: Found) -> None:
    for rank in found[2]:
        assert list(rank["uneven"]["attributions"]) == list(SHARDED)
        assert (
            "call the model, which needs all of them, different numbers of times" in rank["uneven"]["failures"]["bad"]
        )


# -- a rank that is lost -------------------------------------------------------------------------------------------

TOLD = "LostRanksError: ExplanationMonitor: rank {} has lost the other ranks while explaining"
# A rank that is alive is slow at times; all of these deadlines are two seconds, and those of torch half an hour.
SLACK = 45


@pytest.mark.parametrize("how", ["late", "late_of_three", "never_met"])
def test_no_rank_waits_longer_than_the_deadline_nor_for_ranks_that_gave_it_up(lost: Lost, how: str) -> None:
    deadline = LOST_AFTER.total_seconds()
    for rank, each in enumerate(lost[how]):
        assert TOLD.format(rank) in each["told"]
        assert each["seconds"] <= deadline + SLACK
    # The one that comes late finds the connection closed, as does a third one that began to wait a little later than the first.
    assert max(each["seconds"] for each in (lost[how][0], *lost[how][2:])) >= deadline - 0.1


def test_every_agreement_and_exchange_says_that_a_rank_is_gone(lost: Lost) -> None:
    asked = lost["gone"][0]
    assert set(asked) >= {"agree", "gather", "failing", "together", "total", "first", "share_buffers"}
    for name, each in asked.items():
        assert TOLD.format(0) in each["told"], name
        assert each["seconds"] <= SLACK


def test_an_error_of_the_transport_is_known_in_what_others_make_of_it(lost: Lost) -> None:
    told = lost["gone"][0]["in_step"]["told"]
    assert "ValueError: The model cannot be called.\n\nThe above exception was the direct cause" in told
    assert TOLD.format(0) in told


@pytest.mark.parametrize("how", ["late", "late_of_three", "never_met"])
def test_what_failed_on_a_rank_is_told_by_it_though_it_lost_the_others(lost: Lost, how: str) -> None:
    for rank, each in enumerate(lost[how]):
        before, _, after = each["told"].partition(TOLD.format(rank))
        assert f"ArithmeticError: already failed on rank {rank}" in before
        assert after


@pytest.mark.parametrize(
    ("how", "reason"),
    [("method", "ArithmeticError: no map on rank 1"), ("sharded", "ArithmeticError: already failed on rank 1")],
)
def test_a_rank_lost_in_the_models_own_collective_tells_why_and_the_other_that_it_is_lost(
    lost: Lost, how: str, reason: str
) -> None:
    zero, one = lost[how]
    assert TOLD.format(0) in zero["told"]
    assert TOLD.format(1) in one["told"]
    assert "Traceback" in one["told"]
    assert reason in one["told"]
    assert "ArithmeticError" not in zero["told"]
    # Rank 0 waits in a group with half an hour of patience, until the other one has gone.
    assert all(each["seconds"] <= LOST_AFTER.total_seconds() + SLACK for each in (zero, one))


# -- exchange ------------------------------------------------------------------------------------------------------


def test_ragged_samples_come_together_in_order(found: Found) -> None:
    for rank in found[3]:
        whole = rank["exchange"]["together"]
        assert whole["float"].tolist() == [[i, i] for i in (0.0, 1.0, 20.0, 21.0, 22.0)]
        assert whole["float"].dtype == torch.float64
        assert whole["several"][0].tolist() == [False, False, True, True, True]
        assert whole["several"][1].dtype == torch.bfloat16
        assert whole["several"][1].shape == (5, 1, 1)
        assert (whole["nothing"], whole["none"]) == ({}, None)
        assert len(whole["nan"]) == 5


def test_what_rank_zero_has_arrives(found: Found) -> None:
    for rank in found[3]:
        assert rank["exchange"]["first"]["x"].tolist() == [0, 0, 0]
        assert rank["exchange"]["first"]["names"] == ("a", "é0")
        assert rank["exchange"]["first"]["n"] == [0, None, 0.5]


def test_what_each_rank_has_reaches_all(found: Found) -> None:
    for rank in found[3]:
        exchange = rank["exchange"]
        assert [(number, text, len(x)) for number, text, x in exchange["gather"]] == [(i, f"é{i}", i) for i in range(3)]
        assert exchange["failing"] == {"c": 0, "a": 1}
        assert exchange["total"] == [3, 3]
        assert "have results of different forms" in exchange["different"]


GAVE_UP = "FailedElsewhereError: Gave up because the work failed on rank {}; read the traceback printed there."
NO_MEMORY = "MemoryElsewhereError: Rank 1 ran out of memory in the work; lower max_examples_per_pass."


@pytest.mark.parametrize(
    ("how", "each"),
    [
        ("fine", [[None, False]] * 3),
        ("one", [GAVE_UP.format(1), "ArithmeticError: on 1", GAVE_UP.format(1)]),
        ("two", [GAVE_UP.format(1), "ArithmeticError: on 1", "KeyError: 'on 2'"]),
        ("memory", [NO_MEMORY, "OutOfMemoryError: on 1", NO_MEMORY]),
        ("memory and another", ["ArithmeticError: on 0", "OutOfMemoryError: on 1", NO_MEMORY]),
        ("memory and another, to be tried again", [NO_MEMORY, "OutOfMemoryError: on 1", NO_MEMORY]),
        ("survived", [[1, False], [1, True], [1, True]]),
        ("survived and another", [GAVE_UP.format(2), "OSError: on 1", "KeyError: 'on 2'"]),
        ("survived memory", [[2, False], [2, False], [2, True]]),
        ("nested", [[1, False], [1, True], [1, False]]),
    ],
)
def test_a_section_ends_in_the_same_way_on_all_ranks(found: Found, how: str, each: list[Any]) -> None:
    assert [rank["exchange"]["agreements"][how] for rank in found[3]] == each


@pytest.mark.parametrize("what", BETWEEN)
def test_a_rank_that_leaves_a_section_is_missed_in_no_exchange(found: Found, what: str) -> None:
    other = [1, False, GAVE_UP.replace("the work", "a part").format(1), [0, 1, 2]]
    assert [rank["exchange"]["agreements"][f"between, {what}"] for rank in found[3]] == [
        other,
        [1, True, "KeyError: 'inside'", [0, 1, 2]],
        other,
    ]


def test_only_buffers_that_differ_are_sent(found: Found) -> None:
    for number, rank in enumerate(found[3]):
        shared = rank["exchange"]["buffers"]
        assert shared["sent"] == [["running_mean"]], "in the first round; in the second none"
        assert shared["mean"].tolist() == [0, 0, 0]
        assert shared["ragged"] == 1 + number


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.complex64])
def test_digests_are_of_bytes(dtype: torch.dtype) -> None:
    x = torch.arange(6).reshape(2, 3).to(dtype)
    assert digest(x) == digest(x.clone()) == digest(x.t().contiguous().t()) != digest(x.roll(1))
    assert digest(x[0, 0]) == digest(x.new_zeros(()))


# -- shares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "world"), [(7, 1), (7, 3), (2, 3), (1, 4), (8, 4)])
def test_every_sample_is_in_one_share(count: int, world: int) -> None:
    shares = [Ranks(world, share=i).samples(count) for i in range(world)]
    assert torch.cat([samples for samples, _ in shares]).tolist() == list(range(count))
    assert all(len(samples) == own for samples, own in shares)


@pytest.mark.parametrize(("count", "world"), [(7, 3), (2, 3), (1, 4), (8, 4)])
def test_shares_of_a_sharded_model_are_of_one_size(count: int, world: int) -> None:
    shares = [Ranks(world, share=i, sharded=True).samples(count) for i in range(world)]
    assert len({len(samples) for samples, _ in shares}) == 1
    assert torch.cat([samples[:own] for samples, own in shares]).tolist() == list(range(count))
    assert all(0 <= sample < count for samples, _ in shares for sample in samples.tolist())


def test_alone_nothing_is_asked_of_anyone() -> None:
    tree = {"x": torch.ones(2)}
    assert ALONE.together(tree, 2) is ALONE.first(tree) is tree
    assert ALONE.failing(["b", "c"]) == {"b": 0, "c": 0}
    assert (ALONE.gather(tree), ALONE.total(4, 5)) == ([tree], [4, 5])
    with ALONE.agree("the work") as agreement, ALONE.in_step():
        pass
    assert (agreement.failed_rank, agreement.error) == (None, None)


def test_alone_an_error_is_raised_or_survived() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        ALONE.agree("the work", lambda error: isinstance(error, KeyError)),
        ALONE.in_step(),
    ):
        1 // 0  # noqa: B018
    with ALONE.agree("the work", lambda error: isinstance(error, ArithmeticError)) as agreement:
        1 // 0  # noqa: B018
    assert agreement.failed_rank == 0
    assert isinstance(agreement.error, ZeroDivisionError)


def test_what_has_no_samples_cannot_be_shared() -> None:
    check_entries({"x": (torch.zeros(2, 1), None)}, 2)
    with pytest.raises(ValueError, match=r"It gives \(3, 2\) for 2 samples; .*the first dimension must be the samples"):
        check_entries(torch.zeros(3, 2), 2)
