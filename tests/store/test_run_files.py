"""What is kept of a run once: it comes back as it was, belongs to its reports, and is never lost or in the way."""

from __future__ import annotations

import json
import logging
import os
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lightning_explain import Probe, ProbeSelection, Report, compare, draw, load_reports
from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.serialization import columns, fingerprint
from lightning_explain.modalities import TimeSeries
from lightning_explain.render.page import Layout
from lightning_explain.store.report_files import save_report
from lightning_explain.store.run_files import RunFiles, save_probe, save_run
from lightning_explain.store.thinning import Reports
from training import QUIET, DigitModule, fit, loaders, report_of, trainer
from training import monitor_of_digits as monitor

pytestmark = QUIET


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, types and all bits of tensors too."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and (a == b or (a != a and b != b))


def a_probe(**changes: Any) -> Probe:
    given: dict[str, Any] = {
        "inputs": (torch.rand(2, 3), torch.rand(2, 1, 4, 4).bfloat16()),
        "targets": torch.tensor([1, 0]),
        "ids": torch.tensor([2**40, 7]),
        "masks": torch.rand(2, 4, 4) > 0.5,
        "class_names": ("猫", "Möwe"),
        "forward_args": ({"a": [torch.ones(2), float("inf"), None], "tensor": "inputs"}, (True, 3), torch.zeros(())),
        "stds": (torch.rand(1, 3), torch.rand(1, 1, 4, 4)),
        "parameters": (("x",), ("batch", "y"), ("z",), (3,), ("w",)),
        "meta": {"file": ("a.png", "重.png")},
    }
    return Probe(**{**given, **changes})


def a_report(probe: Probe, **changes: Any) -> Report:
    ids = torch.zeros(len(probe), dtype=torch.long)
    report = Report({"ig": torch.ones(2, 3)}, {}, {}, torch.zeros(2), ids, ids, probe.sample_ids, step=1, probe=probe)
    return replace(report, fingerprint=fingerprint(probe), **changes)


def a_run(probe: Probe, **changes: Any) -> RunInfo:
    settings = {"methods": {"ig": {"class": "IntegratedGradients"}}, "every": [1, 2.5, None]}
    given: dict[str, Any] = {"settings": settings, "charts": {"a": ["explain/a/ig"]}, "class_names": ("猫", "Möwe")}
    return RunInfo("explain", **{**given, "fingerprint": fingerprint(probe), **changes})


