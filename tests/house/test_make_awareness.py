"""docs/make_awareness.py: a page from any part of the comparison's JSON."""

import gzip
import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def make():
    sys.path.insert(0, str(DOCS))  # as for a script
    spec = importlib.util.spec_from_file_location("make_awareness", DOCS / "make_awareness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def figures(name, psnr, miou):
    return [{"measure": key, "noise": "sigma 50", "contestant": name, "value": value}
            for key, value in (("psnr", psnr), ("miou:home", 0.9), ("miou:a", miou), ("miou:b", miou))]  # fmt: skip


def record():
    fidelity = {"contestant": "fidelity", "factor": 1.0, "seed": 0, "steps": 9, "state": "trained", "shares": {}, "keep": {"sigma 50": 0.04},
                "held_out": figures("fidelity", 27.0, 0.4) + figures("fidelity+0.04", 26.9, 0.43)}  # fmt: skip
    kl = {"contestant": "kl", "factor": 3.0, "seed": 0, "steps": 9, "state": "trained", "shares": {"consistency": [0.3, 0.2]},
          "held_out": figures("kl", 26.95, 0.42)}  # fmt: skip
    stopped = {"contestant": "kl", "factor": 9.0, "seed": 0, "steps": 9, "state": "stopped", "shares": {}, "error": "awareness dominates"}
    return {
        "schema": 1, "budget": 0.1, "skipped": {"dms": "needs a second --segmenter"}, "reported": {}, "gaps": [], "instead": {},
        "setting": {"start": "s", "segmenter": ["home"], "judge": ["x/a", "x/b"], "share": 0.1, "optimizer": "muon", "learning_rate": 3e-4, "batch_size": 4, "patch_size": 96},
        "contestants": {"fidelity": {"group": "control", "what": "no awareness", "labels": "none"}, "kl": {"group": "later", "what": "KL", "labels": "none"}},
        "screen": {"runs": [fidelity, kl, stopped], "chosen": {"fidelity": {"factor": 1.0, "miou": 0.4, "psnr": 27.0, "gain": 0.0, "cost": 0.0},
                                                              "kl": {"factor": 3.0, "miou": 0.42, "psnr": 26.95, "gain": 0.02, "cost": 0.05}}},
        "final": {"runs": [], "chosen": {}},
    }  # fmt: skip


def with_final(found):
    def row(measure, noise, name, value, **more):
        gap = {"difference": 0.01, "low": None, "high": 0.02, "p": 0.01, "p_holm": 0.03, "n": 26}
        against = {} if name == "fidelity" else {"fidelity": gap, "fidelity+keep": gap}
        return {"measure": measure, "noise": noise, "contestant": name, "value": value, "low": 0.1, "high": None, "better": 1, "percent": ":" in measure,
                "digits": 2, "title": measure, "seeds": [value], "against": against, **more}  # fmt: skip

    rows = [row(m, n, c, 0.4) for m in ("psnr", "miou:home", "miou:a", "changed:a") for n in ("sigma 50", "clean") for c in ("fidelity", "fidelity+keep", "kl")]
    found["reported"]["frames"] = {"source": {"name": "CamVid val", "note": "one clip"}, "images": 26, "block": 3, "rows": rows, "judges": ["home", "a"]}
    found["reported"]["photographs"] = {"source": {"name": "CBSD68"}, "images": 68, "block": 1, "rows": [r for r in rows if r["noise"] != "clean"], "judges": ["home", "a"]}
    gap = {"noise": "sigma 50", "judges": ["a"], "gain": 0.021, "gain_low": 0.011, "gain_high": 0.031, "gap": 0.08, "gap_low": 0.05, "gap_high": 0.1,
           "closed": 0.26, "closed_low": 0.1, "closed_high": 0.4, "p": 0.001, "p_holm": 0.002, "seed_gains": [0.02, 0.022]}  # fmt: skip
    found["gaps"] = [{**gap, "contestant": "kl", "retention": 0.8, "retention_low": 0.5, "retention_high": None, "over_keep": 0.004, "over_keep_low": -0.01, "over_keep_high": 0.02},
                     {**gap, "contestant": "fidelity+keep", "gain": 0.017, "p_holm": 0.3}]  # fmt: skip
    found["final"]["runs"] = [{"contestant": "fidelity", "seed": 0, "steps": 20, "state": "trained", "keep": {"sigma 50": 0.04}, "held_out": found["screen"]["runs"][0]["held_out"]}]
    found["instead"] = {"steps": 5, "rows": [{"noise": "sigma 50", "images": "noisy", "segmenter": "home", "value": 0.1, "low": None, "high": None}]}
    return found


def test_a_screen_alone(make, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(record()))
    page = make.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "page" / "awareness.md")])
    text = page.read_text()
    assert "+2.00 | -0.050 | +2.0 | +2.0 |" in text and "| `kl` | 3: +2.00 (-0.050) |" in text
    assert "have not been measured yet" in text and "## The final" not in text
    assert "dms`: needs a second" in text and "awareness dominates" in text
    assert {p.name for p in (tmp_path / "page/images").iterdir()} == {"awareness-frontier.png", "awareness-keep.png"}
    other = make.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "page" / "seeds.md")]).read_text()
    assert "](images/seeds-frontier.png)" in other and (tmp_path / "page/images/seeds-keep.png").is_file() and "](images/awareness-" not in other
    page.write_text(text.replace(make.END, f"Ours.\n{make.END}"))
    again = make.main([str(tmp_path / "results.json"), "--out", str(page)]).read_text()
    assert again == text.replace(make.END, f"Ours.\n{make.END}"), "what people wrote stays, once"


