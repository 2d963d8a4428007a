"""The benchmarks' own arithmetic: what the side by hand is, and that both sides compute the same."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import memory

import _handwritten as by_hand
import _measure as measure
import _workload as workload
from comparing import distance
from lightning_explain import Probe, Report, explain
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.modalities import guess
from lightning_explain.modalities.placement import arrange, onto

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations"),
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks"),
]

SAMPLES = 2
# Captum makes the weights of steps, and the maps of windows, in float32, whatever the model is in.
ROUNDED = ("integrated_gradients", "occlusion")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """The same network with one block a stage, and eight channels."""
    return workload.trained(workload.ResNet((8, 8, 8), blocks=1), steps=15)


@pytest.fixture(scope="module")
def samples() -> Probe:
    return workload.probe(SAMPLES)


@pytest.fixture(scope="module")
def monitor(model: nn.Module, samples: Probe) -> tuple[by_hand.HandwrittenMonitor, int]:
    """The side by hand after one explanation, and the samples it sent."""
    made = by_hand.HandwrittenMonitor(samples.inputs, samples.targets)
    with torch.random.fork_rng(devices=[]):
        return made, workload.samples_sent(model, lambda: made.explain(model))


def test_the_side_by_hand_sends_exactly_689_samples_for_each_sample(
    monitor: tuple[by_hand.HandwrittenMonitor, int],
) -> None:
    assert monitor[1] == SAMPLES * by_hand.SAMPLES_EACH
    assert workload.SAMPLES * by_hand.SAMPLES_EACH == 11_024


def test_what_a_file_has_beside_its_maps_is_measured() -> None:
    few, many = (report_of_zeros(torch.zeros(2, 1, 8, side)) for side in (8, 800))
    (small, maps), (large, more) = memory.stored(few), memory.stored(many)
    assert (maps, more) == (4 * 2 * 8 * 8, 4 * 2 * 8 * 800)
    assert 0 < small - maps < 4000
    assert abs((large - more) - (small - maps)) < 100


def report_of_zeros(found: Tensor) -> Report:
    ids = torch.arange(2)
    return Report({"ig": found}, {}, {}, torch.zeros(2), ids, ids, ids)


def test_captums_default_batches_send_as_many_samples(model: nn.Module, samples: Probe) -> None:
    made = by_hand.HandwrittenMonitor(samples.inputs, samples.targets, pass_size=None)
    with torch.random.fork_rng(devices=[]):
        assert workload.samples_sent(model, lambda: made.explain(model)) == SAMPLES * by_hand.SAMPLES_EACH


def test_the_distinct_passes_are_400_samples_of_which_341_need_a_gradient() -> None:
    assert (workload.WITH_GRADIENT, workload.BACKWARD, workload.WITHOUT_GRADIENT) == (341, 352, 59)
    assert workload.SAMPLES * workload.DISTINCT == 6_400


def test_captum_counts_49_windows(model: nn.Module, samples: Probe) -> None:
    call = by_hand.explainers(model.eval())["occlusion"]

    assert workload.samples_sent(model, lambda: call(samples.inputs, target=samples.targets)) == SAMPLES * (
        1 + workload.WINDOWS
    )


def test_the_side_by_hand_scores_all_maps_and_leaves_occlusion_out_of_sensitivity(
    monitor: tuple[by_hand.HandwrittenMonitor, int],
) -> None:
    scores = monitor[0].scores

    assert set(scores["infidelity"]) == set(workload.methods())
    assert set(scores["sensitivity"]) == set(workload.methods()) - {"occlusion"}
    assert all(values.isfinite().all() for by_method in scores.values() for values in by_method.values())


def test_both_sides_explain_the_same_maps(model: nn.Module, samples: Probe) -> None:
    exact = copy.deepcopy(model).double()
    given = Probe(samples.inputs.double(), targets=samples.targets)
    theirs = by_hand.explainers(copy.deepcopy(exact).eval())
    found = explain(exact, given, workload.methods(), []).attributions

    for name in set(found) - {"smoothgrad", "vargrad"}:
        arranged = arrange((found[name],), (given.inputs,), guess((given.inputs,)))
        (mine,) = onto(arranged, (given.inputs,), guess((given.inputs,)))
        expected = theirs[name](given.inputs, target=given.targets)
        assert expected.flatten(1).any(1).all(), f"{name} is all zeros on a sample"
        assert distance(mine.expand_as(given.inputs), expected) < (1e-7 if name in ROUNDED else 1e-12), name


def test_the_side_by_hand_keeps_the_maps_of_those_calls(
    model: nn.Module, samples: Probe, monitor: tuple[by_hand.HandwrittenMonitor, int]
) -> None:
    again = by_hand.explainers(copy.deepcopy(model).eval())

    for name in set(workload.methods()) - {"smoothgrad", "vargrad"}:
        torch.testing.assert_close(monitor[0].maps[name], again[name](samples.inputs, target=samples.targets))


def test_our_side_sends_only_the_distinct_samples(model: nn.Module, samples: Probe) -> None:
    explainer = Explainer(workload.methods(), workload.metrics(), limit=64)
    reports: list[Report] = []
    sent = workload.samples_sent(model, lambda: reports.append(explainer.explain(model, samples)))

    assert sent == reports[0].passes.forward == SAMPLES * workload.DISTINCT
    assert reports[0].passes.backward == SAMPLES * workload.BACKWARD


def test_the_workload_leaves_the_global_generator_alone() -> None:
    small = workload.ResNet((2, 2), blocks=1)
    before = torch.get_rng_state()
    workload.trained(small, steps=1, batch=4)
    workload.probe(2)

    assert torch.equal(before, torch.get_rng_state())


def test_live_bytes_count_what_is_alive_at_once_and_no_view_twice() -> None:
    def chain() -> Tensor:
        x = torch.ones(2**20)
        for _ in range(5):
            x = (x + 1).view(2, -1).reshape(-1)
        return x

    # Two tensors of 4 MiB: the old and the new one.
    assert measure.peak_mib(chain) == 8.0


def test_live_bytes_see_what_the_graph_keeps() -> None:
    def keep() -> None:
        x = torch.ones(2**20, requires_grad=True)
        x.exp().exp().exp().sum().backward()

    assert measure.peak_mib(keep) >= 16.0


def test_measuring_bare_passes_leaves_the_network_as_it_was(model: nn.Module) -> None:
    model.train()
    with measure.without_parameter_gradients(model):
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.training

    assert all(p.requires_grad for p in model.parameters())
    assert model.training


def test_actions_take_turns_in_alternating_order() -> None:
    seen: list[str] = []
    times = measure.in_turn({name: lambda name=name: seen.append(name) for name in "ab"}, 3)

    assert "".join(seen) == "abbaab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
