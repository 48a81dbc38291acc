"""How much memory a process has held at most, for code that tests run in a process of its own."""

#: Defines ``peak()``, in KiB. On Linux not ``ru_maxrss``: that begins with the peak of the parent.
DEFINE_PEAK = """
import resource, sys
def peak():
    if sys.platform == "linux":
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
"""
