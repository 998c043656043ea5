"""Both views of an example, and every way in which they could quietly stop being two views of the same item."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from datamodules.example import Example
from lightning_modules.views import ViewRenderer, ViewSpec, as_text

DEMONSTRATIONS = (
    {"role": "user", "content": "Which continent is Lima, Peru in?"},
    {"role": "assistant", "content": "South America"},
)
DEFAULT = "You are a helpful assistant."


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def example(context=None, text="Which continent is Paris, France in?", **fields):
    return Example("item-1", ({"role": "user", "content": text},), context, "Europe", **fields)


def renderer(tokenizer, **spec):
    return ViewRenderer(tokenizer, ViewSpec(**spec), max_positions=512, max_completion_length=8)


def test_the_default_system_message_is_cut_away(tokenizer):
    """Trap: a template that adds a system message makes the no-context view a with-context view."""
    pair = renderer(tokenizer).render(example("Answer briefly."))
    assert DEFAULT not in pair.no_context_text
    assert pair.no_context_text == (
        "<|im_start|>user\nWhich continent is Paris, France in?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert pair.with_context_text == "<|im_start|>system\nAnswer briefly.<|im_end|>\n" + pair.no_context_text


def test_system_message_template_and_text(tokenizer):
    assert DEFAULT in renderer(tokenizer, system_message="template").render(example("c")).no_context_text
    pair = renderer(tokenizer, system_message="Be kind.").render(example("Answer briefly."))
    assert "system\nBe kind.<|im_end|>" in pair.no_context_text
    assert "system\nAnswer briefly.\n\nBe kind.<|im_end|>" in pair.with_context_text


def test_slots(tokenizer):
    leading = renderer(tokenizer, context_slot="leading_turns").render(example(DEMONSTRATIONS))
    assert leading.with_context_text.startswith("<|im_start|>user\nWhich continent is Lima, Peru in?<|im_end|>\n")
    assert leading.with_context_text.endswith(leading.no_context_text)
    user = renderer(tokenizer, context_slot="user").render(example("Answer briefly."))
    assert "user\nAnswer briefly.\n\nWhich continent is Paris" in user.with_context_text
    turns_as_system = renderer(tokenizer).render(example(DEMONSTRATIONS))
    assert "system\nUser: Which continent is Lima, Peru in?\nAssistant: South America<|im_end|>" in (
        turns_as_system.with_context_text
    )
    with pytest.raises(ValueError, match="leading_turns"):
        renderer(tokenizer, context_slot="leading_turns").render(example("text"))


def test_a_prompts_own_system_turn_stays_in_both_views(tokenizer):
    item = Example("i", ({"role": "system", "content": "Own."}, {"role": "user", "content": "Why?"}), "Context.", "x")
    pair = renderer(tokenizer).render(item)
    assert "system\nOwn.<|im_end|>" in pair.no_context_text
    assert "system\nContext.\n\nOwn.<|im_end|>" in pair.with_context_text


def test_template_arguments_reach_both_views(tokenizer):
    pair = renderer(tokenizer, chat_template_kwargs={"enable_thinking": False}).render(example("c"))
    assert pair.no_context_text.endswith("<think>\n\n</think>\n\n")
    assert pair.with_context_text.endswith("<think>\n\n</think>\n\n")


def test_a_template_that_states_the_day_states_the_same_one_every_day(tiny_model_dir):
    """Llama 3.2's does; a prompt that changed at midnight would not be that of the run's first half."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    day = "{%- set day = strftime_now('%d %b %Y') if strftime_now is defined else 'no clock' %}"
    states = "{{ '<|im_start|>system\nToday is ' + day + '.\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    tokenizer.chat_template = day + "{%- if messages[0]['role'] == 'system' %}" + states + (
        "{%- set messages = messages[1:] %}{%- endif %}"
        "{%- for m in messages %}{{ '<|im_start|>user\n' + m['content'] + '<|im_end|>\n' }}{%- endfor %}"
    )  # fmt: skip
    pair = renderer(tokenizer).render(example("Answer briefly."))
    assert "Today is 26 Jul 2024.\nAnswer briefly." in pair.with_context_text
    assert "Today" not in pair.no_context_text
    other = renderer(tokenizer, date="2025-01-31").render(example("Answer briefly."))
    assert "Today is 31 Jan 2025.\n" in other.with_context_text
    with pytest.raises(ValueError, match=r"views\.date is '31 Jan'; it must be a day as YYYY-MM-DD"):
        renderer(tokenizer, date="31 Jan")


def test_plain_template_for_base_models(tokenizer):
    pair = renderer(tokenizer, template="plain").render(example("Answer briefly."))
    bos = tokenizer.bos_token
    assert pair.no_context_text == f"{bos}User: Which continent is Paris, France in?\nAssistant:"
    assert pair.with_context_text == f"{bos}Answer briefly.\nUser: Which continent is Paris, France in?\nAssistant:"