def stored(folder: Path, report: Report) -> Report:
    """The report after it was saved and loaded."""
    reports = Reports()
    reports.save(report, folder)
    reports.save_run(report, folder)
    return load_reports(folder)[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The folder of a training of two epochs, and the last report in memory."""
    root = tmp_path_factory.mktemp("run")
    watch = monitor(
        class_names=[f"class {i}" for i in range(10)], normalization=(0.5, 0.25), cmap={"saliency": "viridis"}
    )
    fit(root, watch, max_epochs=6)
    return root / "explain", report_of(watch)


def test_what_a_training_stores_comes_back_in_every_field(finished: tuple[Path, Report]) -> None:
    folder, expected = finished
    found = load_reports(folder)
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "run.json",
        "probe.safetensors",
        "scalars.jsonl",
        *(f"step={step:08d}.safetensors" for step in range(4, 25, 4)),
    }
    assert found[0].run is found[-1].run
    assert found[0].probe is found[-1].probe
    assert found[-1].run == expected.run
    assert expected.run is not None
    assert expected.probe is not None
    assert found[-1].probe is not None
    assert (expected.run.fingerprint, expected.run.modalities) == (expected.fingerprint, ("Image",))
    assert expected.run.drawing["cmap"] == {"default": None, "saliency": "viridis"}
    assert same(columns(found[-1].probe), columns(expected.probe))
    for field in fields(Report):
        # Seconds are measured again after the file is written.
        if field.name not in ("run", "probe", "seconds"):
            assert same(getattr(found[-1], field.name), getattr(expected, field.name)), field.name


def test_one_page_is_drawn_for_one_picture(finished: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, page = [], Layout._page
    monkeypatch.setattr(Layout, "_page", lambda *arguments: drawn.append(1) or page(*arguments))
    for name in ("overview", "saliency"):
        draw(finished[1], name)
    assert len(drawn) == 2


def test_a_stored_report_is_drawn_as_the_dashboard_showed_it_to_the_byte(finished: tuple[Path, Report]) -> None:
    folder, last = finished
    reports = load_reports(folder)
    pictures = {path: path.parent.relative_to(folder).as_posix() for path in folder.rglob("step=*.png")}
    assert {"overview", "saliency", "history/saliency"} <= set(pictures.values())
    for path, name in pictures.items():
        (report,) = (r for r in reports if path.name == f"step={r.step:08d}.png")
        assert np.array_equal(draw(report, name, history=reports), np.asarray(Image.open(path))), name
    with pytest.raises(ValueError, match="There is no picture 'history/saliency'"):
        draw(reports[-1], "history/saliency")
    composite = draw(reports[-1], "saliency", layout="composite")
    assert np.array_equal(composite, draw(last, "saliency", layout="composite"))
    assert composite.shape[0] > composite.shape[1] / 2
    with pytest.raises(ValueError, match=r"no picture 'saliancy' of this report: did you mean 'saliency'"):
        draw(last, "saliancy")
    with pytest.raises(ValueError, match=r"The report has no samples.*save_inputs=False"):
        draw(replace(last, probe=None), "saliency")
    with pytest.raises(ValueError, match=r"drawing options .* are invalid"):
        draw(replace(last, run=replace(a_run(a_probe()), drawing={"panels": 3})), "saliency")


def test_a_color_map_of_ones_own_is_said_once_and_drawn_with_the_default(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = ListedColormap([[0, 0, 0], [1, 1, 1]], name="mine")
    caplog.set_level(logging.INFO)
    fit(tmp_path, monitor(cmap={"saliency": own, "default": colormaps["magma"]}), max_epochs=2)
    assert caplog.text.count("cmap cannot be stored with the reports") == 1
    (*_, report) = load_reports(tmp_path / "explain")
    assert report.run is not None
    assert report.run.drawing["cmap"] == {"default": "magma", "saliency": None}
    assert draw(report, "saliency").dtype == np.uint8


def test_an_explanation_of_many_takes_little_more_than_its_maps(finished: tuple[Path, Report]) -> None:
    folder, report = finished
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    maps = sum(x.nbytes for x in report.attributions.values() if isinstance(x, Tensor))
    print(f"{sizes['step=00000024.safetensors']:,} bytes per explanation, of which {maps:,} are maps; once: ", sizes)
    assert sizes["step=00000024.safetensors"] < maps + 4_000


DATA = Path(__file__).parents[1] / "data" / "run-0.2"


def test_a_store_of_version_0_2_loads_and_is_drawn() -> None:
    first, last = load_reports(DATA)
    assert (first.step, last.step, last.epoch, last.stage) == (4, 8, 1, "fit")
    assert (first.run, first.probe) == (last.run, last.probe)
    assert last.run is not None
    assert last.probe is not None
    assert (last.run.name, last.run.class_names[:2], last.run.modalities) == ("explain", ("zero", "one"), ("Image",))
    assert last.run.settings["every_n_epochs"] is None
    assert last.fingerprint == last.run.fingerprint == fingerprint(last.probe)
    assert "infidelity/saliency" in last.scalars()
    picture = draw(last, "saliency", layout="composite")
    assert picture.ndim == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    columns, lines = last.table()
    assert (len(lines), lines[0][columns.index("label_name")]) == (2, last.run.class_names[int(last.probe.targets[0])])  # type: ignore[index]
    assert [compared.similarity["cosine"]["saliency"].shape for compared in compare(DATA, DATA)] == [(2,), (2,)]


def test_every_field_of_samples_comes_back(tmp_path: Path) -> None:
    probe = a_probe()
    found = stored(tmp_path, a_report(probe)).probe
    assert found is not None
    assert same(columns(found), columns(probe))
    assert fingerprint(found) == fingerprint(probe)


def test_a_forward_argument_that_no_file_can_hold_is_left_out(tmp_path: Path) -> None:
    probe = a_probe(forward_args=(object(),), parameters=())
    found = stored(tmp_path, a_report(probe)).probe
    assert found is not None
    assert found.forward_args == (None,)
    assert same(found.inputs, probe.inputs)


def test_runs_and_samples_are_added_and_never_lost(tmp_path: Path) -> None:
    first, second = a_probe(), a_probe()
    for step, (probe, threads) in enumerate(((first, 1), (second, 1), (first, 2), (first, 1))):
        stored(tmp_path, a_report(probe, step=step, run=a_run(probe, threads=threads, cost=f"{step} seconds")))
    found = load_reports(tmp_path)
    assert [report.run and report.run.threads for report in found] == [1, 1, 2, 1]
    assert [report.probe and same(report.probe.inputs, first.inputs) for report in found] == [True, False, True, True]
    assert len(json.loads((tmp_path / "run.json").read_text())["runs"]) == 3
    assert {path.name for path in tmp_path.glob("probe*")} == {
        "probe.safetensors",
        f"probe-{fingerprint(second)[:12]}.safetensors",
    }


def test_what_is_written_already_is_not_written_again(tmp_path: Path) -> None:
    probe = a_probe()
    paths = [save_run(a_run(probe), tmp_path), save_probe(probe, tmp_path)]
    before = [path.stat() for path in paths]
    assert [save_run(a_run(probe, cost="other"), tmp_path), save_probe(probe, tmp_path)] == paths
    assert [path.stat() for path in paths] == before


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    probe = a_probe()
    save_file({"inputs": torch.ones(2)}, tmp_path / "probe.safetensors")
    (tmp_path / "run.json").write_text("[1, 2]")
    assert save_probe(probe, tmp_path).name == f"probe-{fingerprint(probe)[:12]}.safetensors"
    with pytest.raises(ValueError, match=r"run\.json' is broken \(it is \[1, 2\] instead of .*\); move it elsewhere"):
        save_run(a_run(probe), tmp_path)
    assert (tmp_path / "run.json").read_text() == "[1, 2]"


def test_the_same_samples_as_something_else_are_drawn_as_that(tmp_path: Path) -> None:
    series = Probe(torch.rand(2, 3, 8), torch.tensor([0, 1]), modalities=TimeSeries(rate=10.0))
    path = save_probe(series, tmp_path)
    written = path.stat().st_mtime_ns
    assert save_probe(series, tmp_path).stat().st_mtime_ns == written
    assert save_probe(replace(series, modalities=TimeSeries(rate=20.0)), tmp_path) == path
    found = RunFiles(tmp_path)._find(fingerprint(series), 2)
    assert found is not None
    assert found.modalities[0].rate == 20.0
    assert len(list(tmp_path.iterdir())) == 1


def test_fields_of_later_versions_are_left_out_and_those_of_earlier_ones_may_lack(tmp_path: Path) -> None:
    probe = a_probe()
    save_report(a_report(probe), tmp_path)
    content = {"runs": [{"name": "explain", "mood": 1, "fingerprint": fingerprint(probe)}]}
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert load_reports(tmp_path)[0].run == RunInfo("explain", fingerprint=fingerprint(probe))


# -- hostile files -------------------------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000


def run_with(**changed: Any) -> Any:
    def write(folder: Path, probe: Probe) -> None:
        content = {"name": "explain", "fingerprint": fingerprint(probe), **changed}
        (folder / "run.json").write_text(json.dumps({"runs": [content]}))

    return write


def run_text(text: str) -> Any:
    return lambda folder, probe: (folder / "run.json").write_text(text)


def probe_with(edit: Any) -> Any:
    """A file of samples whose JSON is edited."""

    def write(folder: Path, probe: Probe) -> None:
        path = save_probe(probe, folder)
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            tensors, texts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        content = json.loads(texts["lightning_explain_probe"])
        edit(content, tensors)
        save_file(tensors, path, metadata={"lightning_explain_probe": json.dumps(content)})

    return write


def changed(**values: Any) -> Any:
    return probe_with(lambda content, tensors: content["probe"]["dict"].update(values))


def tampered(content: Any, tensors: dict[str, Tensor]) -> None:
    tensors["inputs/0"] += 1


def sparse(folder: Path, probe: Probe) -> None:
    (folder / "run.json").touch()
    os.truncate(folder / "run.json", 2**40)


HOSTILE: dict[str, tuple[Any, str]] = {
    "a pipe": (lambda folder, probe: os.mkfifo(folder / "run.json"), "run.json' is broken (it is not a regular file)"),
    "a device": (lambda folder, probe: (folder / "run.json").symlink_to("/dev/zero"), "not a regular file"),
    "a folder": (lambda folder, probe: (folder / "run.json").mkdir(), "not a regular file"),
    "a link to nothing": (lambda folder, probe: (folder / "run.json").symlink_to("gone"), "No such file"),
    "a terabyte": (sparse, "more than"),
    "half a file": (run_text('{"runs": [{"na'), "Unterminated"),
    "deep": (run_text(DEEP), "recursion"),
    "bytes": (lambda folder, probe: (folder / "run.json").write_bytes(b"\xff\xfe"), "decode"),
    "a list": (run_text("[1]"), "instead of a dictionary with 'runs'"),
    "no runs": (run_text("{}"), "runs is None"),
    "a run that is a number": (run_text('{"runs": [1]}'), "runs[0] is 1"),
    "a run twice named": (run_text('{"runs": [{"name": "a", "name": "b"}]}'), "a name twice"),
    "NaN": (run_text('{"runs": [{"name": "a", "threads": NaN}]}'), "the number NaN"),
    "a name that is a number": (run_with(name=1), "name is 1"),
    "names that are a text": (run_with(class_names="abc"), "class_names is 'abc'"),
    "threads that are a word": (run_with(threads="all"), "threads is 'all'"),
    "charts of numbers": (run_with(charts={"a": 1}), "charts['a'] is 1"),
    "settings that are a list": (run_with(settings=[1]), "settings is [1]"),
    "a broken probe": (lambda folder, probe: (folder / "probe.safetensors").write_bytes(b"half"), "no header"),
    "a probe that is a pipe": (lambda folder, probe: os.mkfifo(folder / "probe.safetensors"), "not a regular file"),
    "other samples": (lambda folder, probe: save_probe(a_probe(), folder), "has other samples (probe.safetensors)"),
    "tampered samples": (probe_with(tampered), "not those whose fingerprint"),
    "a fingerprint that is a list": (probe_with(lambda c, t: c.update(fingerprint=[1])), "fingerprint is [1]"),
    "inputs that are text": (changed(inputs="x"), "probe.inputs is 'x'"),
    "inputs that are not there": (changed(inputs={"tensor": "gone"}), "probe"),
    "a tensor named by a list": (changed(inputs={"tensor": [1]}), "instead of a value with its kind"),
    "an unknown kind": (changed(forward_args={"pickle": "gASV"}), "instead of a value with its kind"),
    "two kinds": (changed(ids={"tensor": "ids", "object": "x"}), "instead of a value with its kind"),
    "a deep argument": (probe_with(lambda c, t: c["probe"]["dict"].update(forward_args=_nested(200))), "instead of"),
    "an unknown field": (changed(mood=1), "'mood'"),
    "no samples": (probe_with(lambda c, t: c.update(probe=None)), "probe is None"),
    "ids that are fractions": (probe_with(lambda c, t: t.update(ids=torch.rand(2))), "probe.ids is"),
    "three labels": (probe_with(lambda c, t: t.update(targets=torch.zeros(3))), "targets"),
}


def _nested(depth: int) -> Any:
    return {"list": [_nested(depth - 1)]} if depth else 1


@pytest.mark.parametrize(("write", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_broken_file_of_the_run_costs_one_warning_that_names_it_and_no_report(
    write: Any, reason: str, tmp_path: Path
) -> None:
    probe = a_probe()
    for step in (1, 2):
        save_report(a_report(probe, step=step), tmp_path)
    write(tmp_path, probe)
    with pytest.warns(RuntimeWarning) as told:
        found = load_reports(tmp_path)
    (message,) = (str(one.message) for one in told)
    assert reason in message
    assert str(tmp_path)[:20] in message
    assert len(message) < 500
    assert message.isprintable()
    assert [(report.step, report.probe) for report in found] == [(1, None), (2, None)]


# -- which files stay ----------------------------------------------------------------------------------------------


def kept(folder: Path, steps: int, **arguments: Any) -> list[int | None]:
    probe, reports = a_probe(), Reports(**arguments)
    for step in range(1, steps + 1):
        reports.save(a_report(probe, step=step), folder)
    return [report.step for report in load_reports(folder)]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({}, list(range(1, 13))),
        ({"keep_last": 2}, [1, 11, 12]),
        ({"keep_every": 5}, [1, 6, 11, 12]),
        ({"keep_every": 5, "keep_last": 3}, [1, 6, 10, 11, 12]),
        ({"keep_every": 1}, list(range(1, 13))),
        ({"keep_last": 100}, list(range(1, 13))),
    ],
)
def test_the_files_that_are_wanted_stay_and_the_first_and_the_last(
    arguments: Any, steps: list[int], tmp_path: Path
) -> None:
    assert kept(tmp_path, 12, **arguments) == steps


def test_only_files_of_this_training_are_deleted(tmp_path: Path) -> None:
    assert kept(tmp_path, 4, keep_last=1) == [1, 4]
    # A training that is resumed writes over step 4, and leaves what was there.
    probe, reports = a_probe(), Reports(keep_last=1)
    for step in range(4, 10):
        reports.save(a_report(probe, step=step), tmp_path)
        if step == 6:
            save_report(a_report(probe, step=6, seconds=5.0), tmp_path)  # the user's
    for step in (9, 10):
        reports.save(a_report(probe, step=step, stage="test"), tmp_path)
    found = [(report.step, report.stage) for report in load_reports(tmp_path)]
    assert found == [(1, None), (4, None), (6, None), (9, None), (9, "test"), (10, "test")]


def test_a_training_thins_its_files(tmp_path: Path) -> None:
    fit(tmp_path, monitor(keep_every=3, keep_last=1), max_epochs=5)
    assert [report.step for report in load_reports(tmp_path / "explain")] == [4, 16, 20]
    with pytest.raises(ValueError, match=r"keep_every=0"):
        monitor(keep_every=0)
    with pytest.raises(ValueError, match=r"keep_last="):
        monitor(keep_last=1.5)


# -- no inputs -----------------------------------------------------------------------------------------------------


def samples_in(folder: Path, probe: Probe) -> dict[str, set[str]]:
    """In which files there are the bytes of a sample, or of an eighth of it, or its numbers in words; by sample id."""
    found: dict[str, set[str]] = {}
    contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert isinstance(probe.inputs, Tensor)
    for i, x in zip(probe.sample_ids.tolist(), probe.inputs, strict=True):
        for part in (x, *x.flatten(1).unbind(1), *x[0]):
            # Empty lines of a picture are zeros, as they are everywhere.
            if len(part.unique()) > 3:
                marks = (
                    part.numpy().tobytes(),
                    part.half().numpy().tobytes(),
                    str(part.flatten().tolist())[1:-1].encode(),
                )
                for path, content in contents.items():
                    if any(mark in content for mark in marks):
                        found.setdefault(str(i), set()).add(path.suffix)
    return found


def test_inputs_are_in_the_probe_file_and_nowhere_with_save_inputs_off(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    found = {}
    for save in (True, False):
        root = tmp_path / str(save)
        watch = monitor(save_inputs=save, probe=ProbeSelection(count=4))
        keep = ModelCheckpoint(root / "checkpoints")
        fit(root, watch, keep, logger=TensorBoardLogger(root, name="", version="tb"))
        probe = watch.probe
        assert probe is not None
        found[save] = samples_in(root, probe)
        assert list(root.rglob("events.out.tfevents.*"))
        (report,) = load_reports(root / "tb" / "explain")
        assert (report.probe is not None) == save
        assert report.run is not None
    assert set().union(*found[True].values()) == {".safetensors", ".ckpt"}
    assert len(found[True]) == 4
    assert found[False] == {}
    # The samples are read again where a training goes on, and are the same ones.
    (checkpoint,) = (tmp_path / "False" / "checkpoints").iterdir()
    resumed = monitor(save_inputs=False, probe=ProbeSelection(count=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        further = trainer(tmp_path / "on", resumed, ModelCheckpoint(tmp_path / "on"), max_epochs=2)
        further.fit(DigitModule(), **loaders(), ckpt_path=checkpoint)
    assert report_of(resumed).fingerprint == fingerprint(probe)


def test_samples_that_are_given_are_named_in_the_settings_by_ids_alone(tmp_path: Path) -> None:
    # So few numbers that settings would list them.
    probe = Probe(torch.rand(1, 1, 8, 8), torch.tensor([1]), meta={"text": ["a secret"]})
    watch = monitor(probe=probe, save_inputs=False)
    fit(tmp_path, watch)
    (found,) = load_reports(tmp_path / "explain")
    assert found.run is not None
    assert found.run.settings["probe"] == {"class": "Probe", "ids": [0]}
    assert samples_in(tmp_path, probe) == {}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
