"""Runs in; one HTML file that shows them and needs nothing else, out."""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from math import isqrt
from pathlib import Path
from typing import Any

from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.report import Report
from lightning_explain.core.version import __version__
from lightning_explain.render.color import sign_table
from lightning_explain.render.image import to_bytes
from lightning_explain.report import summary
from lightning_explain.report.blocks import Blocks, Resolution, numbers, resolution
from lightning_explain.report.comparison import cosines
from lightning_explain.report.figures import MOST_SAMPLES, Encoded, Figures, of_samples, shown_entries
from lightning_explain.report.moments import moments
from lightning_explain.report.stored_runs import StoredRun, load_runs
from lightning_explain.store.files import replacing

_NAMED = 4
_SCRIPTS = ("data.js", "panels.js", "samples.js", "charts.js", "page.js")


def write_page(
    runs: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    title: str | None = None,
    members: summary.Table | None = None,
) -> Path:
    """Takes one or more finished runs, and writes a page that shows them: one HTML file that opens without a network.

    A slider moves through the epochs; maps of the same samples are side by side, with their differences from the first run. Below are
    the curves of all scores, a table of hyperparameters and last scores, and what was found, left out, set and paid. Everything
    comes from the files of the runs; what they lack is missing on the page, which says so.

    Args:
        runs: Folders ``<run>/<name>``, or folders above with the reports of one monitor. Others are compared with the first one.
        path: Where the page is written.
        title: Its title; by default the names of the runs.
        members: The table of the members of a sweep, above all else.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If a run has no reports.
        ValueError: If no run is given or one twice, or a file is broken.
        ImportError: If plotly or Jinja2 is missing.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lightning_explain.report.page import write_page
        >>> from lightning_explain.store.report_files import save_report
        >>> report = explain(model, probe, methods=[m.Saliency()], metrics=[])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = save_report(report, folder)
        ...     write_page([folder], Path(folder) / "page.html").read_text()[:15]
        '<!DOCTYPE html>'
    """
    template, charts = _template(), _charts()
    blocks = Blocks()
    found = list(load_runs(runs))
    data = _data(found, blocks)
    blocks.texts |= charts.texts
    content = template.render(
        title=title or _title([run.name for run in found]),
        data=data | {"values": blocks.values, "charts": next(iter(charts.texts))},
        blocks=blocks,
        nonce=b64encode(hashlib.sha256("".join(blocks.texts).encode()).digest()[:12]).decode(),
        runs=found,
        table=summary.table(found),
        members=members,
        scores=data["scores"],
        facts=summary.facts(found),
        hints=_hints(data),
        style=_asset("page.css"),
        script="\n".join(map(_asset, _SCRIPTS)),
        version=__version__,
    )
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return path


@contextmanager
def _needed() -> Iterator[None]:
    """Imports in here say what to install.

    Raises:
        ImportError: If a package is missing.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError("A page needs plotly and Jinja2: pip install 'lightning-explain[report]'") from error


@cache
def _charts() -> Blocks:
    """plotly.js as the only block; compressing it takes longer than a small page."""
    with _needed():
        from plotly.offline import get_plotlyjs
    found = Blocks()
    found.bytes(get_plotlyjs().encode())
    return found


def _template() -> Any:
    with _needed():
        from jinja2 import Environment, PackageLoader
    environment = Environment(loader=PackageLoader("lightning_explain.report", "web"), autoescape=True)
    # The order of methods and scores is that of the run.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment.get_template("page.html")


def _title(names: Sequence[str]) -> str:
    shown = names[:_NAMED]
    return ", ".join(shown) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _asset(name: str) -> str:
    return (files("lightning_explain.report") / "web" / name).read_text(encoding="utf-8")


def _data(runs: Sequence[StoredRun], blocks: Blocks) -> Encoded:
    """What the scripts of the page show."""
    figures, groups = Figures(blocks, _resolution(runs)), dict[tuple[object, ...], list[int]]()
    for i, run in enumerate(runs):
        groups.setdefault(run.samples, []).append(i)
    along = moments([run.reports for run in runs])
    encoded: list[Encoded] = []
    for run, shown in zip(runs, along.shown, strict=True):
        members = [runs[i] for i in groups[run.samples]]
        probe = _probe(members)
        explained = [figures.explanation(report, probe) for report in run.reports]
        encoded.append(
            {
                "name": run.name,
                "shown": shown,
                "explanations": explained,
                "curves": summary.curves(run),
                "clusters": _strategies(run),
                "compared": {} if run is members[0] else _compared(members[0], run, probe),
            }
        )
    return {
        "runs": encoded,
        "moments": along.labels,
        "groups": [
            {"runs": members, **figures.samples(runs[members[0]].last, _probe([runs[i] for i in members]))}
            for members in groups.values()
        ],
        "scores": summary.scores(runs),
        "colors": blocks.value(to_bytes(sign_table("all")).flatten().tolist()),
    }


def _hints(data: Encoded) -> list[str]:
    """What is missing to read the panels, each once."""
    explanations = [found for run in data["runs"] for found in run["explanations"]]
    panels = [panel for found in explanations for method in found["methods"].values() for panel in method["panels"]]
    return [*dict.fromkeys(panel["hint"] for panel in panels if panel.get("hint"))]


def _strategies(run: StoredRun) -> dict[str, dict[int, str]]:
    """By method and entry (see ``Figures.samples``): its place among the clusters of its class, such as ``"1 of 2"``."""
    found: dict[str, dict[int, str]] = {}
    for one in run.clusters:
        places = zip(one.entries.tolist(), one.labels.tolist(), strict=True)
        found.setdefault(one.method, {}).update({i: f"{label + 1} of {one.number}" for i, label in places})
    return found


def _probe(runs: Sequence[StoredRun]) -> Probe | None:
    """The samples of runs that have the same ones, if any of them knows them."""
    return next((run.probe for run in runs if run.probe is not None), None)


def _resolution(runs: Sequence[StoredRun]) -> Resolution:
    """How fine the maps are, by the number of all that may be drawn and the size of the largest."""
    maps = sum(len(r.attributions) * min(len(r.ids), MOST_SAMPLES) for run in runs for r in run.reports)
    tensors = [part for run in runs for part in _tensors(run.last)]
    sides = [max(part.shape[2:]) for part in tensors if part.ndim == 4]
    # The cells of a volume or a video are as many as those of an image with such a side.
    sides += [isqrt(part[0].numel()) + 1 for part in tensors if part.ndim == 5]
    return resolution(maps, max(sides, default=1))


def _tensors(report: Report) -> list[Any]:
    inputs = () if report.probe is None else as_tuple(report.probe.inputs)
    return [*inputs, *(part for found in report.attributions.values() for part in as_tuple(found))]


def _compared(first: StoredRun, run: StoredRun, probe: Probe | None) -> dict[str, dict[str, list[float | None]]]:
    """By the indices of two explanations that are shown together: the cosine of the maps of each sample, by method."""
    shown = moments([first.reports, run.reports]).shown
    found, steps = {}, len(first.last.ids) // len(shown_entries(first.last, probe))
    for a, b in dict.fromkeys(zip(*shown, strict=True)):
        if a is not None and b is not None:
            alike = cosines(first.reports[a], run.reports[b])
            found[f"{a} {b}"] = {
                method: numbers(of_samples(values, steps)[:MOST_SAMPLES]) for method, values in alike.items()
            }
    return found