def test_the_whole(make, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(with_final(record())))
    text = make.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "awareness.md")]).read_text()
    assert "Best awareness without labels: `kl`, +2.1 [+1.1, +3.1] points across the held-out judges (seeds: +2.0, +2.2): it helps" in text
    assert "closes 26 [10, 40] % of the gap" in text and "over that: +0.4 [-1.0, +2.0]" in text
    for head in ("## Photographs", "## Do no harm", "## Noise given back", "## If you may touch the segmenter", "More than retained texture?"):
        assert head in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("| `kl`")]
    assert "| `kl` | the training segmenter | +1.0 [" in text and "%, the training segmenter |" in text and "| home |" not in text
    assert widths and "nan" not in text and "None" not in text


def test_no_more_is_said_than_was_found(make):
    """One training, an unsure gain, harm: each has its own words, and no share of the gap is closed by chance."""
    found = with_final(record())
    found["gaps"][0]["seed_gains"] = [0.021]
    assert "(seeds: +2.1): it helped in this one training, and closes 26" in make.page(found)
    found["gaps"][0]["p_holm"] = 0.2
    text = make.page(found)
    assert "it cannot be told from no awareness; PSNR" in text and "and closes" not in text
    found["gaps"][0] |= {"p_holm": 0.002, "gain": -0.02, "seed_gains": [-0.02, -0.02]}
    text = make.page(found)
    assert "it harms; PSNR" in text and "and closes" not in text
    assert "took no part in any training" in text and "--force" not in text
    found["setting"]["force"] = True
    assert "segmenters of which some took part in training (`--force`)" in make.page(found)


def test_clean_input_is_given_nothing_back(make):
    harm = make.page(with_final(record())).partition("## Do no harm")[2].partition("##")[0]
    assert "| `kl` |" in harm and "+keep" not in harm


def test_given_back_noise_on_photographs(make):
    found = with_final(record())
    rows = found["reported"]["photographs"]["rows"]
    rows += [{**row, "measure": row["measure"].replace("miou", "consistency")} for row in rows if row["measure"] == "miou:a"]
    text = make.page(found).partition("### More than retained texture, on photographs?")[2]
    assert "| `kl` | a | +1.0 [–, +2.0], p 0.030 |" in text


def test_what_each_judge_wins_back(make):
    found, head = with_final(record()), "### Of what is lost, by judge"
    assert head not in make.page(found), "not told by judge"
    found["gaps"][0]["by_judge"] = {"a": {"gain": 0.02, "gain_low": 0.01, "gain_high": 0.03, "gap": 0.08}, "home": {"gain": 0.02, "gain_low": 0.01, "gain_high": 0.03, "gap": 0.019}}
    text = make.page(found).partition(head)[2].partition("\n#")[0]
    assert "more than 2;" in text and "| `kl` | a | 25 [12, 38] of 8.0 |" in text and "| `kl` | the training segmenter | – |" in text


