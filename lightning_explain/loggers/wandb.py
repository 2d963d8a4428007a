"""Takes a publication, and writes it to Weights & Biases."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from inspect import signature
from io import StringIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Publication
from lightning_explain.core.run_info import RunInfo
from lightning_explain.loggers.samples import SampleTable
from lightning_explain.loggers.tags import NOT_COMPARABLE
from lightning_explain.store.disk import check_room

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

_STEP = "trainer/global_step"
_MOST_POINTS = 100


class WandbSink(Sink):
    """Writes scalars, charts, pictures and a table of all samples, in one call for each explanation.

    - ``<name>/<score>``: a chart with a line for each method. W&B stores the points of a chart anew each time, so a line keeps at most
      100: beyond, every second is left out. The scalars ``<name>/<score>/<method>`` keep all.
    - ``<name>/samples``: a table with a line and a picture for each sample, method and explanation. Each explanation uploads its own lines
      only (``wandb.Table(log_mode="INCREMENTAL")``); W&B's page shows those of the last 100 explanations. A resumed run goes on.
      Before wandb 0.20 each explanation has a table of its own, and the page shows the last one.
    - ``<name>_words/<method>``: maps of texts as HTML, with the strongest words of each class.
    - ``config["<name>"]``: the monitor's settings.

    Beside the table, an explanation sends fewer than 50 pictures, as W&B recommends: of each the first page only, because the table shows
    all samples.
    W&B's page was never seen with these pictures: it needs a server. Its package ``wandb-workspaces`` (0.4.13) makes sections of three
    columns and two rows with panels of 460 x 300 pixels. There, capital letters are 11 pixels high if the width limits a picture, and 9
    if title, caption and slider leave 215 pixels of the height. How large the table's pictures appear is not known; they hold no words.

    ``*`` in a name becomes ``%2A``. In the keys of pictures, charts and tables, other characters that file names cannot hold
    are escaped the same way.

    Args:
        logger: The logger whose run receives them.
    """

    most_pictures = 49
    further_pages = False

    def __init__(self, logger: WandbLogger) -> None:
        self._logger = logger
        self._run: RunInfo | None = None
        self._defined: set[str] = set()
        self._points: dict[str, list[tuple[int, float]]] = {}  # of each line of a chart
        self._samples: SampleTable | None = None
        self._table: Any = None
        self._prepared: object = None
        self._pictures: dict[str, Any] = {}
        self._texts: dict[str, Any] = {}
        self._lines: list[list[Any]] = []
        self._folder: TemporaryDirectory[str] | None = None

    @property
    def place(self) -> str:
        """W&B, and the run."""
        return f"W&B (project {self._logger.name}, run {self._logger.version})"

    def begin(self, run: RunInfo) -> None:
        """Writes the settings, and reads the points of the charts of a resumed run."""
        self._run, experiment = run, self._logger.experiment
        experiment.config.update({run.name: dict(run.settings)}, allow_val_change=True)
        if experiment.resumed and not self._points:
            import wandb

            former = wandb.Api().run(experiment.path)
            for tags in run.charts.values():
                keys = [_STEP, *map(_key, tags)]
                for point in former.history(samples=_MOST_POINTS, keys=keys, pandas=False):
                    for tag in tags:
                        self._add_point(tag, int(point[_STEP]), point[_key(tag)])

    def prepare(self, publication: Publication) -> None:
        """Makes the files of the pictures, which W&B copies when they are logged."""
        self._clean()
        self._folder = TemporaryDirectory(prefix="lightning_explain_")
        found = publication.files()
        first = ((tag, content) for tag, content in found.items() if not _is_further_page(tag, found))
        for tag, content in islice(first, self.most_pictures):
            self._pictures[_file_key(tag)] = self._image(content, publication.caption)
        self._texts = {_file_key(tag): _html(text) for tag, text in publication.texts("html").items()}
        self._samples = self._samples or SampleTable(self._run, publication.report)
        self._lines = []
        for method, index, line in self._samples.lines(publication):
            alone = publication.sample_file(method, index)
            self._lines.append([None if alone is None else self._image(alone, None), *line])
        self._prepared = publication.png

    def write(self, publication: Publication) -> None:
        """Logs everything in one call, because W&B counts each call as a step."""
        try:
            self._log(publication)
        finally:
            self._clean()

    def upload(self, folder: Path) -> None:
        """Logs the files as an artifact of type ``explanations``, a new version of it each time."""
        import wandb

        name = "explain" if self._run is None else self._run.name
        run = self._logger.experiment
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", f"{name}-{run.id}", flags=re.ASCII), type="explanations")
        artifact.add_dir(str(folder))
        run.log_artifact(artifact)

    def _log(self, publication: Publication) -> None:
        run = self._logger.experiment
        check_room(Path(run.dir), sum(map(len, publication.files().values())))
        if self._prepared is not publication.png:
            self.prepare(publication)
        for tag in (tag for tag in publication.charted if tag not in self._defined):
            run.define_metric(_key(tag), step_metric=_STEP, summary=publication.directions.get(tag, "last"))
        self._defined |= publication.charted.keys()
        for tag, value in publication.charted.items():
            self._add_point(tag, publication.step, value)
        table = self._table_with_lines()
        before = len(table.data) - len(self._lines)
        try:
            run.log(
                {
                    **{_key(tag): value for tag, value in publication.charted.items()},
                    **self._charts(publication),
                    **self._pictures,
                    **self._texts,
                    _file_key(f"{publication.name}/samples"): table,
                    _STEP: publication.step,
                }
            )
        except BaseException:
            del table.data[before:]
            raise
        # W&B needs to know only how many there were.
        table.data[:] = [[]] * len(table.data)

    def _table_with_lines(self) -> Any:
        """The table of the run, to which the lines of this explanation are added; before wandb 0.20, a table of these."""
        import wandb

        assert self._samples is not None
        grows = "log_mode" in signature(wandb.Table).parameters
        if self._table is None or not grows:
            columns = {"image": wandb.Image, **self._samples.columns}
            mode: dict[str, Any] = {"log_mode": "INCREMENTAL"} if grows else {}
            self._table = wandb.Table(columns=list(columns), dtype=list(columns.values()), **mode)
        for line in self._lines:
            self._table.add_data(*line)
        return self._table

    def _charts(self, publication: Publication) -> dict[str, Any]:
        """A chart for each score, with the lines of all methods."""
        import wandb

        found = {}
        for score, tags in ({} if self._run is None else self._run.charts).items():
            start = f"{publication.name}/{score}/"
            lines = {_line(tag, start): self._points[tag] for tag in tags if tag in self._points}
            if lines:
                xs, ys = ([[point[k] for point in line] for line in lines.values()] for k in (0, 1))
                title = self._title(score, tags, publication.directions)
                found[_file_key(start[:-1])] = wandb.plot.line_series(
                    xs, ys, list(lines), title, "step", split_table=True
                )
        return found

    def _title(self, score: str, tags: Sequence[str], directions: Mapping[str, str]) -> str:
        """The score, and which end of it is better."""
        words = {"min": "lower is better", "max": "higher is better", "last": ""}
        note = next((words[directions[tag]] for tag in tags if tag in directions), "")
        if self._run is not None and self._run.higher_is_better.get(score) is not None:
            note = note or NOT_COMPARABLE
        return f"{score} ({note})" if note else score

    def _add_point(self, tag: str, step: int, value: float) -> None:
        if not math.isfinite(value):
            return
        points = self._points.setdefault(tag, [])
        points.append((step, value))
        if len(points) > _MOST_POINTS:
            del points[1:-1:2]

    def _image(self, content: bytes, caption: str | None) -> Any:
        import wandb

        assert self._folder is not None
        path = Path(self._folder.name, f"{len(self._pictures)}-{len(self._lines)}.png")
        path.write_bytes(content)
        return wandb.Image(str(path), caption=caption)

    def _clean(self) -> None:
        """Forgets the files of the last pictures."""
        if self._folder is not None:
            self._folder.cleanup()
        self._texts = {}
        self._pictures, self._lines, self._folder, self._prepared = {}, [], None, None


def _html(text: str) -> Any:
    """A page of HTML, as it is."""
    import wandb

    return wandb.Html(StringIO(text), inject=False)


def _is_further_page(tag: str, tags: Mapping[str, object]) -> bool:
    """Whether the picture shows further samples of another one: ``explain_maps/ig/2``."""
    first, _, page = tag.rpartition("/")
    return page.isdigit() and first in tags


def _line(tag: str, start: str) -> str:
    """What a line of a chart is called: its method; the rest of the score's name, if the chart is of one method."""
    method = tag.removeprefix(start)
    metric, _, of_method = start[:-1].rpartition("/")
    return method if method != tag else tag.removeprefix(f"{metric}_").removesuffix(f"/{of_method}")


def _key(tag: str) -> str:
    """The tag with ``*`` escaped, which W&B would read as a pattern."""
    return tag.replace("*", "%2A")


def _file_key(tag: str) -> str:
    """The tag without characters that some systems forbid in file names: W&B saves pictures and tables as files."""
    return re.sub(r'[*:?|<>"\\]', lambda match: f"%{ord(match[0]):02X}", tag)
