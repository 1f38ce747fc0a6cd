"""The policy: a causal language model that is sampled, scored, moved, and compared with its reference.

Axes: B prompts, G completions per prompt, N = B·G completions, T tokens.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from klimb.core.rng import uniform_rows
from klimb.errors import ArgumentError, ModelNotFoundError
from klimb.io.show import Text
from klimb.model import chat
from klimb.model.layers import use_fast_layers
from klimb.model.load import WRITER, load
from klimb.model.precision import MixedPrecisionModel, Precision
from klimb.model.progress_bars import without_progress_bars
from klimb.model.saving import save_whole
from klimb.model.tokens import readable, require_known
from klimb.model.trainable import Lora, copy_weights, train_parts
from klimb.model.trunk import find_trunk
from klimb.policy.completions import Completions, join
from klimb.policy.distribution import SamplingDistribution
from klimb.policy.engine import fallback, sampling
from klimb.policy.engine.compiled import compile_if_asked
from klimb.policy.engine.decoding import TextDecoder
from klimb.policy.engine.exact import Prefixes, exact_scores
from klimb.policy.engine.fused import fuse_if_possible
from klimb.policy.engine.prefix import Engine
from klimb.policy.engine.prompt_sharing import detect_prompt_sharing, trial
from klimb.policy.engine.sampling import DecodeOptions
from klimb.policy.engine.stopping import StopRules, StopStrings
from klimb.policy.generate import Generation, generate_texts
from klimb.policy.key import SampleKey
from klimb.policy.reference import Reference
from klimb.policy.scores import TokenScores, last_hidden_states, padded_hidden_states

__all__ = ["Policy", "SampleKey"]


class Policy:
    """A causal language model with its tokenizer, its distribution and its frozen reference.

    Attributes:
        model: The transformers (or peft) model, in evaluation mode, so that dropout is off: the
            weights that are moved and saved.
        tokenizer: Its tokenizer.
        distribution: The distribution that tokens are drawn from and scored under.
        micro_batch_size: Completions that go through the model at once; None for all. It
            changes memory, and results only by rounding.
        end_ids: Every token id that ends a completion.
        text_decoder: Makes texts of completions.
        stop_rules: When completions may and must end, besides at an end token.
        keeps_supports: Whether what is drawn can be scored; without it, a truncated distribution takes less memory.
        num_updates: How often the weights have been moved.
        way: How completions are drawn and scored: with shared prompts, or plainly, and then why.
        reference: The policy as it was at the start; None where none is kept.
        notes: What a user should know of how the model was loaded.
        companions: Files that belong to the model and are saved with it, by their names.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        distribution: SamplingDistribution | None = None,
        micro_batch_size: int | None = None,
        precision: Precision = "float32",
        has_reference: bool = True,
    ) -> None:
        self.model = model.eval()
        use_fast_layers(self.model)
        self.tokenizer = tokenizer
        self.distribution = distribution or SamplingDistribution()
        self.micro_batch_size = micro_batch_size
        self.end_ids = _end_ids(model, tokenizer)
        self.text_decoder = TextDecoder(tokenizer, end_ids=self.end_ids)
        self.stop_rules, self.keeps_supports = StopRules(), True
        self.num_updates = 0
        self.way = detect_prompt_sharing(self.model)
        self._working = MixedPrecisionModel(self.model, precision)
        depth = find_trunk(self.model) if self.way.shares_prompts else 0
        self._engine = Engine(self._working.model, depth, packs=self.way.packs)
        why_uncompiled = compile_if_asked(self._engine, trial(self.model)) if self.way.shares_prompts else ""
        why_unfused = fuse_if_possible(self._engine, trial(self.model)) if self.way.shares_prompts else ""
        self.reference = (
            Reference(
                self._working.model, self._engine, self.distribution, shares_prompts=self.way.shares_prompts
            )
            if has_reference
            else None
        )
        self.notes: list[str] = []
        if self.way.why_unpacked:
            self.notes.append(f"prompts and completions are scored apart: {self.way.why_unpacked}")
        if why_uncompiled:
            self.notes.append(f"layers are not compiled: {why_uncompiled}")
        if why_unfused:
            self.notes.append(f"completions are drawn without Triton's kernels: {why_unfused}")
        self.companions: dict[str, Path] = {}

    @classmethod
    def load(  # noqa: PLR0913  the options of klimb train that decide the policy
        cls,
        source: str | Path,
        *,
        distribution: SamplingDistribution | None = None,
        num_trainable_layers: int | None = None,
        lora: Lora | None = None,
        lora_seed: int = 0,
        micro_batch_size: int | None = None,
        precision: Precision = "float32",
        has_reference: bool = True,
        **load_options: Any,
    ) -> "Policy":
        """Load a policy and freeze its reference.

        Args:
            source: A Hugging Face folder, a GGUF file, or a name on the Hugging Face hub.
            distribution: Temperature of sampling and scoring; 1 where None.
            num_trainable_layers: Train the last so many decoder layers alone; all where None.
            lora: Train a low-rank adapter instead; the reference is then the same model with
                the adapter off.
            lora_seed: Seed of the adapter's first values.
            micro_batch_size: Completions that go through the model at once; None for all.
            precision: What the model computes in; the weights that move are float32 in either case.
            has_reference: Whether a frozen reference is kept, without which no KL can be measured.
            load_options: `dtype`, `device`, `trust_remote_code`, as for `load_model`.

        Raises:
            ModelNotFoundError: Nothing loadable at `source`.
            ConfigError: `lora` together with `num_trainable_layers`, or more layers than there are.
        """
        loaded = load(WRITER, source, **{"device": None, **load_options})
        policy = cls(
            train_parts(loaded.model, num_trainable_layers, lora, lora_seed),
            loaded.tokenizer,
            distribution=distribution,
            micro_batch_size=micro_batch_size,
            precision=precision,
            has_reference=has_reference,
        )
        policy.notes, policy.companions = [*loaded.notes, *policy.notes], loaded.companions
        return policy

    @property
    def context_length(self) -> int | None:
        """Most tokens that prompt and completion may have together, where the model sets a limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that are moved, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def widen_gradients(self) -> None:
        """Make room for another pass's gradients, where they are found in less than the weights' own precision."""
        self._working.widen_gradients()

    def take_gradients(self) -> list[tuple[str, torch.Tensor]]:
        """Give away the names of the weights that move, each with its gradient in the dtype that it was found in."""
        return self._working.take_gradients()

    def moved(self) -> None:
        """Note that the weights have changed."""
        self.num_updates += 1
        self._working.refresh()

    def restore(self, weights: Mapping[str, Tensor], num_updates: int) -> None:
        """Restore earlier weights, one tensor at a time.

        The parameters stay the same objects, so whatever holds them, such as an optimiser, moves the weights that were
        put back.

        Args:
            weights: A tensor for each weight that moves, by name, as `trainable` gives them.
            num_updates: How often these weights had been moved.

        Raises:
            ArgumentError: Names, shapes or dtypes are not those of the weights that move; nothing is changed.
        """
        copy_weights(weights, self.trainable())
        self.num_updates = num_updates
        self._working.refresh()

    def encode(self, prompt: Text, columns: Mapping[str, Any] = chat.NO_COLUMNS) -> list[int]:
        """Tokenise a prompt: plain text as it is, messages through the chat template, with the row's tools.

        Raises:
            DataError: It cannot be read, or has a token that the model does not know.
        """
        with readable("the prompt"):
            ids = chat.encode(self.tokenizer, prompt, columns)
        require_known(ids, self.model, self.tokenizer, "the prompt")
        return ids

    def render(self, prompt: Text, columns: Mapping[str, Any] = chat.NO_COLUMNS) -> str:
        """Write a prompt as the text that the model reads: messages in the chat template, with the row's tools."""
        return chat.render(self.tokenizer, prompt, columns)

    def decode(self, completions: Completions, prompts: Sequence[Text] | None = None) -> list[str]:
        """Return the completions' texts, each as it continues its prompt.

        Args:
            completions: The completions.
            prompts: Their B prompts as they were given, text or messages; None where all are text.
        """
        owners = completions.prompt_of.tolist()
        given = None if prompts is None else [prompts[owner] for owner in owners]
        rows, contexts = completions.rows_of_ids(), [completions.prompts[owner] for owner in owners]
        texts, stops = self.text_decoder(rows, contexts, given), self._stops()
        stopped = [index for index, reason in enumerate(completions.finish_reasons) if reason == "stop"]
        if stops is not None and stopped:
            cut = stops.cut(
                [rows[index] for index in stopped],
                [contexts[index] for index in stopped],
                None if given is None else [given[index] for index in stopped],
            )
            for index, text in zip(stopped, cut, strict=True):
                texts[index] = text
        return texts

    def _stops(self) -> StopStrings | None:
        strings = self.stop_rules.strings
        return StopStrings(strings, self.text_decoder, self.tokenizer) if strings else None

    def sample(
        self,
        prompts: list[list[int]],
        completions_per_prompt: int,
        *,
        max_new_tokens: int,
        key: SampleKey,
        distribution: SamplingDistribution | None = None,
    ) -> Completions:
        """Draw completions; each prompt is read once and shared by its completions.

        Args:
            prompts: Token ids of B prompts.
            completions_per_prompt: G ≥ 1.
            max_new_tokens: Most tokens of a completion, its end token included, ≥ 1.
            key: Key of the counter-based RNG.
            distribution: What tokens are drawn from; the policy's own where None.

        Returns:
            The N = B·G completions, ordered by prompt.
        """
        uniforms = torch.from_numpy(
            uniform_rows(
                seed=key.seed,
                step=key.step,
                prompts=key.prompts,
                completions_per_prompt=completions_per_prompt,
                count=max_new_tokens,
                stream=key.stream,
            )
        ).to(self.model.device)
        prompt_of = torch.arange(len(prompts), device=self.model.device).repeat_interleave(
            completions_per_prompt
        )
        options = DecodeOptions(self.stop_rules.min_new_tokens, self._stops(), self.keeps_supports)
        parts = []
        for rows in torch.arange(len(prompt_of)).split(self.micro_batch_size or len(prompt_of)):
            used, local_prompt_of = torch.unique(prompt_of[rows], return_inverse=True)
            local_prompts = [prompts[index] for index in used.tolist()]
            arguments = (
                local_prompts,
                local_prompt_of,
                uniforms[rows],
                distribution or self.distribution,
                self.end_ids,
                options,
            )
            if self.way.shares_prompts:
                parts.append(sampling.draw(self._engine, *arguments))
            else:
                parts.append(fallback.draw(self._working.model, *arguments))
        return join(prompts, parts, prompt_of)

    def generate(  # noqa: PLR0913  the options of sampling
        self,
        prompt: Text | Sequence[Text],
        n: int = 1,
        *,
        max_new_tokens: int = 64,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        min_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        system_prompt: str | None = None,
        seed: int = 0,
    ) -> list[str] | list[list[str]]:
        """Draw completions and return their texts.

        The same arguments give the same texts. The random numbers of a completion belong to the seed, to its prompt's
        place in the list, and to its own place among the n. Where an argument is None, the policy's own holds.

        Args:
            prompt: A text, which is continued; messages, which are answered in the chat template; or a list of either.
            n: Completions of each prompt, at least 1.
            max_new_tokens: Most tokens of a completion, its end token included.
            temperature: Of the distribution that is drawn from.
            top_p: Smallest probability of the most likely tokens that are drawn from.
            top_k: Number of the most likely tokens that are drawn from.
            min_p: Smallest probability of a token that is drawn, as a share of the likeliest token's.
            min_new_tokens: Tokens before which no completion ends.
            stop: Text, or several, of which any ends a completion, whose text ends before it.
            system_prompt: First message of prompts that are messages and do not begin with one of the system.
            seed: Decides every random number.

        Returns:
            The n texts of one prompt, or for a list of prompts such a list of each.

        Raises:
            ArgumentError: An argument is out of range.
            DataError: A prompt cannot be read, or is plain text beside a system prompt.
        """
        generation = Generation(
            n,
            max_new_tokens,
            temperature,
            seed,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            min_new_tokens=min_new_tokens,
            stop=(stop,) if isinstance(stop, str) else stop,
            system_prompt=system_prompt,
        )
        return generate_texts(self, prompt, generation)

    def log_probs(self, completions: Completions) -> Float[Tensor, "N T"]:
        """Score each token of given completions, differentiably in the trainable parameters.

        Where completions have supports, tokens are scored under the distribution on these.

        Raises:
            ArgumentError: The distribution is truncated, and it was not recorded to which tokens.
        """
        if self.distribution.is_truncated and completions.supports is None:
            raise ArgumentError(
                "completions: top_p, top_k or min_p truncates the distribution, and `supports` is None, so the tokens "
                "that each one was drawn from are not known, so a log-prob under them cannot be found"
            )
        if self.way.shares_prompts:
            return sampling.score(self._engine, completions, self.distribution)
        return fallback.score(self._working.model, completions, self.distribution)

    def hidden_states(self, completions: Completions) -> Float[Tensor, "N T D"]:
        """Find the last hidden state before each token of given completions; 0 beyond a completion's length."""
        shares, size = self.way.shares_prompts, self.micro_batch_size
        return padded_hidden_states(
            self._engine, self._working.model, completions, size, shares_prompts=shares
        )

    def token_scores(self, completions: Completions, *, with_kl: bool = True) -> TokenScores:
        """Score each token, with the exact KL and entropy of the distribution that it was drawn from.

        Args:
            completions: The completions; for the KL, with the reference's hidden states, as `rollout` gives them.
            with_kl: Whether the KL is wanted; 0 where not.

        Raises:
            ArgumentError: The KL is wanted, and there is no reference, or its hidden states are not known.
        """
        model, shares, mask = self._working.model, self.way.shares_prompts, completions.mask
        hidden = last_hidden_states(self._engine, model, completions, shares_prompts=shares)
        prefixes = Prefixes(completions.ids[mask], self.distribution, completions.token_supports())
        if with_kl:
            if self.reference is None or completions.ref_hidden is None:
                raise ArgumentError("completions: expected the reference's hidden states, for the exact KL")
            prefixes = replace(
                prefixes,
                ref_hidden=completions.ref_hidden[mask],
                ref_vocabulary=self.reference.vocabulary,
            )
        found = exact_scores(hidden, self._engine.vocabulary, prefixes)
        return TokenScores(*(values.new_zeros(mask.shape).masked_scatter(mask, values) for values in found))

    def ref_hidden_states(self, completions: Completions) -> Float[Tensor, "N T D"]:
        """Find the reference's last hidden states, as `ref_log_probs` finds its log-probs.

        Raises:
            ArgumentError: The policy has no reference.
        """
        if self.reference is None:
            raise ArgumentError("the policy has no reference: it was loaded with has_reference=False")
        if self.num_updates == 0:
            return self.hidden_states(completions)
        return self.reference.hidden_states(completions, self.micro_batch_size)

    def ref_log_probs(self, completions: Completions) -> Float[Tensor, "N T"]:
        """Find log π_ref of each token of completions that the policy drew, in nats; 0 beyond a completion's length.

        Until the policy has moved it is the reference, and the log-probs recorded while sampling are the answer:
        nothing is computed twice.

        Raises:
            ArgumentError: The policy has no reference.
        """
        if self.reference is None:
            raise ArgumentError("the policy has no reference: it was loaded with has_reference=False")
        if self.num_updates == 0:
            return completions.token_log_probs
        return self.reference.log_probs(completions, self.micro_batch_size)

    def save(self, folder: Path) -> None:
        """Write the whole model, adapters merged, and its tokenizer as a Hugging Face folder."""
        model = self.model
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        with without_progress_bars():
            save_whole(model, self.tokenizer, folder, self.companions)


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Gather the end tokens that the model, its generation settings and its tokenizer name."""
    named = [tokenizer.eos_token_id, model.config.get_text_config().eos_token_id]
    if model.generation_config is not None:
        named.append(model.generation_config.eos_token_id)
    ids: set[int] = set()
    for value in named:
        for token in value if isinstance(value, (list, tuple)) else [value]:
            if token is not None and not isinstance(token, int):
                raise ModelNotFoundError(
                    f"eos_token_id: expected the number of a token, or several, in the model's config.json and "
                    f"generation_config.json, got {value!r}"
                )
            ids.update([] if token is None else [token])
    return sorted(ids)