def test_the_street_that_was_chosen_on(make):
    """Gain, and gain beyond the control's best give-back, from the gaps of that street and not of the reported clip."""
    found, head = with_final(record()), "### On the street that was chosen on"
    assert head not in make.page(found), "not measured"
    found["reported"]["drive"] = {**found["reported"]["frames"], "images": 13}
    found["drive_gaps"] = [{**gap, "gain": gap["gain"] + 0.01, "over_keep_p_holm": 0.6} for gap in found["gaps"]]
    text = make.page(found).partition(head)[2].partition("\n#")[0]
    assert "another drive, 13 of them" in text
    assert "| `kl` | **across** | +3.1 [+1.1, +3.1] (+0.4 [-1.0, +2.0], p 0.600) |" in text and "| `fidelity+keep` | **across** | +2.7 [" in text
    assert "| `kl` | a | +1.0 [–, +2.0] (+1.0 [–, +2.0]) |" in text and "| `kl` | the training segmenter |" in text and "| `fidelity` |" not in text


def test_seeds_are_paired_by_name(make):
    from awareness_figures import of_seeds
    from awareness_record import Found

    def of(name, seeds):
        return {"measure": "miou:a", "noise": "sigma 50", "contestant": name, "seeds": list(seeds.values()), "seed_names": list(seeds)}

    found = record()
    found["reported"]["frames"] = {"rows": [of("fidelity", {"0": 0.4, "2": 0.5}), of("kl", {"0": 0.42, "1": 0.9})]}
    assert of_seeds(Found(found), "kl", "a", "sigma 50") == pytest.approx([2.0])


def test_what_people_wrote_is_not_lost(make, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(record()))
    page = make.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "seeds.md")])
    page.write_text(page.read_text().replace(make.END, f"See ![this](images/awareness-gains.png).\n{make.END}"))
    assert "(images/awareness-gains.png)" in make.main([str(tmp_path / "results.json"), "--out", str(page)]).read_text(), "as it was written"
    kept = page.read_text().replace(make.END, "")
    page.write_text(kept)
    with pytest.raises(SystemExit, match="one is missing"):
        make.main([str(tmp_path / "results.json"), "--out", str(page)])
    assert page.read_text() == kept


def test_denoisers_that_were_not_trained_here(make):
    found = with_final(record())
    assert "Beside" not in make.page(found)
    found["beside"] = {"theirs": "DnCNN, blind", "kl": "for a moment"}
    assert "| 0.002 | – | 26 [10, 40]" in make.page(found), "one training, compared with several controls"
    found["beside"] = {"theirs": "DnCNN, blind"}
    found["gaps"][0] |= {"over:theirs": 0.013, "over:theirs_low": 0.006, "over:theirs_high": 0.02, "over:theirs_p": 0.001, "over:theirs_p_holm": 0.002}
    text = make.page(found)
    assert "### Beside `theirs`\n\nDnCNN, blind, not trained here." in text
    assert "| contestant | sigma 50 |\n|---|---|\n| `kl` | +1.3 [+0.6, +2.0], p 0.002 |\n\n" in text and "| `fidelity+keep` | – |" not in text


def test_what_labels_bring_stands_beside(make):
    found = with_final(record())
    found["contestants"]["liu-joint"] = {"group": "seed", "what": "labels", "labels": "true"}
    for which in ("frames", "photographs"):
        rows = found["reported"][which]["rows"]
        rows += [{**row, "contestant": "liu-joint"} for row in rows if row["contestant"] == "kl"]
    found["gaps"].append({**found["gaps"][0], "contestant": "liu-joint", "gain": 0.017})
    assert "Beside" not in make.page(found), "not tested"
    found["gaps"][0] |= {"over:liu-joint": 0.004, "over:liu-joint_low": -0.001, "over:liu-joint_high": 0.009, "over:liu-joint_p_holm": 0.2}
    text = make.page(found)
    assert "With labels (`liu-joint`): +1.7 [+1.1, +3.1]; `kl` over that: +0.4 [-0.1, +0.9]" in text
    assert "### Beside `liu-joint`\n\nTrained here with true labels." in text and "| `kl` | +0.4 [-0.1, +0.9], p 0.200 |" in text


def test_seeds_have_a_figure(make, tmp_path):
    found = with_final(record())
    found["gaps"][0]["by_judge"] = {"a": {"gain": 0.02, "gain_low": None, "gain_high": 0.03, "gap": 0.1}}
    (tmp_path / "results.json").write_text(json.dumps(found))
    text = make.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "seeds.md")]).read_text()
    assert "![Gain by judge and level](images/seeds-gains.png)" in text and (tmp_path / "images/seeds-gains.png").is_file()
    found["gaps"] = [{**gap, "seed_gains": gap["seed_gains"][:1]} for gap in found["gaps"]]
    assert "Gain by judge" not in make.page(found)


