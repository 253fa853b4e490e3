"""The action: its form, and what its steps do in bash, with names that have blanks and with commands that fail."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.acting import ACTION, BUILT, PULL_REQUEST, STEPS, Runner, accepted

pytestmark = pytest.mark.slow

STEP_KEYS = {"name", "id", "if", "env", "continue-on-error"}
"""What every step of a composite action may have; see `composite-step` in the runner's action_yaml.json."""
EVIL = 'it\'s "$(touch pwned)" `touch pwned` $HOME; touch pwned %0A'


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_its_form_is_one_that_a_runner_reads() -> None:
    assert (
        ACTION.keys() == {"name", "description", "inputs", "outputs", "runs"} and ACTION["runs"]["using"] == "composite"
    )
    for step in STEPS:
        kind = {"uses", "with"} if "uses" in step else {"run", "shell"}
        assert kind <= step.keys() <= kind | STEP_KEYS
        assert step.get("shell", "bash") == "bash" and step.get("uses", "actions/").startswith("actions/")
    for one in ACTION["inputs"].values():
        assert one["description"] and one.keys() <= {"description", "required", "default"}
        assert isinstance(one.get("default", ""), str)  # `true` would be YAML's, and compared as another text


def test_what_a_user_gives_never_stands_in_the_text_of_a_step() -> None:
    assert not [step["name"] for step in STEPS if "${{" in step.get("run", "")]
    asked = set(re.findall(r"inputs\.([\w-]+)", json.dumps(STEPS)))
    assert asked == ACTION["inputs"].keys()
    told = set(re.findall(r"steps\.run\.outputs\.([\w-]+)", json.dumps(ACTION["outputs"])))
    assert told == ACTION["outputs"].keys()
    seen = [step["name"] for step in STEPS if "inputs.token" in json.dumps(step)]
    assert seen == ["Comment"]  # code of a network runs in another step


def test_a_pull_request_is_built_verified_held_against_its_base_and_told(runner: Runner) -> None:
    ran = runner.run(
        name="vip_s7", precision="fp32", backend="openvino", batch="1:4:8", sizes="1,8", time="9", undecided="pass",
        data="photos", regress_arguments="--max-slowdown 5% --accept layers", event=PULL_REQUEST,
    )  # fmt: skip
    choice = ["--precision", "fp32", "--backend", "openvino", "--out", "artifacts"]
    assert ran.words("build") == ["build", *choice, "--batch", "1:4:8", "--json", "--", "vip_s7"]
    assert ran.words("verify") == ["verify", "--data", "photos", "--", BUILT["folder"]]
    regress = ran.words("regress")
    timed = ["--batch", "1,8", "--time", "9", "--undecided", "pass", "--data", "photos"]
    assert regress[: 9 + len(timed)] == ["regress", *choice, "--baseline", "git:HEAD", *timed]
    assert regress[-2:] == ["--", "vip_s7"] and regress[-14:-10] == ["--max-slowdown", "5%", "--accept", "layers"]
    assert regress[-10:-2:2] == ["--junit", "--markdown", "--save", "--github-benchmark"]
    for command in ("build", "verify", "regress"):
        accepted(ran.words(command))
    expected = {"passed": "true", "verdict": "passed", "folder": BUILT["folder"], "exit-code": "0"}
    assert (ran.outputs, ran.code, ran.summary) == (expected, 0, "### a table of gates\n\n")
    (sent,) = ran.sent
    marker, table, *_, link = sent["body"].splitlines()
    assert re.fullmatch(r"<!-- mlpdeploy [0-9a-f]{16} -->", marker) and table == "### a table of gates"
    assert link == "[fedcba9876](https://github.com/owner/repository/actions/runs/42)"
    assert ran.calls[-1][:3] == ["gh", "api", "repos/owner/repository/issues/7/comments"]
    assert "secret" not in ran.log


@pytest.mark.parametrize(
    ("command", "code", "verdict"),
    [
        ("build", 2, "not built"),
        ("verify", 3, "not verified"),
        ("regress", 1, "regressed"),
        ("regress", 3, "not measured"),
    ],
)
def test_what_a_command_exits_with_is_told_and_fails_the_action(
    command: str, code: int, verdict: str, runner: Runner
) -> None:
    runner.put(f"{command}.code", str(code))
    runner.put("saved.json", json.dumps({"verdict": verdict}))
    ran = runner.run(name="vip_s7", event=PULL_REQUEST, comment="false")
    assert (ran.code, ran.outputs["exit-code"], ran.outputs["passed"]) == (code, str(code), "false")
    assert ran.outputs["verdict"] == verdict and not ran.sent
    if code == 1:
        assert ran.summary == "### a table of gates\n\n"
    else:
        error = f"error: {command} <b>cannot</b> be done"
        assert ran.summary == f"### ❌ mlpdeploy: {verdict}\n\n    vip_s7\n    {error}\n\n"
        assert f"::error title=mlpdeploy::{error[7:]}\n" in ran.log


