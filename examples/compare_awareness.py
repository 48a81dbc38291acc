"""Which awareness helps? All contestants from one start, with the same steps, data and noise, judged by strangers.

    python examples/compare_awareness.py --screen --out arena \\
        --photographs BSDS500/train --camvid CamVid --test-photographs CBSD68 \\
        --start dncnn-blind --segmenter fpn-camvid --judge JUDGE1 JUDGE2 JUDGE3 --imagenet squeezenet1_0.safetensors
    python examples/compare_awareness.py --final --out arena ...the same...
    ...the same, and --beside THEIRS=DnCNN:theirs.pth: denoisers that nobody trains here, on the same images
    python examples/compare_awareness.py --smoke --out smoke        in a minute or two, on generated data
    python examples/compare_awareness.py --list

--screen trains every contestant with one seed and three weights (its twin with an untrained segmenter with the middle
one), and measures it on held-out data (32 photographs, the frames of CamVid's drive 0006R0). --final trains the best,
longer and with three seeds, chooses how much noise is given back at each level, and measures on the test sets. Who and
with which weights is chosen when the screen is done, once for all processes: OUT/chosen.json (to choose anew, delete it
while OUT/final holds no result). A weight gives the awareness terms --share of fidelity's gradient at the denoised
image at the start, times each of --factor. Run the same command in as many processes as there are cores
(OMP_NUM_THREADS=1): they share the work. Killed ones go on where they were; what is finished is not repeated, nor, with
--known, what was done on another machine: for the final keep packed.json.xz of each folder, some 100 kB.
Everything is in OUT/results.json; docs/make_awareness.py makes a page of it. Needs the extras train, eval and viz.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from arena.entrants import TWIN, Skip, entrant, every, group, resolve
from arena.judging import beside, chosen_on, figures, held_out, known_beside, test
from arena.known import differences, take_over
from arena.packed import PACKED, pack_finished, unpack
from arena.runs import Run, at_work, busy, claim, claimed, finish, train
from arena.setting import FOLDER_NAME, TEST_SIGMAS, TRAINS_ON, Setting, read_json, write_json
from arena.tuning import instead
from arena.verdict import alike, best_keep, carried, choose, collect, mean_of, one_factor, plain, runs_of

from segaware.errors import EvaluationError, SegawareError, TrainingError
from segaware.evaluation.contestants import Contestant, open_contestant
from segaware.evaluation.report import read_report
from segaware.training.precision import precision_here

FACTORS = (3.0, 10.0, 30.0)  # upwards from the share: with a tenth of fidelity's gradient nobody was seen to pay anything


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--screen", action="store_true", help="one seed, all weights")
    what.add_argument("--final", action="store_true", help="the best, three seeds, and the test sets")
    what.add_argument("--instead", action="store_true", help="train the segmenter itself further, on noisy and on denoised frames")
    what.add_argument("--collect", action="store_true", help="write results.json anew from what is there")
    what.add_argument("--smoke", action="store_true", help="all of it, tiny, on generated data")
    what.add_argument("--list", action="store_true", help="show the contestants")
    p.add_argument("--out", type=Path, help="folder of this comparison")
    p.add_argument("--contestants", nargs="+", metavar="NAME", help="names, groups (control, seed, later), all; in the final: chosen")
    p.add_argument("--photographs", type=Path, help="folder of clean photographs to train on (32 are held out)")
    p.add_argument("--camvid", type=Path, help="labelled frames in SegNet's layout")
    p.add_argument("--test-photographs", type=Path, help="only reported")
    p.add_argument("--test-photographs-limit", type=int, metavar="N", help="the first N of them")
    p.add_argument("--start", default="dncnn-blind", help="fidelity-only denoiser to begin with: zoo name or folder")
    p.add_argument("--segmenter", nargs="+", default=["fpn-camvid"], help="that trains; further ones join the judge pools")
    p.add_argument("--judge", nargs="+", default=[], help="held-out segmenters, best three or more of different families")
    p.add_argument("--beside", nargs="+", default=[], metavar="NAME=SPEC", help="in the final: other denoisers, as segaware evaluate -m takes them")
    p.add_argument("--known", type=Path, nargs="+", default=[], metavar="FILE", help=f"of this comparison elsewhere, so that it is not trained again: in the screen results.json (or .json.gz), in the final {PACKED} of each training")
    p.add_argument("--imagenet", type=Path, help="SqueezeNet 1.0 weights (safetensors, torchvision's names)")
    p.add_argument("--force", action="store_true", help="allow a judge that took part in training")
    p.add_argument("--steps", type=int, help="of each training [1000; final 4000]")
    p.add_argument("--seeds", nargs="+", type=int, help="[0; final 0 1 2]")
    p.add_argument("--share", type=float, default=0.1, help="of fidelity's gradient that factor 1 gives to awareness")
    p.add_argument("--factor", nargs="+", type=float, help="of that weight [3 10 30]; in the final one for all who have a choice [as the screen chose, else 1]")
    p.add_argument("--carry", type=int, default=5, help="contestants without labels that go to the final")
    p.add_argument("--batch-size", type=int, default=4)
    p.add_argument("--patch-size", type=int, default=96)
    p.add_argument("--optimizer", default="muon")
    p.add_argument("--learning-rate", type=float, default=3e-4)
    p.add_argument("--precision", default="auto", help="of training")
    p.add_argument("--validation-crop", type=int, default=256)
    p.add_argument("--probes", type=int, default=4, help="of each cached sensitivity map")
    p.add_argument("--choose-sigma", nargs="+", type=float, default=[25.0, 50.0], help="levels that choices are made at")
    p.add_argument("--keep-share", nargs="+", type=float, default=[0.02, 0.04, 0.07, 0.1], help="give-back to choose from")
    p.add_argument("--held-every", type=int, default=4, help="every so many frames of the held-out drive")
    p.add_argument("--test-every", type=int, default=4, help="every so many test frames (neighbours are alike)")
    p.add_argument("--segmenter-steps", type=int, default=600)
    p.add_argument("--segmenter-batch", type=int, default=4)
    p.add_argument("--segmenter-crop", type=int, default=224)
    p.add_argument("--segmenter-rate", type=float, default=3e-4)
    p.add_argument("--progress", action="store_true", help="show a bar of each training")
    args = p.parse_args(argv)
    if not args.list and args.out is None:
        p.error("--out is needed: the folder of this comparison")
    if args.screen or args.final or args.instead:
        for name in ("photographs", "camvid", "test_photographs"):
            if getattr(args, name) is None:
                p.error(f"--{name.replace('_', '-')} is needed (or --smoke)")
        if not args.judge:
            p.error("--judge is needed: segmenters that take no part in training")
    for name in ("held_every", "test_every", "batch_size", "patch_size", "segmenter_steps", "segmenter_batch", "segmenter_crop"):
        if getattr(args, name) < 1:
            p.error(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1")
    for name in ("steps", "test_photographs_limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            p.error(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1")
    shares = [f"{share:g}" for share in args.keep_share]
    if not all(0 < share < 1 for share in args.keep_share) or len({*shares}) < len(shares):
        p.error(f"--keep-share {' '.join(shares)}: shares between 0 and 1, each once")
    for name in ("share", "probes", "carry", "segmenter_rate", *(["factor"] if args.factor else [])):
        for number in value if isinstance(value := getattr(args, name), list) else [value]:
            if not 0 < number < math.inf:
                p.error(f"--{name.replace('_', '-')} {number:g}: a positive number")
    if args.final and args.factor and len(args.factor) > 1:
        p.error("--final takes one --factor: the seeds of a contestant are pooled")
    if args.known and not (args.screen or args.final):
        p.error("--known goes with --screen or --final")
    if args.beside and not args.final:
        p.error("--beside goes with --final: it reports, nothing is chosen by it")
    return args


def main(argv=None):
    args = parse(argv)
    if args.list:
        for name in every():
            labels = ", true labels" if entrant(name).labels == "true" else ""
            print(f"{group(name):8} {name:24} {entrant(name).what}{', untrained segmenter' if '@' in name else ''}{labels}")
        return None
    if args.smoke:
        return smoke(args)
    if args.collect:
        return save(args.out, recorded(args.out))
    phase = "final" if args.final else "screen"
    args.steps = args.steps or (4000 if args.final else 1000)
    setting = Setting(args)
    setting.check()  # all of it before the folder is bound to it
    setting.check_files()
    others = opened(args.beside)
    for spec, denoiser in others:
        known_beside(args.out, denoiser, spec)
    same_comparison(setting)
    here = precision_here(args.precision, torch.device(TRAINS_ON))
    planned = {"steps": args.steps, "precision": here, "device": TRAINS_ON}
    for file in args.known:
        print(f"{file}: taken over {', '.join(taken(setting, file, planned)) or 'nothing that is not here'}", flush=True)
    for spec, denoiser in others:  # again, for one may have been taken over
        known_beside(args.out, denoiser, spec)
    if args.instead:
        instead(setting, control_of(args.out))
    else:
        runs = jobs(setting, phase)
        alike(args.out / phase, runs_of(args.out, phase), **planned)
        for number in {entrant(run.name).labelled for run in runs} - {None}:
            setting.check_classes(number)  # refused now, not after hours
        with at_work(args.out / phase):
            work(setting, runs)
        measure(setting, others)
    return save(args.out, setting.record())


def recorded(out: Path) -> dict:
    """The setting of a comparison's folder; older ones do not tell it.

    Raises:
        EvaluationError: no such folder.
    """
    if (out / "setting.json").is_file():
        return read_json(out / "setting.json")
    if not any(out.glob("*/*/result.json")):
        raise EvaluationError(f"{out}: holds no comparison, neither a setting.json nor a result; give --out the folder of one")
    return {}


def taken(setting, file: Path, planned: dict) -> list[str]:
    """What ``file``, kept elsewhere, adds to this comparison's folder."""
    if file.resolve() == (setting.out / "results.json").resolve():
        raise EvaluationError(f"--known {file}: is written anew here, and what of it is not taken over would be lost; copy it to another place first")
    if setting.args.screen:
        return take_over(setting, file, **planned)
    folder = unpack(file, setting.out, setting.record(), **planned)
    return [folder.name] if folder else []


