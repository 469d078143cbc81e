"""The container's files: what they promise, and their commands run as they stand by a user of no rights."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from converter import errors
from converter.cli import verbs

FOLDER = ROOT / "docs/containers"
DOCUMENT = (ROOT / "docs/containers.md").read_text("utf-8")


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: word and arguments, lines that go on joined."""
    text = re.sub(r"\\\n\s*", "", (FOLDER / "Dockerfile").read_text("utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def job() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((FOLDER / "job.yaml").read_text("utf-8"))


def container() -> dict[str, Any]:
    (found,) = job()["spec"]["template"]["spec"]["containers"]
    return found


# --------------------------------------------------------------------------------------------------- the image


def test_the_image_is_what_is_installed() -> None:
    """Two stages of one base, named with its version; the second has no compiler, no source, no root."""
    build, final = stages()
    bases = {stage[0][1].split()[0] for stage in (build, final)}
    assert len(bases) == 1 and re.fullmatch(r"python:3\.\d+-slim-\w+", bases.pop()), "pinned, and no host"
    assert {word for word, _ in instructions()} <= {
        "FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"
    }  # fmt: skip
    copies = [rest for word, rest in final if word == "COPY"]
    assert copies == ["--from=build /opt/converter /opt/converter"]
    assert not [rest for word, rest in final if word == "RUN" and "apt" in rest]
    assert [int(number) > 0 for word, rest in final if word == "USER" for number in rest.split(":")] == [True, True]
    assert json.loads(next(rest for word, rest in final if word == "ENTRYPOINT")) == ["convert"]
    order = [word for word, _ in final]
    assert order.index("RUN") < order.index("USER") < order.index("ENTRYPOINT")


def test_its_python_and_extras_are_ours() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (extras,) = [rest.partition("=")[2] for word, rest in instructions() if word == "ARG"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    version = re.search(r"python:3\.(\d+)", instructions()[0][1])
    assert version and int(version[1]) >= int(project["requires-python"].rpartition(".")[2])


def test_only_what_the_package_is_made_of_is_sent() -> None:
    rules = [line for line in (FOLDER / "Dockerfile.dockerignore").read_text("utf-8").splitlines() if line[:1] != "#"]
    assert rules[0] == "*"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in sent)
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = {"pyproject.toml", project["project"]["readme"], project["tool"]["scikit-build"]["cmake"]["source-dir"]}
    licences = {path.split("/")[0] for path in project["tool"]["scikit-build"]["wheel"]["license-files"]}
    assert needed | licences | set(project["tool"]["scikit-build"]["wheel"]["packages"]) == sent
    assert [rule for rule in rules if fnmatch.fnmatch("converter/_native.abi3.so", rule.replace("**/", "*/"))]


# ----------------------------------------------------------------------------------------------------- the job

# Of the Kubernetes API, batch/v1 and core/v1: what each object of the file may have.
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"backoffLimit", "ttlSecondsAfterFinished", "podFailurePolicy", "template", "activeDeadlineSeconds"},
    "spec.template": {"metadata", "spec"},
    "spec.template.spec": {
        "restartPolicy", "automountServiceAccountToken", "terminationGracePeriodSeconds", "securityContext",
        "containers", "volumes",
    },
    "spec.template.spec.securityContext": {
        "runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile"
    },
    "spec.template.spec.containers": {"name", "image", "args", "env", "resources", "securityContext", "volumeMounts"},
    "spec.template.spec.containers.securityContext": {
        "allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"
    },
    "spec.template.spec.containers.resources": {"requests", "limits"},
    "spec.template.spec.containers.volumeMounts": {"name", "mountPath", "readOnly", "subPath"},
    "spec.template.spec.volumes": {"name", "persistentVolumeClaim"},
    "spec.podFailurePolicy.rules": {"action", "onExitCodes"},
    "spec.podFailurePolicy.rules.onExitCodes": {"containerName", "operator", "values"},
}  # fmt: skip


