"""Several small processes that train together, started the way a launcher does it, without one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_together(n: int, script: Path, *arguments: object, seconds: float = 120) -> list[str]:
    """Run a script as `n` processes and return what each wrote to stdout and stderr; fails where one does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    workers = []
    for rank in range(n):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_PORT": port}
        environment = os.environ | {name: str(number) for name, number in numbers.items()}
        environment |= {"MASTER_ADDR": "localhost", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        command = [sys.executable, str(script), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        workers.append(subprocess.Popen(command, env=environment, **pipes))
    try:
        said = [worker.communicate(timeout=seconds)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * n, "\n".join(said)
    return said