def test_a_failed_verification_is_a_gate_of_regress_which_may_accept_it(runner: Runner) -> None:
    runner.put("verify.code", "1")
    ran = runner.run(name="vip_s7", regress_arguments="--accept verification", event=PULL_REQUEST)
    assert (ran.code, ran.outputs["verdict"]) == (0, "passed")
    (runner.root / "summary.md").unlink()
    alone = runner.run(name="vip_s7", baseline="none", event=PULL_REQUEST)
    assert (alone.code, alone.outputs["verdict"]) == (1, "not verified")
    assert alone.summary.startswith("### ❌ mlpdeploy: not verified")


def test_values_stay_what_they_are_and_words_are_quoted_as_in_a_shell(runner: Runner) -> None:
    runner.put("built.json", json.dumps(BUILT | {"folder": f"out put/{EVIL}\nverdict=forged"}))
    ran = runner.run(
        name=f"my package:{EVIL}\n::error::forged",
        checkpoint=EVIL,
        out="out put",
        baseline="saved results.json",
        arguments="--labels 'a b.txt'\n  --mean=\"0.5\" $(> pwned) '' -- * ;>pwned",
    )
    words = ["--labels", "a b.txt", "--mean=0.5", "$(>", "pwned)", "", "--", "*", ";>pwned"]
    build = ["build", "--checkpoint", EVIL, "--out", "out put", *words]
    assert ran.words("build") == [*build, "--json", "--", f"my package:{EVIL}\n::error::forged"]
    assert ran.words("verify")[-1] == f"out put/{EVIL}\nverdict=forged"
    assert ran.words("regress")[: len(build) + 2] == ["regress", *build[1:], "--baseline", "saved results.json"]
    assert ran.outputs["verdict"] == "passed" and ran.outputs["folder"].endswith("%0A verdict=forged")
    assert not [line for line in ran.log.splitlines() if line.startswith("::error")]
    assert sorted(path.name for path in runner.workspace.iterdir()) == ["mlpdeploy-results"]


def test_a_quote_that_is_not_closed_is_one_line(runner: Runner) -> None:
    ran = runner.run(name="vip_s7", regress_arguments="--accept 'layers", event=PULL_REQUEST)
    assert (ran.code, ran.calls) == (2, [])
    assert ran.log == "::error title=mlpdeploy::regress-arguments: No closing quotation\n"
    assert ran.outputs == {"passed": "false", "verdict": "not built", "folder": "", "exit-code": "2"}


def test_without_mlpdeploy_the_plan_says_so(tmp_path: Path) -> None:
    ran = Runner(tmp_path, names=("python",)).run(name="vip_s7")
    assert ran.code == 2 and "mlpdeploy is not on the path: let the input `install` install it" in ran.log


def test_what_cannot_begin_is_one_line(runner: Runner) -> None:
    (runner.workspace / "taken").touch()
    ran = runner.run(name="vip_s7", results="taken")
    assert ran.code == 2 and re.fullmatch(r"::error title=mlpdeploy::\[Errno \d+\] .*'taken'\n", ran.log)
    runner.put("version.code", "1")
    ran = runner.run(name="vip_s7")
    assert (ran.code, ran.log) == (2, "::error title=mlpdeploy::mlpdeploy --version fails: the log says why\n")


def test_it_installs_itself_or_what_it_is_told(runner: Runner) -> None:
    itself, told = (runner.run(name="x", install=install) for install in ("", "'./my package[tensorrt]' other==1"))
    quiet = ["pip", "install", "--disable-pip-version-check"]
    assert itself.calls[0] == [*quiet, runner.environment["GITHUB_ACTION_PATH"]]
    assert [*quiet, "./my package[tensorrt]", "other==1"] in told.calls


