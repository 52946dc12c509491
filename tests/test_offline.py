"""The tests' own promise: none of them reaches a network."""

import socket

import pytest


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("way", ["connect", "connect_ex"])
def test_a_test_that_connects_fails(family, way):
    with socket.socket(family) as one, pytest.raises(OSError, match="tests have no network"):
        getattr(one, way)(("localhost", 9))
