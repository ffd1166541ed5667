"""The manifests of infra: valid by the resources' own schemas, and what they promise of heads, workers and spill."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tyro
import yaml

from eocube.cli import parse
from eocube.run.arguments import EncodeOptions, typed
from jobs import distill, finetune, super_resolve
from tests.infra.kustomizing import (
    JOBS,
    KUBERNETES,
    OVERLAYS,
    ROOT,
    Manifest,
    build,
    clusters,
    job,
    one,
    overlay,
    rendered,
)
from tests.infra.test_locks import pins

SCHEMAS = ROOT / "tests" / "data" / "kuberay"
GPU = "nvidia.com/gpu"


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as `kubectl` does it: a server would drop them and say nothing."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("type") == "object" and isinstance(made.get("properties"), dict):
        open_ended = made.get("x-kubernetes-preserve-unknown-fields") or made.get("x-kubernetes-embedded-resource")
        if not open_ended and made["properties"].keys() != {"metadata"}:
            made.setdefault("additionalProperties", False)
    return made


@cache
def schema_of(kind: str) -> Any:
    """The strict schema of a kind of resource."""
    files = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "PodMonitor": "podmonitors"}
    if kind in files:
        schema = strict(json.loads((SCHEMAS / f"{files[kind]}.json").read_text()))
        schema["properties"]["metadata"] = json.loads((SCHEMAS / "core.json").read_text())["ConfigMap"]["properties"][
            "metadata"
        ]
        return schema
    return json.loads((SCHEMAS / "core.json").read_text())[kind]


def problems(manifest: Manifest) -> list[str]:
    """What the schema has against a manifest."""
    validator = jsonschema.Draft202012Validator(schema_of(manifest["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize("folder", [*(f"overlays/{name}" for name in OVERLAYS), "monitoring"])
def test_every_manifest_is_valid_by_its_schema(folder: str) -> None:
    manifests = rendered(folder)
    assert {f"{m['kind']} {m['metadata']['name']}": found for m in manifests if (found := problems(m))} == {}
    kinds = {m["kind"] for m in manifests}
    assert kinds >= ({"PodMonitor", "ConfigMap"} if folder == "monitoring" else {"RayCluster", "RayJob", "ConfigMap"})


def test_the_schemas_catch_mistakes() -> None:
    manifests = overlay("spot")
    job_manifest = copy.deepcopy(job(manifests, "encode"))
    head = job_manifest["spec"]["rayClusterSpec"]["headGroupSpec"]
    head["rayStartParameters"] = {}
    head["template"]["spec"]["containers"][0]["ressources"] = {}
    job_manifest["spec"]["backoffLimit"] = "two"
    said = "\n".join(problems(job_manifest))
    assert all(word in said for word in ("rayStartParameters", "ressources", "'two' is not of type 'integer'"))
    budget = copy.deepcopy(one(manifests, "PodDisruptionBudget", "eocube-head"))
    budget["spec"]["minAvailible"] = 1
    assert "minAvailible" in problems(budget)[0]


@pytest.mark.parametrize("name", OVERLAYS)
def test_heads_take_no_work_and_are_kept_and_workers_come_and_go(name: str) -> None:
    manifests = overlay(name)
    for part, spec in clusters(manifests).items():
        head = spec["headGroupSpec"]
        (workers,) = spec["workerGroupSpecs"]
        assert head["rayStartParams"]["num-cpus"] == "0" and head["rayStartParams"]["num-gpus"] == "0"
        assert spec["enableInTreeAutoscaling"] and workers["minReplicas"] == 0 < workers["maxReplicas"]
        labels = head["template"]["metadata"]["labels"]
        wanted = {"eocube/part": labels["eocube/part"], "ray.io/node-type": "head"}
        budgets = [m["spec"] for m in manifests if m["kind"] == "PodDisruptionBudget"]
        guards = [b for b in budgets if b["selector"]["matchLabels"] == wanted]
        assert labels["eocube/part"] == part and [g["minAvailable"] for g in guards] == [1]
        assert spec["rayVersion"] == pins("requirements.lock")["ray"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_have_no_rights_and_spill_to_a_volume(name: str) -> None:
    for spec in clusters(overlay(name)).values():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            target = group["rayStartParams"]["object-spilling-directory"]
            (mounted,) = (m["name"] for m in container["volumeMounts"] if m["mountPath"] == target)
            (volume,) = (v for v in pod["volumes"] if v["name"] == mounted)
            assert "volumeClaimTemplate" in volume["ephemeral"]
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_gpus_and_spot_are_for_workers_alone(name: str) -> None:
    for spec in clusters(overlay(name)).values():
        head, (workers,) = spec["headGroupSpec"]["template"]["spec"], spec["workerGroupSpecs"]
        pod = workers["template"]["spec"]
        tolerated = {t["key"] for t in pod["tolerations"]}
        assert (GPU in pod["containers"][0]["resources"]["limits"]) == (name != "cpu") == (GPU in tolerated)
        assert GPU not in head["containers"][0]["resources"]["limits"] and "tolerations" not in head
        terms = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert all(rule["operator"] == "NotIn" for term in terms for rule in term["matchExpressions"])
        spot = name in ("spot", "aws", "gcp")
        assert ("cloud.google.com/gke-spot" in tolerated) == spot == ("affinity" in pod)
        image = pod["containers"][0]["image"]
        assert image == head["containers"][0]["image"] == f"eocube:{'cpu' if name == 'cpu' else 'cuda'}"


@pytest.mark.parametrize("name", JOBS)
def test_a_job_differs_between_overlays_by_its_gpus_alone(name: str) -> None:
    base = shlex.split(job(overlay("cpu"), name)["spec"]["entrypoint"])
    for other in OVERLAYS[1:]:
        words = shlex.split(job(overlay(other), name)["spec"]["entrypoint"])
        assert words[: len(base)] == base
        assert words[len(base) :] in (["--gpu"], ["--gpus-per-actor", "1"])


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_entrypoint_is_understood_by_what_it_calls(name: str) -> None:
    manifests = overlay(name)

    def words(part: str, program: str) -> list[str]:
        text = job(manifests, part)["spec"]["entrypoint"]
        assert text.startswith(f"{program} ")
        return shlex.split(text.removeprefix(program))

    asked, _, _ = typed(parse(EncodeOptions, words("encode", "eocube encode"), "eocube encode"))
    assert asked.sensor == "S2L2A" and len(asked.boxes) == 1
    jobs = "python /opt/eocube/jobs"
    finer = parse(super_resolve.Options, words("super-resolve", f"{jobs}/super_resolve.py"), "super_resolve.py")
    assert finer.gpus_per_actor == (None if name == "cpu" else 1)
    for part, options in (("distill", distill.Options), ("finetune", finetune.Options)):
        trained = tyro.cli(options, args=words(part, f"{jobs}/{part}.py"))
        assert trained.gpu == (name != "cpu") and trained.storage.startswith("s3://")


def metrics_exported() -> set[str]:
    """Names that eocube exports, with Ray's prefix; a histogram's three with it."""
    source = (ROOT / "eocube" / "run" / "prometheus.py").read_text()
    names = set(re.findall(r'(?:counter|gauge)\("([a-z_]+)"', source))
    names |= set(re.findall(r'"eocube_([a-z_]+)"', source))
    histograms = {name for name in names if name.endswith("_seconds")}
    return {f"ray_eocube_{n}" for n in names} | {
        f"ray_eocube_{n}_{part}" for n in histograms for part in ("bucket", "sum", "count")
    }


def test_dashboard_and_filters_name_metrics_that_there_are() -> None:
    manifests = rendered("monitoring")
    board = json.loads(one(manifests, "ConfigMap", "eocube-dashboard")["data"]["grafana-eocube.json"])
    texts = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    texts += [variable["query"] for variable in board["templating"]["list"]]
    used = set(re.findall(r"\bray_[a-z_]+", " ".join(map(str, texts))))
    own = {name for name in used if name.startswith("ray_eocube_")}
    assert own and own <= metrics_exported(), own - metrics_exported()
    monitor = one(manifests, "PodMonitor", "eocube")["spec"]["podMetricsEndpoints"][0]
    (kept,) = (rule["regex"] for rule in monitor["metricRelabelings"] if rule["action"] == "keep")
    assert all(re.fullmatch(kept, name) for name in used)
    scraped = yaml.safe_load((ROOT / "infra" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["metric_relabel_configs"][0]["regex"] == kept


def test_the_monitor_finds_the_pods_port() -> None:
    spec = one(rendered("monitoring"), "PodMonitor", "eocube")["spec"]
    for cluster in clusters(overlay("gpu")).values():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            labels = group["template"]["metadata"]["labels"]
            assert spec["selector"]["matchLabels"].items() <= labels.items()
            ports = {port["name"] for port in group["template"]["spec"]["containers"][0]["ports"]}
            assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} <= ports


@pytest.mark.parametrize("name", ["local", "aws", "gcp"])
def test_launchers_are_valid_by_rays_own_schema(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "infra" / "clusters" / f"{name}.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(config)))  # by ray/autoscaler/ray-schema.json, as `ray up` does it
    with pytest.raises(jsonschema.ValidationError, match="head_kind"):
        validate_config(prepare_config(copy.deepcopy(config) | {"head_kind": "head"}))
    if name != "local":
        assert config["available_node_types"][config["head_node_type"]]["resources"]["CPU"] == 0
        assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])
        assert all(
            "--object-spilling-directory" in config[f"{who}_start_ray_commands"][1] for who in ("head", "worker")
        )


def test_every_kustomization_is_used_and_named_in_the_docs() -> None:
    docs = (ROOT / "docs" / "howto" / "kubernetes.md").read_text()
    assert {path.parent.name for path in KUBERNETES.glob("overlays/*/kustomization.yaml")} == set(OVERLAYS)
    assert all(f"overlays/{name}" in docs for name in OVERLAYS)
    used = {Path(c).name for name in OVERLAYS for c in loaded(f"overlays/{name}")["components"]}
    assert {path.parent.name for path in KUBERNETES.glob("components/*/kustomization.yaml")} == used


def test_kustomizations_of_ones_own_as_the_docs_have_them(tmp_path: Path) -> None:
    docs = (ROOT / "docs" / "howto" / "kubernetes.md").read_text()
    made = []
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", docs, re.M | re.S)):
        for document in block.split("---\n"):
            name = document.splitlines()[0].removeprefix("# ")
            path = tmp_path / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(document.replace("../infra", os.path.relpath(ROOT / "infra", path.parent)))
        made.append(build(tmp_path / str(number) / "mine"))
    image, more = made
    assert "s3://your-bucket" in job(image, "encode")["spec"]["entrypoint"]
    for spec in clusters(image).values():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert group["template"]["spec"]["containers"][0]["image"] == "registry.example.org/eocube:cuda"
    assert [spec["workerGroupSpecs"][0]["maxReplicas"] for spec in clusters(more).values()] == [32] * 5


def test_workers_leave_a_machine_of_eight_cpus_what_kubernetes_needs() -> None:
    for name in OVERLAYS:
        for spec in clusters(overlay(name)).values():
            asked = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["requests"]
            assert float(asked["cpu"]) < 8 and float(asked["memory"].removesuffix("Gi")) < 28


def loaded(folder: str) -> Any:
    return yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
