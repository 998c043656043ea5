"""From an `Example` to the two token prompts of the method, and the checks on them.

    no-context view    x       the example's prompt
    with-context view  (c, x)  the same, with the privileged context in one of three slots:
        system         the context is the system message (before one that the prompt has)
        leading_turns  the context's turns come before the prompt's (demonstrations)
        user           the context opens the last user turn, a blank line before the question

Chat templates of some families (SmolLM2, Qwen2.5) add a system message of their own where none is given, so that the
"no-context" view would not be free of context. `system_message` is therefore an explicit choice:
    omit      no system turn at all; the template's default is cut away
    template  whatever the template does
    any text  that text, in both views

Both prompts are rendered to text, tokenised once, and end in the same text: the question and the generation prompt.
Nothing is ever truncated. Completions are appended as token ids, never re-tokenised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Literal

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from datamodules.example import Example, Message
from lightning_modules.packing import common_prefix

ContextSlot = Literal["system", "leading_turns", "user"]

View = Literal["no_context", "with_context"]

FIXED_DATE = "2024-07-26"

CUT_AWAY = "the system message that is cut away"
"""A text that no prompt has, rendered as a system turn to find where that turn ends."""


@dataclass(frozen=True)
class ViewSpec:
    """How the two prompts of an example are rendered."""

    context_slot: ContextSlot = "system"
    """Where the privileged context goes in the with-context view."""
    system_message: str = "omit"
    """System message of both views: ``omit`` (none, not even the template's default), ``template`` or a text."""
    template: Literal["chat", "plain"] = "chat"
    """``chat``: the tokenizer's chat template; ``plain``: "User: ...", "Assistant:" lines, for base models."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to the chat template in both views, for example ``enable_thinking: false`` for Qwen3."""
    date: str | None = None
    """The day for templates that state today's (Llama 3.2), whose prompts must not change at midnight, as YYYY-MM-DD.
    None: `FIXED_DATE`, the fallback of Llama 3.2's own template."""
    max_prompt_length: int | None = None
    """Longest with-context prompt in tokens; a longer one stops the run. None: what the model's positions allow."""


@dataclass(frozen=True, slots=True)
class PromptPair:
    """Both prompts of one example."""

    example_id: str
    no_context_ids: list[int]
    with_context_ids: list[int]
    context_prefix_length: int
    """Leading tokens of `with_context_ids` that every example with the same context shares; 0 where there is none."""
    no_context_text: str
    with_context_text: str

    @property
    def context_prefix(self) -> tuple[int, ...]:
        """The shared leading tokens themselves: examples with equal prefixes can share their computation."""
        return tuple(self.with_context_ids[: self.context_prefix_length])

    def ids(self, view: View) -> list[int]:
        """The prompt of a view, as token ids."""
        return self.no_context_ids if view == "no_context" else self.with_context_ids

    def text(self, view: View) -> str:
        """The prompt of a view, as text."""
        return self.no_context_text if view == "no_context" else self.with_context_text


class ViewRenderer:
    """Renders examples into prompt pairs."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, spec: ViewSpec, max_positions: int, max_completion_length: int
    ) -> None:
        """Prepare the templates.

        Args:
            tokenizer: the student's.
            spec: slots and templates.
            max_positions: longest sequence of any model that will read the prompts, in tokens.
            max_completion_length: tokens to leave free after a prompt.

        Raises:
            ValueError: if a chat template is asked for and the tokenizer has none, or `spec.date` is no date.
        """
        if spec.template == "chat" and tokenizer.chat_template is None:
            raise ValueError("The tokenizer has no chat template; set views.template to 'plain' for a base model.")
        self.tokenizer, self.spec = tokenizer, spec
        self.max_positions, self.max_completion_length = max_positions, max_completion_length
        try:
            self._day = date.fromisoformat(spec.date or FIXED_DATE)
        except ValueError as error:
            raise ValueError(f"views.date is {spec.date!r}; it must be a day as YYYY-MM-DD.") from error
        self._prefixes: dict[str | tuple[tuple[str, str], ...], list[int]] = {}

    def with_slot(self, slot: ContextSlot) -> ViewRenderer:
        """A renderer that differs in nothing but where the context goes."""
        if slot == self.spec.context_slot:
            return self
        return ViewRenderer(
            self.tokenizer, replace(self.spec, context_slot=slot), self.max_positions, self.max_completion_length
        )

    def render(self, example: Example, history: Sequence[Message] = ()) -> PromptPair:
        """Both prompts of one example.

        Args:
            example: the item.
            history: a conversation that goes on behind the example's prompt, from an assistant's turn to a user's. The
                context keeps its slot in the example's prompt.

        Raises:
            ValueError: if a prompt is too long, or the two views do not end in the same question; names the item.
        """
        no_context_text = self._text([*example.prompt, *history])
        no_context_ids = self._ids(no_context_text)
        if example.privileged_context is None:
            pair = PromptPair(example.id, no_context_ids, no_context_ids, 0, no_context_text, no_context_text)
        else:
            with_context_text = self._with_context_text(example.privileged_context, example.prompt, history)
            with_context_ids = self._ids(with_context_text)
            prefix = self._shared_prefix(example.privileged_context)
            length = len(common_prefix([prefix, with_context_ids[:-1]]))
            pair = PromptPair(example.id, no_context_ids, with_context_ids, length, no_context_text, with_context_text)
        self._check(example, history, pair)
        return pair

    def _with_context_text(
        self, context: str | Sequence[Message], prompt: Sequence[Message], history: Sequence[Message]
    ) -> str:
        try:
            return self._text([*self._place(context, list(prompt)), *history])
        except TemplateError as error:
            raise ValueError(
                f"The chat template refuses the with-context view ({error}); set views.context_slot to 'user', or "
                "'leading_turns' for a context of turns."
            ) from error

    def _check(self, example: Example, history: Sequence[Message], pair: PromptPair) -> None:
        question = [*example.prompt, *history][-1]["content"].strip()
        start = pair.no_context_text.rfind(question)
        if start < 0 or not pair.with_context_text.endswith(pair.no_context_text[start:]):
            raise ValueError(
                f"Item {example.id!r}: the two views do not end in the same question and generation prompt, so their "
                "completions can't be compared. Does the chat template rewrite the user turn?"
            )
        limit = self.max_positions - self.max_completion_length
        if self.spec.max_prompt_length is not None:
            limit = min(limit, self.spec.max_prompt_length)
        longest = max(len(pair.no_context_ids), len(pair.with_context_ids))
        if longest > limit:
            without = len(pair.no_context_ids)
            turns = f" after {len(history) // 2} turns" if history else ""
            raise ValueError(
                f"Item {example.id!r}{turns}: its prompt has {longest} tokens ({without} without the context), but "
                f"{limit} are allowed (model positions {self.max_positions} less max_completion_length "
                f"{self.max_completion_length}; views.max_prompt_length is {self.spec.max_prompt_length}). Prompts "
                "are never truncated: shorten the context, drop the item, or raise the limit."
            )

    def _place(self, context: str | Sequence[Message], prompt: list[Message]) -> list[Message]:
        """The messages of the with-context view."""
        system = [m for m in prompt[:1] if m["role"] == "system"]
        turns = prompt[len(system) :]
        slot = self.spec.context_slot
        if slot == "leading_turns":
            if isinstance(context, str):
                raise ValueError(
                    "views.context_slot is 'leading_turns', but the context is text, not turns; use 'system' or 'user'."
                )
            return [*system, *context, *turns]
        text = context if isinstance(context, str) else as_text(context)
        if slot == "system":
            own = system[0]["content"] if system else self._own_system_message()
            return [{"role": "system", "content": f"{text}\n\n{own}" if own else text}, *turns]
        last: Message = {"role": "user", "content": f"{text}\n\n{turns[-1]['content']}"}
        return [*system, *turns[:-1], last]

    def _own_system_message(self) -> str:
        return "" if self.spec.system_message in ("omit", "template") else self.spec.system_message

    def _shared_prefix(self, context: str | Sequence[Message]) -> list[int]:
        """Leading tokens common to every question behind `context`: what two unlike questions have in common."""
        key = context if isinstance(context, str) else tuple((m["role"], m["content"]) for m in context)
        if key not in self._prefixes:
            probes = [
                self._ids(self._text(self._place(context, [{"role": "user", "content": text}])))
                for text in ("Why?", "3 or 4?", "- a\n- b")
            ]
            self._prefixes[key] = common_prefix(probes)
        return self._prefixes[key]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, messages: list[Message]) -> str:
        has_system = messages[0]["role"] == "system"
        if self.spec.template == "plain":
            return (self.tokenizer.bos_token or "") + self._plain(messages, has_system)
        if has_system or self.spec.system_message == "template":
            return self._chat(messages)
        if self.spec.system_message != "omit":
            return self._chat([{"role": "system", "content": self.spec.system_message}, *messages])
        return self._without_system_turn(messages)

    def _plain(self, messages: list[Message], has_system: bool) -> str:
        own = self._own_system_message()
        head = "" if has_system or not own else f"{own}\n\n"
        return f"{head}{as_text(messages)}\nAssistant:"

    def _chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        text = self.tokenizer.apply_chat_template(
            [{"role": m["role"], "content": m["content"]} for m in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            # In place of transformers' own function of this name, which reads the clock.
            **{"strftime_now": self._day.strftime, **self.spec.chat_template_kwargs},
        )
        assert isinstance(text, str)
        return text

    def _without_system_turn(self, messages: list[Message]) -> str:
        """Render with an explicit system turn and cut exactly that turn away, so that no default can appear."""
        system: Message = {"role": "system", "content": CUT_AWAY}
        try:
            turn = self._chat([system], add_generation_prompt=False)
            full = self._chat([system, *messages])
        except TemplateError:
            # A template without system turns (Gemma) has no default to cut either.
            return self._chat(messages)
        # Some templates put the system message into the user's turn, and render a lone one as nothing at all.
        if not full.startswith(turn) or CUT_AWAY in full[len(turn) :]:
            raise ValueError(
                "The chat template does not render a system message as a turn of its own, so 'omit' can't cut it away; "
                "set views.system_message to 'template' or to a text."
            )
        bos = self.tokenizer.bos_token
        # Llama 3 opens the sequence with its bos token: keep it. ChatML tokenizers name <|im_start|>, a turn's mark.
        opens_sequence = bos is not None and turn.startswith(bos) and full.count(bos) == 1
        return (bos if opens_sequence else "") + full[len(turn) :]


def as_text(messages: Sequence[Message]) -> str:
    """Turns as plain lines, for slots that take text: a system message bare, the others behind their role."""
    return "\n".join(
        m["content"] if m["role"] == "system" else f"{m['role'].capitalize()}: {m['content']}" for m in messages
    )
