"""What the report's figures show: their numbers, and that what is missing is said. How they look is for eyes."""

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from callbacks.removability_metrics import summarise
from callbacks.removability_statistics import wilson_interval
from cli.report import draw_figures
from cli.report_comparison import compare
from cli.report_curves import curve_labels, drawn_settings
from cli.report_figure import draw_lengths, draw_removability
from cli.report_flips_figure import draw_flips
from cli.report_layers_figure import draw_layers, read_layer_cosines
from cli.report_notes import comparison_notes
from cli.report_regimes_figure import draw_regimes
from cli.report_runs import read_runs
from tests.unit.made_runs import config_of, make_records, write_run

EARLY, LATE = make_records(40, 20, 10, 30), make_records(60, 6, 4, 30)
FEW = make_records(10, 5, 25, 60)


def settings_of(folders):
    return drawn_settings(compare(read_runs(folders)))


def two_seeds(tmp_path):
    return [
        write_run(tmp_path / f"none{seed}", {0: EARLY, 10: late}, config_of("none", seed))
        for seed, late in ((1, LATE), (2, make_records(60, 20, 10, 10)))
    ]


def texts(figure: Figure) -> str:
    parts = [figure, *figure.subfigs]
    found = [text.get_text() for part in parts for axes in part.axes for text in axes.texts]
    return "\n".join(found + [axes.get_title(loc="left") for axes in figure.axes])


def write_layers(folder, lines):
    (folder / "mechanism").mkdir()
    (folder / "mechanism" / "representations.jsonl").write_text("".join(lines))


def layer_line(step, cosine):
    values = {"step": step, "split": "val", "num_tokens": 9, "cosine": cosine, "layers": ["0"] * len(cosine)}
    return json.dumps(values) + "\n"


def test_a_curve_of_several_seeds_is_their_mean_with_their_spread(tmp_path):
    ((_, (curve,)),) = settings_of(two_seeds(tmp_path))
    harms = [6 / 66, 20 / 80]
    assert curve.label == "none (2 seeds)"
    assert curve.steps == (0, 10)
    assert curve.points("harm", 100) == pytest.approx([100 * 20 / 60, 100 * np.mean(harms)])
    low, high = curve.band("harm")
    assert (low[1], high[1]) == pytest.approx(
        (np.mean(harms) - np.std(harms, ddof=1), np.mean(harms) + np.std(harms, ddof=1))
    )


def test_a_curve_of_one_run_has_wilson_s_band_and_breaks_where_harm_is_withheld(tmp_path):
    ((_, (curve,)),) = settings_of([write_run(tmp_path / "none", {0: FEW, 10: LATE}, config_of("none", 1))])
    assert math.isnan(curve.points("harm")[0])
    assert math.isnan(curve.band("harm")[0][0])
    interval = wilson_interval(6, 66)
    assert (curve.band("harm")[0][1], curve.band("harm")[1][1]) == (interval.low, interval.high)


def test_withheld_points_are_said_in_the_panels(tmp_path):
    settings = settings_of([write_run(tmp_path / "none", {0: LATE, 10: FEW}, config_of("none", 1))])
    assert "1 of 2 points withheld (fewer than 20 items right without)" in texts(draw_removability(settings))
    assert 'no marker, harm withheld: "none"' in texts(draw_regimes(settings))


def test_bars_between_seeds_end_within_the_regime_plane(tmp_path):
    folders = [
        write_run(tmp_path / f"none{seed}", {10: late}, config_of("none", seed))
        for seed, late in ((1, make_records(50, 20, 0, 30)), (2, make_records(50, 0, 20, 30)))
    ]
    (axes,) = draw_regimes(settings_of(folders)).axes
    low, high = axes.get_xlim()
    spread = np.std([-20, 20], ddof=1)  # 28.3, beyond both
    assert low < -spread
    assert high > spread


def test_the_regime_plane_places_each_method_at_its_last_step(tmp_path):
    settings = settings_of([write_run(tmp_path / "none", {0: EARLY, 10: LATE}, config_of("none", 1))])
    figure = draw_regimes(settings)
    summary = summarise(LATE)
    (letter,) = [text for text in figure.axes[0].texts if text.get_text() == "C"]
    change = 100 * (summary.accuracy_with_context - summary.accuracy_no_context)
    assert letter.xy == pytest.approx((change, 100 * summary.harm))


def test_seeds_in_different_regimes_are_counted_beside_their_marker(tmp_path):
    perturbed = make_records(50, 30, 5, 15)
    folders = [
        write_run(tmp_path / f"none{seed}", {10: records}, config_of("none", seed))
        for seed, records in ((1, LATE), (2, perturbed), (3, LATE))
    ]
    (axes,) = draw_regimes(settings_of(folders)).axes
    assert next(text.get_text() for text in axes.texts) == "A x 1, C x 2"
    (axes,) = draw_regimes(settings_of([folders[0], folders[2]])).axes
    assert next(text.get_text() for text in axes.texts) == "C"


def test_the_flip_matrix_has_counts_and_shares(tmp_path):
    settings = settings_of([write_run(tmp_path / "none", {10: LATE}, config_of("none", 1))])
    (axes,) = draw_flips(settings).axes
    assert axes.get_title(loc="left") == "none\nstep 10, val"
    cells = [text.get_text() for text in axes.texts]
    assert cells == [
        *("60", "60.0 %", "both right"),
        *("6", "6.0 %", "harmed"),
        *("4", "4.0 %", "helped"),
        *("30", "30.0 %", "both wrong"),
    ]


