import subprocess
import sys

import pytest
from click.testing import CliRunner

from segaware import __version__
from segaware.cli.main import main


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_version_and_help():
    assert CliRunner().invoke(main, ["--version"]).stdout == f"segaware {__version__}\n"
    result = CliRunner().invoke(main, ["-h"])
    assert result.exit_code == 0 and "denoise" in result.stdout and "models" in result.stdout


def test_unknown_command():
    assert CliRunner().invoke(main, ["denoize"]).exit_code == 2


def test_python_m():
    result = python("-m", "segaware", "--version")
    assert (result.returncode, result.stdout) == (0, f"segaware {__version__}\n")


def test_a_mistake_is_told_without_loading_torch(tmp_path):
    (tmp_path / "empty").mkdir()
    code = f"""if True:
        import sys
        from segaware.cli.main import main
        for arguments in (["--help"], ["denoise", "--help"], ["denoise", {str(tmp_path / "empty")!r}, "-o", "out"],
                          ["denoise", "none.png", "-o", "out.png"]):
            try:
                main(arguments)
            except SystemExit as end:
                print(end.code, "torch" in sys.modules)
    """
    result = python("-c", code)
    ends = [line for line in result.stdout.splitlines() if line.endswith(("True", "False"))]
    assert ends == ["0 False", "0 False", "2 False", "2 False"], result.stderr


@pytest.mark.parametrize(("arguments", "code"), [(["models"], 0), (["models", "--no-such-option"], 2)])
def test_a_process_that_met_others_ends_at_once(monkeypatch, arguments, code):
    """Without the interpreter's tear-down, in which threads of the group may abort it; else in the usual way."""
    ended = []
    monkeypatch.setattr("segaware.cli.command.os._exit", ended.append)
    assert CliRunner().invoke(main, arguments).exit_code == code and ended == []
    monkeypatch.setattr("segaware.inference.ranks._met", True)
    CliRunner().invoke(main, arguments)
    assert ended == [code]
