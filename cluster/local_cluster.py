"""A Ray cluster of several nodes on this one machine, for trying jobs and for tests.

    python cluster/local_cluster.py start --nodes 2
    source .cluster/env.sh
    ray job submit -- python jobs/label_corpus.py --model ... --corpus ... --labels ...
    python cluster/local_cluster.py stop

Every node is a `ray start --block` process that leads a session of its own, so that its children can be found and
ended whatever became of the node itself; other Rays on the machine are left alone, which `ray stop` would not do.
Jobs run in the directory where the cluster was started, with the Python that started it.

Ray's ports listen on every interface of the machine, whatever address a node is given. Authentication is therefore
always on, with a token that only the cluster's directory holds. Linux only (processes are looked up in /proc).
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from mtop_batch.errors import MtopError

STATE_FILE = "cluster.json"
TOKEN_FILE = "auth_token"
ENVIRONMENT_FILE = "env.sh"
OBJECT_STORE_BYTES = 2**30
"""Object store of each node. Ray's default, 30 % of the machine, is meant for one node per machine."""

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


class ClusterError(MtopError):
    """A cluster that cannot be started, or is not there; nothing is left running."""

    exit_code = 1


class Process(NamedTuple):
    """A process; its start time distinguishes it from a later one with the same id."""

    pid: int
    start_ticks: int
    """Clock ticks after boot."""