def opened(named: list[str]) -> list[tuple[str, Contestant]]:
    """SPEC and denoiser of each ``NAME=SPEC``.

    Raises:
        EvaluationError: no name, one with two meanings, or no such denoiser.
    """
    found: list[tuple[str, Contestant]] = []
    for text in named:
        name, _, spec = text.partition("=")
        if not FOLDER_NAME.fullmatch(name) or not spec:
            raise EvaluationError(f"--beside {text}: give NAME=SPEC; the name becomes that of a folder (letters, digits, . _ -)")
        if name in ("noisy", "clean", *every()) or name in [other.name for _, other in found]:
            raise EvaluationError(f"--beside {text}: there is a {name} already; give it another name")
        found.append((spec, open_contestant(text)))
    return found


def measure(setting, others: list[tuple[str, Contestant]]) -> None:
    """Those that nobody trains here, on the reported sets, unless another process is at it."""
    for spec, denoiser in others:
        with claim(setting.out / "beside" / denoiser.name) as mine:
            if mine:
                beside(setting, denoiser, spec)
                pack_finished(setting.out, setting.record())


def control_of(out: Path) -> Path:
    """The folder of a finished control, of the final if there is one."""
    for phase in ("final", "screen"):
        for run in runs_of(out, phase):
            folder = out / phase / run["folder"]
            if run["contestant"] == "fidelity" and (folder / "model").is_dir():  # one taken over has none
                return folder
    raise TrainingError(f"{out}: no control that was trained here; run --screen or --final first, without --known")


