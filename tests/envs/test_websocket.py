"""WebSockets: frames as RFC 6455 has them, both sides of a conversation, and what breaks one."""

import socket
import struct
import threading

import pytest

from agentrm_jax.envs.websocket import WebSocket, WebSocketError, accepted, connect


@pytest.fixture
def pair():
    """(client, server) over a socket pair; messages of at most 100,000 bytes."""
    a, b = socket.socketpair()
    for sock in (a, b):
        sock.settimeout(5.0)
    yield (
        WebSocket(a, a.makefile("rb"), client=True, limit=100_000),
        WebSocket(b, b.makefile("rb"), client=False, limit=100_000),
    )
    a.close()
    b.close()


def test_the_answer_to_a_key_is_that_of_the_standard():
    assert accepted("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 99_998])
def test_messages_of_every_length_pass_in_both_directions(pair, size):
    client, server = pair
    text = ("é" * size)[: size // 2] + "x" * (size % 2)
    for a, b in ((client, server), (server, client)):
        sender = threading.Thread(target=a.send, args=(text,))
        sender.start()
        assert b.receive() == text
        sender.join()


def test_the_frames_of_the_standards_examples_are_read(pair):
    client, server = pair
    client.sock.sendall(bytes.fromhex("8185 37fa213d 7f9f4d5158"))  # section 5.7: a masked "Hello"
    assert server.receive() == "Hello"
    server.sock.sendall(bytes.fromhex("0103 48656c 8900 8002 6c6f"))  # in two frames, with a ping between them
    assert client.receive() == "Hello"
    assert server._frame(10) == (True, 0xA, b"")  # which was answered


def test_a_close_is_answered_and_ends_the_conversation(pair):
    client, server = pair
    client.close(1000, "enough")
    assert server.receive() is None
    assert client.receive() is None


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("8105 48656c6c6f", "not as RFC 6455"),  # a client that does not mask
        ("c185 00000000 48656c6c6f", "not as RFC 6455"),  # an extension that nobody agreed on
        ("0980 00000000", "not as RFC 6455"),  # a ping in parts
        ("8281 00000000 00", "only text"),
        ("8081 00000000 00", "in the middle"),
        ("8181 00000000 ff", "not UTF-8"),
        ("81ff 7fffffffffffffff", "more than 100000 bytes"),
    ],
)
def test_what_breaks_the_protocol_is_said_and_ends_it(pair, frame, reason):
    client, server = pair
    client.sock.sendall(bytes.fromhex(frame))
    with pytest.raises(WebSocketError, match=reason):
        server.receive()
    final, kind, data = client._frame(0)
    assert (final, kind) == (True, 8)
    assert struct.unpack("!H", data[:2])[0] in (1002, 1003, 1007, 1009)


def test_parts_that_are_too_long_together_are_refused(pair):
    client, server = pair
    first = bytes.fromhex("01fe ea60") + b"\0\0\0\0" + b"x" * 60_000
    sender = threading.Thread(target=client.sock.sendall, args=(first + bytes.fromhex("00fe ea60"),))
    sender.start()
    with pytest.raises(WebSocketError, match="more than 100000"):
        server.receive()
    sender.join()


def test_a_connection_that_ends_or_is_silent_is_no_message(pair):
    client, server = pair
    server.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.receive()
    server.drop()
    with pytest.raises(WebSocketError, match=r"ended|lost"):
        client.receive()


def test_a_server_that_is_none_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def answer():
            sock, _ = listening.accept()
            sock.recv(4096)
            sock.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")
            sock.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(WebSocketError, match="404 Not Found"):
            connect(f"ws://127.0.0.1:{port}/ws", timeout=5.0, limit=100)
        thread.join()
    with pytest.raises(WebSocketError, match="cannot be reached"):
        connect(f"ws://127.0.0.1:{port}/ws", timeout=5.0, limit=100)
