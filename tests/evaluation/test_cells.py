import subprocess
import sys

import pytest

from segaware.errors import EvaluationError
from segaware.evaluation.cells import Cells
from segaware.evaluation.spread import _bring_together


def test_what_was_put_is_there_in_another_run(tmp_path):
    with Cells(tmp_path) as cells:
        cells.put("a", {"psnr": 30.5})
        cells.put("b", {"psnr": 1.0})
        cells.put("a", {"ssim": 0.5, "psnr": 31.0})
        assert cells.get("a") == {"psnr": 31.0, "ssim": 0.5} and cells.get("c") == {}
    with Cells(tmp_path) as cells:
        assert cells.get("a") == {"psnr": 31.0, "ssim": 0.5} and cells.get("b") == {"psnr": 1.0}


def test_a_line_cut_short_is_dropped_and_the_rest_stays(tmp_path):
    with Cells(tmp_path) as cells:
        cells.put("a", {"psnr": 1.0})
    file = tmp_path / "cells.jsonl"
    file.write_bytes(file.read_bytes() + b'{"key":"b","results":{"psnr":2')
    with Cells(tmp_path) as cells:
        assert cells.get("a") == {"psnr": 1.0} and cells.get("b") == {}
        cells.put("b", {"psnr": 3.0})
    with Cells(tmp_path) as cells:
        assert cells.get("b") == {"psnr": 3.0} and cells.get("a") == {"psnr": 1.0}


def test_a_damaged_line_costs_that_cell_alone(tmp_path):
    (tmp_path / "cells.jsonl").write_bytes(b'{"key":"a","results":{}}\n\x00\x00\n{"key":"b","results":{"psnr":2}}\n')
    with Cells(tmp_path) as cells:
        assert cells.get("b") == {"psnr": 2}


def test_two_runs_in_one_folder(tmp_path):
    with Cells(tmp_path):
        with pytest.raises(EvaluationError, match="another run is writing"):
            Cells(tmp_path)
    with Cells(tmp_path):  # let go at the end
        pass


def test_the_lock_ends_with_the_process(tmp_path):
    script = f"import os; from segaware.evaluation.cells import Cells; c = Cells({str(tmp_path)!r}); c.put('a', {{}}); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    with Cells(tmp_path) as cells:
        assert "a" in cells._places


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot be written"):
        Cells(tmp_path / "file" / "x")


def test_without_a_folder_nothing_is_kept():
    with Cells(None) as cells:
        cells.put("a", {"psnr": 1.0})
        assert cells.get("a") == {}


def test_cells_of_other_files(tmp_path):
    """Those of a finished run are known and left alone; those of other processes are brought together."""
    with Cells(tmp_path / "main") as cells:
        cells.put("a", {"psnr": 1.0})
    before = (tmp_path / "main" / "cells.jsonl").read_bytes()
    with Cells(tmp_path / "part", tmp_path / "main" / "cells.jsonl") as cells:
        assert cells.get("a") == {"psnr": 1.0}
        cells.put("a", {"ssim": 2.0})
        cells.put("b", {"psnr": 3.0})
        assert cells.get("a") == {"psnr": 1.0, "ssim": 2.0}
    part = tmp_path / "part" / "cells.jsonl"
    with open(part, "ab") as file:
        file.write(b'{"key":"c","resu')
    assert (tmp_path / "main" / "cells.jsonl").read_bytes() == before
    for _ in range(2):  # a second time adds nothing
        with Cells(tmp_path / "main") as cells:
            cells.absorb(part)
            assert [cells.get(key) for key in "abc"] == [{"psnr": 1.0, "ssim": 2.0}, {"psnr": 3.0}, {}]
    assert len((tmp_path / "main" / "cells.jsonl").read_bytes().splitlines()) == 3
    with Cells(tmp_path / "new", tmp_path / "none") as cells:
        assert cells.get("a") == {}


def test_a_full_disk_is_told_and_the_folder_let_go_of(tmp_path):
    class Full:
        name = "cells.jsonl"

        def seek(self, *_):
            return 0

        def write(self, _):
            pass

        def flush(self):
            raise OSError(28, "No space left on device")

        close = flush  # what could not be flushed is tried again

    with pytest.raises(EvaluationError, match="No space left on device.*free space"), Cells(tmp_path) as cells:
        cells._file.close()
        cells._file = Full()
        cells.put("k", {"psnr": 1.0})
    Cells(tmp_path).close()


def test_the_parts_of_a_launch_at_work_are_left_alone(tmp_path):
    with Cells(tmp_path / ".ranks/0") as live:
        live.put("k", {"psnr": 1.0})
        with pytest.raises(EvaluationError, match="another run"):
            _bring_together(tmp_path)
        assert (tmp_path / ".ranks/0/cells.jsonl").is_file()
    _bring_together(tmp_path)
    with Cells(tmp_path) as cells:
        assert cells.get("k") == {"psnr": 1.0} and not (tmp_path / ".ranks").exists()


def test_one_process_goes_on_with_a_launch_of_several(folder, tmp_path):
    from segaware.evaluation.contestants import Function
    from segaware.evaluation.protocol import Protocol
    from segaware.evaluation.runner import evaluate
    from segaware.evaluation.sources import open_source
    from segaware.evaluation.spread import evaluate_spread
    from segaware.inference.ranks import Ranks

    asked = []

    def half(noisy, sigma):
        asked.append(1)
        return noisy / 2

    source, protocol = open_source(folder), Protocol(metrics=("psnr",))
    evaluate(source, [Function("half", half)], protocol, out=tmp_path / "out/.ranks/1")
    first = len(asked)
    assert evaluate_spread(source, [Function("half", half)], protocol, ranks=Ranks(0, 1, 0), out=tmp_path / "out") is not None
    assert first == len(source) == len(asked) and not (tmp_path / "out/.ranks").exists()
