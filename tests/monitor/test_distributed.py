"""Laws of the monitor on two ranks: equal numbers everywhere, rank zero alone writes, no rank waits alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from comparing import distance
from distributed_run import plain
from lightning_explain import Probe, explain, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.monitor.alike import PATIENCE
from networks import DigitNet, digits
from processes import finish, free_port

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

SCRIPT = Path(__file__).parents[1] / "distributed_run.py"
DEADLINE = 180
Ranks = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on two ranks; a rank that waits alone misses the deadline."""
    folder = tmp_path_factory.mktemp("ranks")
    finish(SCRIPT, folder, DEADLINE, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    return folder


@pytest.fixture
def ranks(root: Path, request: pytest.FixtureRequest) -> Ranks:
    """What both ranks saw in the scenario that the test names by ``indirect``."""
    zero, one = (torch.load(root / f"{rank}.pt", weights_only=True)[request.param] for rank in (0, 1))
    return zero, one


scenario = pytest.mark.parametrize


@scenario("ranks", ["fine"], indirect=True)
def test_all_ranks_have_the_same_maps_and_scores(ranks: Ranks) -> None:
    zero, one = ranks
    assert list(zero["attributions"]) == ["saliency", "cam"]
    assert all(torch.equal(zero["attributions"][name], one["attributions"][name]) for name in zero["attributions"])
    assert torch.equal(zero["scores"]["infidelity"]["saliency"], one["scores"]["infidelity"]["saliency"])
    assert zero["metrics"] == one["metrics"]
    assert zero["told"] == one["told"] == []


@scenario("ranks", ["beside"], indirect=True)
def test_the_process_beside_rank_zero_explains_all_samples_with_its_weights(ranks: Ranks) -> None:
    zero, one = ranks
    net = plain().net
    net.load_state_dict(zero["weights"])
    methods = {"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam()}
    expected = explain(net, Probe(zero["inputs"], zero["targets"], zero["ids"]), methods, metrics=[])
    assert one["attributions"] == {}
    for name, value in expected.attributions.items():
        assert distance(zero["attributions"][name], value) <= 1e-5
    assert zero["metrics"] == one["metrics"]
    assert "explain/infidelity/cam" in one["metrics"]
    assert zero["told"] == one["told"] == []
    for gathers, sharded in (zero["refused"], one["refused"]):
        assert "its forward needs the other ranks" in gathers
        assert "ModelParallelStrategy each has only a part" in sharded


@scenario("ranks", ["fine"], indirect=True)
def test_two_ranks_find_what_one_process_finds_with_the_same_weights(ranks: Ranks) -> None:
    zero, _ = ranks
    net = plain().net
    net.load_state_dict(zero["weights"])
    methods = {"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam()}
    probe = Probe(zero["inputs"], zero["targets"], ids=zero["ids"])
    alone = explain(net, probe, methods, [q.Infidelity(n_perturb_samples=2)])
    torch.testing.assert_close(zero["attributions"], dict(alone.attributions))
    torch.testing.assert_close(zero["scores"]["infidelity"], dict(alone.scores["infidelity"]))


def test_rank_zero_alone_writes(root: Path) -> None:
    (folder,) = {path.parent for path in (root / "fine").rglob("events.out.tfevents.*")}
    found = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in found.Tags()["scalars"] if tag.startswith("explain/")]
    assert {tag: [event.step for event in found.Scalars(tag)] for tag in tags} == {tag: [2, 4] for tag in tags}
    assert [report.step for report in load_reports(folder / "explain")] == [2, 4]


@scenario("ranks", ["fine"], indirect=True)
def test_checkpoints_see_the_scores_that_are_written(ranks: Ranks, root: Path) -> None:
    (path,) = (root / "fine" / "checkpoints").glob("*step=4.ckpt")
    states = torch.load(path, weights_only=True)["callbacks"]
    best = next(state for key, state in states.items() if key.startswith("ModelCheckpoint"))
    assert float(best["current_score"]) == pytest.approx(ranks[0]["metrics"]["explain/infidelity/saliency"])


@scenario("ranks", ["drifting"], indirect=True)
def test_all_ranks_remember_the_same_and_stop_together(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["steps"] == one["steps"] == 4, "no drift in the first explanation, then three in a row"
    assert zero["alerts"] == one["alerts"]
    for when in ("first", "previous"):
        assert torch.equal(zero["history"][when]["saliency"][0], one["history"][when]["saliency"][0])
    assert zero["metrics"] == one["metrics"]


@scenario("ranks", ["batch_statistics", "limited"], indirect=True)
def test_all_ranks_log_the_numbers_of_rank_zero(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["metrics"] == one["metrics"]
    assert zero["metrics"]["explain/overhead"] > 0
    assert zero["steps"] == one["steps"]


@scenario("ranks", ["batch_statistics"], indirect=True)
def test_ranks_explain_with_the_batch_statistics_of_rank_zero_and_keep_their_own(ranks: Ranks, root: Path) -> None:
    zero, one = ranks
    assert not torch.equal(zero["weights"]["stem.1.running_mean"], one["weights"]["stem.1.running_mean"])
    assert torch.equal(zero["attributions"]["saliency"], one["attributions"]["saliency"])
    net = DigitNet()
    net.load_state_dict(zero["weights"])
    probe = Probe(zero["inputs"], zero["targets"], ids=zero["ids"])
    alone = explain(net, probe, {"saliency": m.Saliency(abs=False)}, [])
    assert distance(zero["attributions"]["saliency"], alone.attributions["saliency"]) <= 1e-5
    (folder,) = {path.parent for path in (root / "batch_statistics").rglob("events.out.tfevents.*")}
    found = EventAccumulator(str(folder)).Reload()
    apart = {
        tag.replace("explain_run/", "explain/"): tag
        for tag in found.Tags()["scalars"]
        if tag.startswith("explain_run/")
    }
    written = {key: found.Scalars(apart.get(key, key))[-1].value for key in zero["metrics"]}
    assert apart.keys() == {"explain/nonfinite/saliency", "explain/seconds", "explain/overhead"}
    assert zero["metrics"] == pytest.approx(written)


@scenario("ranks", ["stream"], indirect=True)
def test_all_ranks_explain_the_samples_of_rank_zero(ranks: Ranks) -> None:
    zero, one = ranks
    assert torch.equal(zero["inputs"], digits()[0][:4])
    assert torch.equal(one["inputs"], zero["inputs"])
    assert torch.equal(one["targets"], zero["targets"])
    assert zero["metrics"] == one["metrics"]


@scenario("ranks", ["undisturbed"], indirect=True)
def test_training_on_two_ranks_is_bit_identical_with_the_monitor(ranks: Ranks) -> None:
    for rank in ranks:
        assert (rank["reports"], rank["steps"]) == (1, 4)
        assert rank["states"] > 15


@scenario("ranks", ["sharded"], indirect=True)
def test_a_sharded_training_is_bit_identical_and_explained_as_a_whole_one(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["told"] == one["told"] == []
    assert torch.equal(zero["attributions"]["saliency"], one["attributions"]["saliency"])
    assert torch.equal(zero["weights"]["head.weight"], one["weights"]["head.weight"])
    net = DigitNet()
    net.load_state_dict(zero["weights"])
    probe = Probe(zero["inputs"], zero["targets"], ids=zero["ids"])
    alone = explain(net, probe, {"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam("block.bn2")}, [])
    assert len(zero["ids"]) == 3
    for name, found in zero["attributions"].items():
        assert distance(found, alone.attributions[name]) <= 1e-5


@scenario("ranks", ["gathering"], indirect=True)
def test_a_model_with_collectives_of_its_own_is_explained_with_uneven_shares(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["told"] == one["told"] == []
    assert zero["metrics"] == one["metrics"]
    net = plain().net
    net.load_state_dict(zero["weights"])
    probe = Probe(zero["inputs"], zero["targets"], ids=zero["ids"])
    alone = explain(net, probe, {"saliency": m.Saliency(abs=False)}, [])
    assert len(zero["ids"]) == 3
    assert distance(zero["attributions"]["saliency"], alone.attributions["saliency"]) <= 1e-5


@scenario("ranks", ["limited"], indirect=True)
def test_the_clock_of_rank_zero_decides_for_all(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["calls"] == one["calls"] < 8
    # Since then each rank has trained by its own clock; a checkpoint has that of rank zero.
    decided = [{**rank["schedule"], "train_seconds": None} for rank in ranks]
    assert decided[0] == decided[1]
    assert decided[0]["lengthened"]


@scenario("ranks", ["failing_method"], indirect=True)
def test_what_fails_on_one_rank_is_left_out_on_all_and_told_where_it_failed(ranks: Ranks) -> None:
    zero, one = ranks
    expected = {"explain/infidelity/saliency", "explain/nonfinite/saliency", "explain/seconds", "explain/overhead"}
    assert set(zero["metrics"]) == set(one["metrics"]) == expected
    assert zero["told"] == []
    assert len(one["told"]) == 2
    assert "'bad' failed and is left out of this explanation (rank 1)" in one["told"][0]
    assert "ArithmeticError: no map on rank 1" in one["told"][0]
    assert "ArithmeticError: no score on rank 1" in one["told"][1]
    assert zero["steps"] == one["steps"] == 4


@scenario("ranks", ["failing_explanation"], indirect=True)
def test_an_explanation_that_fails_on_one_rank_is_made_on_none_and_training_goes_on(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["metrics"] == one["metrics"] == {}
    assert zero["told"] == []
    (told,) = one["told"]
    assert "No explanation (rank 1); training continues" in told
    assert "ArithmeticError: no target on rank 1" in told
    assert zero["steps"] == one["steps"] == 4


@scenario("ranks", ["raising", "no_rows"], indirect=True)
def test_an_error_on_one_rank_is_raised_on_all(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["error"].startswith("FailedElsewhereError: Gave up because ")
    assert zero["error"].endswith("failed on rank 1; read the traceback printed there.")
    assert one["error"].startswith("ArithmeticError: no ")


@scenario("ranks", ["beside_raising"], indirect=True)
def test_an_error_of_the_process_beside_rank_zero_is_raised_on_all(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["error"] == "ArithmeticError: no map today"
    assert one["error"].startswith("FailedElsewhereError: Gave up because ")
    assert one["error"].endswith("failed on rank 0; read the traceback printed there.")


@scenario("ranks", ["beside_again"], indirect=True)
def test_what_rank_zero_learned_beside_a_training_all_ranks_know_in_the_next(ranks: Ranks) -> None:
    """Otherwise a rank would wait alone, in a training or a test, for explanations that the others decide not to make."""
    zero, one = ranks
    assert zero["steps"] == one["steps"] == 8
    assert zero["attributions"].keys() == one["attributions"].keys() == {"saliency"}
    assert torch.equal(zero["attributions"]["saliency"], one["attributions"]["saliency"])
    assert zero["metrics"] == one["metrics"]
    first, last = zero["states"]
    assert first["failures"] == {"bad": 3}
    assert one["states"][0]["history"]["fingerprint"] == "", "rank zero alone explained"
    assert last["schedule"]["last"] == 4
    assert last["alerts"]["drift_cosine_first/saliency above -2 for 9"]["count"] == 4
    for known in ("schedule", "alerts", "failures", "pace"):
        assert one["states"][1][known] == last[known] is not None, known
    ours, theirs = (state["history"] for state in (last, one["states"][1]))
    assert torch.equal(ours["first"]["saliency"][0], theirs["first"]["saliency"][0])


@scenario("ranks", ["warnings_as_errors"], indirect=True)
def test_where_warnings_are_errors_the_ranks_go_on_together_and_warn_of_the_reasons(ranks: Ranks) -> None:
    zero, one = ranks
    for training in ("one", "two"):
        assert zero[training]["metrics"] == one[training]["metrics"]
        assert zero[training]["steps"] == one[training]["steps"] == 8
    assert "explain/infidelity/saliency" in zero["one"]["metrics"]
    assert zero["two"]["metrics"] == {}
    output = "\n".join([*zero["warned"], *one["warned"]])
    for text in (
        "no map on rank 1",
        "No explanation (rank 1); training continues",
        "is switched off",
        "which is above -1",
    ):
        assert text in output


@scenario("ranks", ["bar_in_front"], indirect=True)
def test_a_progress_bar_in_front_that_reads_metrics_on_rank_zero_alone_is_met_by_the_other_ranks(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["steps"] == one["steps"] == 4
    assert zero["logged"]["train_loss"] == one["logged"]["train_loss"]
    assert zero["told"] == one["told"] == []


@scenario("ranks", ["closed_sinks"], indirect=True)
def test_sinks_that_cannot_be_opened_on_rank_zero_are_reported_there_and_training_goes_on(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["metrics"] == one["metrics"] != {}
    (text,) = zero["told"]
    assert "Opening the sinks failed; training continues (rank 0)" in text
    assert "ConnectionError: no route to the loggers" in text
    assert one["told"] == []
    assert zero["steps"] == one["steps"] == 4


@scenario("ranks", ["closed_sinks_raising"], indirect=True)
def test_sinks_that_cannot_be_opened_are_an_error_on_all_ranks_if_asked_for(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["error"] == "ConnectionError: no route to the loggers"
    assert (
        one["error"]
        == "FailedElsewhereError: Gave up because writing failed on rank 0; read the traceback printed there."
    )


UNLIKE = {
    "methods": "methods on rank 1",
    "method_argument": "methods on rank 1",
    "metrics": "metrics on rank 1",
    "probe": "probe on rank 1",
    "seed_and_schedule": "every_n_epochs of 'explain' on rank 1; seed of 'explain' on rank 1",
    "enabled": "enabled on rank 1",
    "target": "target on rank 1",
    "the_same_function": "agreed",
    "class_names": "class_names on rank 1",
    "alerts": "alerts on rank 1",
    "name": "the names of the monitors (['other']) on rank 1",
    "on_error": "on_error on rank 1",
    "nothing": "agreed",
    "training": "seed on rank 1",
}


@scenario("ranks", ["unlike"], indirect=True)
def test_arguments_that_differ_between_ranks_are_named_on_all_before_the_first_batch(ranks: Ranks) -> None:
    for rank in ranks:
        for name, expected in UNLIKE.items():
            assert expected in rank[name], name
            assert len(rank[name]) <= 300
            # A rank that waits for one that will not come waits for all of it.
            assert rank.get(f"{name}, seconds", 0) < PATIENCE.total_seconds() / 5
        assert not rank["batches"]


@scenario("ranks", ["unlike"], indirect=True)
def test_a_monitor_on_one_rank_alone_is_switched_off_with_a_line_and_training_goes_on(ranks: Ranks) -> None:
    zero, one = ranks
    assert zero["alone"] == (2, False, True)
    assert one["alone"][0] == 2
