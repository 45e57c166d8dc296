"""What tests of environments share."""

import pytest

from tests.envs.agentgym_server import Server, Style


@pytest.fixture
def serve():
    servers = []

    def start(**style):
        servers.append(Server(Style(**style)))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()