def at(value: Any, path: str) -> list[dict[str, Any]]:
    found = [value]
    for name in filter(None, path.split(".")):
        found = [each for one in found for each in (one[name] if isinstance(one[name], list) else [one[name]])]
    return found


def test_the_job_is_one_by_the_fields_of_the_api() -> None:
    made = job()
    assert (made["apiVersion"], made["kind"]) == ("batch/v1", "Job")
    for path, known in FIELDS.items():
        assert all(set(each) <= known for each in at(made, path)), path
    spec = made["spec"]["template"]["spec"]
    assert spec["restartPolicy"] == "Never", "a failure policy of pods wants that"
    assert {each["name"] for each in container()["volumeMounts"]} == {each["name"] for each in spec["volumes"]}
    (rule,) = made["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container()["name"]
    assert rule["onExitCodes"]["values"] == sorted(rule["onExitCodes"]["values"]), "the API wants them in order"


def test_the_job_has_no_rights() -> None:
    pod, own = job()["spec"]["template"]["spec"], container()["securityContext"]
    (user,) = [rest.split(":") for word, rest in stages()[1] if word == "USER"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert [pod["securityContext"][name] for name in ("runAsUser", "runAsGroup")] == list(map(int, user))
    assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
    assert own["capabilities"] == {"drop": ["ALL"]} and pod["automountServiceAccountToken"] is False


def test_codes_after_which_another_try_helps() -> None:
    (rule,) = job()["spec"]["podFailurePolicy"]["rules"]
    ours = {errors.OutputError.exit_code, errors.OutOfMemory.exit_code, errors.Interrupted.exit_code}
    assert set(rule["onExitCodes"]["values"]) == ours | {128 + 9, 128 + 15}
    said = DOCUMENT.split("**Exit codes**")[1].split("\n- ")[0]
    assert {str(code) for code in rule["onExitCodes"]["values"]} <= set(re.findall(r"\d+", said))


# ------------------------------------------------------------------------------------------------ their commands


def convert(args: list[str]) -> subprocess.CompletedProcess[str]:
    """As a user of no rights, where we may start one and this Python is for everyone; else as who we are."""
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent"}
    options: dict[str, Any] = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    command = [sys.executable, "-m", "converter", *args]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        with contextlib.suppress(PermissionError):
            return subprocess.run(command, user=65534, group=65534, extra_groups=[], **options)
    return subprocess.run(command, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="users and folders as in a container")
def test_the_job_s_command_works_and_may_be_repeated(tmp_path: Path) -> None:
    """In a folder that is all it may write to; a second pod that comes after the first makes the same."""
    models = tmp_path / "models"
    (models / "out").mkdir(parents=True)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(tmp_path.parents[1]):
            folder.chmod(0o755)
    (models / "out").chmod(0o777)
    (models / "in").mkdir()
    for path in (ROOT / "fixtures/stories260K").iterdir():
        (models / "in" / path.name).write_bytes(path.read_bytes())
    args = [each.replace("/models", str(models)) for each in container()["args"]]
    verb, rest = verbs.chosen(args)
    assert verb == "convert" and verbs.parser(verb).parse_args(rest).resume
    made = []
    for _ in range(2):
        done = convert(args)
        assert done.returncode == 0, done.stderr
        made.append({path.name: path.read_bytes() for path in (models / "out").iterdir()})
    assert len(made[0]) == 2 and made[0] == made[1]


def test_documented_commands_are_ours() -> None:
    (run,) = re.findall(r"^    docker run .*? converter (.*)$", DOCUMENT, re.M)
    verb, rest = verbs.chosen(shlex.split(run))
    assert verbs.parser(verb).parse_args(rest).quant == "q4_k_m"
    assert "-f docs/containers/Dockerfile" in DOCUMENT and (FOLDER / "Dockerfile.dockerignore").is_file()
