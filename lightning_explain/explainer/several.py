"""Several targets of one model in; an explainer of each, and one report of all, with maps such as ``ig@age``, out."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_explain.core.contracts import Metric
from lightning_explain.core.naming import target_of
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.record import Record
from lightning_explain.core.report import OF_TARGET, PassCount, Report
from lightning_explain.core.serialization import fingerprint
from lightning_explain.core.warn import warn_or_log
from lightning_explain.distributed.collectives import raise_if_lost
from lightning_explain.distributed.ranks import ELSEWHERE, anything, nothing
from lightning_explain.explainer.cost import Estimate, Forecast, Share
from lightning_explain.explainer.history import History
from lightning_explain.explainer.run import Progress
from lightning_explain.model.heads import MOST, Head, SharedCalls, heads_of
from lightning_explain.model.isolation import Run
from lightning_explain.model.targets import OutputError, output_tensor
from lightning_explain.targets import Similarity

if TYPE_CHECKING:
    from lightning_explain.explainer.explainer import Explainer

_PAIR = 'task: a pair of inputs, of which two embeddings are returned; target="label" means their cosine similarity'


@dataclass(frozen=True)
class HeadLabels:
    """Finds the labels of one of several targets in a probe.

    Args:
        name: The name of the target.
        place: Its place among the targets.
        count: How many targets there are.
        column: Whether labels ``(N, targets)`` have a column for each target.
        classes: Whether such a column holds classes.
    """

    name: str
    place: int
    count: int
    column: bool = False
    classes: bool = False

    def __call__(self, probe: Probe) -> Tensor | None:
        """The labels of its name, else those of its place where the labels have no names, else all; ``None`` if there are none."""
        if self.name in probe.labels:
            return probe.labels[self.name]
        if probe.labels:
            unnamed = len(probe.labels) == self.count and all(name.isdecimal() for name in probe.labels)
            return list(probe.labels.values())[self.place] if unnamed else None
        if not self.column or probe.targets is None or probe.targets.ndim < 2:
            return probe.targets
        found: Tensor = probe.targets[:, self.place]
        return found.long() if self.classes and bool((found == found.round()).all()) else found


def named(names: Iterable[str], target: Any) -> list[str]:
    """The names of the maps of these methods: of several targets one of each, such as ``ig@age``."""
    return [f"{name}@{of}" for of in target for name in names] if isinstance(target, Mapping) else list(names)


def metrics_of(metrics: Mapping[str, Metric], part: str) -> dict[str, Metric]:
    """The metrics of one target: those that name methods name their maps of this target."""

    def own(metric: Metric) -> Metric:
        if not part or metric.methods is None:
            return metric
        mine = [name for name in metric.methods if "@" not in name or target_of(name) == part]
        return replace(metric, methods=tuple(n if "@" in n else f"{n}@{part}" for n in mine))  # type: ignore[type-var]

    return {name: own(metric) for name, metric in metrics.items()}


# -- before the first explanation ------------------------------------------------------------------------------------------


def checked(explainer: Explainer, model: nn.Module, probe: Probe, run: Run, timed: bool) -> Explainer:
    """Checks a target, or each of several: those that the user names, or the outputs of a model that returns several by name.

    All of them share the runs of the model.
    """
    calls = SharedCalls()
    parts = parts_of(explainer, model, probe, run, calls)
    if len(parts) < 2 and not isinstance(explainer.target, Mapping):
        ready = parts[0].checked(model, parts[0].labelled(probe), run, timed, calls.begin())[0]
        return ready if parts[0].target == explainer.target else replace(ready, task_line=_PAIR)
    return _joined(explainer, _each_checked(parts, model, probe, run, timed, calls, isinstance(explainer.target, str)))


def parts_of(explainer: Explainer, model: nn.Module, probe: Probe, run: Run, calls: SharedCalls) -> list[Explainer]:
    """The explainer of each target, which are not checked yet; the explainer itself if there is one target and one output."""
    returned = _first_returned(explainer, model, probe, run, calls)
    if explainer.target == "label" and _are_pair(returned, probe):
        parts = [replace(explainer, target=Similarity())]
    else:
        parts = _parts(explainer, returned, probe) or [explainer]
    calls.keeps = len(parts) > 1
    return parts


def _are_pair(returned: Any, probe: Probe) -> bool:
    """Whether a model returns two embeddings ``(N, D)`` of one shape for two arguments, as siamese networks do.

    The arguments have one shape, or are something and its texts, ids ``(N, T)``, without labels.
    """
    inputs, others = as_tuple(probe.inputs), probe.forward_args
    parts = returned if isinstance(returned, (tuple, list)) and len(returned) == 2 else ()
    embeddings = [
        x for x in parts if isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 2 and x.shape[1] > 1
    ]
    alike = len(inputs) == 2 and inputs[0].shape == inputs[1].shape
    texts = len(inputs) == 1 and [
        x.ndim == 2 and not x.is_floating_point() for x in others if isinstance(x, Tensor)
    ] == [True]
    return (
        len(embeddings) == 2
        and embeddings[0].shape == embeddings[1].shape
        and (alike or (texts and probe.targets is None))
    )


def _first_returned(explainer: Explainer, model: nn.Module, probe: Probe, run: Run, calls: SharedCalls) -> Any:
    """What the model returns for the first samples, where that tells the targets; ``None`` if it fails, which the checks report."""
    if not isinstance(explainer.target, Mapping) and (explainer.target != "label" or explainer.output_fn is not None):
        return None
    explained = explainer.function(model, probe, run, calls)
    function: Any = explained.forward
    samples = explained.probe[: explainer.at_once]
    try:
        with torch.no_grad():
            found = function.returned(*samples.inputs, *samples.extra)
            return found if explainer.output_fn is None else explainer.output_fn(found)
    except Exception as error:
        raise_if_lost(error)
        return None


def _parts(explainer: Explainer, returned: Any, probe: Probe) -> list[Explainer]:
    """An explainer for each target; none if there is one output and one target."""
    count, given = min(len(probe), explainer.at_once), explainer.target
    heads, by_place = heads_of(returned, count), _labelled_by_place(returned, probe)
    if isinstance(given, Mapping):
        targets = dict(given)
    elif heads and not _has_output(returned):
        targets = dict.fromkeys(_chosen(heads, probe, " by name"), "label")
    elif by_place:
        targets = dict.fromkeys(_chosen(by_place, probe), "label")
    else:
        return []
    # Names that are all places mean these, not the order in which the targets are given.
    places = list(by_place) if by_place.keys() >= targets.keys() else list(targets)
    several = bool(heads) or isinstance(returned, (tuple, list))
    labels = probe.targets
    column = several and labels is not None and labels.ndim == 2 and labels.shape[1] == len(targets) > 1
    found = []
    for name, target in targets.items():
        place = places.index(name)
        head = Head(name, place, len(places), explainer.output_fn)
        own = heads.get(name, returned[place] if several and not heads and place < len(returned) else None)
        classes = isinstance(own, Tensor) and own.ndim == 2 and own.shape[1] > 1
        labels_at = HeadLabels(name, place, len(places), column, classes)
        part = name if len(targets) > 1 or isinstance(given, Mapping) else ""
        found.append(replace(explainer, target=target, output_fn=head, part=part, labels_at=labels_at))
    return found


def _labelled_by_place(returned: Any, probe: Probe) -> dict[str, Tensor]:
    """The tensors of a tuple by their numbers, if each has labels that a batch has by place; else none."""
    outputs = list(returned) if isinstance(returned, (tuple, list)) else []
    named = dict(zip(probe.labels, outputs, strict=False))
    fits = len(probe.labels) == len(outputs) > 1 and list(probe.labels) == [str(i) for i in range(len(outputs))]
    floating = all(isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 0 for x in outputs)
    return named if fits and floating else {}


def _has_output(returned: Any) -> bool:
    """Whether one output is explained by default."""
    try:
        return isinstance(output_tensor(returned), Tensor)
    except OutputError:
        return False


def _chosen(heads: Mapping[str, Tensor], probe: Probe, how: str = "") -> list[str]:
    """The outputs that are explained by default: those with labels, if any has, and at most 4; says which are not."""
    names = [name for name in heads if name in probe.labels] or list(heads)
    left_out = [name for name in heads if name not in names[:MOST]]
    if left_out:
        example = ", ".join(f"{name!r}: 'label'" for name in left_out[:2])
        warn_or_log(
            f"The model returns {len(heads)} outputs{how}: {', '.join(map(repr, names[:MOST]))} are explained, "
            f"{', '.join(map(repr, left_out))} are not. To choose, give target={{{example}, ...}}."
        )
    return names[:MOST]


def _each_checked(
    parts: Sequence[Explainer],
    model: nn.Module,
    probe: Probe,
    run: Run,
    timed: bool,
    calls: SharedCalls,
    default: bool,
) -> dict[str, Explainer]:
    found: dict[str, Explainer] = {}
    earlier: Record | None = None
    failed = list[Exception]()
    for part in parts:
        before = earlier
        try:
            found[part.part], earlier = part.checked(model, part.labelled(probe), run, timed, calls.begin(), before)
        except (ValueError, TypeError) as error:
            # What the user did not name is left out.
            if not default:
                raise type(error)(f"target {part.part!r}: {error}") from error
            failed.append(error)
            warn_or_log(f"The output {part.part!r} is left out: {error}")
    if not found:
        raise failed[0]
    return found


def _joined(explainer: Explainer, parts: Mapping[str, Explainer]) -> Explainer:
    """The explainer of all parts, whose methods are those of each."""

    def both(name: str) -> dict[str, Any]:
        return {key: value for part in parts.values() for key, value in getattr(part, name).items()}

    first, scored = next(iter(parts.values())), dict[str, tuple[str, ...]]()
    for part in parts.values():
        scored |= {name: (*scored.get(name, ()), *methods) for name, methods in part.scored.items()}
    lines = [f"{name}: {part.task_line}" for name, part in parts.items() if part.task_line]
    of_all: Any = {name: both(name) for name in ("methods", "metrics", "findings", "left_out")}
    estimates = [part.estimate for part in parts.values() if part.estimate is not None]
    return replace(
        explainer,
        parts=parts,
        target={name: part.target for name, part in parts.items()},
        scored=scored,
        modalities=first.modalities,
        lookups=first.lookups,
        frames=first.frames,
        task_line="; ".join(lines),
        estimate=_sum_of(estimates) if estimates else None,
        **of_all,
    )


def _sum_of(estimates: Sequence[Estimate]) -> Estimate:
    passes = sum((one.passes for one in estimates), PassCount())
    return Estimate(passes, tuple(name for one in estimates for name in one.besides), estimates[0].seconds)


def forecasts(parts: Mapping[str, Forecast]) -> Forecast:
    """The cost of several targets together, whose metrics have names such as ``infidelity@age`` in it, as their methods have."""
    found = list(parts.values())
    return Forecast(
        found[0].samples,
        tuple(_of_target(share, name) for name, one in parts.items() for share in one.shares),
        max(one.largest for one in found),
        max(one.memory for one in found),
        tuple(dict.fromkeys(hint for one in found for hint in one.hints)),
    )


def _of_target(share: Share, part: str) -> Share:
    return replace(share, names=tuple(name if "@" in name else f"{name}@{part}" for name in share.names))


# -- one explanation -------------------------------------------------------------------------------------------------------


def part_of(explainer: Explainer, name: str) -> Explainer:
    """The explainer of one target, with the methods and metrics that the whole still has."""
    part = explainer.parts[name]
    return replace(
        part,
        methods={key: method for key, method in part.methods.items() if key in explainer.methods},
        metrics={key: metric for key, metric in part.metrics.items() if key in explainer.metrics},
        modalities=explainer.modalities,
        **{key: getattr(explainer, key) for key in ("limit", "ranks", "seed", "raising", "forward_context", "held")},
    )


def explained(
    explainer: Explainer, model: nn.Module, probe: Probe, progress: Progress, history: History | None
) -> Report:
    """The reports of all targets as one. A target that fails is left out, and its methods have failed, unless all targets do.

    Args:
        explainer: That of all targets.
        model: The module.
        probe: The samples, with the labels of all targets.
        progress: Called with the name of each method and metric.
        history: Maps of earlier explanations.
    """
    ready = [part for name in explainer.parts if (part := part_of(explainer, name)).methods]
    own, reports, failures = fingerprint(probe), dict[str, Report](), dict[str, str]()
    for part in ready:
        mine = part.labelled(probe)
        past = history_of_part(history, own, fingerprint(mine))
        survives = not explainer.raising and (bool(reports) or part is not ready[-1])
        with explainer.ranks.agree(f"the target {part.part!r}", anything if survives else nothing) as outcome:
            found = part.explain(model, mine, progress, past)
        if outcome.failed_rank is None:
            reports[part.part] = found
        elif outcome.error is not None and not isinstance(outcome.error, ELSEWHERE):
            reason = "".join(traceback.format_exception(outcome.error))
            failures |= dict.fromkeys(part.methods, reason)
    whole = joined(reports)
    return replace(whole, failures={**failures, **whole.failures}, fingerprint=own)


def history_of_part(history: History | None, whole: str, own: str) -> History | None:
    """The history of the whole probe for the probe of one target, which has the same samples.

    Args:
        history: The history.
        whole: The fingerprint of the probe with the labels of all targets.
        own: That of the probe with the labels of one.
    """
    return replace(history, fingerprint=own) if history is not None and history.fingerprint == whole else history


def joined(reports: Mapping[str, Report]) -> Report:
    """The reports of several targets as one; of what there is once for each, such as the outputs, it has those of the first at its top."""
    first = next(iter(reports.values()))

    def both(name: str) -> dict[str, Any]:
        return {key: value for report in reports.values() for key, value in getattr(report, name).items()}

    def by_score(name: str) -> dict[str, dict[str, Tensor]]:
        found: dict[str, dict[str, Tensor]] = {}
        for report in reports.values():
            for score, values in getattr(report, name).items():
                found.setdefault(score, {}).update(values)
        return found

    own = ("attributions", "maps", "n_steps", "completeness_errors", "failures", "undefined_reasons")
    of_all: Any = {name: both(name) for name in own}
    of_all |= {name: by_score(name) for name in ("scores", "standard_errors", "n_draws")}
    return replace(
        first,
        **of_all,
        passes=sum((report.passes for report in reports.values()), PassCount()),
        explained={},
        by_target={name: {key: getattr(one, key) for key in OF_TARGET} for name, one in reports.items()},
        tasks={name: one.task for name, one in reports.items()},
    )
