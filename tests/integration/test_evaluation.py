"""The paired evaluation with controls, samples and probes: during a fit, by `test`, and on a model from elsewhere."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from callbacks.removability_files import read_records, read_summaries
from callbacks.removability_metrics import summarise_groups
from cli.evaluate import print_matrix
from cli.main import main
from datamodules import GeographyDataModule
from lightning_modules.context_distillation import ContextDistillation
from lightning_modules.evaluated_model import EvaluatedModel
from tests.integration.conftest import Runs
from tests.unit.made_runs import make_records

CONTROLS = ("--removability.controls", '[{"kind": "irrelevant"}, {"kind": "wrong"}]')
PROBES = ("--trainer.callbacks+=ProbeEvaluation",)


def logged(run: Path) -> dict[str, list[float]]:
    """Values of metrics.csv by name, in the order of rows."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_controls_at_the_ends_of_a_fit(runs):
    run = runs.fit("run", *CONTROLS, "--removability.at_start", "true", "--removability.every_n_steps", "1")
    lines = read_summaries(run / "removability/summary.jsonl")
    everywhere, ends = [0, 1, 2, 3], [0, 3]
    by_context = {c: [line.step for line in lines if line.context == c] for c in ("original", "irrelevant", "wrong")}
    assert by_context == {"original": everywhere, "irrelevant": ends, "wrong": ends}
    for line in lines:
        suffix = "" if line.context == "original" else f".{line.context}"
        records = read_records(run / f"removability/step={line.step:06d}{suffix}.jsonl")
        assert summarise_groups(records) == line.summaries
    original, wrong = (read_records(run / f"removability/step=000003{s}.jsonl") for s in ("", ".wrong"))
    assert [r.completion_no_context for r in original] == [r.completion_no_context for r in wrong]
    assert [r.completion_with_context for r in original] != [r.completion_with_context for r in wrong]
    metrics = logged(run)
    assert len(metrics["removability/both_correct"]) == 4
    assert metrics["controls/wrong/accuracy_with_context"] == [
        line.summaries["all"].accuracy_with_context for line in lines if line.context == "wrong"
    ]


def test_sampled_decoding_has_a_noise_floor(runs):
    run = runs.fit("run", "--model.evaluation.temperature", "1.0", "--model.evaluation.max_completion_length", "4",
                   "--removability.num_samples", "3")  # fmt: skip
    (line,) = read_summaries(run / "removability/summary.jsonl")
    summary = line.summaries["all"]
    assert (summary.num_samples_no_context, summary.num_samples_with_context) == (3, 3)
    assert set(summary.pass_at_k_no_context) == {"1", "2"}
    records = read_records(run / "removability/step=000003.jsonl")
    assert all(len(record.further_no_context) == 2 for record in records)
    assert summary.pass_at_k_no_context["1"] == pytest.approx(summary.mean_accuracy_no_context)


def test_greedy_decoding_with_samples_is_refused(runs):
    with pytest.raises(ValueError, match="decoding is greedy"):
        runs.fit("run", "--removability.num_samples", "3")


def test_probes_during_a_fit_and_after(runs):
    run = runs.fit("run", *PROBES)
    lines = read_summaries(run / "probes/summary.jsonl")
    assert [(line.step, line.split) for line in lines] == [
        (0, "following"), (0, "general"), (3, "following"), (3, "general")
    ]  # fmt: skip
    before, after = (line.summaries["all"] for line in lines if line.split == "general")
    assert (before.num_items, after.num_items) == (60, 60)
    assert before.mean_kl_to_base == pytest.approx(0.0, abs=1e-6)
    assert after.mean_kl_to_base > 1e-6
    assert set(lines[0].summaries) == {"all", "contrary_fact", "invented_fact", "order"}
    metrics = logged(run)
    assert metrics["forgetting/general/kl_to_base"] == pytest.approx([before.mean_kl_to_base, after.mean_kl_to_base])
    assert len(metrics["following/rate"]) == len(metrics["following/order/rate_without"]) == 2
    main(runs.args("test", "run", "--ckpt_path", "last", *PROBES))
    again = read_summaries(run / "probes/summary.jsonl")[-1]
    assert (again.step, again.split) == (3, "general")
    assert again.summaries["all"].mean_kl_to_base == pytest.approx(after.mean_kl_to_base, rel=1e-5)


