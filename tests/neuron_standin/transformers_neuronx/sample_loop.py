"""`sample()`: a prompt in, the prompt and new tokens out, up to a total length."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from neuron_double.journal import record, swallow

from transformers_neuronx import sampling
from transformers_neuronx.config import GenerationConfig
from transformers_neuronx.forwarding import ForwardingModel


@dataclass
class SampleOptions:
    """How one call of `sample()` draws and ends."""

    top_k: Any = 50
    top_p: Any = 1.0
    temperature: Any = 1.0
    eos_token_id: Any = None
    forbid_eos: bool = False
    no_repeat_ngram_size: int | None = None
    streamer: Any = None
    stopping_criteria: Any = None


class SampleLoop(ForwardingModel):
    """A model with a loop around its `forward()`; subclasses give `sample()` its signature."""

    def _sample(
        self,
        input_ids: torch.Tensor,
        sequence_length: int,
        cache_ids: torch.Tensor | None,
        start_ids: torch.Tensor | None,
        options: SampleOptions,
    ) -> torch.Tensor:
        with self._exclusively("sample"), torch.no_grad():
            batch, width = input_ids.shape
            compiled = self.neuron_config.on_device_generation
            if compiled is not None:
                options = _compiled_options(compiled, options.streamer)
            elif batch not in self.batch_sizes:
                raise ValueError(
                    f"Model not compiled for batch_size : {batch}. "
                    f"Acceptable batch_size is one of the following {self.batch_sizes}"
                )
            sampling.validate_top_k_top_p(options.top_k, options.top_p)
            self._note_missing_starts("sample", input_ids, start_ids)
            record("sample", batch=batch, width=width, sequence_length=sequence_length)
            logits = self._forward(input_ids, cache_ids, start_ids)
            text = self._continue(input_ids, sequence_length, cache_ids, start_ids, logits, options)
            if options.streamer:
                options.streamer.end()
            return text

    def _continue(
        self,
        input_ids: torch.Tensor,
        sequence_length: int,
        cache_ids: torch.Tensor | None,
        start_ids: torch.Tensor | None,
        logits: torch.Tensor,
        options: SampleOptions,
    ) -> torch.Tensor:
        batch, width = input_ids.shape
        eos = _eos_ids(options.eos_token_id)
        done = torch.zeros((batch, 1), dtype=torch.bool)
        text = input_ids.long()
        for length in range(width, sequence_length):
            token, probabilities = _next_token(text, logits, eos, options)
            token = token.where(~done, int(eos[0]))
            done |= torch.isin(token, eos)
            text = torch.cat((text, token), dim=1)
            if options.streamer:
                whole = getattr(options.streamer, "response_with_prefix", False)
                options.streamer.put(text if whole else token)
            criteria = options.stopping_criteria
            if criteria is not None and criteria(input_ids, probabilities):
                break
            if not options.forbid_eos and done.all():
                break
            if length == sequence_length - 1 and not _has_extra_forward():
                break
            if cache_ids is None or cache_ids.dim() == 1:
                cache_ids = torch.tensor([length])
            else:
                cache_ids = cache_ids.max(dim=1, keepdim=True).values + 1
            logits = self._forward(token, cache_ids, start_ids)
        return text


class SamplingModel(SampleLoop):
    """`sample()` of Llama, Mistral and Mixtral."""

    def sample(
        self,
        input_ids: torch.Tensor,
        sequence_length: int,
        cache_ids: torch.Tensor | None = None,
        start_ids: torch.Tensor | None = None,
        top_k: int | None = 50,
        top_p: float = 1.0,
        eos_token_override: int | list[int] | None = None,
        temperature: float = 1.0,
        streamer: Any = None,
        stopping_criteria_list: Any = None,
        no_repeat_ngram_size: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(batch, length) ids, prompt first; `sequence_length` counts the prompt as well."""
        swallow("sample()", kwargs)
        eos = self.config.eos_token_id if eos_token_override is None else eos_token_override
        options = SampleOptions(
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            eos_token_id=eos,
            no_repeat_ngram_size=no_repeat_ngram_size,
            streamer=streamer,
            stopping_criteria=stopping_criteria_list,
        )
        return self._sample(input_ids, sequence_length, cache_ids, start_ids, options)


class NarrowSamplingModel(SampleLoop):
    """`sample()` of the older classes: no EOS, always up to the given length."""

    def sample(
        self,
        input_ids: torch.Tensor,
        sequence_length: int,
        start_ids: torch.Tensor | None = None,
        top_k: int | None = 50,
        streamer: Any = None,
    ) -> torch.Tensor:
        """(batch, sequence_length) ids, prompt first."""
        options = SampleOptions(
            top_k=top_k,
            eos_token_id=self.config.eos_token_id,
            forbid_eos=True,
            streamer=streamer,
        )
        return self._sample(input_ids, sequence_length, None, start_ids, options)


def _next_token(
    text: torch.Tensor, logits: torch.Tensor, eos: torch.Tensor, options: SampleOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.float().clone()
    if options.forbid_eos:
        logits[:, eos] = -torch.inf
    if options.no_repeat_ngram_size:
        logits = sampling.ban_repeated_ngrams(logits, text, options.no_repeat_ngram_size)
    sampling.validate_temperature(options.temperature)
    probabilities, indices = sampling.filter_logits(
        logits, options.temperature, options.top_k, options.top_p
    )
    return sampling.draw(probabilities, indices), probabilities


def _compiled_options(compiled: GenerationConfig, streamer: Any) -> SampleOptions:
    """What was compiled counts; the arguments of the call do not."""
    return SampleOptions(
        top_k=compiled.top_k if compiled.do_sample else 1,
        top_p=float(compiled.top_p),
        temperature=float(compiled.temperature),
        eos_token_id=-1 if compiled.eos_token_id is None else compiled.eos_token_id,
        streamer=streamer,
    )


def _eos_ids(eos_token_id: Any) -> torch.Tensor:
    """Raises TypeError for None, and for a list in a library that knows none."""
    if isinstance(eos_token_id, list):
        if not _has_extra_forward():
            raise TypeError("eos_token_id: a list cannot be compared with an int")
        return torch.tensor(eos_token_id)
    return torch.tensor([int(eos_token_id)])


def _has_extra_forward() -> bool:
    """From 0.13 on the last token is run as well, and lists of EOS tokens are known."""
    major, minor = version("transformers-neuronx").split(".")[:2]
    return (int(major), int(minor)) >= (0, 13)
