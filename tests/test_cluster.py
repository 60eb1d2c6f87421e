"""The manifests, the image and the local cluster script, as far as they can be checked without starting Ray."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import fillout_defaults, validate_config

from cluster.local_cluster import ClusterError, find_cluster, start_cluster, stop_cluster
from mtop_batch.cli.commands import app
from mtop_batch.engine import submit
from mtop_batch.engine.monitoring.metrics import EXPORTED

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = sorted(path for path in (ROOT / "cluster").glob("*.yaml") if "apiVersion:" in path.read_text())
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
MANIFESTS = sorted((ROOT / "cluster").glob("*.yaml"))
IMAGE = f"mtop-batch:{version('mtop-batch')}"
RAY_VERSION = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]
BASE_IMAGE = f"rayproject/ray:{RAY_VERSION}-py311"


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


def pods_of(manifest: Any) -> list[dict[str, Any]]:
    return [value for _, value in walk(manifest) if isinstance(value, dict) and "containers" in value]


def walk(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value of a document with its path, the document itself included."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from walk(item, (*path, key))


def containers(manifest: Any) -> list[dict[str, Any]]:
    return [item for path, items in walk(manifest) if path[-1:] == ("containers",) for item in items]


def commands_in(path: Path) -> list[list[str]]:
    """The arguments of every `python jobs/...` in a manifest or in the code blocks of a document."""
    if path.suffix == ".md":
        blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    else:
        values = [value for _, value in walk(yaml.safe_load(path.read_text()))]
        lines = [value for value in values if isinstance(value, str)]
        lines += [shlex.join(map(str, value)) for value in values if isinstance(value, list)]
    return [shlex.split(line.partition("python jobs/")[2]) for line in lines if "python jobs/" in line]


@pytest.mark.parametrize("path", [*MANIFESTS, ROOT / "docs" / "cluster.md"], ids=lambda path: path.name)
def test_jobs_that_are_named_exist_and_take_the_options(path: Path) -> None:
    commands = commands_in(path)
    assert bool(commands) == (path.name.startswith(("rayjob", "nightly", "cluster.md")))
    for job, *arguments in commands:
        name = re.search(r'main\(\["([\w-]+)"', (ROOT / "jobs" / job).read_text())
        assert name is not None
        command = typer.main.get_command(app).commands[name[1]]  # type: ignore[attr-defined]
        given = command.make_context(name[1], list(arguments)).params
        config = given.get("config")
        assert config is None or config.startswith("configs/") or (ROOT / config).is_file()


def test_image_is_built_from_files_that_exist_with_the_pinned_ray() -> None:
    lines = (ROOT / "cluster" / "Dockerfile").read_text().splitlines()
    assert f"FROM {BASE_IMAGE}" in lines
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[2:-1]]
    assert {"mtop_batch", "jobs", "constraints.txt", "pyproject.toml"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    kept = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in kept if line.startswith("!")} == set(sources)
    installs = [line for line in lines if line.startswith("RUN pip install")]
    assert len(installs) == 2
    assert all("-c constraints.txt" in line for line in installs)
    assert not any(line.startswith("USER") for line in lines)  # the base image's user is not root


def test_one_image_and_one_ray_version_everywhere() -> None:
    assert load("raycluster.yaml")["spec"]["rayVersion"] == RAY_VERSION
    assert load("autoscaler-aws.yaml")["docker"]["image"] == BASE_IMAGE
    pods = [container for path in MANIFESTS for container in containers(yaml.safe_load(path.read_text()))]
    assert len(pods) == 6
    assert {container["image"] for container in pods} == {IMAGE}
    assert IMAGE in (ROOT / "cluster" / "Dockerfile").read_text()
    assert IMAGE in (ROOT / "docs" / "cluster.md").read_text()


def test_autoscaler_sees_gpus_in_one_group_only_and_no_cpu_on_the_head() -> None:
    cluster = load("raycluster.yaml")
    cluster["metadata"]["namespace"] = "default"
    groups = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert groups["headgroup"]["resources"]["CPU"] == 0
    # A labelling actor and a training worker ask for one whole GPU each.
    assert groups["gpu"]["resources"]["GPU"] == 1
    assert groups["gpu"]["resources"]["CPU"] >= 1
    assert not {"GPU", "gpu_node"} & groups["cpu"]["resources"].keys()
    assert all(groups[name]["min_workers"] == 0 < groups[name]["max_workers"] for name in ("cpu", "gpu"))
    for container in containers(cluster):
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_kubernetes_pods_are_probed_and_not_root() -> None:
    cluster = load("raycluster.yaml")
    for container in containers(cluster):
        assert container["livenessProbe"]["httpGet"] == container["readinessProbe"]["httpGet"]
        assert container["envFrom"] == [{"secretRef": {"name": "mtop-s3", "optional": True}}]
    for path in KUBERNETES:
        manifest = yaml.safe_load(path.read_text())
        for pod in pods_of(manifest):
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is False
            for container in pod["containers"]:
                assert container["securityContext"] == CONTAINER_SECURITY
                assert "ephemeral-storage" in container["resources"]["limits"]


def test_only_the_autoscaler_has_a_token() -> None:
    spec = load("raycluster.yaml")["spec"]
    token = [mount for mount in spec["autoscalerOptions"]["volumeMounts"] if "serviceaccount" in mount["mountPath"]]
    assert [mount["name"] for mount in token] == ["autoscaler-token"]
    assert spec["autoscalerOptions"]["securityContext"] == CONTAINER_SECURITY
    assert "ephemeral-storage" in spec["autoscalerOptions"]["resources"]["limits"]
    for container in containers(spec):
        assert all(mount["name"] != "autoscaler-token" for mount in container["volumeMounts"])


def test_configurations_are_where_entrypoints_run() -> None:
    """An entrypoint runs where the resources are that it asks for, so on any node."""
    for pod in pods_of(load("raycluster.yaml")):
        assert {"name": "configs", "configMap": {"name": "mtop-configs", "optional": True}} in pod["volumes"]
        (mounts,) = [container["volumeMounts"] for container in pod["containers"]]
        assert [mount["mountPath"] for mount in mounts] == ["/home/ray/mtop-batch/configs"]
    ((_, *train),) = commands_in(ROOT / "cluster" / "rayjob-train.yaml")
    assert "tasks=configs/tasks.toml" in train
    assert "WORKDIR /home/ray/mtop-batch" in (ROOT / "cluster" / "Dockerfile").read_text()


def test_the_network_policy_lets_in_nodes_submitters_and_prometheus_only() -> None:
    policy, cluster = load("networkpolicy.yaml")["spec"], load("raycluster.yaml")
    selector = {"ray.io/cluster": cluster["metadata"]["name"]}
    assert policy["podSelector"]["matchLabels"] == selector
    assert policy["policyTypes"] == ["Ingress"]
    nodes, submitters, prometheus = policy["ingress"]
    assert nodes == {"from": [{"podSelector": {"matchLabels": selector}}]}
    assert [port["port"] for port in submitters["ports"]] == [8265]
    assert [port["port"] for port in prometheus["ports"]] == [8080]
    name = submitters["from"][0]["podSelector"]["matchLabels"]
    templates = [load(job)["spec"]["submitterPodTemplate"] for job in ("rayjob-train.yaml", "rayjob-label.yaml")]
    templates.append(load("nightly.yaml")["spec"]["jobTemplate"]["spec"]["template"])
    assert all(template["metadata"]["labels"] == name for template in templates)


def test_metrics_are_scraped_on_every_node() -> None:
    cluster, monitor = load("raycluster.yaml")["spec"], load("podmonitor.yaml")["spec"]
    assert monitor["selector"]["matchLabels"] == load("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = containers(group)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert str(ports[monitor["podMetricsEndpoints"][0]["port"]]) == group["rayStartParams"]["metrics-export-port"]


def test_dashboard_and_alerts_ask_for_metrics_that_are_exported() -> None:
    rules = [rule for group in load("prometheus-rules.yaml")["spec"]["groups"] for rule in group["rules"]]
    dashboard = json.loads((ROOT / "cluster" / "grafana-dashboard.json").read_text())
    asked = [rule["expr"] for rule in rules]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = set(re.findall(r"ray_\w+", " ".join(asked)))
    assert names <= EXPORTED
    assert names >= {name for name in EXPORTED if "mtop" in name} - {"ray_mtop_articles_planned"}
    assert all(rule["labels"]["severity"] in ("page", "warning") for rule in rules)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    schedule = load("nightly.yaml")["metadata"]["name"]
    assert all(f'job_name=~"{schedule}-' in rule["expr"] for rule in rules if "kube_" in rule["expr"])


def test_a_closed_gate_pages_and_unreadable_files_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load("nightly.yaml")["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]
    on_exit = [rule for rule in policy["rules"] if "onExitCodes" in rule]
    (submit_container,) = containers(load("nightly.yaml"))
    assert [(rule["action"], rule["onExitCodes"]["values"]) for rule in on_exit] == [("FailJob", [2, 4])]
    assert on_exit[0]["onExitCodes"]["containerName"] == submit_container["name"]

    def exit_code(driver: int | None, submitted: int = 1) -> int:
        info = SimpleNamespace(driver_exit_code=driver)
        client = SimpleNamespace(get_job_info=lambda name: info if name == "x" else None)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=submitted))
        monkeypatch.setattr(submit, "JobSubmissionClient", lambda _: client)
        return submit.main(["--address=http://a", "--submission-id=x", "--", "python", "jobs/label_corpus.py"])

    assert [exit_code(code) for code in (1, 2, 3, 4, None)] == [1, 2, 0, 4, 1]
    assert exit_code(None, submitted=0) == 0


def test_authentication_is_on_everywhere() -> None:
    cluster = load("raycluster.yaml")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    (submit,) = containers(load("nightly.yaml"))
    variables = {variable["name"]: variable for variable in submit["env"]}
    assert variables["RAY_AUTH_MODE"]["value"] == "token"
    # KubeRay keeps the token in a Secret named after the cluster.
    reference = variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": cluster["metadata"]["name"], "key": "auth_token"}
    launcher = load("autoscaler-aws.yaml")
    assert "--env=RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
    assert launcher["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_nothing_is_reachable_from_outside() -> None:
    assert load("raycluster.yaml")["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    for path in MANIFESTS:
        keys = {str(where[-1]) for where, _ in walk(yaml.safe_load(path.read_text())) if where}
        assert not keys & {"enableIngress", "hostNetwork", "hostPort", "nodePort", "security_group"}
    (start,) = [line for line in load("autoscaler-aws.yaml")["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start


def test_manifests_hold_no_secrets() -> None:
    for path in MANIFESTS:
        for where, value in walk(yaml.safe_load(path.read_text())):
            if where[-1:] == ("env",):
                literal = [variable["name"] for variable in value if "value" in variable]
                assert not any(re.search("KEY|SECRET|TOKEN", name) for name in literal)
        assert not re.search(r"AKIA[0-9A-Z]{16}", path.read_text())


def test_jobs_are_sent_to_the_cluster() -> None:
    name = load("raycluster.yaml")["metadata"]["name"]
    for job in ("rayjob-train.yaml", "rayjob-label.yaml"):
        assert load(job)["spec"]["clusterSelector"] == {"ray.io/cluster": name}
    (submit,) = containers(load("nightly.yaml"))
    assert submit["command"] == ["python", "-m", "mtop_batch.engine.submit"]
    assert submit["args"][0] == f"--address=http://{name}-head-svc:8265"
    assert "--submission-id=$(POD_NAME)" in submit["args"]  # a retry is a job of its own


def test_jobs_bring_up_a_gpu_node_before_they_start() -> None:
    cluster = load("raycluster.yaml")
    cluster["metadata"]["namespace"] = "default"
    group = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]["gpu"]
    (submit,) = containers(load("nightly.yaml"))
    (nightly,) = [argument for argument in submit["args"] if argument.startswith("--entrypoint-resources=")]
    asked = [load(job)["spec"]["entrypointResources"] for job in ("rayjob-train.yaml", "rayjob-label.yaml")]
    for resources in [*asked, nightly.partition("=")[2]]:
        assert json.loads(resources) == {"gpu_node": 0.001}
    assert group["resources"]["gpu_node"] == 1
    assert load("autoscaler-aws.yaml")["available_node_types"]["gpu"]["resources"]["gpu_node"] == 1
    ((_, *label),) = commands_in(ROOT / "cluster" / "rayjob-label.yaml")
    assert int(label[label.index("--num-actors") + 1]) <= group["max_workers"]


def test_nightly_run_has_a_valid_schedule_and_never_overlaps() -> None:
    spec = load("nightly.yaml")["spec"]
    minute, hour, *rest = spec["schedule"].split()
    assert 0 <= int(minute) < 60
    assert 0 <= int(hour) < 24
    assert rest == ["*", "*", "*"]
    assert spec["concurrencyPolicy"] == "Forbid"


def test_nightly_run_does_what_the_label_job_does() -> None:
    ((_, *nightly),) = commands_in(ROOT / "cluster" / "nightly.yaml")
    ((_, *label),) = commands_in(ROOT / "cluster" / "rayjob-label.yaml")
    assert " ".join(nightly).replace("=", " ") == " ".join(label)


def test_cloud_cluster_fits_the_launchers_schema() -> None:
    launcher = load("autoscaler-aws.yaml")
    validate_config(fillout_defaults(launcher))
    nodes = launcher["available_node_types"]
    assert launcher["head_node_type"] in nodes
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert nodes["gpu"]["resources"]["GPU"] == 1
    assert nodes["gpu"]["min_workers"] == 0 < nodes["gpu"]["max_workers"] <= launcher["max_workers"]
    installs = [line for name in ("setup_commands", "head_setup_commands") for line in launcher[name]]
    assert all("-c constraints.txt" in line for line in installs)


def write_state(directory: Path, pid: int, start_ticks: int) -> None:
    state = {"gcs_port": 1, "dashboard_port": 1, "temp_dir": str(directory / "ray"), "nodes": [[pid, start_ticks]]}
    (directory / "cluster.json").write_text(json.dumps(state))


def start_ticks_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


NODE = "sleep 100 & echo $!; setsid sleep 100 & echo $!; trap '{on_term}' TERM; wait; wait"


@pytest.mark.parametrize("on_term", ["exit", "true"], ids=["node that ends", "node that hangs"])
def test_stop_ends_all_processes_of_a_node_and_no_others(tmp_path: Path, on_term: str) -> None:
    command = ["sh", "-c", NODE.format(on_term=on_term)]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        children = [int(node.stdout.readline()) for _ in range(2)]  # the second one leads a session of its own
        with subprocess.Popen(["sleep", "100"]) as other:
            write_state(tmp_path, node.pid, start_ticks_of(node.pid))
            time.sleep(0.1)  # let setsid become sleep
            assert stop_cluster(tmp_path, grace_s=0.3)
            assert not any(map(is_running, [node.pid, *children]))
            assert is_running(other.pid)
            other.kill()
    assert find_cluster(tmp_path) is None
    assert not stop_cluster(tmp_path)


def test_stop_finds_what_a_killed_node_left_running(tmp_path: Path) -> None:
    command = ["sh", "-c", NODE.format(on_term="exit")]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        child = int(node.stdout.readline())
        stranger = int(node.stdout.readline())
        write_state(tmp_path, node.pid, start_ticks_of(node.pid))
        os.kill(node.pid, signal.SIGKILL)
    try:
        assert stop_cluster(tmp_path, grace_s=0.0)
        assert not is_running(child)
    finally:
        os.kill(stranger, signal.SIGKILL)  # its session and its parent are gone: nothing ties it to the node


def test_stop_leaves_a_process_alone_that_got_a_nodes_id(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "100"], start_new_session=True) as other:
        write_state(tmp_path, other.pid, start_ticks_of(other.pid) - 1)
        assert not stop_cluster(tmp_path)
        assert is_running(other.pid)
        other.kill()


def test_start_refuses_a_directory_whose_cluster_runs(tmp_path: Path) -> None:
    write_state(tmp_path, os.getpid(), start_ticks_of(os.getpid()))
    with pytest.raises(ClusterError, match=r"already runs in .*stop it first"):
        start_cluster(tmp_path)


def test_start_refuses_a_cluster_without_nodes(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="0 nodes with 4 CPUs: both must be at least 1"):
        start_cluster(tmp_path, nodes=0)
