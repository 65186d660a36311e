"""Work for the tests of executors: each payload does something else. Imports little, as workers import it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness.jobs import Context, Job, Stopped


def work(job: Job, context: Context) -> dict[str, Any]:
    match job.payload:
        case "":
            return {"pid": os.getpid()}
        case "progress":
            context.report({"at": job.key})
        case "raise":
            raise RuntimeError("no such luck")
        case "exit":
            sys.exit(3)
        case "hard exit":
            os._exit(3)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "own process":
            child = multiprocessing.get_context("spawn").Process(target=os.getpid)
            child.start()
            child.join()
            return {"exit code": child.exitcode}
        case "lambda":
            return {"f": lambda: None}
        case "seen gpus":
            return {"pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
        case "print and die":
            for i in range(30):
                print(f"line {i}")
            os.write(2, b"said by compiled code\n")
            subprocess.run([sys.executable, "-c", "print('said by a child')"], check=True)
            os.kill(os.getpid(), signal.SIGKILL)
        case ("print", text):
            print(text)
            raise RuntimeError("after printing")
        case ("sleep", seconds):
            context.report({"pid": os.getpid()})
            time.sleep(seconds)
        case ("sleep beside a child", seconds):
            sleeper = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
            context.report({"pid": os.getpid(), "child": sleeper.pid})
            time.sleep(seconds)
        case ("fork and die", seconds):
            if (child_pid := os.fork()) == 0:
                time.sleep(seconds)
                os._exit(0)
            context.report({"child": child_pid})
            os.kill(os.getpid(), signal.SIGKILL)
        case ("until stopped", seconds):
            context.report({"pid": os.getpid()})
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if context.stopping():
                    raise Stopped("put away at half")
                time.sleep(0.01)
        case ("hold", n_bytes):
            held = bytearray(os.urandom(1)) * n_bytes
            time.sleep(20)
            return {"held": len(held)}
        case ("lost until", path, times):
            file = Path(path)
            before = len(file.read_text()) if file.exists() else 0
            file.write_text("x" * (before + 1))
            if before < times:
                os.kill(os.getpid(), signal.SIGKILL)
        case ("raises until", path, times):
            file = Path(path)
            before = len(file.read_text()) if file.exists() else 0
            file.write_text("x" * (before + 1))
            if before < times:
                raise OSError("not yet")
        case unknown:
            raise AssertionError(unknown)
    return {}
