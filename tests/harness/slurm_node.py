"""A real SLURM on this one machine, for tests: ``with slurm_node(folder): ...`` starts and stops it.

Needs Debian's slurm-wlm and munge, and root. Everything it writes is below the folder that it is given; as a script,
``python -m tests.harness.slurm_node DIR`` keeps it up until Ctrl-C.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.ports import free_port

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
START_SECONDS = 60.0

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=5
MinJobAge=300
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""


def obstacle() -> str | None:
    """Return why SLURM cannot be started here, None if it can."""
    missing = [tool for tool in TOOLS if find(tool) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "starting SLURM's daemons needs root"


def find(tool: str) -> str | None:
    """Return the path of a tool; daemons are not on every user's path."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def slurm_node(folder: Path) -> Iterator[dict[str, str]]:
    """Start munge and SLURM below ``folder``; yields the environment variables that make its tools work."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    ports = {"controller_port": free_port(), "node_port": free_port()}
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder, cpus=os.cpu_count(), **ports))
    variables = {"SLURM_CONF": str(config)}
    environment = {**os.environ, **variables}
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        munge = [
            f"--{name}={folder}/munge.{name.split('-')[0]}"
            for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")
        ]
        daemons.append(
            _start([find("munged"), "--foreground", "--force", *munge], folder / "munged.out", environment)
        )
        _wait(lambda: (folder / "munge.socket").exists(), folder)
        for daemon in ("slurmctld", "slurmd"):
            daemons.append(_start([find(daemon), "-D"], folder / f"{daemon}.out", environment))
        _wait(lambda: _is_idle(environment), folder)
        yield variables
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait()


def _start(command: list[str | None], log: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        words = [word for word in command if word is not None]
        return subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment)


def _is_idle(environment: dict[str, str]) -> bool:
    done = subprocess.run(
        ["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, env=environment, check=False
    )
    return done.stdout.strip() == "idle"


def _wait(condition, folder: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > end:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))
            raise RuntimeError(f"SLURM did not start:\n{logs}")
        time.sleep(0.2)


if __name__ == "__main__":
    with slurm_node(Path(sys.argv[1])) as found:
        sys.stdout.write("".join(f"export {name}={value}\n" for name, value in found.items()))
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(10**9)
