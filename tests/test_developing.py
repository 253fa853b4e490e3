"""What docs/developing.md shows works as it stands: in a copy of the project, each file where it says, and no other."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from tests.conftest import REPOSITORY
from tests.warm import warmed

PAGE = (REPOSITORY / "docs" / "developing.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- \w+: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.S))
"""The files that the page shows, by their paths."""

SILU = """
from pathlib import Path
import torch
from torch import nn
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

class Net(nn.Module):
    def forward(self, x):
        y = x + 1
        return y * torch.sigmoid(y) + x.sigmoid() * x + x * torch.sigmoid(-x)

result = rewrite(trace(Net(), [TensorSpec("x", (3,), torch.float32)]))
x = torch.randn(5, 3)
assert torch.allclose(result.module(x)[0], Net()(x), atol=1e-6)
print({report.name: report.fired for report in result.report}["use_silu"])
"""

TESTS = ("proof.py", "rules/contract.py", "rules/examples.py", "rules/test_rules.py")
"""What a rule's test needs of the other tests, in `tests/graph`."""

Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Python in a copy of the project with the page's files; gives what is printed."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("mlpdeploy", "recipes", "plugins"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ("pyproject.toml", *(f"tests/graph/{name}" for name in TESTS)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / path, root / path)
    for path, content in FILES.items():
        assert not (root / path).exists()
        (root / path).write_text(content, encoding="utf-8")

    with warmed(REPOSITORY, bare=True) as process:

        def python(*words: str) -> str:
            found = process.run(words, root, PYTHONPATH=str(root))
            assert found.returncode == 0, found.stderr
            return found.stdout

        yield python


def test_the_page_shows_a_rule_with_its_test_a_backend_and_a_network() -> None:
    assert sorted(Path(path).name for path in FILES) == [
        "counting.py",
        "test_use_silu.py",
        "two_layers.py",
        "two_layers.toml",
        "use_silu.py",
    ]
    named = re.findall(r"`((?:mlpdeploy|tests|benchmarks|docs)/[\w/.]+)`", PAGE)
    assert named and all((REPOSITORY / path).exists() for path in named)
    drawn = re.findall(r"  ((?:graph|engine|evidence)/[\w/.]+)", PAGE)
    assert drawn and all((REPOSITORY / "mlpdeploy" / path).exists() for path in drawn)


@pytest.mark.slow
def test_a_new_rule_is_one_file(run: Run) -> None:
    assert run("-c", SILU).strip() == "2"
    listed = json.loads(run("-m", "mlpdeploy", "list", "--rules", "--json"))
    (row,) = (one for one in listed if one["name"] == "use_silu")
    assert row["what"] == "A value times its own sigmoid becomes SiLU." and row["phase"] == "algebra"


@pytest.mark.slow
def test_a_new_rule_brings_its_test_and_passes_those_of_every_rule(run: Run) -> None:
    quiet = ("-p", "no:cacheprovider", "-W", "ignore:Module already imported")
    printed = run("-m", "pytest", "-n", "0", "-v", *quiet, "tests/graph/rules", "-k", "use_silu")
    passed = set(re.findall(r"::(test_\w+).* PASSED ", printed))
    contract = (REPOSITORY / "tests/graph/rules/test_rules.py").read_text(encoding="utf-8")
    asked_of_every_rule = re.findall(r"@pytest\.mark\.parametrize.*\ndef (test_\w+)", contract)
    assert len(asked_of_every_rule) > 5
    assert passed == {*asked_of_every_rule, "test_a_value_that_is_read_elsewhere"}


@pytest.mark.slow
def test_a_new_backend_and_a_new_network_are_one_file_each(run: Run) -> None:
    assert "counting" in run("-m", "mlpdeploy", "build", "--help")
    backends = json.loads(run("-m", "mlpdeploy", "doctor", "--json"))["backends"]
    (known,) = (one for one in backends if one["name"] == "counting")
    assert known["cannot_build"] is None and known["cannot_run"] == "it only counts"
    (listed,) = json.loads(run("-m", "mlpdeploy", "list", "two_layers", "--json"))
    assert listed["source"] == "Nobody 2026"
    chosen = ("-m", "mlpdeploy", "{}", "two_layers", "--backend", "counting", "--precision", "fp32", "--json")
    built = json.loads(run(*(word.format("build") for word in chosen)))
    assert [form["name"] for form in built["manifest"]["forms"]] == ["flatten_grids"]
    root = Path(run("-c", "import os; print(os.getcwd())").strip())
    engine = root / built["folder"] / "engine.txt"
    assert int(engine.read_text()) == len(onnx.load(engine.with_name("model.onnx")).graph.node)
    verified = json.loads(run(*(word.format("verify") for word in chosen)))
    assert verified["passed"] and verified["stages"][-1]["reason"] == "built, not executed: it only counts"
