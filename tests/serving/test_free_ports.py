"""Ports for local servers: free, and not among those that the system assigns to connections."""

import socket

import pytest

from serving import addresses


def test_the_system_does_not_assign_the_ports_to_connections():
    ports = addresses.free_ports(200)
    assert len(set(ports)) == 200
    with socket.create_server((addresses.LOOPBACK, 0)) as server:
        for _ in range(20):
            with socket.create_connection(server.getsockname()) as connection:
                assert max(ports) < connection.getsockname()[1]


def test_a_port_in_use_is_not_free(monkeypatch):
    used, unused = addresses.free_ports(2)
    monkeypatch.setattr(addresses, "_SERVER_PORTS", (used, unused))
    with socket.create_server((addresses.LOOPBACK, used)):
        assert addresses.free_ports(1) == [unused]
        with pytest.raises(OSError, match="fewer than 2 ports"):
            addresses.free_ports(2)
