"""Comparisons by a real tiny model: seeds, further samples, and another context over the same no-context answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.example import Example
from lightning_modules import scoring
from lightning_modules.comparison import ComparisonSpec
from lightning_modules.evaluated_model import EvaluatedModel
from lightning_modules.models import ModelSpec
from lightning_modules.packing import completion_hidden_states
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.views import ViewSpec

GREEDY, SAMPLED = SamplingSpec(10, temperature=0.0), SamplingSpec(10, temperature=1.0)


def examples(context="Answer with the continent only.", count=4):
    cities = ("Paris, France", "Nairobi, Kenya", "Lima, Peru", "Oslo")
    return [
        Example(f"item-{i}", ({"role": "user", "content": f"Which continent is {city} in?"},), context, "x")
        for i, city in enumerate(cities[:count])
    ]


@pytest.fixture(scope="module")
def load(tiny_model_dir):
    def load(decoding=GREEDY, **options):
        return EvaluatedModel.load(ModelSpec(str(tiny_model_dir)), ViewSpec(), decoding, **options)

    return load


def test_another_context_over_the_same_answers_equals_asking_afresh(load):
    """The with-context answers and the KL are those of the new context; the no-context answers were only taken over."""
    model = load()
    first = model.compare_views(examples())
    other = examples("Reply with one word: the name of the continent. Choose the correct option.")
    for slot in (None, "user"):
        afresh = model.compare_views(other, ComparisonSpec(context_slot=slot))
        reused = model.compare_views(other, ComparisonSpec(context_slot=slot, given=first))
        for one, two in zip(afresh, reused, strict=True):
            assert one.no_context == two.no_context
            assert one.with_context == two.with_context
            assert two.kl == pytest.approx(one.kl, rel=1e-5)
            assert two.prompts.with_context_text == one.prompts.with_context_text
    assert any(one.with_context != two.with_context for one, two in zip(first, afresh, strict=True))
    with pytest.raises(ValueError, match=r"holds other items than the examples"):
        model.compare_views(other[:2], ComparisonSpec(given=first))


@pytest.mark.parametrize("max_tokens", [None, 64], ids=["one pass", "small passes"])
def test_the_no_context_view_is_scored_once_for_all_contexts(load, monkeypatch, max_tokens):
    """Every further context costs a pass over its own view alone, whatever micro-batches it makes."""
    model = load(max_tokens=max_tokens)
    passes = []

    def counted(model, view, *args):
        passes.append((len(view.prefix_ids), tuple(view.suffix_ids.shape)))
        return completion_hidden_states(model, view, *args)

    monkeypatch.setattr(scoring, "completion_hidden_states", counted)
    first = model.compare_views(examples(), ComparisonSpec(keep_states=True))
    width = model._comparer.scorer.student.config.hidden_size
    for comparison in first:
        assert [tuple(states.shape) for states in comparison.no_context_states] == [
            (len(comparison.no_context.token_ids), width)
        ]
    for context in ("Reply with one word.", "Name the continent of the city, and nothing else, whatever it is."):
        other = [replace(example, privileged_context=context) for example in examples()]
        passes.clear()
        afresh = model.compare_views(other)
        both_views = passes.copy()
        passes.clear()
        reused = model.compare_views(other, ComparisonSpec(given=first))
        assert passes == both_views[1::2]  # of each pair of passes the second, over the with-context view
        assert [c.kl for c in reused] == pytest.approx([c.kl for c in afresh], rel=1e-5)
        assert [c.kl for c in reused] != pytest.approx([c.kl for c in first], rel=1e-3)
    assert all(not comparison.no_context_states for comparison in model.compare_views(examples()))


def test_a_model_in_training_is_evaluated_as_it_is(load, tiny_model_dir):
    """In eval mode, with the weights of the moment; and is in train mode, with its gradients, afterwards."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, attention_dropout=0.5).train()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    evaluated = EvaluatedModel(model, tokenizer, ViewSpec(), GREEDY)
    for ours, loaded in zip(evaluated.compare_views(examples()), load().compare_views(examples()), strict=True):
        assert (ours.no_context, ours.with_context) == (loaded.no_context, loaded.with_context)
        assert ours.kl == pytest.approx(loaded.kl, rel=1e-4)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(-1.0)
    moved = zip(evaluated.compare_views(examples()), load().compare_views(examples()), strict=True)
    assert any(ours.no_context != loaded.no_context for ours, loaded in moved)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r"set tokenizer\.pad_token"):
        EvaluatedModel(model, tokenizer, ViewSpec(), GREEDY)


def test_the_slot_moves_the_context_and_nothing_else(load):
    system, user = (
        load().compare_views(examples(count=1), ComparisonSpec(context_slot=slot))[0].prompts
        for slot in ("system", "user")
    )
    assert system.no_context_text == user.no_context_text
    assert "system\nAnswer with the continent only." in system.with_context_text
    assert "user\nAnswer with the continent only.\n\nWhich" in user.with_context_text


def test_views_that_agree_are_not_lucky_together(load):
    """Without a context both prompts are the same; with one seed for both views, sampled answers would be too."""
    alike = examples(context=None)
    comparisons = load(SAMPLED).compare_views(alike)
    assert any(c.no_context.token_ids != c.with_context.token_ids for c in comparisons)
    assert load(SAMPLED).compare_views(alike) == comparisons  # and all of it is repeatable
    for comparison in load().compare_views(alike):
        assert comparison.no_context == comparison.with_context
        assert comparison.kl == pytest.approx(0.0, abs=1e-6)


