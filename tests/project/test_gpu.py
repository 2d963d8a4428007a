"""The script for machines with a card runs here, too, on the CPU, and notices what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import _gpu_parts as parts
import _gpu_speed as speed
import _gpu_training as training
import gpu
import memory

from lightning_explain import ExplanationMonitor, Probe
from lightning_explain import methods as m
from states import assert_equal

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def run(*arguments: str) -> int:
    return gpu.main(["--device", "cpu", "--small", "--repeat", "1", *arguments])


def test_every_part_runs_and_passes_on_a_cpu(tmp_path: Path) -> None:
    assert run("--save", str(tmp_path / "found.txt")) == 0

    found = (tmp_path / "found.txt").read_text(encoding="utf-8")
    for title in (
        "with and without the monitor",
        "against Captum's",
        "Peak memory",
        "too little",
        "The default monitor",
    ):
        assert title in found
    for network in ("ResNet-50", "ViT-B/16", "BERT-base"):
        assert network in found
    for training_row in ("32-true, compiled", "32-true, beside"):
        assert training_row in found
    assert "processor" in found.splitlines()[0], "a run on a CPU must say so"
    assert "all checks passed" in found


class Meddling(ExplanationMonitor):
    """Draws a number from the training's generator."""

    def on_train_batch_end(self, *arguments: Any) -> None:
        super().on_train_batch_end(*arguments)
        torch.rand(1)


def test_a_monitor_that_draws_from_the_generator_of_the_training_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = Probe(*training.images(2, 2))
    monkeypatch.setattr(training, "kinds", lambda device: {"32-true": ("32-true", False, None)})
    monkeypatch.setattr(
        training, "_monitor", lambda beside: Meddling([m.Saliency()], [], probe, every_n_train_steps=2, at_start=True)
    )

    assert run("interference") == 1
    assert "other values" in capsys.readouterr().out


def test_a_map_that_is_not_captums_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = parts.pairs

    def wrong(model: torch.nn.Module) -> Any:
        pair = right(model)["saliency"]
        return {"saliency": type(pair)(pair.ours, lambda x, y: 1.1 * pair.captum(x, y))}

    monkeypatch.setattr(parts, "pairs", wrong)

    assert run("equality") == 1
    assert "saliency differs by" in capsys.readouterr().out


def refuse(*arguments: Any) -> Any:
    raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")


def test_a_part_that_cannot_run_is_listed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parts, "equality", refuse)

    assert run("equality", "out_of_memory", "--save", str(tmp_path / "found.txt")) == 1

    found = (tmp_path / "found.txt").read_text(encoding="utf-8")
    assert "failed: equality: did not run: RuntimeError: Failed to find C compiler." in found
    assert "A device that is too small" in found


def test_a_training_that_cannot_run_is_listed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    right = training._compared
    chosen = {"compiled": ("32-true", True, None), "32-true": ("32-true", False, None)}
    monkeypatch.setattr(training, "kinds", lambda device: chosen)
    monkeypatch.setattr(training, "_compared", lambda device, *kind: refuse() if kind[1] else right(device, *kind))

    found, wrong = training.interference(torch.device("cpu"))

    assert wrong == ["compiled: RuntimeError: Failed to find C compiler."]
    assert [[*column.cells] for column in found.columns][-1] == ["did not run", "equal"]


def test_the_chosen_card_is_the_current_one_and_the_one_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    given: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(speed.shares, "seconds", lambda *arguments, **named: given.append(named) or (1.0, 0.5))

    card = parts.device_of("cuda:1")
    speed.share(card, small=True)

    assert current == [torch.device("cuda:1")]
    assert given == [{"accelerator": "gpu", "devices": [1]}]
    assert parts.device_of("cuda") == parts.device_of("auto") == torch.device("cuda:0")
    with pytest.raises(SystemExit, match=r"--device cuda:2: torch .* finds 2 cards"):
        parts.device_of("cuda:2")


def test_not_a_number_in_the_same_place_is_equal_and_another_bit_is_not() -> None:
    nan = float("nan")
    first = {"grad": torch.tensor([1.0, nan]), "scale": nan, "weight": torch.tensor(nan, dtype=torch.bfloat16)}
    assert_equal(first, {name: value if isinstance(value, float) else value.clone() for name, value in first.items()})

    for name, other in {"grad": torch.tensor([nan, 1.0]), "scale": 65536.0, "weight": torch.tensor(1.0)}.items():
        with pytest.raises(AssertionError, match=name):
            assert_equal({**first, name: other}, first)
    with pytest.raises(AssertionError, match="other values"):
        assert_equal(torch.tensor(-0.0), torch.tensor(0.0))


def test_a_peak_of_captum_that_does_not_fit_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory, "sizes", lambda: iter([("DeepLift", 1)]))
    monkeypatch.setattr(memory, "captum", lambda *arguments: too_large)

    assert run("memory") == 0
    assert "does not fit" in capsys.readouterr().out


def test_batches_and_passes_shrink_to_what_fits_and_the_number_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(build: Any, shape: Any, count: int, size: int, **place: Any) -> tuple[float, float]:
        if size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0, 0.5

    def refuse_many(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def build() -> torch.nn.Module:
        model = speed.resnet(small=True)
        model.register_forward_pre_hook(refuse_many)
        return model

    monkeypatch.setattr(speed.shares, "seconds", seconds)
    cpu = torch.device("cpu")
    cells = {column.header: [*column.cells] for column in speed.share(cpu, small=True)[0].columns}
    assert cells["in a batch"] == ["4"]

    network = speed.Network(build, lambda count: torch.randn(count, 3, 32, 32), {"Saliency": m.Saliency()})
    rates = speed._rates(network, cpu, torch.float32, 4, 1)
    assert rates["Saliency"].endswith("(1 in a pass)")
    assert rates[speed.TOGETHER].endswith("(1 in a pass)")


@pytest.mark.parametrize(
    ("names", "said"), [((), "no *.whl"), (("a-1.whl", "b-2.tar.gz"), "b-2.tar.gz, which must be")]
)
def test_a_folder_without_a_wheel_of_each_package_is_refused(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(SystemExit) as refused:
        run("--wheels", str(tmp_path))
    assert said in str(refused.value)
    assert "pip wheel" in str(refused.value)
