"""Takes a publication, and writes it to TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_explain.core.containers import resolved
from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Picture, Publication
from lightning_explain.core.run_info import RunInfo, flat, plain
from lightning_explain.loggers.about import about, remarks
from lightning_explain.loggers.event_file import EventFile, records
from lightning_explain.loggers.tags import titled

if TYPE_CHECKING:
    from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoardSink(Sink):
    """Writes scalars, pictures, texts, hyperparameters and a custom-scalars page to an event file of its own in the run of a logger.

    The text ``<name>_about`` says what is true of the run; ``<name>_about/remarks`` what an explanation could not show;
    ``<name>_words/<method>`` a map of texts in words, with the strongest words of each class.

    Args:
        logger: The logger whose run receives them.
    """

    def __init__(self, logger: TensorBoardLogger) -> None:
        self._logger = logger
        self.events = EventFile(logger.log_dir)
        self._prepared: tuple[object, bytes] = (None, b"")  # whose pictures, and their records
        self._remarks = ""
        self._objectives: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """TensorBoard, and the folder of its run."""
        return f"TensorBoard ({self.events.folder})"

    def begin(self, run: RunInfo) -> None:
        """Adds the text that says what is true of the run."""
        self._objectives = tuple(run.objectives)
        self.events.append(records([_summaries().text(f"{run.name}_about", about(run))], step=0))

    def layout(self, runs: Sequence[RunInfo]) -> None:
        """Adds the hyperparameters, and two pages: one chart for each score, and one with margins for each that has errors."""
        make, pages = _summaries(), dict[str, dict[str, Any]]()
        for run in runs:
            # TensorBoard matches regular expressions from a tag's start; these match one tag each.
            pages[run.name] = {title: ["Multiline", [*map(_only, tags)]] for title, tags in titled(run).items()}
            errors = [tag for score in run.with_errors for tag in run.charts.get(score, ())]
            if errors:
                pages[f"{run.name}, standard errors"] = {
                    tag.removeprefix(f"{run.name}/"): ["Margin", [tag, *_margins(run.name, tag)]] for tag in errors
                }
        self.events.append(records([make.custom_scalars(pages), *self._hyperparameters(runs)]))

    def _hyperparameters(self, runs: Sequence[RunInfo]) -> list[Any]:
        """Those of the logger and the settings of all monitors; the metrics are the objectives and all charted scores.

        TensorBoard shows the first hyperparameters that it reads of a run, so these hold all that the logger has. A logger with
        ``default_hp_metric=False`` leaves the list of metrics to the user, whose own one is not to be hidden by another.
        """
        hparams = flat(plain(resolved(self._logger.hparams)))
        logged = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in hparams.items()}
        values = logged | {key: value for run in runs for key, value in run.short.items()}
        # Not those of charts of one method, of which only some are drawn.
        charts = [tags for run in runs for score, tags in run.charts.items() if "/" not in score]
        scores = [tag for tags in charts for tag in tags]
        objectives = [key for run in runs for key in run.objectives]
        default = ["hp_metric"] if logged else []
        metrics = dict.fromkeys([*objectives, *scores, *default], 0.0)
        experiment, session, _ = _summaries().hparams(values, metrics)
        return [experiment, session] if self._logger._default_hp_metric else [session]

    def prepare(self, publication: Publication) -> None:
        """Encodes the pictures."""
        made = picture_records(publication.name, publication.pictures, publication.files(), publication.step)
        self._prepared = publication.png, made

    def go_on(self, events: EventFile, publication: Publication, written: bool) -> None:
        """Prepares where another process has written the pictures, or tried to.

        Args:
            events: Where it has.
            publication: Whose pictures they are.
            written: Whether they are there; otherwise this process will try.
        """
        self.events = events
        if written:
            self._prepared = publication.png, b""
        else:
            self.prepare(publication)

    def write(self, publication: Publication) -> None:
        """Adds one point for each tag, at the step of the explanation."""
        if self._prepared[0] is not publication.png:
            self.prepare(publication)
        make, pictures = _summaries(), self._prepared[1]
        self._prepared = None, b""
        found = [_of_scalars(self._scalars(publication))]
        text = remarks(publication)
        if text != self._remarks:
            found.append(make.text(f"{publication.name}_about/remarks", text or "No more remarks."))
        found += [make.text(tag, text) for tag, text in publication.texts("markdown").items()]
        self.events.append(pictures, records(found, publication.step))
        self._remarks = text

    def _scalars(self, publication: Publication) -> dict[str, float]:
        """The points of all curves by tag: objectives, what is charted, and the margins of scores with standard errors."""
        # An objective is charted under its own key in any case, which the hyperparameters refer to.
        found = {tag: publication.scalars[tag] for tag in self._objectives if tag in publication.scalars}
        scores = publication.scores
        found |= publication.charted
        for tag, error in publication.errors.items():
            if tag in scores:
                lower, upper = _margins(publication.name, tag)
                found |= {lower: scores[tag] - error, upper: scores[tag] + error}
        return found


def picture_records(name: str, pictures: Mapping[str, Picture], png: Mapping[str, bytes], step: int) -> bytes:
    """The records of an event file for pictures.

    Args:
        name: The monitor's name.
        pictures: By full tag.
        png: The same as PNG files.
        step: The optimizer step.
    """
    make, found = _summaries(), []
    for tag, content in png.items():
        height, width = pictures[tag].shape[:2]
        image = make.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        # TensorBoard sorts groups, and the tags in each, by name, where "/" and "_" are equal: this is the first picture of all.
        first = [f"{name}/at_a_glance"] if tag == f"{name}_maps/overview" else []
        values = [make.Summary.Value(tag=each, image=image) for each in (tag, *first)]
        found += [make.Summary(value=[value]) for value in values]
    return records(found, step)


def _of_scalars(values: Mapping[str, float]) -> Any:
    """One message with all points, because one for each takes ten times as long, most of it for their checksums."""
    summary = _summaries().Summary
    return summary(value=[summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def _only(tag: str) -> str:
    """The regular expression that matches one tag alone."""
    return f"^{re.escape(tag)}$"


def _margins(name: str, tag: str) -> tuple[str, str]:
    """The tags of a score minus and plus its standard error."""
    start = f"{name}_margins{tag[len(name) :]}"
    return f"{start}/lower", f"{start}/upper"


def _summaries() -> Any:
    """The functions that make summaries, of the package that Lightning's logger writes with."""
    try:
        return import_module("torch.utils.tensorboard.summary")
    except ImportError:
        return import_module("tensorboardX.summary")
