"""The real client of the Hub against a server on the loopback; no test waits for the client's own retries."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import constants
from PIL import Image as PILImage
from zoo.loopback import LoopbackHub, commit_of

import segaware
from segaware import DDFN, SDABN, SDB, DnCNN, FFDNet, FPNSegmenter, SegAwareWrapper, from_pretrained
from segaware.cli.main import main
from segaware.errors import EvaluationError, InputError, WeightsError
from segaware.evaluation.contestants import open_contestant
from segaware.evaluation.judges import open_judge
from segaware.zoo import hub as hub_module
from segaware.zoo.catalog import Entry
from segaware.zoo.save import save_pretrained

REPO = "someone/dncnn"


def files(tmp_path, seed=0):
    torch.manual_seed(seed)
    folder = save_pretrained(DnCNN(depth=3, width=8), tmp_path / f"model{seed}")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def ask(monkeypatch, endpoint):
    """What HF_ENDPOINT does, after the client was imported."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # the 0.x client has copies of its own
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", endpoint, raising=False)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = LoopbackHub()
    server.commit = server.put(REPO, files(tmp_path))
    ask(monkeypatch, server.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # older clients know no Xet
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    real = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: real(min(seconds, 0.01)))  # the client's retries
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def load(cache, **options):
    return from_pretrained(REPO, cache_dir=cache, **options)


def weights(cache):
    (file,) = cache.glob("models--*/snapshots/*/model.safetensors")
    return file


def words(model):
    return next(model.parameters()).detach().flatten()[:3].tolist()


def test_first_download_then_cached(hub, cache):
    model = load(cache)
    assert isinstance(model, DnCNN) and not model.training
    assert hub.methods() == ["HEAD", "GET", "HEAD", "GET"], hub.log
    assert [path for method, path in hub.log if method == "HEAD"][1] == f"/{REPO}/resolve/{hub.commit}/model.safetensors"  # of the same commit
    hub.log.clear()
    assert words(load(cache)) == words(model)
    assert hub.methods() == ["HEAD"]  # has the branch moved?
    hub.log.clear()
    assert isinstance(DnCNN.from_pretrained(REPO, cache_dir=cache), DnCNN)
    with pytest.raises(WeightsError, match="holds DnCNN, not FFDNet"):
        FFDNet.from_pretrained(REPO, cache_dir=cache)


def test_a_pinned_commit_makes_no_request(hub, cache):
    load(cache, revision=hub.commit)
    hub.log.clear()
    load(cache, revision=hub.commit)
    assert hub.log == []


def test_the_branch_moved(hub, cache, tmp_path):
    old = load(cache)
    hub.put(REPO, files(tmp_path, 1))
    assert words(load(cache)) != words(old)
    assert words(load(cache, revision=hub.commit)) == words(old)


def test_offline(hub, cache, monkeypatch):
    with pytest.raises(WeightsError, match="not in the cache, and offline"):
        load(cache, local_files_only=True)
    model = load(cache)
    hub.log.clear()
    assert words(load(cache, local_files_only=True)) == words(model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert words(load(cache)) == words(model)
    with pytest.raises(WeightsError, match="not in the cache, and offline"):
        from_pretrained("someone/else", cache_dir=cache)
    assert hub.log == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("gated", "gated: ask for access"),
        ("unauthorized", r"refused \(401\).*hf auth login"),
        ("error 500", r"in trouble \(500\): try again later"),
        ("wrong bytes", "fetched twice, and its contents are not what the Hub says"),
    ],
)
def test_faults_of_the_hub(hub, cache, fault, said):
    hub.fault = fault
    with pytest.raises(WeightsError, match=said) as caught:
        load(cache)
    assert REPO in str(caught.value) or "model.safetensors" in str(caught.value)
    hub.fault = ""
    assert isinstance(load(cache), DnCNN)  # nothing bad is left behind


def test_what_is_not_there(hub, cache):
    with pytest.raises(WeightsError, match="someone/nothing: no such model"):
        from_pretrained("someone/nothing", cache_dir=cache)
    with pytest.raises(WeightsError, match="has no revision 'v9'"):
        load(cache, revision="v9")
    hub.put("someone/text", {"README.md": b"no model"})
    with pytest.raises(WeightsError, match="holds no config.json"):
        from_pretrained("someone/text", cache_dir=cache)


