import json

import pytest
from click.testing import CliRunner

from segaware import doctor
from segaware.cli.main import main


def run(*arguments):
    return CliRunner().invoke(main, ["doctor", *arguments])


def test_a_sound_installation():
    result = run()
    assert result.exit_code == 0 and result.stderr == ""
    for words in ("segaware ", "Python ", "torch ", "torchvision ", "cpu", "GiB free", "Hub "):
        assert words in result.stdout
    names = {finding["name"] for finding in json.loads(run("--json").stdout)}
    assert names >= {"packages", "devices", "models", "cache", "environment"}


@pytest.mark.parametrize("error", [RuntimeError("operator torchvision::nms does not exist"), ImportError(""), SystemExit(3)])
def test_it_never_crashes(monkeypatch, error):
    """Whatever cannot be imported."""

    def broken(name):
        raise error

    monkeypatch.setattr(doctor, "import_module", broken)
    result = run()
    assert result.exit_code == 0 and "problems found" in result.stdout and "Traceback" not in result.output


def test_torch_and_torchvision_that_are_no_pair(monkeypatch):
    real = doctor.import_module

    def broken(name):
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(doctor, "import_module", broken)
    result = run()
    assert result.exit_code == 0 and "1 problem found" in result.stdout
    assert "nms does not exist" in result.stdout and "install both in one command" in result.stdout


def test_a_cache_without_room_or_rights(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert "cannot be written: set HF_HOME" in run().stdout
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(doctor, "_ROOM", 2**80)
    assert "GiB free: make room" in run().stdout


def test_secrets_stay_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:verysecret@proxy:1")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:verysecret@mirror.example")
    for arguments in ((), ("--json",)):
        output = run(*arguments).output
        assert "verysecret" not in output and "HTTPS_PROXY is set" in output and "mirror.example" in output
