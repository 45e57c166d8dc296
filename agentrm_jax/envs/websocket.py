"""WebSockets (RFC 6455) over a blocking socket, as much of it as OpenEnv's protocol needs: text messages, pings, an orderly end.

The same `WebSocket` serves both sides: a client masks what it sends, a server does not. There are no extensions.
"""

import base64
import contextlib
import hashlib
import http.client
import os
import socket
import ssl
import struct
import urllib.parse
from io import BufferedIOBase
from typing import BinaryIO

_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3
_TEXT, _CONTINUED, _CLOSE, _PING, _PONG = 0x1, 0x0, 0x8, 0x9, 0xA
_CONTROL_LIMIT = 125  # bytes, section 5.5
NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED, BAD_TEXT, TOO_BIG = 1000, 1001, 1002, 1003, 1007, 1009


class WebSocketError(Exception):
    """The other side broke the protocol, refused the connection or went away."""


class WebSocket:
    """An open connection.

    Args:
      sock: the socket below, whose timeout is that of every read and write.
      read: a buffered reader of the socket.
      client: whether this side is the client, whose frames are masked.
      limit: bytes a message may have.
    """

    def __init__(self, sock: socket.socket, read: BufferedIOBase | BinaryIO, *, client: bool, limit: int):
        self.sock, self.limit = sock, limit
        self._read, self._client, self._closing = read, client, False

    def receive(self) -> str | None:
        """The next text message; None once the other side has closed in an orderly way.

        Raises:
          WebSocketError: the protocol was broken, or the connection ended in the middle; it is closed.
          TimeoutError: nothing came within the socket's timeout.
        """
        parts: list[bytes] = []
        while True:
            final, kind, data = self._frame(self.limit - sum(map(len, parts)))
            if kind == _PING:
                self._send(_PONG, data)
            elif kind == _CLOSE:
                self.close()
                return None
            elif kind in (_TEXT, _CONTINUED):
                if (kind == _CONTINUED) != bool(parts):
                    raise self._broken(PROTOCOL_ERROR, "a message began in the middle of another")
                parts.append(data)
                if final:
                    break
            elif kind != _PONG:
                raise self._broken(UNSUPPORTED, "only text messages are read")
        try:
            return b"".join(parts).decode()
        except UnicodeDecodeError:
            raise self._broken(BAD_TEXT, "a message is not UTF-8") from None

    def send(self, text: str) -> None:
        """Sends one text message. Raises WebSocketError if the connection is gone."""
        self._send(_TEXT, text.encode())

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Says that the conversation is over, once; the socket stays open for whoever made it."""
        if not self._closing:
            self._closing = True
            with contextlib.suppress(WebSocketError, TimeoutError):
                self._send(_CLOSE, struct.pack("!H", code) + reason.encode()[: _CONTROL_LIMIT - 2])

    def drop(self) -> None:
        """Ends the connection below, with or without a farewell before."""
        with contextlib.suppress(OSError):
            self._read.close()
        self.sock.close()

    def _frame(self, room: int) -> tuple[bool, int, bytes]:
        """(whether it is the last of its message, kind, payload) of the next frame; `room` bytes at most, if it is no control frame."""
        first, second = self._exactly(2)
        final, kind, masked, length = bool(first & 0x80), first & 0x0F, bool(second & 0x80), second & 0x7F
        if first & 0x70 or masked == self._client or (kind >= 8 and (not final or length > _CONTROL_LIMIT)):
            raise self._broken(PROTOCOL_ERROR, "a frame is not as RFC 6455 wants it")
        if length >= 126:
            (length,) = struct.unpack("!H" if length == 126 else "!Q", self._exactly(2 if length == 126 else 8))
        if kind < 8 and length > max(room, 0):
            raise self._broken(TOO_BIG, f"a message has more than {self.limit} bytes")
        mask = self._exactly(4) if masked else b""
        data = self._exactly(length)
        return final, kind, _masked(data, mask) if masked else data

    def _exactly(self, count: int) -> bytes:
        try:
            data = self._read.read(count) if count else b""
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            raise WebSocketError(f"the connection was lost: {error}") from error
        if data is None or len(data) < count:
            raise WebSocketError("the connection ended")
        return data

    def _send(self, kind: int, data: bytes) -> None:
        size = len(data)
        bit = 0x80 if self._client else 0
        head = bytes([0x80 | kind])
        if size < 126:
            head += bytes([bit | size])
        elif size < 1 << 16:
            head += bytes([bit | 126]) + struct.pack("!H", size)
        else:
            head += bytes([bit | 127]) + struct.pack("!Q", size)
        if self._client:
            mask = os.urandom(4)
            head, data = head + mask, _masked(data, mask)
        try:
            self.sock.sendall(head + data)
        except TimeoutError:
            raise
        except OSError as error:
            raise WebSocketError(f"the connection was lost: {error}") from error

    def _broken(self, code: int, reason: str) -> WebSocketError:
        self.close(code, reason)
        return WebSocketError(reason)


def _masked(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(data, "big") ^ key).to_bytes(size, "big")


def accepted(key: str) -> str:
    """What a server answers to the client's `Sec-WebSocket-Key` (section 4.2.2)."""
    return base64.b64encode(hashlib.sha1((key + _MAGIC).encode()).digest()).decode()


def connect(url: str, *, timeout: float, limit: int) -> WebSocket:
    """Opens a connection to `ws://` or `wss://`; the caller drops it.

    Raises:
      WebSocketError: there is no such server, or it does not speak WebSocket at this address.
    """
    parts = urllib.parse.urlsplit(url)
    secure = parts.scheme == "wss"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    key = base64.b64encode(os.urandom(16)).decode()
    try:
        sock = socket.create_connection((host, port), timeout)
    except OSError as error:
        raise WebSocketError(f"{url} cannot be reached: {error}") from error
    read = None
    try:
        if secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        at = f"[{host}]" if ":" in host else host
        lines = [f"GET {target} HTTP/1.1", f"Host: {at}:{port}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        sock.sendall("\r\n".join(lines).encode())
        read = sock.makefile("rb")
        status = read.readline(4096).decode("latin-1").strip()
        if status.split(" ")[1:2] != ["101"]:
            raise WebSocketError(f"{url} answers {status or 'nothing'!r}, not as a WebSocket")
        if http.client.parse_headers(read).get("Sec-WebSocket-Accept") != accepted(key):
            raise WebSocketError(f"{url} answers as a WebSocket, but to somebody else's key")
    except (OSError, http.client.HTTPException, WebSocketError) as error:
        if read is not None:
            read.close()
        sock.close()
        if isinstance(error, WebSocketError):
            raise
        raise WebSocketError(f"{url}: the connection was lost: {error!r}") from error
    return WebSocket(sock, read, client=True, limit=limit)