def test_lengths_are_drawn_in_both_views(tmp_path):
    settings = settings_of([write_run(tmp_path / "none", {0: EARLY, 10: LATE}, config_of("none", 1))])
    without, with_ = draw_lengths(settings).axes[0].lines[:2]
    assert list(without.get_ydata()) == [summarise(r).mean_length_no_context for r in (EARLY, LATE)]
    assert list(with_.get_ydata()) == [summarise(r).mean_length_with_context for r in (EARLY, LATE)]


def test_the_longest_series_of_a_setting_is_drawn_and_methods_share_colours_over_settings(tmp_path):
    folders = [
        write_run(tmp_path / "a" / "none", {0: EARLY, 10: LATE}, config_of("none", 1)),
        write_run(tmp_path / "b" / "nca", {0: EARLY}, config_of("no_context_anchor", 1, model="other")),
        write_run(tmp_path / "b" / "none", {0: EARLY}, config_of("none", 1, model="other")),
    ]
    write_run(folders[0], {10: make_records(20, 5, 5, 5)}, split="test", from_test=True)
    settings = settings_of(folders)
    assert [comparison.split for comparison, _ in settings] == ["val", "val"]
    assert curve_labels(settings) == ["none", "no_context_anchor x 0.5"]
    assert [curve.number for _, curves in settings for curve in curves] == [0, 1, 0]
    assert len(draw_removability(settings).subfigs) == 2


def test_a_run_on_another_number_of_items_has_a_panel_of_its_own_and_it_is_said(tmp_path):
    fewer = make_records(30, 20, 5, 5)
    folders = [
        *two_seeds(tmp_path),
        write_run(tmp_path / "nca", {0: fewer}, config_of("no_context_anchor", 1)),
        write_run(tmp_path / "tested", {10: fewer}, config_of("symmetric", 1), split="test", from_test=True),
    ]
    write_run(folders[0], {10: make_records(40, 5, 5, 40)}, split="test", from_test=True)  # drawn with the others
    runs = read_runs(folders)
    settings = drawn_settings(compare(runs))
    assert [(panel.split, panel.num_items) for panel, _ in settings] == [("val", 100), ("val", 60), ("test", 60)]
    drawn = [[run.label for curve in curves for run in curve.method.runs] for _, curves in settings]
    assert drawn == [["none1", "none2"], ["nca"], ["tested"]]
    assert curve_labels(settings) == ["none (2 seeds)", "nca (no_context_anchor x 0.5)", "tested (symmetric x 0.5)"]
    titles = [part._suptitle.get_text() for part in draw_removability(settings).subfigs]
    assert [title.split(", ", 1)[1] for title in titles] == ["val, 100 items", "val, 60 items", "test, 60 items"]
    assert len(draw_flips(settings).axes) == 4
    assert comparison_notes(runs, compare(runs))[0] == (
        "The runs were NOT evaluated on the same items, so their curves do not compare: none1, none2 on val "
        "(100 items); nca on val (60 items); tested on test (60 items). The figures have a panel for each."
    )
    assert comparison_notes(runs, compare(runs))[2] == (
        "none1 was evaluated on several item sets; the figures show val (100 items), and only tables test (90 items)."
    )


def test_a_run_in_no_figure_is_named(tmp_path):
    folders = [write_run(tmp_path / name, {10: LATE}, config_of("none", 1)) for name in ("first", "again")]
    runs = read_runs(folders)
    assert [line for line in comparison_notes(runs, compare(runs)) if "no figure" in line] == [
        "again is in no figure; the notes of its setting say why. Its evaluations are tabulated."
    ]


def test_layers_are_the_mean_of_the_seeds_last_measurements(tmp_path):
    folders = two_seeds(tmp_path)
    write_layers(folders[0], [layer_line(10, [1.0, 0.90]), layer_line(0, [1.0, 0.5])])
    write_layers(folders[1], [layer_line(10, [1.0, 0.98])])
    figure, notes = draw_layers(settings_of(folders))
    assert notes == []
    mean, untrained = figure.axes[0].lines
    assert list(mean.get_ydata()) == pytest.approx([1.0, 0.94])
    assert list(untrained.get_ydata()) == [1.0, 0.5]


def test_broken_measurements_of_layers_are_passed_over_and_said(tmp_path):
    assert read_layer_cosines(tmp_path) == ([], [])
    write_layers(tmp_path, [layer_line(0, [1.0]), '{"step": 1}\n', "[]\n", '{"step": 2, "cosine": [1.0'])
    found, notes = read_layer_cosines(tmp_path)
    assert [cosines.step for cosines in found] == [0]
    assert len(notes) == 3
    assert "half-written" in notes[0]
    assert "line 2 is no measurement of layers" in notes[1]


def test_runs_without_layers_make_every_other_figure(tmp_path):
    folders = two_seeds(tmp_path)
    images, paths, notes = draw_figures(compare(read_runs(folders)), tmp_path)
    assert [name for _, name in images] == [
        "removability.png",
        "removability-regimes.png",
        "removability-flips.png",
        "removability-lengths.png",
    ]
    assert all(path.stat().st_size > 0 for path in paths)
    assert len(paths) == 12
    assert notes == []
