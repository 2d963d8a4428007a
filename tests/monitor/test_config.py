"""Configurations become monitors, and are never code."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lightning_explain as package
from lightning_explain import Alert, ExplanationMonitor, Probe, ProbeSelection
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain import modalities as d
from lightning_explain import targets as t
from lightning_explain.core.containers import resolved
from lightning_explain.core.naming import snake_case
from lightning_explain.demo.digits import DigitsModel, MarkedDigits
from lightning_explain.explainer.registry import METHODS, METRICS, build_methods, build_metrics
from lightning_explain.modalities import restored, stored
from lightning_explain.monitor.config import _FUNCTIONS, monitor_arguments

CONFIGS = Path(__file__).parents[2] / "configs"


def built(config: Any) -> tuple[Any, Any, Any]:
    """Methods, metrics and probe of a monitor that takes the configuration."""
    ExplanationMonitor.from_config(config)
    arguments = monitor_arguments(config, ExplanationMonitor)
    methods, metrics = arguments.get("methods"), arguments.get("metrics")
    return build_methods(methods), build_metrics(metrics, methods is None), arguments.get("probe")


# -- from a mapping ------------------------------------------------------------------------------------------------

YAML = """
steps: 8
monitor:
  methods:
    ig: {name: IntegratedGradients, n_steps: "${steps}"}
    smooth: {name: NoiseTunnel, attribution_method: {name: Saliency, abs: false}, nt_samples: 3}
    window: {name: Occlusion, sliding_window_shapes: [1, 2, 2]}
  metrics: [Infidelity]
  probe: {count: 4, per_class: true}
