"""Every error this package raises on purpose, as one tree.

    TgwuiError
    ├── UsageError                  wrong flags, environment or configuration file     exit 2
    ├── StartupError                could not load a model or bind a port              exit 3
    │   ├── BindError               the port is taken
    │   ├── ModelNotFoundError      no such model folder or file
    │   ├── LoaderUnavailableError  the loader's library is not installed
    │   ├── UnsupportedModelError   the loader cannot run this architecture or format
    │   ├── BrokenModelError        a file of the model is missing, truncated or wrong
    │   ├── NotEnoughMemoryError    weights, KV cache or workspace do not fit
    │   └── DownloadError           a model cannot be fetched
    ├── RequestError                this request cannot be served; nobody else is affected
    │   ├── InvalidRequestError     the client's mistake                               400
    │   │   ├── ContextLengthError  prompt and completion do not fit the context       400
    │   │   └── UnsupportedParameterError  the loaded model cannot do this             400
    │   ├── AuthenticationError     missing or wrong key                               401
    │   ├── PermissionDeniedError   a key without the right                            403
    │   ├── NotFoundError           unknown model or route                             404
    │   ├── MethodNotAllowedError                                                      405
    │   ├── PayloadTooLargeError                                                       413
    │   ├── RateLimitedError        the key's quota is used up for now                 429
    │   ├── UnavailableError        try again later                                    503
    │   │   ├── OverloadedError     the waiting queue is full
    │   │   ├── DrainingError       the server is shutting down
    │   │   ├── ModelNotReadyError  weights are still loading, or no model is loaded
    │   │   ├── EngineUnavailableError  the engine died or hangs
    │   │   └── StreamInterruptedError  a stream broke off and nobody could go on with it
    │   ├── DeadlineExceededError   the request ran past its deadline                  504
    │   └── InternalError           our fault                                          500
    └── IntegrityError              an invariant of our own does not hold: a bug

Which HTTP status an error becomes is written once, in `tgwui_k8s.api.errors`.
"""

from __future__ import annotations


class TgwuiError(Exception):
    """Base of all errors of this package; `str(error)` is one line fit for a user."""


class UsageError(TgwuiError):
    """A flag, an environment variable or the configuration file is wrong (exit code 2)."""


class StartupError(TgwuiError):
    """The server cannot start (exit code 3). The message names the cause and the remedy."""


class BindError(StartupError):
    """The port is taken or the address does not exist."""


class ModelNotFoundError(StartupError):
    """The model name or path leads to nothing."""


class LoaderUnavailableError(StartupError):
    """The loader is unknown, or the library it needs is not installed."""


class UnsupportedModelError(StartupError):
    """The chosen loader cannot run this architecture, format or combination of settings."""


class BrokenModelError(StartupError):
    """A file of the model is missing, truncated, or contradicts another one."""


class NotEnoughMemoryError(StartupError):
    """Weights, KV cache or workspace do not fit the memory limit."""


class DownloadError(StartupError):
    """A model cannot be fetched: the source, the network or the disk."""


class RequestError(TgwuiError):
    """One request cannot be served.

    `code` is OpenAI's machine-readable word, `param` the dotted path of the offending field,
    `details` extra members of the error object.
    """

    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else type(self).code
        self.details = details or {}


class InvalidRequestError(RequestError):
    """The client must change the request before it can succeed."""


class ContextLengthError(InvalidRequestError):
    """The prompt, or prompt plus completion, is longer than the model's context."""

    code = "context_length_exceeded"


class UnsupportedParameterError(InvalidRequestError):
    """A field that is valid in general, but that the loaded model or this server cannot honour."""

    code = "unsupported_parameter"


class AuthenticationError(RequestError):
    """No key, or a wrong one."""

    code = "invalid_api_key"


class PermissionDeniedError(RequestError):
    """A valid key that may not use this route."""

    code = "permission_denied"


class NotFoundError(RequestError):
    """The model or the route does not exist."""


class MethodNotAllowedError(RequestError):
    """The route exists, but not for this HTTP method."""

    code = "method_not_supported"


class PayloadTooLargeError(RequestError):
    """The request body exceeds the cap."""

    code = "payload_too_large"


class RateLimitedError(RequestError):
    """The key has used up what it may; `retry_after_seconds` says when there is more."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, limit: str, retry_after_seconds: int) -> None:
        """`limit`: requests, tokens, concurrency, or budget, for which to wait is of no use."""
        is_budget = limit == "budget"
        super().__init__(message, code="insufficient_quota" if is_budget else None)
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds
        self.is_retryable = not is_budget


class UnavailableError(RequestError):
    """The server cannot take the request now; `retry_after_seconds` says when to come back."""

    def __init__(
        self, message: str, *, retry_after_seconds: int = 1, code: str | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds


class OverloadedError(UnavailableError):
    """The waiting queue is full."""

    code = "overloaded"


class DrainingError(UnavailableError):
    """The server finishes what it has and takes nothing new."""

    code = "draining"


class ModelNotReadyError(UnavailableError):
    """The model is still loading, or none is loaded."""

    code = "model_not_ready"


class EngineUnavailableError(UnavailableError):
    """The engine process died, hangs or restarts."""

    code = "engine_unavailable"


class StreamInterruptedError(UnavailableError):
    """A stream broke off, and no other engine could go on with it; an event of that stream."""

    code = "stream_interrupted"


class DeadlineExceededError(RequestError):
    """The request ran longer than its deadline allows."""

    code = "deadline_exceeded"


class InternalError(RequestError):
    """Our fault. `retryable` is False where the same request would fail the same way again."""

    code = "internal_error"

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class IntegrityError(TgwuiError):
    """An invariant of this package does not hold. Always a bug, never the user's fault."""