@dataclass(frozen=True)
class LocalCluster:
    """A cluster on this machine, as its state file describes it."""

    directory: Path
    gcs_port: int
    dashboard_port: int
    temp_dir: str
    """Ray's own files. Under /tmp, because a socket's path may have 107 bytes at most."""
    nodes: tuple[Process, ...]
    """The `ray start --block` of each node, which leads the session of all its processes; the first is the head."""

    @property
    def address(self) -> str:
        """What `ray.init(address)` and RAY_ADDRESS take."""
        return f"127.0.0.1:{self.gcs_port}"

    @property
    def dashboard_url(self) -> str:
        """The dashboard and the job server."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which `ray job submit` and drivers reach this cluster and no other."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.directory / TOKEN_FILE),
        }

    def get(self, path: str) -> Any:
        """The JSON answer of the dashboard to a GET of `path`, such as `/api/jobs/`; raises OSError without one."""
        token = (self.directory / TOKEN_FILE).read_text()
        request = urllib.request.Request(self.dashboard_url + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def alive_nodes(self) -> set[str]:
        """Ids of the nodes that the cluster itself counts as alive, none while it does not answer.

        A node that has died counts until the cluster notices: half a minute, or longer on a busy machine.
        """
        try:
            summary = self.get("/nodes?view=summary")["data"]["summary"]
            self.get("/api/jobs/")
        except OSError:
            return set()
        raylets = [node["raylet"] for node in summary]
        return {raylet["nodeId"] for raylet in raylets if raylet.get("state") == "ALIVE"}

    def num_alive_nodes(self) -> int:
        """How many nodes the cluster itself counts as alive; 0 while it does not answer."""
        return len(self.alive_nodes())


def start_cluster(directory: Path, nodes: int = 2, cpus_per_node: int = 4, *, timeout_s: float = 180.0) -> LocalCluster:
    """Start a cluster and wait until all nodes have joined and the job server answers.

    GPUs of the machine belong to the first node. Logical CPUs need not exist: short tasks still run while actors
    hold every real core.

    Args:
        directory: Holds the state, the nodes' output, the token and `env.sh`; made if missing.
        nodes: Number of nodes, the head included.
        cpus_per_node: Logical CPUs of each node.
        timeout_s: How long to wait.

    Raises:
        ClusterError: A cluster already runs there, or this one did not come up; then everything it started has been
            ended, and the nodes' output is left in `directory`.
    """
    if nodes < 1 or cpus_per_node < 1:
        raise ClusterError(f"{nodes} nodes with {cpus_per_node} CPUs: both must be at least 1")
    directory = directory.resolve()
    previous = find_cluster(directory)
    if previous is not None and any(_is_alive(node) for node in previous.nodes):
        raise ClusterError(f"a cluster already runs in {directory}; stop it first, or choose another --dir")
    stop_cluster(directory)  # what a reboot may have left
    directory.mkdir(parents=True, exist_ok=True)
    _write_private(directory / TOKEN_FILE, secrets.token_hex(32))
    gcs_port, dashboard_port, client_port, *agent_ports = _free_ports(3 + nodes)
    temp_dir = tempfile.mkdtemp(prefix="mtop-", dir="/tmp")
    cluster = LocalCluster(directory, gcs_port, dashboard_port, temp_dir, nodes=())
    head = ["--head", f"--port={gcs_port}", f"--temp-dir={temp_dir}", f"--ray-client-server-port={client_port}"]
    head += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    deadline = time.monotonic() + timeout_s
    try:
        for index, agent_port in enumerate(agent_ports):
            cluster = _launch_node(cluster, cpus_per_node, agent_port, head if index == 0 else _worker_options(cluster))
            if index == 0:
                _wait(cluster, cluster.nodes, lambda: _accepts_connections(gcs_port), deadline)
        _wait(cluster, cluster.nodes, lambda: cluster.num_alive_nodes() >= nodes, deadline)
    except BaseException:
        stop_cluster(directory)
        raise
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in cluster.environment.items())
    # A token in the environment would win over the one in the file.
    (directory / ENVIRONMENT_FILE).write_text(f"unset RAY_AUTH_TOKEN\nexport {exports}\n")
    return cluster


def add_node(cluster: LocalCluster, cpus: int = 4, *, timeout_s: float = 60.0) -> LocalCluster:
    """Start one more node and wait until it has joined.

    Args:
        cluster: A running cluster.
        cpus: Logical CPUs of the node.
        timeout_s: How long to wait.

    Raises:
        ClusterError: The node ended, or did not join in time; it belongs to the cluster, which `stop_cluster` ends.
    """
    deadline = time.monotonic() + timeout_s
    earlier = cluster.alive_nodes()
    (agent_port,) = _free_ports(1)
    cluster = _launch_node(cluster, cpus, agent_port, _worker_options(cluster))
    _wait(cluster, cluster.nodes[-1:], lambda: bool(cluster.alive_nodes() - earlier), deadline)
    return cluster


def find_cluster(directory: Path) -> LocalCluster | None:
    """The cluster that was started in `directory`, running or not; None if it has been stopped."""
    try:
        state = json.loads((directory / STATE_FILE).read_text())
    except FileNotFoundError:
        return None
    nodes = tuple(Process(*node) for node in state.pop("nodes"))
    return LocalCluster(directory.resolve(), nodes=nodes, **state)


def stop_cluster(directory: Path, *, grace_s: float = 5.0) -> bool:
    """End every process of the cluster in `directory` and remove Ray's files; do nothing if there is none.

    Jobs that still run are ended with it. First SIGTERM to the nodes, which end their own processes; after `grace_s`
    SIGKILL to whatever is left. The nodes' output stays in `directory`.

    Returns:
        Whether a process was left to end.
    """
    cluster = find_cluster(directory)
    if cluster is None:
        return False
    # Looked up before anything ends: job drivers lead sessions of their own and are found through their parents.
    processes = processes_of(cluster.nodes)
    for node in filter(_is_alive, reversed(cluster.nodes)):
        _signal(node, signal.SIGTERM)
    _end_processes(cluster.nodes, processes, grace_s)
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)
    for name in (ENVIRONMENT_FILE, TOKEN_FILE, STATE_FILE):
        (directory / name).unlink(missing_ok=True)
    return bool(processes)


def kill_node(node: Process) -> None:
    """SIGKILL every process of one node at once, as if its machine had lost power."""
    _end_processes([node], processes_of([node]), grace_s=0.0)


def _worker_options(cluster: LocalCluster) -> list[str]:
    return [f"--address={cluster.address}", "--num-gpus=0", "--include-log-monitor=false"]


def _launch_node(cluster: LocalCluster, cpus: int, agent_port: int, options: list[str]) -> LocalCluster:
    """`cluster` with one more node, which has been launched and recorded but need not have joined."""
    options = [*options, f"--num-cpus={cpus}", f"--dashboard-agent-listen-port={agent_port}"]
    common = ["--block", "--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}", "--log-color=false"]
    environment = _node_environment(cluster)
    with (cluster.directory / f"node-{len(cluster.nodes)}.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *common, *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    cluster = replace(cluster, nodes=(*cluster.nodes, find_process(process.pid)))
    state = {name: value for name, value in asdict(cluster).items() if name != "directory"}
    (cluster.directory / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
    return cluster


def _node_environment(cluster: LocalCluster) -> dict[str, str]:
    """This process's environment, with nothing of another cluster's in it and this Python first on the path."""
    foreign = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
    environment = {**os.environ, **cluster.environment}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    return {name: value for name, value in environment.items() if name not in foreign}


def _wait(cluster: LocalCluster, needed: Sequence[Process], is_ready: Callable[[], bool], deadline: float) -> None:
    while not is_ready():
        dead = [index for index, node in enumerate(cluster.nodes) if node in needed and not _is_alive(node)]
        if dead or time.monotonic() > deadline:
            index = dead[0] if dead else len(cluster.nodes) - 1
            log = cluster.directory / f"node-{index}.log"
            what = f"node {index} ended" if dead else "the cluster did not come up in time"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ClusterError(f"{what}; the last lines of {log}:\n{tail}")
        time.sleep(0.2)


def _accepts_connections(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _free_ports(number: int) -> list[int]:
    """Ports that nothing listens on at the moment, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


