"""Ports for local servers: free, and not among those that Linux assigns to connections by default."""

import socket

import pytest

from serving import addresses


def test_the_ports_are_different_and_below_those_that_linux_assigns_to_connections():
    ports = addresses.free_ports(200)
    assert len(set(ports)) == 200
    # The default of net.ipv4.ip_local_port_range; the range of this machine may differ.
    assert max(ports) < 32768


def test_a_port_in_use_is_not_free(monkeypatch):
    used, unused = addresses.free_ports(2)
    monkeypatch.setattr(addresses, "_SERVER_PORTS", (used, unused))
    with socket.create_server((addresses.LOOPBACK, used)):
        assert addresses.free_ports(1) == [unused]
        with pytest.raises(OSError, match="fewer than 2 ports"):
            addresses.free_ports(2)
