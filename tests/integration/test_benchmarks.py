"""The benchmark scripts run end to end with a tiny model; their figures mean nothing here."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from benchmarks import limit, peers, scaling, step
from benchmarks.workload import made_step
from lightning_modules.models import ModelSpec, load_model

TRL = [] if importlib.util.find_spec("trl") else ["--without-trl"]
"""`make test-engines` installs it, and runs this file too."""


@pytest.fixture
def tiny(tiny_model_dir):
    return ["--model", str(tiny_model_dir), "--gguf_file", "", "--repetitions", "1", "--device", "cpu"]


def test_step_compares_contestants_that_compute_the_same_thing(tiny, tmp_path, capsys):
    output = tmp_path / "step-cpu.json"
    step.main(
        [*tiny, "--shape", "3,8,4", "--context", "0", "24", "--max-tokens", "80", *TRL, "--output", str(tmp_path)]
    )
    results = json.loads(output.read_text())
    assert results["machine"]["cores"] >= 1
    for case in results["cases"]:
        contestants = case["contestants"]
        opd = [one["loss"] for name, one in contestants.items() if name.endswith("OPD")]
        nca = [one["loss"] for name, one in contestants.items() if name.endswith("NCA")]
        assert (len(opd), len(nca)) == (2 if TRL else 3, 2)
        assert opd == pytest.approx([opd[0]] * len(opd), rel=1e-4)
        assert nca == pytest.approx([nca[0]] * 2, rel=1e-4)
        assert opd[0] > 1e-6
        assert case["ratios"].keys() == {f"{first} / {second}" for first, second in step.PAIRS if second in contestants}
    assert "| ours OPD + NCA |" in capsys.readouterr().out


def test_two_fused_kernels_compute_what_the_textbook_does(tiny_model_dir):
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed: make test-engines installs it")
    student = load_model(ModelSpec(str(tiny_model_dir)))
    teacher = load_model(ModelSpec(str(tiny_model_dir)))
    step.add_noise(student)
    shape = step.Shape(3, 8, 4, 24)
    found = []
    for kind in (peers.Textbook, peers.TwoKernels):
        one = kind(student, teacher, shape, made_step(shape, student.config.vocab_size), 80, 0.5)
        loss = sum(one.run(index) for index in range(one.num_micro_batches))
        found.append([torch.tensor(loss), *(parameter.grad.clone() for parameter in student.parameters())])
        student.zero_grad()
    for textbook, kernels in zip(*found, strict=True):
        torch.testing.assert_close(kernels, textbook, rtol=1e-3, atol=1e-6)


def test_contestants_that_disagree_are_not_timed():
    alone = {"ours OPD + NCA": (2.0, 5.0)}
    step.check_agreement(alone | {"ours OPD": (1.0, 3.0), "TRL OPD": (1.0005, 3.1)}, 1e-3, 0.05)
    for other in ((1.2, 3.0), (1.0, 3.1), (float("nan"), 3.0)):
        with pytest.raises(RuntimeError, match="do not compute the same thing"):
            step.check_agreement(alone | {"ours OPD": (1.0, 3.0), "TRL OPD": other}, 1e-3, 1e-3)
    with pytest.raises(RuntimeError, match="do not compute the same thing"):
        step.check_agreement(alone | {"ours OPD": (0.0, 0.0), "TRL OPD": (0.0, 0.0)}, 1e-3, 1e-3)


def test_break_even_lies_between_its_measured_neighbours():
    cases = [
        {"shape": {"context": context}, "ratios": {"pair": {"measured": ratio}}}
        for context, ratio in [(0, 1.8), (512, 1.2), (1024, 0.8)]
    ]
    assert step.break_even(cases, "pair") == pytest.approx(768)
    assert step.break_even(cases[:2], "pair") is None


@pytest.mark.slow
def test_limit_reports_speed_and_the_peak_of_a_process_each(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(limit, "KINDS", ("plain", "ours OPD + NCA"))  # a process costs seconds
    output = tmp_path / "limit-cpu.json"
    limit.main([*tiny, "--shape", "2,8,4", "--context", "16", "--output", str(tmp_path)])
    (case,) = json.loads(output.read_text())["cases"]
    assert case["speed"]["share"] > 0
    assert all(peak > 2**20 for peak in case["peak_bytes"].values())


def test_scaling_writes_every_point_and_the_plot(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "AXES", {"context": (0, 16), "vocabulary": (400, 800)})
    monkeypatch.setattr(scaling, "BASE", step.Shape(2, 8, 4, 16))
    output = tmp_path / "scaling-cpu.json"
    scaling.main([*tiny, "--axis", "context", "vocabulary", "--output", str(tmp_path)])
    axes = json.loads(output.read_text())["axes"]
    assert [point["value"] for point in axes["vocabulary"]] == [400, 800]
    assert output.with_suffix(".svg").read_text().startswith("<?xml")


def test_counted_seconds_are_at_the_median_speed_of_the_plain_passes():
    speeds, backward = (1e3, 4e3, 2e3), (3.0, 5.0, 4.0)
    points = [
        {
            "update_s": 0.5,
            "scored_operations": 1e3,
            "trained_operations": 1e3 * i,
            "plain_operations_per_s": speed,
            "trained_forwards": r,
        }
        for i, (speed, r) in enumerate(zip(speeds, backward, strict=True))
    ]
    # At 2,000 operations a second: half a second scored, two seconds (4 x 0.5) for each 1,000 trained, and the update.
    assert [row["counted_s"] for row in scaling.with_counted_seconds(points)] == [1.0, 3.0, 5.0]


def test_slopes_are_those_between_neighbours():
    points = [
        {"value": v, "median_s": s, "counted_s": c} for v, s, c in [(0, 1.0, 1.0), (100, 2.0, 1.5), (300, 3, 3.5)]
    ]
    rows = scaling.with_slopes(points)
    assert [row["ms_per_unit"] for row in rows] == [None, 10.0, 5.0]
    assert [row["counted_ms_per_unit"] for row in rows] == [None, 5.0, 10.0]