class _Stat(NamedTuple):
    """The fields of /proc/<pid>/stat that matter here."""

    process: Process
    state: str
    parent: int
    session: int


def _stat(pid: int) -> _Stat:
    """Raises FileNotFoundError or ProcessLookupError where there is no such process."""
    # The second field, the command's name, stands in parentheses and may hold spaces and parentheses itself.
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return _Stat(Process(pid, int(fields[19])), state=fields[0], parent=int(fields[1]), session=int(fields[3]))


def _living() -> list[_Stat]:
    """Every process of the machine that has not ended (a zombie has)."""
    stats = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                stats.append(_stat(int(entry.name)))
    return [stat for stat in stats if stat.state not in "ZX"]


def _is_alive(process: Process) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        stat = _stat(process.pid)
        return stat.process == process and stat.state not in "ZX"
    return False


def find_process(pid: int) -> Process:
    """The process that has this id now; raises FileNotFoundError or ProcessLookupError if none has."""
    return _stat(pid).process


def processes_of(nodes: Sequence[Process]) -> set[Process]:
    """The processes in the nodes' sessions, whether or not the nodes themselves still live, and their descendants.

    Any process that leads a session will do for a node.
    """
    living = _living()
    # The id of a dead node is given to nobody else while its session has members, so it still names that session.
    recycled = {stat.process.pid for stat in living} - {node.pid for node in filter(_is_alive, nodes)}
    sessions = {node.pid for node in nodes} - recycled
    found = [stat for stat in living if stat.session in sessions]
    for stat in found:  # grows on the way
        found += [child for child in living if child.parent == stat.process.pid and child not in found]
    return {stat.process for stat in found}


def _end_processes(nodes: Sequence[Process], processes: set[Process], grace_s: float) -> None:
    """Wait until `processes`, and those that the nodes started meanwhile, have ended; SIGKILL after `grace_s`."""
    deadline = time.monotonic() + grace_s
    while processes := {process for process in processes if _is_alive(process)} | processes_of(nodes):
        if time.monotonic() >= deadline:
            for process in processes:
                _signal(process, signal.SIGKILL)
        time.sleep(0.1)
    for node in nodes:
        with suppress(ChildProcessError):  # not a child of this process: its parent takes the exit status
            os.waitpid(node.pid, os.WNOHANG)


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


DirectoryOption = Annotated[Path, typer.Option("--dir", help="Where the cluster keeps its state.")]


@app.command()
def start(
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes, the head included.")] = 2,
    cpus_per_node: Annotated[int, typer.Option(min=1, help="Logical CPUs of each node.")] = 4,
    directory: DirectoryOption = Path(".cluster"),
) -> None:
    """Start a cluster; returns when jobs can be submitted."""
    cluster = start_cluster(directory, nodes, cpus_per_node)
    typer.echo(f"{nodes} nodes with {cpus_per_node} CPUs each; dashboard and job server: {cluster.dashboard_url}")
    typer.echo("in every shell that uses the cluster:")
    typer.echo(f"  source {directory / ENVIRONMENT_FILE}")
    typer.echo("then, for instance:")
    typer.echo("  ray job submit -- python jobs/train_mtop.py --config jobs/nhc-cpu.toml")


@app.command()
def stop(directory: DirectoryOption = Path(".cluster")) -> None:
    """End the cluster and every job on it."""
    typer.echo("stopped" if stop_cluster(directory) else "no cluster was running")


@app.command()
def status(directory: DirectoryOption = Path(".cluster")) -> None:
    """Say which nodes run; exits with 1 if a node is missing."""
    cluster = find_cluster(directory)
    if cluster is None:
        raise ClusterError(f"no cluster was started in {directory}")
    for index, node in enumerate(cluster.nodes):
        typer.echo(f"node {index}{' (head)' * (index == 0)}: pid {node.pid} {'runs' if _is_alive(node) else 'ended'}")
    joined = cluster.num_alive_nodes()
    typer.echo(f"{joined} of {len(cluster.nodes)} nodes have joined; {cluster.dashboard_url}")
    if joined < len(cluster.nodes):
        raise typer.Exit(1)


if __name__ == "__main__":
    try:
        app()
    except MtopError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
