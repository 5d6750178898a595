"""What a request asks of the sampler: plain data, no torch, no NumPy.

The fields are OpenAI's and text-generation-webui's, with their names and neutral defaults, after
the API has resolved everything that needs a tokenizer (strings to token ids) or the model
(`max_tokens`). A default means "no effect", so a sampler only looks at rows that differ from it.
"""

from __future__ import annotations

import msgspec

SAMPLER_ORDER: tuple[str, ...] = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry",
    "top_n_sigma",
    "temperature",
    "dynamic_temperature",
    "quadratic_sampling",
    "top_k",
    "top_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "tfs",
    "top_a",
    "min_p",
    "mirostat",
    "xtc",
    "encoder_repetition_penalty",
    "no_repeat_ngram",
)
"""The default `sampler_priority`: text-generation-webui's order."""

MAX_TOP_LOGPROBS = 20
"""The most alternatives a client may ask for with `logprobs` / `top_logprobs`."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to turn the logits of one request into tokens.

    Noise: a draw is a pure function of (`seed`, choice index, position of the token among the
    completion tokens, use), so a request gives the same tokens whatever else runs beside it, and
    a generation that is resumed elsewhere goes on exactly. `temperature` 0 is greedy.
    """

    # Length and stopping. Stop *strings* are the API process's business: it sees text.
    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    """End-of-sequence tokens are ordinary tokens: generation goes on after them."""
    ban_eos_token: bool = False
    """End-of-sequence tokens are never sampled."""

    # Speed
    prompt_lookup_num_tokens: int = 0
    """Tokens that are guessed from the text so far and computed ahead; 0 is off. It changes no
    token where the model's kernels do not depend on the batch."""

    # Randomness
    seed: int = 0
    """64-bit; the API draws one when the client gave none."""
    temperature: float = 1.0
    dynamic_temperature: bool = False
    dynatemp_low: float = 1.0
    dynatemp_high: float = 1.0
    dynatemp_exponent: float = 1.0
    smoothing_factor: float = 0.0
    smoothing_curve: float = 1.0

    # Truncation
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    tfs: float = 1.0
    top_a: float = 0.0
    epsilon_cutoff: float = 0.0
    """In units of 1e-4, as in text-generation-webui."""
    eta_cutoff: float = 0.0
    """In units of 1e-4, as in text-generation-webui."""
    top_n_sigma: float = 0.0
    xtc_threshold: float = 0.1
    xtc_probability: float = 0.0
    mirostat_mode: int = 0
    """0 off, 2 Mirostat v2."""
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1

    # Repetition
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    repetition_penalty_range: int = 0
    """Only the last so many tokens count for the three penalties above; 0 is all of them."""
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    dry_multiplier: float = 0.0
    dry_allowed_length: int = 2
    dry_base: float = 1.75
    dry_sequence_breakers: tuple[int, ...] = ()
    """Token ids that end a repeated run."""

    # Direct control of the vocabulary
    logit_bias: dict[int, float] = {}
    banned_token_ids: tuple[int, ...] = ()

    # Order and guidance
    temperature_last: bool = False
    sampler_priority: tuple[str, ...] = ()
    """Names of SAMPLER_ORDER; those left out run after, in the default order. Empty: default."""
    guidance_scale: float = 1.0
    """Classifier-free guidance against the request's negative prompt; 1 is off."""

    # What to report
    logprobs: int | None = None
    """None: nothing. k: the sampled token's log probability and the k most likely tokens."""
    prompt_logprobs: int | None = None
    """The same for every prompt token but the first."""
    logprobs_after_sampling: bool = False
    """Report the distribution left after all samplers instead of the model's own."""

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is taken without drawing."""
        return self.temperature == 0.0 or self.top_k == 1
