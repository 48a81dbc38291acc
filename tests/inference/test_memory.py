import platform
import subprocess
import sys

import pytest

from segaware.inference import memory
from segaware.inference.memory import keep_pages


class Library:
    def __init__(self):
        self.calls = []

    def mallopt(self, what, value):
        self.calls.append((what, value))
        return 1

    def malloc_trim(self, pad):
        self.calls.append("trim")
        return 1


def test_set_once_and_undone_once(monkeypatch):
    library = Library()
    monkeypatch.setattr(memory, "_glibc", lambda: library)
    with keep_pages() as works:
        assert works and library.calls == [(-3, 1 << 30), (-1, 1 << 30)]
        with keep_pages():
            pass
        assert len(library.calls) == 2
    assert library.calls[2:] == [(-3, 32 << 20), (-1, 64 << 20), "trim"]


def test_undone_after_an_error(monkeypatch):
    library = Library()
    monkeypatch.setattr(memory, "_glibc", lambda: library)
    with pytest.raises(ZeroDivisionError), keep_pages():
        raise ZeroDivisionError
    assert library.calls[-1] == "trim"


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with keep_pages() as works:
        assert not works


def test_the_user_s_own_settings_win(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    assert memory._glibc.__wrapped__() is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_page_faults_go_away():
    """Eight blocks of 64 MiB, one after the other: 16,384 pages each, unless they are kept."""
    code = """if True:
        import resource, torch
        from segaware.inference.memory import keep_pages
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(8):
                torch.ones(16 << 20)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        with keep_pages():
            faults()  # the heap grows to what it needs
            kept = faults()
        print(faults(), kept)
    """
    plain, kept = map(
        int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert kept < plain / 4
