import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_explain.core.report import PassCount, Report
from lightning_explain.store.files import safe_name
from lightning_explain.store.report_files import find_run, load_reports, save_report

TENSOR_FIELDS = {"attributions", "scores", "standard_errors", "outputs", "predictions", "targets", "ids"}


def make_report(**changes: Any) -> Report:
    shared = torch.randn(2, 3, 4, 4)
    report = Report(
        attributions={
            "ig": shared,
            "the/same": shared,
            "two inputs": (torch.randn(2, 3), torch.randn(2, 5, dtype=torch.float64)),
            "one/0": (torch.randn(2, 1),),
            "重要度 ~1é": torch.randn(2, 3, 4, 4).to(torch.bfloat16),
            "half": torch.randn(2, 3).half(),
            "transposed": torch.randn(3, 2).T,
        },
        scores={
            "sens": {"ig": torch.tensor([1.5, float("nan")])},
            "a": {"b/c": torch.ones(2)},
            "a/b": {"c": -torch.ones(2)},
        },
        standard_errors={"sens": {"ig": torch.tensor([float("inf"), 0.1])}, "none": {}},
        outputs=torch.randn(2, 3),
        predictions=torch.tensor([0, 2]),
        targets=torch.tensor([-1, 1]),
        ids=torch.tensor([2**40, 7]),
        passes=PassCount(forward=341, backward=352),
        seconds=0.1 + 0.2,
        failures={"cam": 'no layer "x"\n重'},
        epoch=3,
        step=120,
        fingerprint="ab" * 32,
        explained={"position": torch.tensor([1, 3]), "share": torch.tensor([0.5, 0.25])},
        task="tokens",
    )
    return replace(report, **changes)


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b


def assert_same_report(a: Any, b: Any) -> None:
    for field in fields(Report):
        assert_same(getattr(a, field.name), getattr(b, field.name))


def test_a_report_comes_back_bit_for_bit_in_every_field(tmp_path: Path) -> None:
    report = make_report()
    path = save_report(report, tmp_path / "run" / "explain")
    assert path == tmp_path / "run" / "explain" / "step=00000120.safetensors"
    (found,) = load_reports(path.parent)
    assert_same_report(found, report)
    assert found.scalars() == report.scalars()


def test_a_report_without_a_step_comes_back_too(tmp_path: Path) -> None:
    report = make_report(epoch=None, step=None, attributions={}, scores={}, standard_errors={}, failures={})
    assert save_report(report, str(tmp_path)).name == "report.safetensors"
    assert_same_report(load_reports(str(tmp_path))[0], report)


def test_maps_that_still_have_a_graph_are_saved_as_numbers(tmp_path: Path) -> None:
    save_report(make_report(outputs=torch.ones(2, requires_grad=True) * 2), tmp_path)
    assert torch.equal(load_reports(tmp_path)[0].outputs, torch.tensor([2.0, 2.0]))


def test_a_path_that_names_a_file_is_that_file(tmp_path: Path) -> None:
    path = save_report(make_report(), tmp_path / "mine.safetensors")
    assert path == tmp_path / "mine.safetensors"
    assert len(load_reports(path)) == 1


def test_reports_are_sorted_by_step_then_epoch(tmp_path: Path) -> None:
    order = [(None, None), (5, None), (5, 0), (5, 1), (99, 0), (1_000_000_000, 9)]
    for name, (step, epoch) in zip("dfabce", order, strict=True):
        save_report(make_report(step=step, epoch=epoch), tmp_path / f"{name}.safetensors")
    assert [(r.step, r.epoch) for r in load_reports(tmp_path)] == order


def test_saving_a_moment_again_replaces_its_report(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_report(make_report(epoch=epoch, seconds=1.0), tmp_path)
        save_report(make_report(epoch=epoch, seconds=2.0), tmp_path)
    assert [(r.epoch, r.seconds) for r in load_reports(tmp_path)] == [(1, 2.0), (2, 2.0)]


def test_a_step_of_several_epochs_has_a_file_for_each(tmp_path: Path) -> None:
    for stage in ("fit", "test"):
        for epoch in (0, 1, 0, 2, 1):
            save_report(make_report(step=7, epoch=epoch, stage=stage), tmp_path)
    later = [f"step=00000007-epoch=0000000{epoch}" for epoch in (1, 2)]
    names = ["step=00000007", *later, "step=00000007-test", *(f"{name}-test" for name in later)]
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)
    assert [r.epoch for r in load_reports(tmp_path)] == [0, 0, 1, 1, 2, 2]


def test_a_broken_file_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "step=00000120.safetensors").write_bytes(b"half a rep")
    save_report(make_report(), tmp_path)
    assert len(load_reports(tmp_path)) == 1