def test_batches_of_one_question_are_drawn_independently(load):
    """Batches are a call each; with one seed for all, items at equal places of two would be lucky together."""
    model = load(SAMPLED)
    one = examples(context=None, count=1) * 4
    batches = [
        model.compare_views([replace(example, id=f"{batch}-{i}") for i, example in enumerate(one)])
        for batch in range(3)
    ]
    for view in ("no_context", "with_context"):
        drawn = [[getattr(comparison, view).text for comparison in batch] for batch in batches]
        assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    other_context = [replace(c.example, privileged_context="Be brief.") for c in batches[0]]
    again = model.compare_views(other_context)
    assert [c.no_context for c in again] == [c.no_context for c in batches[0]]  # the same whatever returns


def test_greedy_answers_to_one_prompt_are_decoded_once(load, monkeypatch):
    model = load()
    generated = []
    own = model._comparer.engine.generate
    monkeypatch.setattr(
        model._comparer.engine, "generate", lambda prompts, *args: generated.append(len(prompts)) or own(prompts, *args)
    )
    model.compare_views(examples(context=None))
    model.compare_views(examples())
    assert generated == [4, 4, 4]


def test_further_answers_are_drawn_independently(load):
    comparisons = load(SAMPLED).compare_views(examples(), ComparisonSpec(num_no_context=3, num_with_context=2))
    for comparison in comparisons:
        texts = [comparison.no_context.text, *(answer.completion.text for answer in comparison.further_no_context)]
        assert len(texts) == 3
        assert len(set(texts)) > 1
        assert len(comparison.further_with_context) == 1
        assert len(comparison.no_context_episodes) == 3


def test_divergence_from_the_base_equals_a_recount(load, tiny_model_dir, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    base.save_pretrained(tmp_path / "base")
    for file in tiny_model_dir.iterdir():
        if "token" in file.name or "template" in file.name:
            (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    model = load(base=ModelSpec(str(tmp_path / "base")))
    comparisons = model.compare_views(examples())
    trained = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    base.eval()
    for comparison, measured in zip(comparisons, model.base_divergences(comparisons), strict=True):
        prompt, completion = comparison.prompts.no_context_ids, comparison.no_context.token_ids
        ids = torch.tensor([[*prompt, *completion]])
        with torch.no_grad():
            p, q = (m(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for m in (trained, base))
        assert measured == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert load().base_divergences(comparisons) is None
    itself = load(base=ModelSpec(str(tiny_model_dir)))
    assert itself.base_divergences(comparisons) == pytest.approx([0.0] * 4, abs=1e-6)


@pytest.mark.parametrize("chunk", [3, 256], ids=["chunks of 3 tokens", "one chunk"])
def test_the_no_context_answer_s_log_probability_equals_a_recount(load, tiny_model_dir, monkeypatch, chunk):
    """Mean of log q_x(y_t) in float64, one answer at a time, its end token included; the same beside any context."""
    monkeypatch.setattr(scoring, "TOKENS_PER_KL_CHUNK", chunk)
    model = load()
    comparisons = model.compare_views(examples(), ComparisonSpec(keep_states=True))
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval().double()
    expected = []
    for comparison in comparisons:
        prompt, completion = comparison.prompts.no_context_ids, comparison.no_context.token_ids
        with torch.no_grad():
            log_q = plain(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected.append(float(log_q[range(len(completion)), completion].mean()))
    assert [comparison.log_probability for comparison in comparisons] == pytest.approx(expected, rel=1e-4)
    assert len({round(value, 3) for value in expected}) == len(expected)
    other = model.compare_views(examples("Reply with one word."), ComparisonSpec(given=comparisons))
    assert [comparison.log_probability for comparison in other] == pytest.approx(expected, rel=1e-4)
    assert [comparison.kl for comparison in other] != [comparison.kl for comparison in comparisons]
    unscored = model.compare_views(examples(count=1), ComparisonSpec(with_kl=False))
    assert unscored[0].log_probability is None


def test_a_base_of_another_tokenizer_is_refused(load, tiny_model_dir, tmp_path):
    from transformers import AutoTokenizer

    AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another tokenizer"):
        load(base=ModelSpec(str(tmp_path)))


def test_games_are_scored_turn_by_turn_under_another_context(load):
    class Countdown:
        max_turns = 3

        def __init__(self):
            self.turns = 0

        @property
        def won(self):
            return False

        def step(self, completion):
            from datamodules.example import TurnOutcome

            self.turns += 1
            return TurnOutcome(f"Turn {self.turns}.", False, True)

    model = load(open_game=lambda example: Countdown())
    other = [replace(example, privileged_context="The answer is Asia.") for example in examples(count=2)]
    afresh = model.compare_views(other)
    for keep in (False, True):
        first = model.compare_views(examples(count=2), ComparisonSpec(keep_states=keep))
        reused = model.compare_views(other, ComparisonSpec(given=first))
        assert [len(c.no_context_states) for c in first] == [3 * keep] * 2
        assert [len(c.no_context_turns) for c in reused] == [3, 3]
        for one, two in zip(afresh, reused, strict=True):
            assert one.with_context == two.with_context
            assert two.kl == pytest.approx(one.kl, rel=1e-5)