def test_lost_seeds_and_whom_the_choice_pleases_are_said(make):
    found = with_final(record())
    runs = found["final"]["runs"]
    assert "fewer than" not in make.page(found)
    runs += [{**runs[0], "contestant": "kl", "seed": seed} for seed in (0, 1)]
    runs[1]["keep_against"] = "fidelity"
    runs.append({"contestant": "kl", "factor": 9.0, "seed": 2, "steps": 20, "state": "stopped", "shares": {}, "error": "awareness dominates"})
    text = make.page(found)
    assert "fewer than the 3 seeds (stopped, or not there yet): `fidelity+keep` 2, `kl` 2." in text
    assert "final: `kl`, factor 9.00, seed 2: awareness dominates" in text and "screen: `kl`, factor 9.00, seed 0" in text
    assert "chosen by the same held-out judges that report here, on other frames" in text
    assert "below the control of the same seed" in text
    assert "| `kl` | 0 | sigma 50: 0.04 |" in text and "| `kl` | 1 | sigma 50: 0.04 (from itself) |" in text


def test_a_screen_of_two_seeds(make):
    found = record()
    assert "## The screen: held-out data, one seed" in make.page(found)
    found["screen"]["runs"][2]["seed"] = 1
    assert "## The screen: held-out data, 2 seeds" in make.page(found)
    control, kl = found["screen"]["runs"][:2]
    found["screen"]["runs"] += [{**control, "seed": 1}, {**kl, "seed": 1, "shares": {"consistency": [0.5, 0.4]}, "held_out": figures("kl", 26.95, 0.44)}]
    assert "| +3.0 | +3.0 | 0.400 0.300 |" in make.page(found), "means over the seeds"


def test_other_comparisons_beside_it(make, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(record()))
    other = with_final(record())
    other["setting"]["start"] = "runs/better/model"
    (tmp_path / "other.json").write_text(json.dumps(other))
    arguments = [str(tmp_path / "results.json"), "--out", str(tmp_path / "awareness.md"), "--again"]
    text = make.main([*arguments, "from a better start", str(tmp_path / "other.json")]).read_text()
    assert "else as above" in text and "patch size" not in text
    other["setting"] |= {"patch_size": 64, "judge": ["x/a"]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    text = make.main([*arguments, "from a better start", str(tmp_path / "other.json")]).read_text()
    assert "judge a (above a, b), patch size 64 (above 96); else as above" in text
    assert "## Again: from a better start" in text and "Start: `better`; 20 steps, rate 0.0003; seed 0;" in text
    assert "| sigma 50 | `kl` | 0.40 | +2.1 [+1.1, +3.1] | 26 [10, 40] | +0.4 [-1.0, +2.0] | 40.0 | 40.0 |" in text
    assert "| sigma 50 | `fidelity+keep` |" in text and "`kl+keep`" not in text
    assert "Again" not in make.main([*arguments, "nothing yet", str(tmp_path / "results.json")]).read_text()
    with pytest.raises(SystemExit, match="none.json: cannot be read"):
        make.main([*arguments, "x", str(tmp_path / "none.json")])


def test_the_screen_of_another_folder(make, tmp_path):
    """The final of one JSON, the screen of another; another setting is refused, and nothing is written."""
    (tmp_path / "results.json").write_text(json.dumps(with_final(record())))
    other = record()
    other["screen"]["runs"][1]["held_out"] = figures("kl", 26.9, 0.45)
    other["screen"]["chosen"]["kl"] |= {"gain": 0.05, "cost": 0.1}
    other["skipped"] = {"pool-kl": "a pool of one is none"}
    (tmp_path / "screen.json").write_text(json.dumps(other))
    arguments = [str(tmp_path / "results.json"), "--out", str(tmp_path / "awareness.md"), "--screen", str(tmp_path / "screen.json")]
    text = make.main(arguments).read_text()
    assert "| `kl` | 3: +5.00 (-0.100) |" in text and "2.00 (-0.050)" not in text
    assert "closes 26 [10, 40] % of the gap" in text and "`pool-kl`: a pool of one" in text and "`dms`" not in text
    other["setting"]["patch_size"] = 64
    (tmp_path / "screen.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match=r"screen.json: another setting than the page's \(patch_size\)"):
        make.main(arguments)
    (tmp_path / "screen.json").write_text("{}")
    with pytest.raises(SystemExit, match="results.json, .*screen.json: no 'setting'"):
        make.main(arguments)
    assert (tmp_path / "awareness.md").read_text() == text


def test_nothing_yet(make):
    found = record()
    found["screen"], found["skipped"] = {"runs": [], "chosen": {}}, {}
    assert "Trained: nothing." in make.page(found)


def test_what_is_no_result(make, tmp_path):
    for content in ("{", '{"schema": 1}'):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(SystemExit, match="--collect"):
            make.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "awareness.md")])
    whole = gzip.compress(json.dumps(record()).encode())
    for content in (b"no archive", whole[:-20], whole[:20] + b"x" * 20 + whole[40:]):
        (tmp_path / "results.json.gz").write_bytes(content)
        with pytest.raises(SystemExit, match="cannot be read"):
            make.main([str(tmp_path / "results.json.gz"), "--out", str(tmp_path / "awareness.md")])
    (tmp_path / "results.json.gz").write_bytes(whole)
    assert "`kl`" in make.main([str(tmp_path / "results.json.gz"), "--out", str(tmp_path / "awareness.md")]).read_text()
    assert make.text(-0.0001) == "0.00" and make.text("inf") == "inf" and make.text(None) == "–"


