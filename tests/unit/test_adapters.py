"""LoRA: what is trained, what is not, and that the base stays the untouched model bit for bit."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from callbacks.hf_export import export
from lightning_modules.adapters import (
    AdapterRecord,
    LoRASpec,
    adapter_layers,
    add_adapters,
    base_parameters,
    delta,
    fingerprint,
    merged_copy,
    shared_copy,
)
from lightning_modules.mechanism.weights import weight_changes, whole
from lightning_modules.models import ModelSpec, freeze, frozen_copy, load_model
from lightning_modules.packing import PrefixCache
from lightning_modules.teachers import Teacher, TeacherSpec, update_average

IDS = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]])
DEFAULT = LoRASpec()
WITH_HEAD = LoRASpec(r=3, alpha=9.0, target_modules=["q_proj", "down_proj", "lm_head"])


def student_and_base(folder, spec=DEFAULT, dtype="float32", moved=True):
    student = load_model(ModelSpec(str(folder), dtype=dtype))
    base = freeze(shared_copy(student))
    torch.manual_seed(0)
    add_adapters(student, spec, str(folder))
    if moved:
        move(student)
    return student, base


@torch.no_grad()
def move(student):
    """Adapters as after training; B is zero at first."""
    for layer in adapter_layers(student).values():
        layer.lora_B["default"].weight.normal_(0.0, 0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_adapters_are_trained_and_in_float32(tiny_model_dir, dtype):
    student, _ = student_and_base(tiny_model_dir, dtype=dtype, moved=False)
    untouched = load_model(ModelSpec(str(tiny_model_dir), dtype=dtype))
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2  # two layers of seven linear ones, A and B
    assert all(".lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert not any("lm_head" in name or "embed" in name for name in trained)
    torch.testing.assert_close(student(IDS).logits, untouched(IDS).logits, rtol=0, atol=0)  # B is zero
    assert [name for name, _ in base_parameters(student)] == [name for name, _ in untouched.named_parameters()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_is_the_untouched_model_whatever_the_student_does(tiny_model_dir, dtype):
    untouched = load_model(ModelSpec(str(tiny_model_dir), dtype=dtype)).eval()
    spec = replace(WITH_HEAD, dropout=0.0)
    student, base = student_and_base(tiny_model_dir, spec, dtype)
    student.train()
    student.gradient_checkpointing_enable()
    assert (student(IDS).logits - untouched(IDS).logits).abs().max() > 0.1
    assert torch.equal(base(IDS).logits, untouched(IDS).logits)
    assert {p.data_ptr() for p in base.parameters()} == {p.data_ptr() for _, p in base_parameters(student)}
    student(IDS).logits.float().square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in student.parameters())
    assert not base.training
    assert not any(p.requires_grad for p in base.parameters())


def test_a_thousand_steps_leave_the_base_as_it_was(tiny_model_dir):
    student, base = student_and_base(tiny_model_dir, LoRASpec(r=2, target_modules=["q_proj"]), moved=False)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=0.01)
    cache, prefix, before = PrefixCache(), torch.tensor([1, 2, 3]), [p.clone() for p in base.parameters()]
    first, kept = base(IDS[:1, :2]).logits, cache.get(base, prefix)
    student.train()
    for _ in range(1000):
        (student(IDS[:1, :2]).logits - base(IDS[:1, :2]).logits.detach() - 1.0).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), before, strict=True))
    assert torch.equal(base(IDS[:1, :2]).logits, first)
    assert cache.get(base, prefix) is kept  # the teacher's cached context stays valid
    assert not torch.allclose(student(IDS[:1, :2]).logits, first)


def test_gradients_are_those_of_the_product_by_hand(tiny_model_dir):
    """dL/dB = s G A^T and dL/dA = s B^T G, with G the gradient in the weight of a merged, fully trained model."""
    student, _ = student_and_base(tiny_model_dir, WITH_HEAD)
    weight = torch.randn(2, 5, len(AutoTokenizer.from_pretrained(tiny_model_dir)))
    (student(IDS).logits * weight).sum().backward()
    plain = merged_copy(student).requires_grad_(True)
    (plain(IDS).logits * weight).sum().backward()
    assert len(adapter_layers(student)) == 5
    for name, layer in adapter_layers(student).items():
        gradient = plain.get_submodule(name).weight.grad.double()
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        for ours, theirs in ((up.grad, 3.0 * gradient @ down.double().T), (down.grad, 3.0 * up.double().T @ gradient)):
            scale = float(theirs.abs().max())
            assert scale > 1e-3
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("spec", [LoRASpec(), WITH_HEAD])
def test_exports_give_the_students_logits(tiny_model_dir, tmp_path, spec):
    student, base = student_and_base(tiny_model_dir, spec)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    expected, before = student.eval()(IDS).logits, [p.clone() for p in student.parameters()]
    export(student, tokenizer, tmp_path / "adapter")
    export(merged_copy(student), tokenizer, tmp_path / "merged")
    assert not (tmp_path / "adapter/model.safetensors").exists()
    own = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    torch.testing.assert_close(PeftModel.from_pretrained(own, tmp_path / "adapter")(IDS).logits, expected)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    # a folder of adapters names its base, and transformers loads both
    torch.testing.assert_close(load_model(ModelSpec(str(tmp_path / "adapter"))).eval()(IDS).logits, expected)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), before, strict=True))
    assert torch.equal(student(IDS).logits, expected)
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight


def test_a_moving_average_is_of_the_adapters_alone(tiny_model_dir):
    student, base = student_and_base(tiny_model_dir, moved=False)
    average = frozen_copy(student, torch.float32)
    versions = [p._version for p in base.parameters()]
    shared = {p.data_ptr() for p in base.parameters()}
    assert len([p for p in average.parameters() if p.data_ptr() not in shared]) == 28
    move(student)
    update_average(average, student, 0.25)
    for ours, theirs in zip(adapter_layers(average).values(), adapter_layers(student).values(), strict=True):
        torch.testing.assert_close(ours.lora_B["default"].weight, 0.25 * theirs.lora_B["default"].weight)
    assert [p._version for p in base.parameters()] == versions


def test_a_frozen_teacher_is_the_base(tiny_model_dir):
    student, base = student_and_base(tiny_model_dir)
    teacher = Teacher(TeacherSpec(), student, None, lambda: base)
    assert teacher.network(student) is base
    assert not teacher.state_dict()


def test_weights_change_by_the_adapters_product(tiny_model_dir):
    student, base = student_and_base(tiny_model_dir, LoRASpec(target_modules=["v_proj"]))
    groups = weight_changes(student, base)
    changed = {group for group, change in groups.items() if change.change > 0}
    assert changed == {(1, "v_proj"), (2, "v_proj")}
    merged = whole(weight_changes(merged_copy(student), base).values())
    assert whole(groups.values()).change == pytest.approx(merged.change, rel=1e-4)
    assert whole(groups.values()).num_parameters == merged.num_parameters


def test_delta_is_scaled(tiny_model_dir):
    student, _ = student_and_base(tiny_model_dir, WITH_HEAD)
    layer = adapter_layers(student)["lm_head"]
    torch.testing.assert_close(delta(layer), 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
    torch.testing.assert_close(delta(layer), layer.get_delta_weight("default"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, r"lora\.r is 0"),
        ({"alpha": 0.0}, r"lora\.alpha is 0"),
        ({"dropout": 1.0}, r"lora\.dropout is 1\.0; it must be in \[0, 1\)"),
        ({"target_modules": []}, r"lora\.target_modules is empty"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LoRASpec(**settings)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LoRASpec(target_modules=["nothing"]), r"target_modules is \['nothing'\]"),
        (LoRASpec(target_modules=["q_proj", "nothing"]), r"names \['nothing'\], which are no layers"),
        (LoRASpec(target_modules=["embed_tokens"]), "only linear layers"),
        (LoRASpec(target_modules=["lm_head"], dropout=0.1), "the head is among"),
    ],
)
def test_targets_that_cannot_be_adapted_are_named(tiny_model_dir, spec, message):
    with pytest.raises(ValueError, match=message):
        add_adapters(load_model(ModelSpec(str(tiny_model_dir))), spec, "tiny")


def test_other_adapters_and_other_bases_are_refused(tiny_model_dir):
    model = load_model(ModelSpec(str(tiny_model_dir)))
    record = AdapterRecord(LoRASpec(), fingerprint(model))
    record.check(record.to_state())
    with pytest.raises(ValueError, match=r"alpha 32\.0 there, 16\.0 here"):
        replace(record, spec=LoRASpec(alpha=16.0)).check(record.to_state())
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.01)
    with pytest.raises(ValueError, match="another base"):
        replace(record, base=fingerprint(model)).check(record.to_state())
    with pytest.raises(ValueError, match="full-parameter"):
        record.check(None)


def test_a_base_that_zero3_has_rounded_is_known_from_its_own_weights(tiny_model_dir):
    rounded, model = (load_model(ModelSpec(str(tiny_model_dir), dtype=dtype)) for dtype in ("bfloat16", "float32"))
    saved = AdapterRecord.of(LoRASpec(), rounded, "bfloat16").to_state()
    AdapterRecord.of(LoRASpec(), model, saved["held_in"]).check(saved)
    with pytest.raises(ValueError, match="another base"):
        AdapterRecord.of(LoRASpec(), model).check(saved)


def test_a_teacher_with_adapters_to_train_is_refused():
    with pytest.raises(ValueError, match=r"teacher\.model\.lora"):
        TeacherSpec("model", ModelSpec("x", lora=LoRASpec()))


def test_a_copy_of_a_copy_keeps_its_own_adapters(tiny_model_dir):
    student, _ = student_and_base(tiny_model_dir)
    other = copy.deepcopy(student)
    assert fingerprint(other) == fingerprint(student)