"""
BUILT = (
    {
        "ig": m.IntegratedGradients(n_steps=8),
        "smooth": m.NoiseTunnel(m.Saliency(abs=False), nt_samples=3),
        "window": m.Occlusion((1, 2, 2)),
    },
    {"infidelity": q.Infidelity()},
    ProbeSelection(count=4, per_class=True),
)


def test_yaml_builds_what_python_builds() -> None:
    assert built(OmegaConf.create(YAML).monitor) == BUILT


def test_a_plain_dict_builds_the_same() -> None:
    plain = OmegaConf.to_container(OmegaConf.create(YAML).monitor, resolve=True)
    assert built(plain) == BUILT


def test_a_dict_of_configurations_builds_the_same_on_a_probe_from_python() -> None:
    probe = Probe(torch.zeros(2, 1, 4, 4))
    config = {**OmegaConf.create(YAML).monitor, "probe": probe}
    assert built(config)[:2] == BUILT[:2]
    assert ExplanationMonitor.from_config(config).probe is probe


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "monitor.yaml").write_text("methods: [{name: Saliency, abs: false}]\nmetrics: []\nprobe: [3, 1]\n")
    assert built(OmegaConf.load(tmp_path / "monitor.yaml")) == ({"saliency": m.Saliency(abs=False)}, {}, [3, 1])


DEFAULT = (build_methods(None), build_metrics(None, True), None)


@pytest.mark.parametrize("config", [{}, {"probe": None, "forward_fn": None}], ids=["empty", "nothing said"])
def test_a_configuration_that_says_nothing_is_the_default_monitor(config: dict[str, Any]) -> None:
    assert built(config) == DEFAULT


def test_each_method_has_its_own_pictures_in_yaml_too() -> None:
    config = OmegaConf.create(
        "{methods: [Saliency], metrics: [], panels: {saliency: [[masked_image, positive]], default: [[heat_map, all]]}, "
        "cmap: {default: [[0, white], [0.25, '#000000'], [1, black]]}, outlier_perc: {saliency: 1}}"
    )
    options = ExplanationMonitor.from_config(config)._publisher.options
    assert options.of("saliency").panels == (("masked_image", "positive"),)
    assert options.of("another").panels == (("heat_map", "all"),)
    assert options.of("saliency").cmap == ((0.0, "white"), (0.25, "#000000"), (1.0, "black"))
    assert (options.of("saliency").outlier_perc, options.of("another").outlier_perc) == (1, 2.0)
    with pytest.raises(ValueError, match="panels names a method 'ig'"):
        ExplanationMonitor.from_config({**config, "panels": {"ig": [["heat_map", "all"]]}})


def test_the_configuration_is_not_changed() -> None:
    config = OmegaConf.create(YAML)
    before = OmegaConf.to_yaml(config)
    ExplanationMonitor.from_config(config.monitor)
    assert OmegaConf.to_yaml(config) == before


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [["Saliency"], "Saliency", None, OmegaConf.create([1])])
def test_only_a_mapping_is_a_configuration(config: Any) -> None:
    with pytest.raises(TypeError, match=r"The configuration is a \w+; give a mapping of arguments to values"):
        ExplanationMonitor.from_config(config)


UNKNOWN = {
    "key": ({"method": ["Saliency"]}, r"Unknown key 'method' in the configuration of the monitor: did you mean 'me"),
    "probe key": (
        {"probe": {"counts": 4}},
        r"probe: ProbeSelection has no argument 'counts': did you mean 'count'",
    ),
    "method": ({"methods": ["Saliencey"]}, r"methods\[0\]: there is no method 'Saliencey': did you mean 'Saliency'"),
    "metric": ({"metrics": {"a": "infidelty"}}, r"metrics\['a'\]: there is no metric 'infidelty': did you mean 'Infi"),
    "argument": (
        {"methods": {"ig": {"name": "IntegratedGradients", "steps": 3}}},
        r"IntegratedGradients has no argument 'steps': did you mean 'n_steps'",
    ),
    "argument inside": (
        {"methods": {"s": {"name": "NoiseTunnel", "attribution_method": {"name": "Saliency", "ab": 1}}}},
        r"methods\['s'\]\['attribution_method'\]: Saliency has no argument 'ab': did you mean 'abs'",
    ),
    "nothing near": ({1: 2}, r"Unknown key 1 in the configuration of the monitor: use one of 'methods', 'metrics'"),
}


@pytest.mark.parametrize(("config", "match"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_word_is_answered_with_the_nearest_valid_ones(config: dict[Any, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ExplanationMonitor.from_config(config)


NEVER = "a configuration is never code"
CODE = {
    "_target_": ({"_target_": "os.system", "command": "true"}, rf"_target_='os\.system' asks for code, and {NEVER}"),
    "_target_ of a method": (
        {"methods": {"a": {"_target_": "captum.attr.Saliency"}}},
        rf"methods\.a\._target_.*{NEVER}",
    ),
    "_partial_ inside": (
        {"metrics": [{"name": "Infidelity", "_partial_": True}]},
        rf"metrics\[0\]\._partial_.*{NEVER}",
    ),
    "dotted name": (
        {"methods": {"a": {"name": "captum.attr.Saliency"}}},
        rf"methods\.a\.name='captum\.attr\.Saliency' is a path to code, and {NEVER}.*methods, such as 'Saliency'",
    ),
    "dotted request": ({"metrics": ["os.system"]}, rf"metrics\[0\]='os\.system' is a path to code, and {NEVER}"),
    "dotted name inside": (
        {"methods": [{"name": "NoiseTunnel", "attribution_method": {"name": "a.b"}}]},
        rf"methods\[0\]\.attribution_method\.name='a\.b' is a path to code, and {NEVER}",
    ),
    "function": ({"target": print}, rf"target=<built-in function print> asks for code, and {NEVER}"),
    "class": ({"methods": [m.Saliency]}, rf"methods\[0\]=<class .*Saliency'> asks for code, and {NEVER}"),
    "forward_fn": ({"forward_fn": "mine.forward"}, rf"forward_fn='mine\.forward' asks for code, and {NEVER}"),
}


@pytest.mark.parametrize(("config", "match"), CODE.values(), ids=CODE)
def test_a_configuration_is_never_code(config: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ExplanationMonitor.from_config(config)


def test_a_layer_may_have_a_dotted_name() -> None:
    config = {"methods": {"cam": {"name": "LayerGradCam", "layer": "layer3.1.conv2"}}}
    assert built(config)[0] == {"cam": m.LayerGradCam("layer3.1.conv2")}


def test_all_missing_values_are_named() -> None:
    config = OmegaConf.create({"seed": "???", "methods": {"ig": {"name": "IntegratedGradients", "n_steps": "???"}}})
    with pytest.raises(ValueError, match=r"no value \(\?\?\?\) for seed, methods\.ig\.n_steps; give one for each"):
        ExplanationMonitor.from_config(config)


def test_an_interpolation_to_nowhere_is_named() -> None:
    config = OmegaConf.create({"probe": {"count": "${samples}"}})
    with pytest.raises(
        ValueError, match=r"'probe\.count' in the configuration cannot be resolved.*'samples' not found"
    ):
        ExplanationMonitor.from_config(config)


def test_an_interpolation_in_a_plain_dict_is_refused() -> None:
    with pytest.raises(ValueError, match=r"probe\.count='\$\{samples\}' is not resolved; give the OmegaConf"):
        ExplanationMonitor.from_config({"probe": {"count": "${samples}"}})


def test_values_are_checked_by_whom_they_are_for() -> None:
    with pytest.raises(TypeError, match=r"ProbeSelection\(count='many'\); give a whole number"):
        ExplanationMonitor.from_config({"probe": {"count": "many"}})


# -- nested targets of Hydra ---------------------------------------------------------------------------------------

PUBLIC = [
    one
    for one in (*METHODS.values(), *METRICS.values(), *(getattr(package, name) for name in package.__all__))
    if is_dataclass(one)
]


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)
def test_the_annotations_of_every_public_dataclass_can_be_read(cls: type) -> None:
    hints = get_type_hints(cls)
    assert {field.name for field in fields(cls)} <= set(hints)  # type: ignore[arg-type]
    if not any(f.init and f.default is f.default_factory is MISSING for f in fields(cls)):  # type: ignore[arg-type]
        # As Hydra does with what stands below a _target_.
        box = OmegaConf.create({}, flags={"allow_objects": True})
        box["it"] = cls()
        assert resolved(box) == resolved({"it": box["it"]}) == {"it": cls()}


IN_BOTH = """
_target_: lightning_explain.ExplanationMonitor
modalities:
  ids: {_target_: lightning_explain.modalities.Text, vocabulary: [a, b]}
  meta: {_target_: lightning_explain.modalities.Tabular, feature_names: [x, y], groups: {both: [x, y]}}
