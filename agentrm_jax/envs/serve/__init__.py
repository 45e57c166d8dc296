"""Environments of ours behind HTTP and WebSocket, for trainers that play on servers."""