def test_the_hub_is_away(hub, cache, monkeypatch):
    model = load(cache)
    hub.close()
    nobody = "http://127.0.0.1:9"  # where nobody listens
    ask(monkeypatch, nobody)
    assert words(load(cache)) == words(model)  # what is cached is used
    with pytest.raises(WeightsError, match="did not come through.*try again"):
        from_pretrained("someone/else", cache_dir=cache)


def test_slow(hub, cache):
    hub.fault = "slow"
    assert isinstance(load(cache), DnCNN)


def test_a_server_that_says_no_more(hub, cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.fault = "stuck"
    with pytest.raises(WeightsError, match="did not come through.*try again"):
        load(cache)
    assert not list(cache.glob("models--*/snapshots/*/model.safetensors"))


def test_a_repository_with_half_a_model(hub, cache):
    hub.put("someone/half", {"config.json": hub.commits[REPO][hub.commit]["config.json"]})
    with pytest.raises(WeightsError, match="someone/half: holds no config.json with model.safetensors"):
        from_pretrained("someone/half", cache_dir=cache)


def test_a_connection_cut_once_is_taken_up_again(hub, cache):
    hub.fault, hub.cut_left = "cut", 1
    assert isinstance(load(cache), DnCNN)


def test_a_connection_that_is_always_cut(hub, cache):
    hub.fault, hub.cut_left = "cut", 1000
    with pytest.raises(WeightsError, match="did not come through"):
        load(cache)
    assert not list(cache.glob("models--*/snapshots/*/model.safetensors"))
    hub.fault = ""
    assert isinstance(load(cache), DnCNN)


def test_a_damaged_cached_file_is_fetched_again_once(hub, cache):
    model = load(cache, revision=hub.commit)
    file = weights(cache)
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.resolve().write_bytes(damaged)
    with pytest.raises(WeightsError, match=r"model.safetensors: damaged, and offline"):
        load(cache, revision=hub.commit, local_files_only=True)
    hub.log.clear()
    assert words(load(cache, revision=hub.commit)) == words(model)
    assert hub.methods().count("GET") == 1


def test_a_damaged_cached_file_is_named(hub, cache, caplog):
    load(cache, revision=hub.commit)
    file = weights(cache)
    file.resolve().write_bytes(b"short")
    load(cache, revision=hub.commit)
    assert [record.levelname for record in caplog.records if str(file) in record.getMessage()] == ["WARNING"]
    assert "fetching it again" in caplog.text


def test_wrong_bytes_once(hub, cache):
    hub.fault = "wrong bytes once"
    assert isinstance(load(cache), DnCNN)
    assert hub.methods().count("GET") == 3


def test_the_catalog(hub, cache, monkeypatch):
    import hashlib

    data = hub.commits[REPO][hub.commit]
    good = {name: hashlib.sha256(data[name]).hexdigest() for name in ("config.json", "model.safetensors")}
    entries = {
        "dncnn-large": Entry(REPO, hub.commit, good),
        "dncnn-other": Entry(REPO, hub.commit, {**good, "model.safetensors": "0" * 64}),
    }
    monkeypatch.setattr("segaware.zoo.load.catalog", lambda: entries)
    assert isinstance(from_pretrained("dncnn-large", cache_dir=cache), DnCNN)
    hub.log.clear()
    from_pretrained("dncnn-large", cache_dir=cache)
    assert hub.log == []
    with pytest.raises(WeightsError, match="model.safetensors: fetched twice.*its sha256 in the catalog"):
        from_pretrained("dncnn-other", cache_dir=cache)
    with pytest.raises(WeightsError, match="did you mean.*'dncnn-large'"):
        from_pretrained("dncnn-lage", cache_dir=cache)


def test_the_catalog_takes_pinned_commits_alone(tmp_path, monkeypatch):
    from segaware.zoo import catalog as module

    file = tmp_path / "catalog.json"
    monkeypatch.setattr(module, "_FILE", file)
    file.write_text(json.dumps({"a": {"repo": "o/n", "revision": "0" * 40, "sha256": {}}}), encoding="utf-8")
    assert module.catalog() == {"a": Entry("o/n", "0" * 40, {})}
    file.write_text(json.dumps({"a": {"repo": "o/n", "revision": "main", "sha256": {}}}), encoding="utf-8")
    with pytest.raises(AssertionError, match="a is not pinned"):
        module.catalog()


def test_a_redirect_to_another_port_takes_no_token_along(hub, cache):
    hub.fault = "redirect"
    assert isinstance(load(cache, token="hf_secret"), DnCNN)
    by_path = dict(zip((path.split("/")[1] for _, path in hub.log), hub.tokens, strict=True))
    assert by_path["someone"] == "Bearer hf_secret" and by_path["storage"] is None


def test_disk_full(hub, cache, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(WeightsError, match="no space left.*cache_dir="):
        load(cache)


def test_a_cache_that_is_a_file(hub, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError):
        load(tmp_path / "file")


@pytest.mark.parametrize("name", ["a/b/c", "../x", "a/..", "/etc/passwd", "a b/c", "-x/y"])
def test_paths_are_no_repositories(name):
    assert not hub_module.is_repo(name)


def client(hub, cache, arguments):
    """Another process, with the endpoint from its environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HTTP", "http"))}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


FETCH = ["-c", f"from segaware.zoo.hub import fetch; print(fetch({REPO!r}))"]  # loads no torch


def test_two_processes_at_once(hub, cache):
    both = [client(hub, cache, FETCH) for _ in range(2)]
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert ends[0][0] == ends[1][0]
    assert isinstance(from_pretrained(ends[0][0].strip()), DnCNN)


def test_killed_in_the_middle_then_fetched_again(hub, cache):
    hub.fault, hub.cut_left = "hang", 1
    process = client(hub, cache, FETCH)
    assert hub.reached.wait(60)
    process.kill()
    process.communicate()
    assert not list(cache.glob("hub/models--*/snapshots/*/model.safetensors"))
    hub.fault = ""
    assert isinstance(load(cache / "hub"), DnCNN)


def test_the_command_line_shows_no_traceback(hub, cache):
    process = client(hub, cache, ["-m", "segaware", "download", "someone/nothing"])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    assert "no such model" in err and "Traceback" not in err


def test_download(hub, cache, tmp_path):
    arguments = ["download", REPO, "nothing-known", "--cache-dir", str(cache), "--local-dir", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "unknown model 'nothing-known'" in result.stderr
    copied = tmp_path / "out" / "dncnn"
    assert result.stdout.strip() == str(copied)
    assert {file.name for file in copied.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert not any(file.is_symlink() for file in copied.iterdir()) and isinstance(from_pretrained(copied), DnCNN)
    assert CliRunner().invoke(main, arguments).stdout.strip() == str(copied), "the same again is no harm"
    (copied / "model.safetensors").write_bytes(b"mine")
    refused = CliRunner().invoke(main, arguments)
    assert "holds another model.safetensors" in refused.stderr and (copied / "model.safetensors").read_bytes() == b"mine"
    assert CliRunner().invoke(main, [*arguments, "--overwrite"]).stdout.strip() == str(copied) and isinstance(from_pretrained(copied), DnCNN)
    twins = CliRunner().invoke(main, ["download", REPO, f"bob/{REPO.split('/')[1]}", *arguments[3:]])
    assert twins.exit_code == 1 and f"is that of {REPO}" in twins.stderr
    again = CliRunner().invoke(main, ["download", REPO, "--cache-dir", str(cache), "--local-files-only"])
    assert again.exit_code == 0 and isinstance(from_pretrained(again.stdout.strip()), DnCNN)


def test_a_revision_behind_the_name(hub, cache, tmp_path):
    old = load(cache)
    hub.put(REPO, files(tmp_path, 1))
    hub.log.clear()
    assert words(from_pretrained(f"{REPO}@{hub.commit}", cache_dir=cache)) == words(old)
    assert hub.log == []
    assert words(from_pretrained(f"{REPO}@main", cache_dir=cache)) != words(old)
    with pytest.raises(InputError, match="two revisions"):
        from_pretrained(f"{REPO}@main", revision=hub.commit, cache_dir=cache)
    with pytest.raises(InputError, match="none after the @"):
        from_pretrained(f"{REPO}@", cache_dir=cache)


def test_a_cascade(hub, cache, tmp_path):
    block = SDB(FPNSegmenter(2, "squeezenet1_0", width=4), DDFN(condition_channels=2, blocks=1))
    model = SDABN([block]).eval()
    folder = save_pretrained(model, tmp_path / "cascade")
    hub.put("someone/cascade", {file.name: file.read_bytes() for file in folder.iterdir()})
    loaded = SDABN.from_pretrained("someone/cascade", cache_dir=cache)
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))


def test_a_wrapper_around_a_foreign_denoiser_with_every_option(hub, cache, tmp_path):
    def network():
        return torch.nn.Conv2d(3, 3, 3, padding=1)

    wrapper = SegAwareWrapper(network(), (), predicts="noise", value_range=(0, 255))
    folder = wrapper.save_pretrained(tmp_path / "wrapper")
    commit = hub.put("someone/wrapper", {file.name: file.read_bytes() for file in folder.iterdir()})
    options = {"revision": commit, "cache_dir": cache, "token": "hf_x", "device": "cpu", "dtype": torch.float64}
    loaded = SegAwareWrapper.from_pretrained("someone/wrapper", denoiser=network(), **options)
    assert hub.tokens[-1] == "Bearer hf_x" and loaded.adapter == wrapper.adapter
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(loaded(image), wrapper.double()(image))
    hub.log.clear()
    again = from_pretrained("someone/wrapper", denoiser=network(), local_files_only=True, revision=commit, cache_dir=cache)
    assert hub.log == [] and isinstance(again, SegAwareWrapper)
    with pytest.raises(InputError, match="pass it as denoiser=network"):
        from_pretrained("someone/wrapper", **options)


def test_denoise_by_repository(hub, cache, tmp_path, monkeypatch):
    network = load(cache)
    noisy = torch.rand(1, 3, 8, 8)
    pinned = f"{REPO}@{hub.commit}"
    assert torch.equal(segaware.denoise(noisy, pinned), segaware.denoise(noisy, network))
    PILImage.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = ["denoise", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--model"]
    assert CliRunner().invoke(main, [*arguments, REPO]).exit_code == 0 and (tmp_path / "b.png").exists()
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert CliRunner().invoke(main, [*arguments, pinned, "--overwrite"]).exit_code == 0
    away = CliRunner().invoke(main, [*arguments, "someone/else", "--overwrite"])
    assert away.exit_code == 2 and "someone/else: no such folder here, not in the cache, and offline" in away.stderr and "Traceback" not in away.output
    assert hub.log == []


def test_evaluate_by_repository(hub, cache):
    contestant = open_contestant(f"theirs={REPO}@{hub.commit}")
    assert contestant.name == "theirs" and contestant.kind.startswith("DnCNN")
    assert open_contestant(REPO).name == REPO
    with pytest.raises(WeightsError, match=r"someone/nothing: no such model on the Hub, or a private one \(and no such folder here\)"):
        open_contestant("someone/nothing")


def test_judge_by_repository(hub, cache):
    with pytest.raises(EvaluationError, match=f"judge {REPO.partition('/')[2]}: a DnCNN without num_classes is no segmenter"):
        open_judge(f"{REPO}@{hub.commit}")  # fetched and opened: it is a denoiser
    with pytest.raises(WeightsError, match="someone/nothing: no such model on the Hub"):
        open_judge("someone/nothing")


def test_push(hub, cache):
    model = DnCNN(depth=3, width=4)
    url = model.push_to_hub("me/mine", token="hf_write", config={"license": "apache-2.0"})
    asked = [path for method, path in hub.log if method in ("POST", "PUT")]
    for step in ("/api/repos/create", "/api/models/me/mine/preupload/main", "/me/mine.git/info/lfs/objects/batch"):
        assert step in asked
    assert asked[-1] == "/api/models/me/mine/commit/main" and any(path.startswith("/storage/") for path in asked)
    commit = hub.branches["me/mine"]
    assert url == f"{hub.endpoint}/me/mine/commit/{commit}"
    pushed = hub.commits["me/mine"][commit]
    assert set(pushed) >= {"config.json", "model.safetensors", "README.md"}
    assert json.loads(pushed["config.json"])["license"] == "apache-2.0"
    assert b"from_pretrained('me/mine')" in pushed["README.md"]
    loaded = from_pretrained("me/mine", cache_dir=cache)
    assert words(loaded) == words(model)


def test_push_leaves_a_card_that_is_there(hub):
    hub.put("me/mine", {"README.md": b"my own words"})
    DnCNN(depth=3, width=4).push_to_hub("me/mine", token="hf_write")
    pushed = hub.commits["me/mine"][hub.branches["me/mine"]]
    assert pushed["README.md"] == b"my own words" and "model.safetensors" in pushed


def test_push_offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="me/mine: offline, so nothing was sent: unset HF_HUB_OFFLINE"):
        DnCNN(depth=3, width=4).push_to_hub("me/mine", token="hf_write")
    assert hub.log == []


def test_push_without_the_right(hub):
    hub.fault = "read only"
    with pytest.raises(WeightsError, match=r"may not write there \(403\)"):
        DnCNN(depth=3, width=4).push_to_hub("me/mine", token="hf_read")
    assert commit_of("me/mine 0") not in hub.commits.get("me/mine", {})