target: {_target_: lightning_explain.targets.Horizon, step: -1}
"""


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("conversion", ["none", "partial", "object", "all"])
def test_modalities_and_targets_nested_in_a_hydra_configuration_are_those_of_python(
    conversion: str, listed: bool
) -> None:
    given = OmegaConf.create(IN_BOTH)
    if listed:
        given.modalities = list(given.modalities.values())
    found = instantiate({**given, "_convert_": conversion})._explainer
    built = found.modalities if listed else list(found.modalities.values())
    expected = (d.Text(vocabulary=["a", "b"]), d.Tabular(feature_names=["x", "y"], groups={"both": ["x", "y"]}))
    assert restored(stored(tuple(built))) == restored(stored(expected))
    assert found.target == t.Horizon(-1)


NESTED = """
_target_: lightning_explain.ExplanationMonitor
methods:
  ig: {_target_: lightning_explain.methods.IntegratedGradients, n_steps: 8, baselines: [0.5]}
  saliency: {_target_: lightning_explain.methods.Saliency, abs: false}
  window: {_target_: lightning_explain.methods.Occlusion, sliding_window_shapes: [1, 2, 2], strides: [1, 2, 2]}
  smooth:
    _target_: lightning_explain.methods.NoiseTunnel
    attribution_method: {_target_: lightning_explain.methods.GradientShap, stdevs: [0.1]}
    stdevs: [0.2]
  blocks: {_target_: lightning_explain.methods.FeatureAblation, feature_mask: {grid: 4}}
  unit: {_target_: lightning_explain.methods.NeuronGradient, layer: conv1, neuron_selector: [0, 1, 1]}
  named: {name: LayerGradCam, reshape: [4, 4]}