def test_what_a_kill_left_out_of_the_last_evaluation_is_made_up_for(runs, monkeypatch):
    """Killed between the context itself and the controls, and between two sets of probes."""
    args = (*CONTROLS, *PROBES, "--removability.every_n_steps", "3")
    run = runs.fit("run", *args)
    for path in (run / "removability/summary.jsonl", run / "probes/summary.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:-1]))
    moves = []
    own_cpu, own_to = ContextDistillation.cpu, ContextDistillation.to
    monkeypatch.setattr(ContextDistillation, "cpu", lambda self: moves.append("cpu()") or own_cpu(self))
    monkeypatch.setattr(ContextDistillation, "to", lambda self, *a: moves.append(a) or own_to(self, *a))
    runs.fit("run", *args, "--ckpt_path", "last")
    # Lightning puts the module onto the CPU before on_fit_end; on a GPU it has to be there again to answer as before.
    assert moves[moves.index("cpu()") + 1 :] == [(torch.device("cpu"),)] * 2
    contexts = [line.context for line in read_summaries(run / "removability/summary.jsonl") if line.step == 3]
    assert contexts == ["original", "irrelevant", "original", "irrelevant", "wrong"]  # the report takes the later ones
    sets = [line.split for line in read_summaries(run / "probes/summary.jsonl") if line.step == 3]
    assert sets == ["following", "general"]


def test_a_users_set_for_forgetting_and_a_taken_name(runs, tmp_path):
    (tmp_path / "probes.yaml").write_text(
        "trainer:\n  callbacks:\n    - class_path: ProbeEvaluation\n      init_args:\n        following: false\n"
        "        general: false\n        at_start: false\n        max_items: 5\n        data:\n          NAME:\n"
        "            class_path: GeographyDataModule\n"
        "            init_args: {num_train: 60, num_val: 24, num_test: 24}\n".replace("NAME", "cities")
    )
    run = runs.fit("run", "--config", str(tmp_path / "probes.yaml"))
    (line,) = read_summaries(run / "probes/summary.jsonl")
    assert (line.step, line.split, line.summaries["all"].num_items) == (3, "cities", 5)
    text = (tmp_path / "probes.yaml").read_text().replace("cities", "general")
    (tmp_path / "taken.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"data has the names \['general'\], which are taken"):
        runs.fit("taken", "--config", str(tmp_path / "taken.yaml"))


def test_evaluations_leave_the_training_untouched(runs, weights_equal):
    plain = runs.fit("plain")
    probed = runs.fit("probed", *PROBES, *CONTROLS, "--removability.every_n_steps", "2",
                      "--removability.controls_every_evaluation", "true")  # fmt: skip
    lines = read_summaries(probed / "removability/summary.jsonl")
    assert [(line.step, line.context) for line in lines if line.context != "wrong"] == [
        (2, "original"), (2, "irrelevant"), (3, "original"), (3, "irrelevant")
    ]  # fmt: skip
    weights_equal(runs.weights(probed, 3), runs.weights(plain, 3))
    assert [row["train/loss"] for row in runs.metrics(probed)] == [row["train/loss"] for row in runs.metrics(plain)]


# ---- cli evaluate


@pytest.fixture(scope="module")
def exported(tiny_config, tmp_path_factory):
    """A finished run with its student as a Hugging Face folder, tested inside the run."""
    runs = Runs(tmp_path_factory.mktemp("exported"), tiny_config)
    run = runs.fit("run", "--trainer.callbacks+=HFExport")
    main(runs.args("test", "run", "--ckpt_path", "last", *CONTROLS))
    return run


def evaluate(run: Path, output: Path, *args: str) -> Path:
    main(["evaluate", "--config", str(run / "config.yaml"), "--output", str(output), "--device", "cpu",
          "--model.name", str(run / "export"), "--following", "false", "--general", "false", *args])  # fmt: skip
    return output


def test_an_exported_model_gives_the_table_of_its_run(exported, tmp_path, tiny_model_dir, capsys):
    output = evaluate(exported, tmp_path / "out", "--controls", CONTROLS[1], "--step", "3")
    ours = read_summaries(output / "removability/summary.jsonl")
    theirs = [line for line in read_summaries(exported / "removability/summary.jsonl") if line.split == "test"]
    assert [line.context for line in ours] == ["original", "irrelevant", "wrong"]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.step, one.split, one.context) == (other.step, other.split, other.context)
        values, expected = (s.summaries["all"].to_dict() for s in (one, other))
        assert values.pop("mean_kl") == pytest.approx(expected.pop("mean_kl"), rel=1e-4)
        assert values == expected
    for name in ("test-step=000003.jsonl", "test-step=000003.wrong.jsonl"):
        ours, theirs = (read_records(folder / "removability" / name) for folder in (output, exported))
        assert [(r.id, r.completion_no_context, r.completion_with_context) for r in ours] == [
            (r.id, r.completion_no_context, r.completion_with_context) for r in theirs
        ]
    printed = capsys.readouterr().out
    assert "irrelevant" in printed
    assert not (output / "unfinished").exists()
    main(["report", str(output), "--output", str(tmp_path / "report")])
    with pytest.raises(SystemExit):
        evaluate(exported, tmp_path / "out", "--controls", CONTROLS[1], "--step", "3")


def test_evaluate_with_a_context_from_a_file_probes_and_a_base(exported, tmp_path, tiny_model_dir):
    (tmp_path / "context.json").write_text(
        json.dumps([{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "Asia"}])
    )
    output = evaluate(
        exported, tmp_path / "out", "--context", str(tmp_path / "context.json"), "--max_items", "5",
        "--general", "true", "--base.name", str(tiny_model_dir),
    )  # fmt: skip
    (line,) = read_summaries(output / "removability/summary.jsonl")
    assert line.summaries["all"].num_items == 5
    (general,) = read_summaries(output / "probes/summary.jsonl")
    assert general.summaries["all"].mean_kl_to_base > 1e-6


def kill_at_the_second_batch(monkeypatch) -> list[int]:
    """Have the second call of `compare_views` end the program; the sizes of all calls, as they come."""
    own, calls = EvaluatedModel.compare_views, []

    def killed_at_the_second_batch(self, examples, *spec):
        calls.append(len(examples))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(self, examples, *spec)

    monkeypatch.setattr(EvaluatedModel, "compare_views", killed_at_the_second_batch)
    return calls


def test_a_killed_evaluation_continues(exported, tmp_path, monkeypatch):
    whole = evaluate(exported, tmp_path / "whole", "--batch_size", "8")
    calls = kill_at_the_second_batch(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        evaluate(exported, tmp_path / "cut", "--batch_size", "8")
    cut = evaluate(exported, tmp_path / "cut", "--batch_size", "8")
    assert calls == [8, 8, 8, 8]  # the first batch is not answered again
    names = "removability/test-step=000000.jsonl"
    assert (cut / names).read_text() == (whole / names).read_text()
    with pytest.raises(SystemExit):  # other settings do not continue it
        evaluate(exported, tmp_path / "cut", "--batch_size", "8", "--split", "val")


@pytest.mark.parametrize("changed", ["context", "model"])
def test_a_killed_evaluation_of_something_else_is_not_continued(exported, tmp_path, monkeypatch, capsys, changed):
    """Names stay while a context is edited or a folder exported anew: the answers kept so far are not of these."""

    def write_context(answer: str) -> None:
        turns = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": answer}]
        context.write_text(json.dumps(turns))

    context, model = tmp_path / "context.json", tmp_path / "model"
    write_context("Asia")
    shutil.copytree(exported / "export", model)
    words = ("--batch_size", "8", "--context", str(context), "--model.name", str(model))
    kill_at_the_second_batch(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        evaluate(exported, tmp_path / "cut", *words)
    if changed == "context":
        write_context("Africa")
    else:
        (model / "model.safetensors").touch()
    with pytest.raises(SystemExit):
        evaluate(exported, tmp_path / "cut", *words)
    assert "holds an evaluation with other settings" in capsys.readouterr().err


def test_a_context_that_gives_the_test_away_is_refused(exported, tmp_path, capsys):
    item = GeographyDataModule(num_train=60, num_val=24, num_test=24).examples("test")[0]
    turns = [*item.prompt, {"role": "assistant", "content": item.answer}]
    (tmp_path / "context.json").write_text(json.dumps(turns))
    with pytest.raises(SystemExit):
        evaluate(exported, tmp_path / "out", "--context", str(tmp_path / "context.json"))
    assert "which validation or test asks" in capsys.readouterr().err


def test_a_line_half_written_by_a_kill_is_answered_again(exported, tmp_path, monkeypatch):
    whole = evaluate(exported, tmp_path / "whole", "--batch_size", "12")
    from cli import evaluate as command

    monkeypatch.setattr(command, "write_records", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(exported, tmp_path / "cut", "--batch_size", "12")
    monkeypatch.undo()
    kept = tmp_path / "cut/unfinished/original.jsonl"
    kept.write_bytes(kept.read_bytes()[:-30])
    with pytest.warns(UserWarning, match=r"original\.jsonl: the last line is half-written"):
        cut = evaluate(exported, tmp_path / "cut", "--batch_size", "12")
    ours, theirs = (read_records(f / "removability/test-step=000000.jsonl") for f in (cut, whole))
    assert [(r.id, r.completion_with_context) for r in ours] == [(r.id, r.completion_with_context) for r in theirs]


def test_nobody_right_is_printed_as_undefined_harm(capsys):
    few, nobody = make_records(10, 5, 3, 2), make_records(0, 0, 30, 10)
    print_matrix({"original": summarise_groups(nobody), "wrong": summarise_groups(few)})
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "context",
        "items",
        "without",
        "with",
        "both",
        "harm",
        "help",
        "inflation",
        "KL",
        "(nats)",
    ]
    assert "undefined (0/0)" in first
    assert "75.0 (30/40)" in first
    assert "- (5/15)" in second
    assert "nan" not in (first + second).lower()


def test_evaluate_says_what_is_wrong(exported, tmp_path, capsys):
    (tmp_path / "no_context.yaml").write_text(
        (exported / "config.yaml").read_text().replace("context: geography_demonstrations", "context: null")
    )
    for args, message in (
        (["--config", str(tmp_path / "no_context.yaml")], "No item of split 'test' has a privileged context"),
        (["--model.name", str(tmp_path / "nowhere")], "nowhere"),
        (["--context", "no_such_context"], "no_such_context"),
        (["--evaluation.num_samples", "2"], "decoding is greedy"),
        (["--max_items", "0"], "--max_items is 0; it must be at least 1"),
        (["--step", "-1"], "--step is -1; it must be at least 0"),
    ):
        with pytest.raises(SystemExit):
            evaluate(exported, tmp_path / "out", *args)
        assert message in capsys.readouterr().err


def test_evaluate_never_writes_into_a_run(exported, capsys):
    before = (exported / "removability/summary.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        evaluate(exported, exported)
    assert "holds a run that is no evaluation" in capsys.readouterr().err
    assert (exported / "removability/summary.jsonl").read_bytes() == before


@pytest.mark.slow
def test_two_ranks_give_the_one_process_tables(runs):
    args = ("--removability.max_items", "7", "--removability.every_n_steps", "1", "--trainer.max_steps", "1",
            "--model.sampling.temperature", "0", *CONTROLS, *PROBES)  # fmt: skip
    one = runs.fit("one", *args)
    two = runs.fit_on_two_ranks("two", *args)
    for folder in ("removability", "probes"):
        ours, theirs = (read_summaries(run / folder / "summary.jsonl") for run in (two, one))
        assert [(line.step, line.split, line.context) for line in ours] == [
            (line.step, line.split, line.context) for line in theirs
        ]
        assert [line.summaries["all"].num_items for line in ours] == [
            line.summaries["all"].num_items for line in theirs
        ]
        files = sorted(path.name for path in (one / folder).glob("*step=*"))
        assert sorted(path.name for path in (two / folder).glob("*step=*")) == files
        for name in files:
            ours, theirs = (read_records(run / folder / name) for run in (two, one))
            assert [(r.id, r.completion_no_context, r.completion_with_context) for r in ours] == [
                (r.id, r.completion_no_context, r.completion_with_context) for r in theirs
            ]
