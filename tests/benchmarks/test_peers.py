"""All ways of running the same couplings compute the same function."""

import copy
import shutil

import pytest
import torch
from torch import nn

from revgrad.benchmarks import peers
from revgrad.benchmarks.peers import ADAPTORS, available

SLOW = {name for name in ADAPTORS if ADAPTORS[name].compiles}
ROUNDS = {
    "revgrad-exact",
    "revgrad-exact-fused",
}  # its streams have 20 binary digits behind the point


def adaptors():
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ADAPTORS]


def make_couplings(pairs=2, channels=2):
    torch.manual_seed(0)
    modules = [
        nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh()).double()
        for _ in range(2 * pairs)
    ]
    return list(zip(modules[::2], modules[1::2], strict=True))


def gradients(name, couplings):
    """Output, gradient of the input and of all parameters of the sub-networks."""
    module = ADAPTORS[name].wrap(couplings)
    torch.manual_seed(1)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    # memcnn doubles the gradient of a leaf input, and frees what it is given.
    y = module(x * 1)
    y.backward(torch.randn_like(y))
    parameters = [p for pair in couplings for module in pair for p in module.parameters()]
    return [y.detach(), x.grad, *(p.grad for p in parameters)]


@pytest.mark.parametrize("name", adaptors())
def test_same_function_as_plain(name):
    if not available(name):
        pytest.skip(available(name).reason)
    couplings = make_couplings()
    expected = gradients("plain", copy.deepcopy(couplings))
    found = gradients(name, couplings)
    assert len(found) == 10
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 if name in ROUNDS else 1e-10)


@pytest.mark.parametrize("name", ADAPTORS)
def test_runs_the_given_sub_networks(name):
    if not available(name):
        pytest.skip(available(name).reason)
    couplings = make_couplings()
    given = {id(p) for pair in couplings for module in pair for p in module.parameters()}
    assert {id(p) for p in ADAPTORS[name].wrap(couplings).parameters()} == given


def test_plain_computes_what_the_page_says():
    ((f, g),) = couplings = make_couplings(pairs=1)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    y1 = x[:, :2] + f(x[:, 2:])
    y2 = x[:, 2:] + g(y1)
    assert torch.equal(ADAPTORS["plain"].wrap(couplings)(x), torch.cat([y1, y2], 1))


@pytest.mark.parametrize("name", ["memcnn", "iunets", "revtorch", "revlib"])
def test_a_peer_that_is_not_installed_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    state = available(name)
    assert not state
    assert name in state.reason
    assert "make peers" in state.reason


def test_iunets_needs_memcnn_too(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: None if package == "memcnn" else 1)
    assert "memcnn not installed" in available("iunets").reason


def test_compiled_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda command: None)
    assert "C++ compiler" in available("compiled").reason


def test_compiled_takes_the_compiler_of_the_environment(monkeypatch):
    monkeypatch.setenv("CXX", "my-compiler")
    monkeypatch.setattr(shutil, "which", lambda command: {"my-compiler": "/x"}.get(command))
    assert available("compiled")


@pytest.mark.parametrize(
    "name", ["plain", "revgrad", "revgrad-exact", "checkpoint", "checkpoint-selective"]
)
def test_what_needs_no_package_is_always_there(name, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    assert available(name)
    assert available(name).reason == ""
