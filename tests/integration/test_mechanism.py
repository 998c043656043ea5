"""The mechanism callbacks in real fits: their files and metrics, resuming, two ranks, and an untouched training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from callbacks.gradient_geometry import GradientGeometry
from callbacks.mechanism import MechanismCallback
from callbacks.representations import RepresentationSimilarity
from callbacks.token_positions import MEASURES, TokenPositions
from callbacks.weight_changes import WeightChanges
from cli.report_layers_figure import read_layer_cosines
from lightning_modules.context_distillation import ContextDistillation

NAMES = ("representations", "gradient_geometry", "weight_changes", "token_positions")
COST = ("elapsed_s", "run_s", "cost_share")
CALLBACKS = """
trainer:
  callbacks:
    - {class_path: RepresentationSimilarity, init_args: {every_n_steps: 2, max_items: 5}}
    - {class_path: GradientGeometry, init_args: {every_n_steps: 2, max_items: 5}}
    - {class_path: WeightChanges, init_args: {every_n_steps: 2}}
    - {class_path: TokenPositions, init_args: {every_n_steps: 2, max_items: 5, top_k: 4}}
"""


@pytest.fixture
def mechanism(tmp_path):
    path = tmp_path / "mechanism.yaml"
    path.write_text(CALLBACKS)
    return ("--config", str(path))


def read(run: Path, name: str) -> list[dict]:
    """A file's lines without what measures time."""
    lines = [json.loads(line) for line in (run / "mechanism" / f"{name}.jsonl").read_text().splitlines()]
    assert all(0 < line.pop("elapsed_s") <= line["run_s"] for line in lines)
    assert all(0 < line.pop("cost_share") < 1 and line.pop("run_s") > 0 for line in lines)
    return lines


def logged(run: Path) -> dict[str, list[float]]:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_files_and_metrics_of_a_fit(runs, mechanism, weights_equal):
    plain = runs.fit("plain")
    run = runs.fit("run", *mechanism)
    lines = {name: read(run, name) for name in NAMES}
    assert {name: [line["step"] for line in lines[name]] for name in NAMES} == {name: [0, 2, 3] for name in NAMES}
    metrics = logged(run)

    layers = lines["representations"]
    assert layers[0]["layers"] == ["embedding", "1", "2", "final_norm"]
    assert layers[0]["cosine"][0] == pytest.approx(1.0)
    assert metrics["mechanism/representations/cosine/2"] == [line["cosine"][2] for line in layers]
    assert metrics["mechanism/representations/cosine_min"] == [min(line["cosine"]) for line in layers]

    assert [list(line.cosine) for line in read_layer_cosines(run)[0]] == [line["cosine"] for line in layers]

    weights = lines["weight_changes"]
    assert weights[0]["whole"]["change"] == 0.0
    assert weights[0]["whole"]["share"] is None
    assert sum(group["share"] for group in weights[2]["groups"]) == pytest.approx(1.0)
    assert metrics["mechanism/weight_changes/relative"] == [line["whole"]["relative"] for line in weights]
    assert metrics["mechanism/weight_changes/relative/k_proj"][2] > 0

    gradients = lines["gradient_geometry"]
    assert all(line["consistency"] == "no_context_anchor" and -1 <= line["whole"]["cosine"] <= 1 for line in gradients)
    assert metrics["mechanism/gradient_geometry/opd_norm"] == [line["whole"]["opd_norm"] for line in gradients]
    assert {group["module"] for group in gradients[0]["groups"]} >= {"q_proj", "k_proj", "mlp", "norms", "embeddings"}

    places = lines["token_positions"]
    for line in places:
        assert line["counts"][0] == 5
        assert sum(line["counts"]) == line["num_tokens"] == lines["representations"][places.index(line)]["num_tokens"]
        assert all(len(line[name]) == len(line["counts"]) for name in MEASURES)
    assert metrics["mechanism/token_positions/first/kl_teacher"] == [line["kl_teacher"][0] for line in places]
    weighted = sum(n * kl for n, kl in zip(places[1]["counts"], places[1]["kl_views"], strict=True))
    assert metrics["mechanism/token_positions/kl_views"][1] == pytest.approx(weighted / places[1]["num_tokens"])
    for name in NAMES:
        assert len(metrics[f"mechanism/{name}/cost_share"]) == 3

    # And nothing of it was felt by the training.
    weights_equal(runs.weights(run, 3), runs.weights(plain, 3), exactly=True)
    own = [{k: v for k, v in row.items() if not k.startswith("mechanism/")} for row in runs.metrics(run)]
    assert own == runs.metrics(plain)


def test_weight_changes_are_those_of_the_checkpoint(runs, tiny_model_dir):
    from transformers import AutoModelForCausalLM

    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir).model.layers[1].self_attn.k_proj.weight.detach()
    # The frozen teacher of the other tests holds the initial weights; beside a live one they are loaded again.
    run = runs.fit("run", "--trainer.callbacks+=WeightChanges", "--model.teacher.kind", "live")
    first, last = read(run, "weight_changes")
    change = runs.weights(run, 3)["student.model.layers.1.self_attn.k_proj.weight"] - start
    (group,) = [group for group in last["groups"] if (group["layer"], group["module"]) == (2, "k_proj")]
    assert group["relative"] == pytest.approx(float(change.norm() / start.norm()), rel=1e-4)
    assert (first["whole"]["change"], last["step"]) == (0.0, 3)


