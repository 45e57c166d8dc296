"""What a client is told when a request is not served: a status and one line, in the form of OpenAI's errors."""

from typing import Any

from agentrm_jax.text import clean
from agentrm_jax.types import JSON

_KINDS = {401: "authentication_error", 404: "not_found_error", 408: "timeout", 429: "rate_limit_error"}
_LONGEST = 1000  # characters of a message


class ServingError(Exception):
    """A request that is not served.

    Attributes:
      status: of the HTTP answer.
      param: field of the request that is at fault, if one is.
      retry_after: seconds after which another try may fare better; 0 if that is not known.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, retry_after: int = 0):
        super().__init__(message)
        self.status, self.param, self.retry_after = status, param, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer. Where the rest of the request was not read the connection cannot be used again."""
        found = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413):
            found["Connection"] = "close"
        return found

    def to_json(self) -> dict[str, JSON]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return error_json(self.status, str(self), self.param)


def error_json(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an answer that is an error; the message is one line of bounded length."""
    line = clean(" ".join(clean(message).split()), _LONGEST).replace("\n", " ")
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": line, "type": kind, "param": param, "code": status}}