def jobs(setting, phase: str) -> list[Run]:
    """All trainings of a phase, the control first, then the middle weight of all contestants, then the others.

    Raises:
        TrainingError: a final without screen, or while one is at work.
        EvaluationError: the final holds a contestant with another weight.
    """
    args = setting.args
    if phase == "screen":
        names = resolve(args.contestants or ["all"])
        seeds, factors = args.seeds or [0], sorted(args.factor or FACTORS)
        middle = factors[(len(factors) - 1) // 2]
        order = sorted(factors, key=lambda factor: factor != middle)
        runs = [
            Run("screen", name, factor if entrant(name).swept else 1.0, seed)
            for factor in order for seed in seeds for name in names if swept(name) or factor == middle
        ]  # fmt: skip
        for run in runs:  # so that a final begun too early can tell who is missing
            run.folder(args.out).mkdir(parents=True, exist_ok=True)
        return runs
    choice = chosen(args.out) if args.contestants else freeze(args.out, args.carry)
    names = resolve(args.contestants) if args.contestants else choice["contestants"]
    seeds = args.seeds or [0, 1, 2]

    def factor(name: str) -> float:
        if args.factor:
            return args.factor[0] if entrant(name).swept else 1.0
        best = choice["factors"].get(name.removesuffix(TWIN), 1.0)
        return begun(args.out, name, best)

    factors = {name: factor(name) for name in names}
    runs = [Run("final", name, factors[name], seed) for seed in seeds for name in names]
    planned = [{"contestant": run.name, "factor": run.factor, "folder": run.folder(args.out).name} for run in runs]
    one_factor(args.out / "final", runs_of(args.out, "final") + planned)  # now, not after hours
    return runs


def begun(out: Path, name: str, best: float) -> float:
    """The weight that this final has results with, or is at work with, also if the screen has found a better one (``best``) since."""
    known = {f"{run['factor']:.3g}": run["factor"] for phase in ("screen", "final") for run in runs_of(out, phase)}  # names of folders are rounded
    done = {f"{run['factor']:.3g}" for run in runs_of(out, "final") if run["contestant"] == name}
    texts = done or {_factor_of(folder) for folder in (out / "final").glob(f"{name}-x*-s*") if claimed(folder)}
    if not texts or f"{best:.3g}" in texts:
        return best
    text = min(texts, key=float)
    print(f"{out / 'final'}: {name} goes on with the weight it began with, x{text}, not x{best:.3g}", flush=True)
    return known.get(text, float(text))


def _factor_of(folder: Path) -> str:
    return folder.name.rpartition("-s")[0].rpartition("-x")[2]


def swept(name: str) -> bool:
    """Whether its weight is chosen. A twin shows what the training of the segmenter brings, at one weight of both."""
    return entrant(name).swept and not name.endswith(TWIN)


def chosen(out: Path, carry: int = 0) -> dict:
    """The frozen choice, else what the screen says so far: ``{"contestants": names, "factors": {name: factor}}``."""
    file = out / "chosen.json"
    if file.is_file():
        return read_json(file)
    best = choose(runs_of(out, "screen"))
    return {"contestants": carried(best, carry), "factors": {name: found["factor"] for name, found in best.items()}}


def freeze(out: Path, carry: int) -> dict:
    """The choice of the final, made by the first process and read by all others, from a screen that nobody works on."""
    file = out / "chosen.json"
    while not file.is_file():
        with claim(out) as mine:
            if mine and not file.is_file():
                if others := busy(out / "screen"):
                    raise TrainingError(f"{out}: the screen is still at work ({', '.join(others)}); wait for it, or name --contestants")
                folders = sorted(folder for folder in (out / "screen").glob("*-x*-s*") if folder.is_dir())
                skipped = {file.stem for file in (out / "skipped").glob("*.json")}
                idle = [f.name for f in folders if not (f / "result.json").is_file() and f.name.rpartition("-x")[0] not in skipped]
                if idle:
                    print(f"{out / 'screen'}: without a result, left out of the choice: {', '.join(idle)}", flush=True)
                choice = chosen(out, carry)
                if not choice["factors"]:
                    raise TrainingError(f"{out}: no screen to choose from; run --screen first, or name --contestants")
                write_json(file, choice)
        time.sleep(0.1)  # if not mine, another process is at it
    choice = chosen(out)
    told = ", ".join(f"{name} x{choice['factors'][name]:.3g}" for name in choice["contestants"])
    print(f"{file}: {told}; to choose anew, delete it while final/ holds no result", flush=True)
    return choice


def work(setting, runs: list[Run]) -> None:
    """Do what is neither finished nor claimed by another process."""
    args, skipped = setting.args, {}
    for run in runs:
        known = run.result(args.out)
        if known is not None and known["steps"] != args.steps:
            raise TrainingError(
                f"{run.folder(args.out)}: was trained for {known['steps']} steps, not {args.steps}; give --steps {known['steps']}, or another --out"
            )
        if known is not None or run.name in skipped:
            continue
        folder = run.folder(args.out)
        with claim(folder) as mine:
            if not mine or run.result(args.out) is not None:
                continue
            try:
                result = train(setting, run)
            except Skip as reason:
                skipped[run.name] = str(reason)
                print(f"{run.name}: left out, {reason}", flush=True)
                write_json(args.out / "skipped" / f"{run.name}.json", {run.name: str(reason)})
                continue
            if result["state"] == "trained":
                start = time.monotonic()
                shares = tuple(args.keep_share) if run.phase == "final" or run.name == "fidelity" else ()
                result["held_out"] = plain(figures(held_out(setting, run.name, folder, shares)))
                if shares:
                    result |= keep_of(args.out, run, result["held_out"])
                if run.phase == "final":
                    chosen_on(folder, run.name, result["keep"])
                    test(setting, run.name, folder, _for_all_levels(result["keep"]))
                result["judging_minutes"] = round((time.monotonic() - start) / 60, 2)
            finish(setting, run, result)
            pack_finished(setting.out, setting.record())
        tell(run, result)
        if run.phase == "screen":
            save(args.out, setting.record(), quiet=True)


def keep_of(out: Path, run: Run, held: list[dict]) -> dict:
    """The share given back by level, and against whom it was chosen: once, for after a kill some sets are measured with it already."""
    file = run.folder(out) / "keep.json"
    if not file.is_file():
        control = None if run.name == "fidelity" else control_figures(out, run)
        write_json(file, {"keep": best_keep(held, run.name, control), "keep_against": "fidelity" if control else run.name})
    return read_json(file)


def control_figures(out: Path, run: Run) -> list[dict] | None:
    """The held-out figures of the control of the same seed, waited for while another process is at it; None without one."""
    done = [r["held_out"] for r in runs_of(out, run.phase) if (r["contestant"], r["seed"]) == ("fidelity", run.seed) and "held_out" in r]
    if done:
        return done[0]
    folder = Run(run.phase, "fidelity", 1.0, run.seed).folder(out)
    if not folder.is_dir():
        return None
    while not (folder / "held-out" / "report.json").is_file() and claimed(folder):
        time.sleep(1.0)
    return plain(figures(read_report(folder / "held-out"))) if (folder / "held-out" / "report.json").is_file() else None


def _for_all_levels(keep: dict[str, float]) -> dict[str, float]:
    """Shares for the levels of the test, from those of the levels chosen at (the nearest one's)."""
    known = {float(noise.split()[1]): share for noise, share in keep.items()}
    return {f"sigma {s:g}": known[min(known, key=lambda k: abs(k - s))] for s in TEST_SIGMAS} if known else {}


def tell(run: Run, result: dict) -> None:
    head = f"{time.strftime('%H:%M')} {run.phase} {run.name} x{run.factor:.3g} s{run.seed}: "
    if result["state"] != "trained":
        print(head + result["error"], flush=True)
        return
    shares = ", ".join(f"{name} {' '.join(f'{v:.3f}' for v in values)}" for name, values in result["shares"].items())
    print(
        head + f"PSNR {mean_of(result['held_out'], run.name, 'psnr'):.2f} dB, mIoU {100 * mean_of(result['held_out'], run.name, 'miou:'):.2f};"
        f" gradient shares {shares or '-'}; {result['minutes']:.1f} + {result['judging_minutes']:.1f} min",
        flush=True,
    )


def same_comparison(setting) -> None:
    """One folder, one comparison: others are refused, with the difference."""
    file, now = setting.out / "setting.json", setting.record()
    if file.is_file():
        then = read_json(file)
        changed = differences(then, now)
        if changed:
            raise EvaluationError(f"{setting.out}: holds another comparison ({'; '.join(changed)}); give the same, or another --out")
        now = then | now  # what an older folder does not say holds from now on
        if now == then:
            return
    write_json(file, now)


def save(out: Path, record: dict, quiet: bool = False) -> dict:
    found = collect(out, record)
    write_json(out / "results.json", found)
    if record:
        pack_finished(out, record)
    if not quiet:
        print(f"{out / 'results.json'}: {len(found['screen']['runs'])} screened, {len(found['final']['runs'])} in the final", flush=True)
    return found


def smoke(args) -> dict:
    """Screen, final and segmenters on generated data; --contestants and --steps may be given."""
    from arena.smoke import prepare

    for key, value in prepare(args.out).items():
        setattr(args, key, value)
    setting = Setting(args)
    same_comparison(setting)
    args.contestants = args.contestants or ["fidelity", "released-detached", "entropy", "ssaid", "kl", "kl@random", "jacobian"]
    args.steps = args.steps or 4
    args.factor = [1.0, 3.0]
    work(setting, jobs(setting, "screen"))
    args.contestants, args.carry, args.seeds, args.factor = None, 1, [0, 1], None
    final = jobs(setting, "final")
    work(setting, final)
    measure(setting, opened(args.beside))
    instead(setting, final[0].folder(args.out))
    return save(args.out, setting.record())


if __name__ == "__main__":
    try:
        main()
    except SegawareError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or 'a file'}: {error.strerror or error}; check the disk and its permissions, the same command goes on")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")