def test_artifacts_are_kept_under_what_decides_them_and_run_again_as_this_repositorys_own(runner: Runner) -> None:
    first = runner.run(name="vip_s7", precision="fp32")
    kept = first.used["Restore"]["key"]
    assert re.fullmatch(r"mlpdeploy-9\.8\.7-Linux-X64-[0-9a-f]{16}", kept)
    assert first.used["Restore"] == {"path": "artifacts", "key": kept, "restore-keys": f"{kept}-"}
    assert first.used["Keep"] == {"path": "artifacts", "key": f"{kept}-0123456789abcdef"}
    assert runner.run(name="vip_s7", precision="fp16").used["Restore"]["key"] != kept
    runner.put("built.json", json.dumps(BUILT | {"cached": True}))
    for restored, trusted in (("", False), (f"{kept}-0123456789abcdef", True)):
        runner.put("calls", "")
        again = runner.run(name="vip_s7", precision="fp32", restored=restored, event=PULL_REQUEST)
        assert again.used.keys() == {"Restore"}
        assert ["--trust" in again.words(command) for command in ("verify", "regress")] == [trusted, trusted]
    assert not runner.run(name="vip_s7", cache="false").used


def test_the_comment_that_is_there_is_updated(runner: Runner) -> None:
    runner.put("found", "IC_first\nIC_second\n")
    ran = runner.run(name="vip_s7", event=PULL_REQUEST)
    (sent,) = ran.sent
    assert sent["variables"]["id"] == "IC_first" and "updateIssueComment" in sent["query"]
    find, update = (call for call in ran.calls if call[0] == "gh")
    assert {"owner=owner", "repository=repository", "number=7", "--paginate"} <= set(find)
    marker = sent["variables"]["body"].splitlines()[0]
    assert f'startswith("{marker}")' in find[-1] and ".author.login == $me" in find[-1]
    assert update[:3] == ["gh", "api", "graphql"]
    runner.put("sent", "")
    other = runner.run(name="vip_s7", precision="int8", event=PULL_REQUEST)
    assert other.sent[0]["variables"]["body"].splitlines()[0] != marker


def test_without_permission_or_without_gh_there_is_a_notice_and_no_failure(runner: Runner, tmp_path: Path) -> None:
    runner.put("refused", "")
    ran = runner.run(name="vip_s7", event=PULL_REQUEST)
    assert (ran.code, ran.outputs["passed"], ran.sent) == (0, "true", [])
    assert re.search(r"::notice .*`pull-requests: write`: gh: Resource not accessible .*\(HTTP 403\)\n", ran.log)
    (tmp_path / "bare").mkdir()
    bare = Runner(tmp_path / "bare", names=("mlpdeploy", "python")).run(name="vip_s7", event=PULL_REQUEST)
    assert bare.code == 0 and "no comment on the pull request: gh is not installed" in bare.log


def test_without_a_pull_request_there_is_no_baseline_and_no_comment(runner: Runner) -> None:
    ran = runner.run(name="vip_s7")
    assert (ran.code, ran.outputs["verdict"], ran.sent) == (0, "verified", [])
    assert "::notice title=mlpdeploy::held against no baseline" in ran.log
    assert ran.summary == "### ✅ mlpdeploy: verified\n\n    vip_s7\n\n"
    assert "::notice" not in runner.run(name="vip_s7", baseline="none").log


def test_a_revision_that_a_shallow_clone_lacks_is_fetched(runner: Runner, tmp_path: Path) -> None:
    def git(*words: Any, cwd: Path = tmp_path / "origin") -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(
            ["git", *who, *map(str, words)], cwd=cwd, capture_output=True, text=True, check=True
        ).stdout

    (tmp_path / "origin").mkdir()
    git("init", "--quiet", "--initial-branch=main")
    for message in ("base", "head"):
        git("commit", "--quiet", "--allow-empty", "-m", message)
    git("branch", "other", "HEAD~1")
    base = git("rev-parse", "HEAD~1").strip()
    git("clone", "--quiet", "--depth=1", f"file://{tmp_path}/origin", ".", cwd=runner.workspace)
    event = PULL_REQUEST | {"base": {"sha": base}}
    words = runner.run(name="vip_s7", event=event).words("regress")
    assert f"git:{base}" in words and git("cat-file", "-t", base, cwd=runner.workspace) == "commit\n"
    for asked, expected in (("git:other", f"git:{base}"), ("git:--upload-pack=>pwned;:", None)):
        runner.put("calls", "")
        assert (expected or asked) in runner.run(name="vip_s7", baseline=asked).words("regress")
    assert not (runner.workspace / "pwned").exists()
