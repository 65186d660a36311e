"""Shared by every test: offline, one thread, small and deterministic hypothesis."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests say what a CPU does, also where there is a GPU
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in a shell's background; the tests send Ctrl-C, and it counts
    signal.signal(signal.SIGINT, signal.default_int_handler)
