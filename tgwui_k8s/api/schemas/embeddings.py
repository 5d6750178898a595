"""The body of `POST /v1/embeddings`, and its answer."""

from __future__ import annotations

from typing import Literal

import msgspec

from tgwui_k8s.api.schemas.completions import Prompts
from tgwui_k8s.api.schemas.fields import INT32_MAX, WireModel, accepted, honoured


class EmbeddingsRequest(WireModel):
    """OpenAI's fields."""

    input: Prompts = honoured("Text or token ids; several inputs in an array.", default=...)
    model: str | None = honoured(
        "A served model's name; absent: the loaded model. Others are a 404.", max_length=1000
    )
    encoding_format: Literal["float", "base64"] | None = honoured(
        "`base64` is little-endian float32. Default `float`."
    )
    dimensions: int | None = honoured(
        "Length of the vectors, where the model was trained to have them cut.", ge=1, le=INT32_MAX
    )
    user: str | None = accepted("A hint for abuse detection, which there is none of.")

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """All inputs, a single one too, as a list."""
        return [self.input] if isinstance(self.input[0], int) else self.input


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(msgspec.Struct, frozen=True):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """The answer."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