def test_a_failed_save_leaves_the_former_report_and_nothing_else(tmp_path: Path) -> None:
    path = save_report(make_report(epoch=1), tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_report(make_report(fingerprint=object()), tmp_path)
    with pytest.raises(NotImplementedError, match="meta"):
        save_report(make_report(outputs=torch.ones(2, device="meta")), tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert load_reports(tmp_path)[0].epoch == 1


def test_a_file_that_cannot_take_its_place_is_not_left_behind(tmp_path: Path) -> None:
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(OSError, match="taken"):
        save_report(make_report(), tmp_path / "taken.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["taken.safetensors"]


def test_a_report_is_replaced_and_never_written_over(tmp_path: Path) -> None:
    path = save_report(make_report(seconds=1.0), tmp_path / "run")
    (tmp_path / "former.safetensors").hardlink_to(path)
    save_report(make_report(seconds=2.0), tmp_path / "run")
    assert [load_reports(folder)[0].seconds for folder in (tmp_path, tmp_path / "run")] == [1.0, 2.0]


def test_no_temporary_file_is_left_and_none_is_read(tmp_path: Path) -> None:
    path = save_report(make_report(), tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    path.with_name(".step=00000130.safetensors.tmp").write_bytes(b"half a rep")
    assert len(load_reports(tmp_path)) == 1


def test_the_file_is_plain_safetensors_with_readable_names_and_json(tmp_path: Path) -> None:
    path = save_report(make_report(), tmp_path)
    with safe_open(path, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert {"attributions/ig", "attributions/two%20inputs/1", "scores/sens/ig", "ids"} <= names
    content = json.loads(metadata["lightning_explain_report"])
    assert content.keys() == asdict(make_report()).keys() - {"run", "probe", "by_target", "tasks"} > TENSOR_FIELDS
    assert content["passes"] == {"forward": 341, "backward": 352}


def test_other_safetensors_files_in_the_folder_are_no_reports(tmp_path: Path) -> None:
    save_file({"inputs": torch.ones(2)}, tmp_path / "probe.safetensors")
    save_report(make_report(), tmp_path)
    assert len(load_reports(tmp_path)) == 1


def test_a_run_is_found_from_above_if_it_is_the_only_one(tmp_path: Path) -> None:
    folder = save_report(make_report(), tmp_path / "logs" / "version_0" / "explain").parent
    save_file({"weight": torch.ones(2)}, tmp_path / "logs" / "model.safetensors")
    for path in (folder, tmp_path / "logs" / "version_0", str(tmp_path / "logs")):
        assert find_run(path) == folder
        assert len(load_reports(path)) == 1
    file = folder / "step=00000120.safetensors"
    assert find_run(file) == file
    other = save_report(make_report(), tmp_path / "logs" / "version_1" / "explain").parent
    with pytest.raises(
        FileNotFoundError, match=r"No reports in '.*logs' itself, and 2 runs below it; give one of"
    ) as caught:
        find_run(tmp_path / "logs")
    assert f"{str(folder)!r}, {str(other)!r}." in str(caught.value)
    assert find_run(other.parent) == other


def test_reports_under_names_of_their_own_are_a_run_too(tmp_path: Path) -> None:
    save_report(make_report(), tmp_path / "mine.safetensors")
    assert find_run(tmp_path) == tmp_path


def test_where_no_reports_are_the_error_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No reports in '.*nowhere'; give the folder <run>/<name>"):
        find_run(tmp_path / "nowhere")
    folder = save_report(make_report(), tmp_path / "explain").parent
    (folder / "ig").mkdir()
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*explain'\?"):
        load_reports(folder / "ig")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_cut_file_is_named(tmp_path: Path, keep: int) -> None:
    save_report(make_report(step=1), tmp_path)
    path = save_report(make_report(step=2), tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"step=00000002\.safetensors' is broken"):
        load_reports(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"attributions": 5}', '{"attributions": "gone"}'])
def test_a_report_whose_header_makes_no_sense_is_named(tmp_path: Path, content: str) -> None:
    save_file({"ids": torch.ones(2)}, tmp_path / "odd.safetensors", metadata={"lightning_explain_report": content})
    with pytest.raises(ValueError, match=r"odd\.safetensors' is broken"):
        load_reports(tmp_path)


ODD_NAMES = [
    *(
        "",
        ".",
        "..",
        "../../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "a_b",
        "_",
        "a%2Fb",
        "CON",
        "con",
        "nul.txt",
        "com1",
        "-",
        "C:x",
    ),
    *(
        "x ",
        "x.",
        ".x",
        "~",
        "~root",
        "%",
        "%empty",
        "重要度",
        "é",
        "e\u0301",
        "\n",
        "\0",
        "\ud800",
        "step=1.png",
        '*?<>|"',
    ),
]


def test_safe_names_are_one_harmless_component_and_stay_different(tmp_path: Path) -> None:
    names = [safe_name(name) for name in ODD_NAMES]
    assert len(set(names)) == len(names)
    for name in names:
        (tmp_path / name).mkdir()
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert not set(name) & set('/\\:*?"<>|.~ \0\n')
        assert name.lower() not in {"con", "nul", "com1"}


def test_ordinary_names_stay_readable() -> None:
    assert [safe_name(n) for n in ("explain", "guided_gradcam-2", "重要度")] == [
        "explain",
        "guided_gradcam-2",
        "重要度",
    ]


@pytest.mark.parametrize(("folders", "end"), [(0, "or one report's file."), (2, "1'."), (7, "4' or 2 more.")])
def test_the_message_about_a_folder_without_reports_ends_once(folders: int, end: str, tmp_path: Path) -> None:
    for number in range(folders):
        save_report(make_report(), tmp_path / f"run{number}")
    with pytest.raises(FileNotFoundError) as raised:
        load_reports(tmp_path)
    assert str(raised.value).endswith(end)
