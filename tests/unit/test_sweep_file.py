"""W&B sweep files: what is read, what is refused, and the command that W&B's own agent would run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cli.sweep_file import Choices, Hyperband, Range, read_sweep_file

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "configs/sweeps").glob("*.yaml") if path.name != "run_folder.yaml")

CONTENT = {
    "program": "cli",
    "method": "random",
    "metric": {"name": "removability/both_correct", "goal": "maximize"},
    "parameters": {"model.consistency_coef": {"values": [0.1, 0.5]}},
    "command": ["${env}", "python", "-m", "cli", "fit", "${args}"],
}


def written(tmp_path: Path, **changes) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, **changes}, sort_keys=False))
    return path


def test_every_kind_of_parameter(tmp_path):
    parameters = {
        "a": {"value": 3},
        "b": {"values": [True, "null", 1.5]},
        "c": {"min": 1, "max": 4},
        "d": {"min": 0.0, "max": 1.0},
        "e": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-4},
        "f": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25},
    }
    read = read_sweep_file(written(tmp_path, parameters=parameters)).parameters
    assert read == {
        "a": Choices((3,)),
        "b": Choices((True, "null", 1.5)),
        "c": Range(1, 4, is_integer=True),
        "d": Range(0.0, 1.0),
        "e": Range(1e-6, 1e-4, is_log=True),
        "f": Range(0.0, 1.0, q=0.25),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gird"}, "method is 'gird'"),
        ({"metric": {"name": "x"}}, "goal: maximize or minimize"),
        ({"parameters": {}}, r"\['parameters'\] missing"),
        ({"mehtod": "grid"}, r"\['mehtod'\] not understood"),
        ({"parameters": {"a": {"values": [None]}}}, 'write "null" in quotes'),
        ({"parameters": {"a": {"values": [[1, 2]]}}}, "is no plain value"),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, "min must not be above max"),
        ({"parameters": {"a": {"min": 0, "max": 1, "mu": 0}}}, r"\['mu'\] not understood"),
        ({"parameters": {"a": {"min": 0, "max": 1, "distribution": "normal"}}}, "distribution is 'normal'"),
        ({"parameters": {"a": {"min": 0.0, "max": 1.0}}, "method": "grid"}, "grid needs values"),
        ({"metric": {"name": "x", "goal": "maximize", "target": 1}}, r"metric: \['target'\] not understood"),
        ({"parameters": ["a"]}, r"parameters is \['a'\]"),
        ({"parameters": {"a": {"value": 1, "values": [2]}}}, "write one of value, values"),
        ({"parameters": {"a": {"value": 1, "min": 0, "max": 1}}}, "write one of value, values"),
        ({"parameters": {"a": {}}}, r"parameters\.a\.min is None"),
        ({"parameters": {"a": {"min": "1e-6", "max": "1e-4"}}}, r"min is '1e-6'.* write 1\.0e-6"),
        ({"parameters": {"a": {"min": "low", "max": 3}}}, "min is 'low'.* must be numbers"),
        ({"parameters": {"a": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}}, "min is 0; .* above 0"),
        ({"parameters": {"a": {"min": 0, "max": 1.5, "distribution": "int_uniform"}}}, "must be whole numbers"),
        ({"parameters": {"a": {"min": 0, "max": 1, "distribution": "q_uniform", "q": 0}}}, r"a\.q is 0"),
        ({"command": "python -m cli fit"}, "write it as a list"),
        ({"command": ["python", "${args_json}"]}, r"command: \['\$\{args_json\}'\] not understood"),
        ({"command": ["python", "--project=${envvar:PROJECT}"]}, "not understood"),
        ({"run_cap": 0}, "run_cap is 0; it must be a whole number, at least 1"),
        ({"early_terminate": {"type": "envelope"}}, "early_terminate"),
        ({"early_terminate": {"type": "hyperband", "min_iter": "two"}}, "min_iter is 'two'"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "eta is 1; .* at least 2"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "s": 2}}, r"\['s'\] not understood"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_sweep_file(written(tmp_path, **changes))


def test_a_missing_file_says_where_sweeps_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="configs/sweeps"):
        read_sweep_file(tmp_path / "absent.yaml")


def test_what_is_no_yaml_says_so(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("method: [grid,\n}")
    with pytest.raises(ValueError, match="is no YAML file"):
        read_sweep_file(path)


def test_grid_goes_through_every_combination_in_the_file_s_order(tmp_path):
    parameters = {"z": {"values": [1, 2]}, "a": {"values": ["x", "y"]}}
    grid = read_sweep_file(written(tmp_path, method="grid", parameters=parameters)).grid()
    assert grid == [{"z": 1, "a": "x"}, {"z": 1, "a": "y"}, {"z": 2, "a": "x"}, {"z": 2, "a": "y"}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_is_the_one_that_wandb_s_agent_runs(path):
    """Rendered by W&B's own functions, as `wandb agent` does, but for the interpreter."""
    from wandb.sdk.launch.sweeps import utils

    file = read_sweep_file(path)
    values = {name: p.values[0] if isinstance(p, Choices) else p.low for name, p in file.parameters.items()}
    macros = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    macros |= {"env": ["/usr/bin/env"], "program": [file.program], "interpreter": ["python"]}
    rendered = []
    for word in utils.create_sweep_command(list(file.command)):
        is_macro = word.startswith("${") and word.endswith("}")
        rendered += macros[word[2:-1]] if is_macro else [word]
    assert file.render(values, "python") == rendered


def test_this_project_s_sweeps_maximise_what_an_always_wrong_model_does_not_have():
    files = {path.stem: read_sweep_file(path) for path in FILES}
    assert files.keys() == {
        "consistency_coef",
        "warmup",
        "beta",
        "top_k",
        "learning_rate",
        "anchor",
        "seed",
        "context_share",
    }
    assert {(file.metric, file.goal) for file in files.values()} == {("removability/both_correct", "maximize")}
    assert files["learning_rate"].early_terminate == Hyperband(2, 3)
