"""Write the curve that liu-blind's table of shares was read from: what each judge gains by the share given back.

    python docs/make_keep_curve.py        (extra "viz")

The figures, of 13 held-out frames, are in docs/data/liu-blind-keep.json; the model's config.json says how they were measured.
"""

from __future__ import annotations

import json
from pathlib import Path

from segaware.evaluation.figures import _pyplot, png

HERE = Path(__file__).parent
CONFIG = HERE.parent / "segaware" / "weights" / "liu-blind" / "config.json"


def curves(figures: list[dict]) -> dict[str, dict[str, dict[float, float]]]:
    """{judge, "across the judges" or "PSNR, dB": {noise: {share: gain over nothing given back}}}, in points and dB."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    for f in figures:
        name = f["measure"].partition(":")[2] or "PSNR, dB"
        found.setdefault(name, {}).setdefault(f["noise"], {})[f["share"]] = f["value"] * (1 if f["measure"] == "psnr" else 100)
    judges = [name for name in found if name != "PSNR, dB"]
    first = found[judges[0]]
    found["across the judges"] = {noise: {share: sum(found[j][noise][share] for j in judges) / len(judges) for share in by} for noise, by in first.items()}
    return {name: {noise: {s: v - by[0.0] for s, v in by.items()} for noise, by in levels.items()} for name, levels in found.items()}


def main() -> None:
    found = curves(json.loads((HERE / "data" / "liu-blind-keep.json").read_text(encoding="utf-8"))["figures"])
    table = json.loads(CONFIG.read_text(encoding="utf-8"))["keep"]
    judges = sorted(found.keys() - {"across the judges", "PSNR, dB"})
    figure = _pyplot()(13, 3.2)
    for axes, name in zip(figure.subplots(1, len(found)), (*judges, "across the judges", "PSNR, dB"), strict=True):
        axes.axhline(0, color="#999999", lw=0.8)
        for colour, (noise, by) in enumerate(found[name].items()):
            axes.plot([100 * share for share in sorted(by)], [by[share] for share in sorted(by)], "o-", ms=3, lw=1.2, color=f"C{colour}", label=noise)
            share = table[noise.removeprefix("sigma ")]
            if not name.startswith("PSNR"):
                axes.plot([100 * share], [by[share]], "o", ms=8, mfc="none", color=f"C{colour}")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("given back, %", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.axes[0].set_ylabel("gain of mIoU in points (right: of PSNR)", fontsize=8)
    figure.axes[0].legend(fontsize=7)
    (HERE / "images" / "liu-blind-keep.png").write_bytes(png(figure))


if __name__ == "__main__":
    main()