class Watch:
    """Looks at the training's state around every evaluation."""

    def __init__(self, monkeypatch):
        self.changed = []
        own = MechanismCallback._evaluate

        def watched(callback, trainer, module):
            before = self.state(module)
            own(callback, trainer, module)
            if not self.equal(before, self.state(module)):
                self.changed.append(callback.name)

        monkeypatch.setattr(MechanismCallback, "_evaluate", watched)

    @staticmethod
    def state(module):
        return [
            torch.get_rng_state(),
            *(p.grad for p in module.student.parameters()),
            torch.tensor([part.training for part in module.modules()]),
            torch.tensor([p.requires_grad for p in module.parameters()]),
        ]

    @staticmethod
    def equal(one, other):
        return all(
            a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in zip(one, other, strict=True)
        )


def test_an_evaluation_leaves_random_state_gradients_and_modes(runs, mechanism, monkeypatch):
    watch = Watch(monkeypatch)
    own = ContextDistillation.draw_rollouts
    drawn = []

    def draw(module, examples):
        drawn.append(len(examples))
        torch.rand(3)  # whatever a measurement draws is put back
        module.student.eval()
        return own(module, examples)

    monkeypatch.setattr(ContextDistillation, "draw_rollouts", draw)
    runs.fit("run", *mechanism, "--trainer.max_steps", "2")
    assert watch.changed == []
    assert drawn == [5, 5]  # three callbacks look at the same completions, drawn once per step


def test_a_run_without_a_consistency_term_is_measured_with_the_anchor(runs):
    callback = ("--trainer.callbacks+=GradientGeometry", "--trainer.callbacks.init_args.every_n_steps", "null")
    run = runs.fit("run", *callback, "--model.consistency", "none")
    lines = read(run, "gradient_geometry")
    assert [line["step"] for line in lines] == [0, 1, 3]  # start, middle and end
    assert {line["consistency"] for line in lines} == {"no_context_anchor"}
    assert lines[-1]["whole"]["nca_norm"] > 0


def test_resuming_repeats_the_lines_and_makes_up_for_the_last(runs, mechanism):
    run = runs.fit("run", *mechanism)
    whole = {name: read(run, name) for name in NAMES}
    # As after a kill within the last evaluation: one callback wrote its line, one half of it, two nothing.
    for name in NAMES[1:]:
        path = run / "mechanism" / f"{name}.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1]) + (lines[-1][:40] if name == NAMES[1] else b""))
    path = run / "mechanism/weight_changes.jsonl"
    spent = [json.loads(line) | {"elapsed_s": 1000.0, "run_s": 10000.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in spent))
    with pytest.warns(UserWarning, match=r"gradient_geometry.jsonl: the last line is half-written"):
        runs.fit("run", *mechanism, "--ckpt_path", "last")
    assert {name: read(run, name) for name in NAMES} == whole
    last = json.loads(path.read_text().splitlines()[-1])  # the cost goes on over sittings
    assert last["run_s"] > 10000
    assert last["cost_share"] == pytest.approx(2000 / 10000, rel=0.05)
    # From an earlier checkpoint: later lines are dropped and written again.
    runs.fit("run", *mechanism, "--ckpt_path", str(run / "checkpoints/step=000001.ckpt"))
    assert {name: read(run, name) for name in NAMES} == whole


@pytest.mark.slow
def test_two_ranks_give_the_one_process_numbers(runs, mechanism):
    args = (*mechanism, "--trainer.max_steps", "1", "--model.sampling.temperature", "0",
            "--model.max_tokens_per_micro_batch", "400")  # fmt: skip
    one, two = runs.fit("one", *args), runs.fit_on_two_ranks("two", *args)
    for name in NAMES:
        ours, theirs = read(two, name), read(one, name)
        assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [0, 1]
        for mine, other in zip(ours, theirs, strict=True):
            assert flat(mine) == pytest.approx(flat(other), rel=2e-3, abs=1e-5), name


def flat(value, place=""):
    """Numbers of nested lists and dictionaries by their place."""
    if isinstance(value, dict):
        return {k: v for name, entry in value.items() for k, v in flat(entry, f"{place}/{name}").items()}
    if isinstance(value, list):
        return {k: v for number, entry in enumerate(value) for k, v in flat(entry, f"{place}/{number}").items()}
    return {place: value} if isinstance(value, (int, float)) else {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RepresentationSimilarity(max_items=0), "RepresentationSimilarity.max_items is 0"),
        (lambda: GradientGeometry(every_n_steps=-2), "GradientGeometry.every_n_steps is -2"),
        (lambda: WeightChanges(every_n_steps=-2), "WeightChanges.every_n_steps is -2"),
        (lambda: TokenPositions(top_k=0), "TokenPositions.top_k is 0"),
    ],
)
def test_numbers_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_module_that_shows_nothing_is_refused(tmp_path):
    import lightning.pytorch as L

    trainer = L.Trainer(logger=False, default_root_dir=tmp_path, enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(ValueError, match="WeightChanges needs a module that can be looked into"):
        WeightChanges().on_train_start(trainer, L.LightningModule())
