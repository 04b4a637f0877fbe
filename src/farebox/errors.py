"""What farebox itself refuses or fails at: one family, each class with its status, code and a sentence to act on.

`body` renders a refusal in the shape the SDKs of that path expect (OpenAI's error object, or
Anthropic's). The provider's own errors are never rewritten and never come through here.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from farebox.records import Family


class FareboxError(Exception):
    """Base of everything farebox raises on purpose. Its text is written for the person who can mend it."""


class Refusal(FareboxError):
    """An answer farebox gives instead of the provider.

    `status` is the HTTP status; `type` and `code` are OpenAI's error members; `anthropic_type` is
    the member Anthropic's SDK reads. `headers` are added to the answer. The message may be shown
    to the client, so it never holds a secret or a prompt.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str | None] = None
    anthropic_type: ClassVar[str] = "api_error"

    def __init__(self, message: str, *, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers or {}

    def body(self, family: Family, request_id: str | None = None) -> bytes:
        """The JSON body in the dialect of `family`, UTF-8."""
        if family == "anthropic":
            return msgspec.json.encode(
                {
                    "type": "error",
                    "error": {"type": self.anthropic_type, "message": self.message},
                    "request_id": request_id,
                }
            )
        return msgspec.json.encode(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        )


class BadRequest(Refusal):
    """The request cannot be read as one that farebox may forward."""

    status, type, code, anthropic_type = 400, "invalid_request_error", "bad_request", "invalid_request_error"


class InvalidKey(Refusal):
    """No key, or none that farebox knows."""

    status, type, code, anthropic_type = 401, "invalid_request_error", "invalid_api_key", "authentication_error"


class Forbidden(Refusal):
    """The key is known but may not do this."""

    status, type, code, anthropic_type = 403, "invalid_request_error", "forbidden", "permission_error"


class ModelNotAllowed(Refusal):
    """The key, or no route, allows this model."""

    status, type, code, anthropic_type = 404, "invalid_request_error", "model_not_found", "not_found_error"


class NotFound(Refusal):
    """Nothing is served at this path."""

    status, type, code, anthropic_type = 404, "invalid_request_error", "not_found", "not_found_error"


class MethodNotAllowed(Refusal):
    """The path exists, the method does not."""

    status, type, code, anthropic_type = 405, "invalid_request_error", "method_not_allowed", "invalid_request_error"


class Conflict(Refusal):
    """The thing to make exists already."""

    status, type, code, anthropic_type = 409, "invalid_request_error", "conflict", "invalid_request_error"


class BodyTooLarge(Refusal):
    """The request body passes the configured bound, as sent or once decoded."""

    status, type, code, anthropic_type = 413, "invalid_request_error", "request_too_large", "request_too_large"


class BadEncoding(Refusal):
    """The request's content-encoding is unknown, or its body does not decode."""

    status, type, code, anthropic_type = 415, "invalid_request_error", "unsupported_encoding", "invalid_request_error"


class HeadersTooLarge(Refusal):
    """The request's head passes the configured bound."""

    status, type, code, anthropic_type = 431, "invalid_request_error", "headers_too_large", "invalid_request_error"


class InternalError(Refusal):
    """A fault in farebox."""

    status, type, code, anthropic_type = 500, "api_error", "internal_error", "api_error"


class UpstreamUnreachable(Refusal):
    """No provider could be reached, or it broke off before an answer."""

    status, type, code, anthropic_type = 502, "api_error", "upstream_unreachable", "api_error"


class Unavailable(Refusal):
    """farebox cannot take the call now: database or journal not writable, at a limit, or shutting down."""

    status, type, code, anthropic_type = 503, "api_error", "unavailable", "api_error"


class UpstreamTimeout(Refusal):
    """The provider did not answer in time."""

    status, type, code, anthropic_type = 504, "api_error", "upstream_timeout", "api_error"