def test_a_tokenizer_without_a_template_says_what_to_set(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"views\.template to 'plain'"):
        renderer(tokenizer)
    assert renderer(tokenizer, template="plain").render(example())


def test_no_context_means_one_view(tokenizer):
    pair = renderer(tokenizer).render(example(None))
    assert pair.no_context_ids == pair.with_context_ids
    assert pair.context_prefix_length == 0


def test_a_prompt_over_the_limit_is_refused_and_named(tokenizer):
    long = "very " * 600
    with pytest.raises(ValueError, match=r"'item-1'.*has \d+ tokens \(\d+ without the context\), but 504 are allowed"):
        renderer(tokenizer).render(example(long))
    with pytest.raises(ValueError, match=r"views\.max_prompt_length is 10"):
        renderer(tokenizer, max_prompt_length=10).render(example("c"))


def test_a_template_that_rewrites_the_question_is_refused(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(ValueError, match="'item-1'"):
        renderer(tokenizer, system_message="template").render(example("c"))


@pytest.mark.parametrize("slot", ["system", "user", "leading_turns"])
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1).filter(lambda s: s.strip() == s)
)
def test_any_question_ends_both_views_and_shares_the_context(tokenizer, slot, text):
    context = DEMONSTRATIONS if slot == "leading_turns" else "Answer with one word, the continent."
    render = renderer(tokenizer, context_slot=slot).render
    pair, other = render(example(context, text)), render(example(context, "Q" + text))
    tail = text + "<|im_end|>\n<|im_start|>assistant\n"
    assert pair.no_context_text.endswith(tail)
    assert pair.with_context_text.endswith(tail)
    assert 0 < pair.context_prefix_length < len(pair.with_context_ids)
    shared = min(pair.context_prefix_length, other.context_prefix_length)
    assert pair.with_context_ids[:shared] == other.with_context_ids[:shared]


def test_the_shared_prefix_covers_the_context(tokenizer):
    context = "Answer with one word, the continent."
    pair = renderer(tokenizer).render(example(context))
    assert context in tokenizer.decode(pair.context_prefix)


def test_as_text():
    assert as_text(DEMONSTRATIONS) == "User: Which continent is Lima, Peru in?\nAssistant: South America"


LLAMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|header|>system<|/header|>Cutting Knowledge Date: December 2023\n{{ system }}<|eot|>"
    "{% for m in messages %}<|header|>{{ m['role'] }}<|/header|>{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|/header|>{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start>{{ m['role'] }}\n{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<start>model\n{% endif %}"
)


def with_template(folder, template):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.chat_template = template
    return tokenizer


def test_a_template_like_llama_3s_keeps_its_bos_and_loses_its_date(tiny_model_dir):
    """Its system turn holds the dates even when no system message is given, and the turn opens with the bos token."""
    render = renderer(with_template(tiny_model_dir, LLAMA3)).render
    pair = render(example("Answer briefly."))
    assert pair.no_context_text == (
        "<|begin|><|header|>user<|/header|>Which continent is Paris, France in?<|eot|><|header|>assistant<|/header|>"
    )
    assert pair.with_context_text.startswith("<|begin|><|header|>system<|/header|>Cutting")
    assert pair.with_context_text.count("<|begin|>") == 1


def test_a_template_that_puts_the_system_message_into_the_users_turn_is_refused(tiny_model_dir):
    """Gemma 3 and Mistral do so; what stands for the system message must not stay in the view without context."""
    merged = (
        "{{ '<s>' }}{% set head = '' %}{% if messages[0]['role'] == 'system' %}"
        "{% set head = messages[0]['content'] + '\\n\\n' %}{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}[INST] {{ head if loop.first else '' }}{{ m['content'] }}[/INST]{% endfor %}"
    )
    tokenizer = with_template(tiny_model_dir, merged)
    with pytest.raises(ValueError, match=r"does not render a system message as a turn of its own"):
        renderer(tokenizer).render(example())
    text = tokenizer.decode(renderer(tokenizer, system_message="template").render(example()).no_context_ids)
    assert text == "<s>[INST] Which continent is Paris, France in?[/INST]"


def test_a_template_without_system_turns(tiny_model_dir):
    tokenizer = with_template(tiny_model_dir, GEMMA)
    pair = renderer(tokenizer, context_slot="user").render(example("Answer briefly."))
    assert pair.no_context_text == "<|begin|><start>user\nWhich continent is Paris, France in?<end><start>model\n"
    assert "user\nAnswer briefly.\n\nWhich" in pair.with_context_text
    with pytest.raises(ValueError, match=r"context_slot.*'user'"):
        renderer(tokenizer).render(example("Answer briefly."))
