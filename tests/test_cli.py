"""The command line: its table of commands, its errors, and what `revgrad info` says."""

import json
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from revgrad import cli, info, optional
from revgrad.ops import kernels
from revgrad.version import __version__


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "revgrad", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def toy_command(monkeypatch):
    """Two commands `toy` and `bench toy`, backed by a module that only this test knows."""
    module = SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--number", type=int, default=1),
        main=lambda args: args.number,
    )
    monkeypatch.setitem(sys.modules, "revgrad_toy_command", module)
    for name in ("toy", "bench toy"):
        monkeypatch.setitem(cli.COMMANDS, name, ("revgrad_toy_command", "a toy"))
    return module


def test_the_compiler_is_not_imported_before_it_is_needed():
    """It takes as long as all of torch."""
    code = (
        "import sys, revgrad, revgrad.models, revgrad.cli; sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_models_are_imported_when_they_are_used():
    code = (
        "import sys, revgrad; assert 'revgrad.models' not in sys.modules; revgrad.models.iUNet; "
        "sys.exit(hasattr(revgrad, 'model'))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_python_dash_m_runs_the_command_line():
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"revgrad {__version__}\n")


@pytest.mark.parametrize("command", ["toy", "bench toy"])
def test_a_command_gets_its_own_options_and_gives_the_exit_status(toy_command, command):
    assert cli.main([*command.split(), "--number", "7"]) == 7
    assert cli.main(command.split()) == 1


def test_a_command_is_imported_only_when_it_is_called(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "absent", ("revgrad_no_such_module", "not there"))
    assert cli.main(["info"]) == 0
    with pytest.raises(ModuleNotFoundError, match="revgrad_no_such_module"):
        cli.main(["absent"])


def test_help_of_a_command_shows_its_options(toy_command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["bench", "toy", "--help"])
    shown = capsys.readouterr().out
    assert "usage: revgrad bench toy" in shown
    assert "--number" in shown


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "required: COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["bench"], "required: QUESTION"),
        (["bench", "dance"], "invalid choice: 'dance'"),
        (["info", "--dance"], "unrecognized arguments: --dance"),
        (["toy", "--number", "x"], "invalid int value: 'x'"),
    ],
)
def test_wrong_arguments_are_refused(toy_command, capsys, args, message):
    with pytest.raises(SystemExit, match="2"):
        cli.main(args)
    assert message in capsys.readouterr().err


def test_a_missing_extra_is_a_message_and_not_a_traceback(toy_command):
    toy_command.main = lambda args: optional.optional_import("revgrad_no_such_module", "bench")
    with pytest.raises(SystemExit, match=r"^revgrad: .*pip install 'revgrad\[bench\]'"):
        cli.main(["toy"])


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_keeps_the_protocol(command):
    module = import_module(cli.COMMANDS[command][0])
    assert callable(module.add_arguments)
    assert callable(module.main)


def test_info_as_json():
    facts = json.loads(run("info", "--json").stdout)
    assert facts["revgrad"] == __version__
    assert facts["torch"]["version"] == torch.__version__
    assert facts["devices"][0] == "cpu"
    assert facts["cpu"]["capability"] == torch.backends.cpu.get_cpu_capability()
    assert facts["kernels"] == kernels.describe()
    assert "bench" in facts["extras"]
    assert set(facts["peers"]) == set(info.PEERS)


def test_info_for_people_names_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(info, "_extras", lambda: {"bench": ["revgrad-no-such-distribution"]})
    monkeypatch.setattr(info, "PEERS", {"revgrad-no-such-peer": "1.0"})
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "missing revgrad-no-such-distribution: pip install 'revgrad[bench]'" in shown
    assert "pip install --no-deps revgrad-no-such-peer==1.0" in shown
    assert kernels.describe() in shown


def test_info_names_each_gpu(monkeypatch):
    gpu = SimpleNamespace(name="A GPU", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    assert "cuda:0 (A GPU, 24 GiB)" in info.collect()["devices"]


def test_extras_come_from_the_package_metadata():
    extras = info._extras()
    assert "matplotlib" in extras["bench"]
    assert {"pytest", "ruff", "mypy"} <= set(extras["dev"])


def test_optional_import_gives_the_module():
    assert optional.optional_import("json.decoder", "bench") is json.decoder


def test_optional_import_names_the_extra():
    with pytest.raises(optional.MissingExtraError, match=r"pip install 'revgrad\[bench\]'"):
        optional.optional_import("revgrad_no_such_module.part", "bench")


def test_optional_import_does_not_hide_a_broken_package(tmp_path, monkeypatch):
    (tmp_path / "revgrad_broken.py").write_text("import revgrad_no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="revgrad_no_such_module") as caught:
        optional.optional_import("revgrad_broken", "bench")
    assert not isinstance(caught.value, optional.MissingExtraError)