metrics:
  - {_target_: lightning_explain.metrics.Infidelity, perturb_func: square, methods: [ig]}
  - Drift
probe: {_target_: lightning_explain.ProbeSelection, indices: [3, 1]}
target: [1, 2]
alerts: [{_target_: lightning_explain.Alert, metric: infidelity/ig, above: 2}, {metric: infidelity_relative/smooth, above: 1}]
panels: {default: [[heat_map, all]], ig: [[masked_image, positive]]}
outlier_perc: {ig: 1}
cmap: {default: [[0, white], [1, black]]}
class_names: [cat, dog]
normalization: [[0.5], [0.25]]
"""


@pytest.mark.parametrize("conversion", ["none", "partial", "object", "all"])
def test_targets_nested_in_a_hydra_configuration_build_what_python_builds(conversion: str) -> None:
    monitor = instantiate({**OmegaConf.create(NESTED), "_convert_": conversion})
    assert monitor._explainer.methods == {
        "ig": m.IntegratedGradients(n_steps=8, baselines=(0.5,)),
        "saliency": m.Saliency(abs=False),
        "window": m.Occlusion((1, 2, 2), strides=(1, 2, 2)),
        "smooth": m.NoiseTunnel(m.GradientShap(stdevs=(0.1,)), stdevs=(0.2,)),
        "blocks": m.FeatureAblation(feature_mask={"grid": 4}),
        "unit": m.NeuronGradient("conv1", neuron_selector=(0, 1, 1)),
        "named": m.LayerGradCam(reshape=(4, 4)),
    }
    assert monitor._explainer.metrics == {
        "infidelity": q.Infidelity(perturb_func="square", methods=("ig",)),
        "drift": q.Drift(),
    }
    assert monitor._selection == ProbeSelection(indices=(3, 1))
    assert monitor._explainer.target == (1, 2)
    assert [watch.alert for watch in monitor._memory.alerts._watches] == [
        Alert("infidelity/ig", above=2),
        Alert("infidelity_relative/smooth", above=1),
    ]
    options = monitor._publisher.options
    assert options.of("ig").panels == (("masked_image", "positive"),)
    assert (options.of("ig").outlier_perc, options.class_names) == (1, ("cat", "dog"))
    assert options.normalization == ((0.5,), (0.25,))


def test_explain_takes_configurations_too() -> None:
    config = OmegaConf.create("{saliency: {_target_: lightning_explain.methods.Saliency, abs: false}}")
    metrics = OmegaConf.create([{"name": "Concentration"}])
    model, probe = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), Probe(torch.rand(2, 1, 2, 2))
    report = package.explain(model, probe, instantiate(config), metrics, target=1)
    expected = package.explain(model, probe, {"saliency": m.Saliency(abs=False)}, [q.Concentration()], target=1)
    torch.testing.assert_close(report.attributions["saliency"], expected.attributions["saliency"])
    assert list(report.scores) == list(expected.scores)


# -- the Hydra tree ------------------------------------------------------------------------------------------------


@pytest.fixture
def hydra_tree() -> Iterator[None]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def node(*overrides: str) -> Any:
    return OmegaConf.to_container(compose(overrides=list(overrides)), resolve=True)["node"]  # type: ignore[index,call-overload]


FUNCTIONS = {"custom_attribution_func", "interpretable_model", "perm_func", "perturb_func", "similarity_func"}
CLASSES = [("method", cls) for cls in METHODS.values()] + [("metric", cls) for cls in METRICS.values()]


@pytest.mark.usefixtures("hydra_tree")
@pytest.mark.parametrize(("group", "cls"), CLASSES, ids=[cls.__name__ for _, cls in CLASSES])
def test_every_class_has_a_file_with_all_its_arguments_and_their_defaults(group: str, cls: type) -> None:
    config = node(f"+{group}@node={snake_case(cls.__name__)}")
    arguments = set(inspect.signature(cls).parameters)
    assert set(config) - {"name"} <= arguments
    assert arguments - set(config) <= FUNCTIONS, "only functions, which no file can hold, may be left out"
    required = {f.name for f in fields(cls) if f.init and f.default is f.default_factory is MISSING}
    assert {key for key, value in config.items() if value == "???"} == required
    if not required:
        build = build_methods if group == "method" else build_metrics
        assert build({"it": config}) == {"it": cls()}


@pytest.mark.parametrize("group", ["method", "metric"])
def test_there_is_no_file_without_a_class(group: str) -> None:
    assert {p.stem for p in (CONFIGS / group).iterdir()} == {snake_case(c.__name__) for g, c in CLASSES if g == group}


def options(group: str) -> list[str]:
    return [path.stem for path in sorted((CONFIGS / group).glob("*.yaml"))]


@pytest.mark.usefixtures("hydra_tree")
@pytest.mark.parametrize("option", options("monitor"))
def test_every_preset_builds(option: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*unsigned.*")
        ExplanationMonitor.from_config(node(f"+monitor@node={option}"))


@pytest.mark.usefixtures("hydra_tree")
@pytest.mark.parametrize("option", ["base", "standard"])
def test_the_default_monitor_is_written_out(option: str) -> None:
    assert built(node(f"+monitor@node={option}")) == (*DEFAULT[:2], ProbeSelection())


@pytest.mark.usefixtures("hydra_tree")
def test_the_base_of_all_presets_has_every_argument_with_its_default() -> None:
    parameters = inspect.signature(ExplanationMonitor).parameters
    expected = {name: p.default for name, p in parameters.items() if name not in (*_FUNCTIONS, "probe")}
    config = node("+monitor@node=base")
    assert ProbeSelection(**config.pop("probe")) == ProbeSelection()
    assert config == expected


@pytest.mark.usefixtures("hydra_tree")
def test_probe_files_are_those_of_probe_selection() -> None:
    assert ProbeSelection(**node("+probe@node=default")) == ProbeSelection()
    assert ProbeSelection(**node("+probe@node=per_class")) == ProbeSelection(per_class=True)


@pytest.mark.usefixtures("hydra_tree")
def test_methods_are_added_exchanged_and_taken_away_on_the_command_line() -> None:
    config = node(
        "+monitor@node=standard",
        "+method@node.methods.window=occlusion",
        "node.methods.window.strides=[1,2,2]",
        "metric@node.metrics.infidelity=sensitivity_max",
        "node.metrics.infidelity.n_perturb_samples=10",  # which the preset had set for the one before
        "~node.methods.cam",
        "probe@node.probe=per_class",
    )
    methods, metrics, probe = built(config)
    assert list(methods) == ["saliency", "ig", "window"]
    assert methods["window"] == m.Occlusion(strides=(1, 2, 2))
    assert metrics["infidelity"] == q.SensitivityMax()
    assert probe.per_class


# -- LightningCLI --------------------------------------------------------------------------------------------------

CLI = """
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_explain.ExplanationMonitor
      init_args:
        methods: {ig: {name: IntegratedGradients, n_steps: 4}}
        metrics: [Infidelity]
        probe: {count: 4}
        normalization: [[0.1307], [0.3081]]
        panels: {ig: [[masked_image, positive]], default: [[heat_map, all]]}
        cmap: {ig: viridis}
        outlier_perc: {default: 5}
        on_error: raise
"""


# Lightning 2.6 uses what newer versions of jsonargparse and of torch call old.
@pytest.mark.filterwarnings("ignore:(?s).*(JsonargparseDeprecationWarning|was deprecated in v4)")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers")
def test_lightning_cli_takes_the_monitor_by_its_class_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr("sys.argv", ["train.py"])
    (tmp_path / "cli.yaml").write_text(CLI)
    cli = LightningCLI(
        DigitsModel,
        MarkedDigits,
        args=["fit", "--config", "cli.yaml"],
        save_config_callback=None,
        seed_everything_default=1,
    )
    (monitor,) = (c for c in cli.trainer.callbacks if isinstance(c, ExplanationMonitor))  # type: ignore[attr-defined]
    report = monitor.last_report
    assert report is not None
    assert {name: len(found) for name, found in report.attributions.items()} == {"ig": 4}
    assert "explain/infidelity/ig" in cli.trainer.callback_metrics
