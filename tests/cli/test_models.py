import json

from click.testing import CliRunner

from segaware.cli.main import main


def test_table(shipped):
    result = CliRunner().invoke(main, ["models"])
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and lines[0].split() == [
        "NAME",
        "KIND",
        "ARCHITECTURE",
        "PARAMETERS",
        "SIGMA",
        "KNOWS",
    ]
    assert "segaware-blind *" in lines[2] and "blind" in lines[2] and "AWGN, sigma 0-55" in lines[2]
    assert lines[1].startswith("ffdnet") and "--sigma" in lines[1]
    assert "segaware-blind: psnr 15: 33.50, 25: 31.00" in lines and "score.py" not in result.stdout
    assert lines[-1] == "* the default"


def test_json(shipped):
    records = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)
    assert [record["name"] for record in records] == ["ffdnet", "segaware-blind"]
    assert records[1]["measured"]["psnr"]["15"] == 33.5 and records[0]["takes_sigma"] is True


def test_none(tmp_path, monkeypatch):
    monkeypatch.setattr("segaware.entries._SHIPPED", tmp_path)
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 0 and "no models ship" in result.stdout
