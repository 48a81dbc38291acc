"""Write the learning curves of the shipped denoisers from the logs that their config.json keeps.

    python docs/make_curves.py            (extra "viz")

Held-out photographs of BSDS500, centre crops of 256 x 256: the level of these curves is not that of
CBSD68, their slope says what more steps would bring.
"""

from __future__ import annotations

import json
from pathlib import Path

from segaware.evaluation.figures import _pyplot, png

HERE = Path(__file__).parent
WEIGHTS = HERE.parent / "segaware" / "weights"
MODELS = ("dncnn-blind", "liu-blind", "ffdnet")
SIGMAS = ("15", "25", "50")


def course(name: str) -> list[dict]:
    """Rows of step and held-out PSNR, trainings one after the other: each began with what the one before left."""
    log = json.loads((WEIGHTS / name / "config.json").read_text(encoding="utf-8"))["log"]
    before = log.get("held_out_psnr_before", [])
    done = before[-1]["step"] if before else 0
    return [*before, *({**row, "step": done + row["step"]} for row in log["held_out_psnr"])]


def main() -> None:
    figure = _pyplot()(9, 3.2)
    for sigma, axes in zip(SIGMAS, figure.subplots(1, len(SIGMAS)), strict=True):
        for name in MODELS:
            rows = course(name)
            axes.plot([row["step"] for row in rows], [row[sigma] for row in rows], "o-", ms=3, lw=1.2, label=name)
        axes.set_title(f"sigma {sigma}", fontsize=9)
        axes.set_xlabel("steps", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.axes[0].set_ylabel("held-out PSNR, dB", fontsize=8)
    figure.axes[0].legend(fontsize=7, loc="lower right")
    (HERE / "images" / "learning-curves.png").write_bytes(png(figure))


if __name__ == "__main__":
    main()