@pytest.mark.parametrize("content", ["[]", "null", '{"setting": {}, "screen": null, "final": {"runs": []}}'])
def test_json_of_another_shape(make, tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit, match=r"results.json: (not the results of a comparison|no '.*' in it)"):
        make.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "page.md")])
    assert not (tmp_path / "page.md").exists()


def test_a_page_of_something_else_is_not_written_over(make, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(record()))
    (tmp_path / "losses.md").write_text("# Losses\n")
    with pytest.raises(SystemExit, match="losses.md: is there, and not a page of this script"):
        make.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "losses.md")])
    assert (tmp_path / "losses.md").read_text() == "# Losses\n" and not (tmp_path / "images").exists()


def test_a_figure_that_people_link_to_is_not_made_of_nothing(make, tmp_path):
    """The gains are of a final; there is none."""
    (tmp_path / "results.json").write_text(json.dumps(record()))
    page = tmp_path / "page.md"
    page.write_text(f"{make.BEGIN}\n![as it was](images/page-gains.png)\n{make.END}\n")
    make.main([str(tmp_path / "results.json"), "--out", str(page)])
    assert "![as it was](images/page-gains.png)" in page.read_text() and not (tmp_path / "images/page-gains.png").exists()


def test_judges_that_trained_are_told_of_everywhere(make):
    forced = with_final(record())
    forced["setting"]["force"] = True
    text = make.page(forced)
    assert "no denoiser and no held-out judge trained on" not in text and "that some judge may have trained on" in text
    assert "took part in training** (`--force`)" in make.page(with_final(record()), others=[("from elsewhere", forced)])


def test_an_older_screen_beside_a_final_with_who_came_since(make):
    new, old = with_final(record()), record()
    del old["contestants"]["kl"]
    assert "Best awareness without labels: `kl`" in make.page(make.screened(new, old, Path("old.json")))


def test_a_seed_without_its_control_is_left_out(make):
    both = record()
    both["screen"]["runs"].append({**both["screen"]["runs"][1], "seed": 1, "held_out": figures("kl", 20.0, 0.99)})
    text = make.page(both)
    assert "3: +2.00 (-0.050) |" in text, "of seed 0 alone"


#: Pages that tell the command they are written by.
WRITTEN = [page for page in sorted(DOCS.glob("awareness*.md")) if "`python docs/make_awareness.py " in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_a_page_is_what_its_figures_say(make, tmp_path, monkeypatch, page):
    monkeypatch.chdir(DOCS.parent)
    (command,) = re.findall("`python docs/make_awareness.py ([^`]+)`", page.read_text(encoding="utf-8"))
    shutil.copy(page, tmp_path)
    out = tmp_path / page.name
    assert make.main([str(out) if word == f"docs/{page.name}" else word for word in shlex.split(command)]) == out
    assert out.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_the_pages_with_figures_are_looked_at():
    assert {"awareness-seeds", "awareness-dncnn", "awareness-weights"} <= {page.stem for page in WRITTEN}
