"""The images and services say what the Makefile says, and each thing once. (Nothing is built
here.)
"""

import re
import tomllib

import pytest
import yaml
from conftest import ROOT, run

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
COMMANDS = {
    "zeromodel": "bash",
    "ablation": "bash",
    "ablation-test": "zeromodel ablation --dry-run",
    "ablation-run": "zeromodel ablation",
    "param-counter": "zeromodel params",
}
FILES = "Dockerfile", "Dockerfile.ablation"


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, continuation lines joined."""
    lines = [
        line
        for line in (ROOT / name).read_text().replace("\\\n", "").splitlines()
        if line and not line.startswith("#")
    ]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def values(name: str, instruction: str) -> list[str]:
    return [rest for word, rest in instructions(name) if word == instruction]


def test_services():
    services = COMPOSE["services"]
    assert {name: " ".join(s["command"]) for name, s in services.items()} == COMMANDS
    for name, s in services.items():
        file = "Dockerfile" if name == "zeromodel" else "Dockerfile.ablation"
        assert (
            s["build"]["dockerfile"] == file
            and s["image"]
            == {
                "Dockerfile": "zeromodel:latest",
                "Dockerfile.ablation": "zeromodel-ablation:latest",
            }[file]
        )
        assert ("deploy" in s) == (name == "zeromodel"), "only training reserves a GPU"
        assert set(s["build"]["args"]) == {a.split("=")[0] for a in values(file, "ARG")}
        assert {v.split(":")[0] for v in s["volumes"]} <= {"./reports", *COMPOSE["volumes"]}
        assert all(
            v.split(":")[1].startswith((values(file, "WORKDIR")[0], "/home/zeromodel"))
            for v in s["volumes"]
        )


@pytest.mark.parametrize("name", FILES)
def test_install_lines_are_those_of_the_makefile(name):
    """The rule of the Makefile installs, whatever it depends on is there before, and nothing
    else installs Python packages.
    """
    runs, text = values(name, "RUN"), (ROOT / name).read_text()
    rule = re.search(r"^\$\(BIN\)/\.installed: (.*)$", (ROOT / "Makefile").read_text(), re.M)[
        1
    ].split()
    assert "make .venv/bin/.installed" in runs and "pip install" not in text
    before = " ".join(
        rest
        for word, rest in instructions(name)[
            : instructions(name).index(("RUN", "make .venv/bin/.installed"))
        ]
        if word == "COPY"
    ).split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"Makefile", "zeromodel/__init__.py", project["readme"], *rule} <= set(before)
    version = re.search(r"PYTHON [?]= python([0-9.]+)", (ROOT / "Makefile").read_text())[1]
    assert values(name, "FROM")[0].startswith(f"python:{version}.")


@pytest.mark.parametrize("name", FILES)
def test_hadolint(name):
    assert run("hadolint", name, cwd=ROOT).stdout == ""


@pytest.mark.parametrize("name", FILES)
def test_image_is_small_and_not_root(name):
    words = [word for word, _ in instructions(name)]
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", values(name, "FROM")[0])
    assert values(name, "USER") == ["$USER_ID"] and words.index("USER") < words.index("COPY")
    assert all(rest.startswith("--chown=zeromodel:zeromodel ") for rest in values(name, "COPY"))
    assert {".git", ".venv", "data", "runs", ".dvc/cache"} <= set(
        (ROOT / ".dockerignore").read_text().split()
    )


def test_images_differ_in_compiler_and_driver_only():
    def strip(text):
        return re.sub(
            r" g\+\+| NVIDIA_\w+=\S+",
            "",
            "\n".join(line for line in text.splitlines() if not line.startswith("#")),
        )

    full, light = (strip((ROOT / name).read_text()) for name in FILES)
    assert full == light
