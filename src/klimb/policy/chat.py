"""From a prompt, text or chat messages, to token ids."""

from typing import Any

from klimb.errors import DataError
from klimb.policy.clock import template_at_clock
from klimb.text import Text


def encode(tokenizer: Any, prompt: Text) -> list[int]:
    """Tokenise a prompt as the model expects it.

    Plain text is taken as it is, with the special tokens that the tokenizer puts before a text.
    Messages go through the model's chat template, which has put them there.

    Raises:
        DataError: The model has no chat template, or the template refuses the messages.
    """
    if isinstance(prompt, str):
        return tokenizer(prompt).input_ids
    return tokenizer(render(tokenizer, prompt), add_special_tokens=False).input_ids


def render(tokenizer: Any, prompt: Text) -> str:
    """Write a prompt as the text that the model reads.

    Plain text is taken as it is. Messages go through the model's chat template, ending where the assistant is to
    speak; if the last message is the assistant's own, it is continued.

    Raises:
        DataError: The model has no chat template, or the template refuses the messages.
    """
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat_template is None:
        raise DataError(
            "the prompt is a list of messages but the model's tokenizer has no chat template; "
            "use plain strings, or a model tuned for chat"
        )
    is_continued = prompt[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            prompt,
            chat_template=template_at_clock(tokenizer),
            tokenize=False,
            add_generation_prompt=not is_continued,
            continue_final_message=is_continued,
        )
    except Exception as error:  # a template is a program of the model's maker and raises its own errors
        raise DataError(f"the model's chat template refuses the messages: {error}") from error
