"""The steps of the action (see action.yml). What a user gave comes by environment variables, INPUT_ and its name.

    python action.py install|plan|run|comment

Python's own library is all that it needs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

SELECTED = ("name", "precision", "backend", "batch", "checkpoint", "calibration", "arguments")
"""Inputs that decide an engine."""
REGRESS_FILES = {
    "--junit": "junit.xml",
    "--markdown": "summary.md",
    "--save": "regress.json",
    "--github-benchmark": "benchmark.json",
}
BUILT = "build.json"
LONGEST = 60_000
"""Characters of a comment; GitHub takes 65,536."""
FIND = """
query($owner: String!, $repository: String!, $number: Int!, $endCursor: String) {
  viewer { login }
  repository(owner: $owner, name: $repository) {
    pullRequest(number: $number) {
      comments(first: 100, after: $endCursor) {
        pageInfo { hasNextPage endCursor }
        nodes { id body author { login } }
      }
    }
  }
}
"""
OWN = """
(.data.viewer.login | sub("\\\\[bot\\\\]$"; "")) as $me | .data.repository.pullRequest.comments.nodes[]
| select(.author.login == $me and (.body | startswith("MARKER"))) | .id
"""
"""The comments that begin with a marker and were written by whom the token belongs to: anyone can copy a marker."""
UPDATE = "mutation($id: ID!, $body: String!) { updateIssueComment(input: {id: $id, body: $body}) { clientMutationId } }"


def given(name: str) -> str:
    """An input, "" where it was not given."""
    return os.environ.get(f"INPUT_{name.upper().replace('-', '_')}", "").strip()


def words(name: str) -> list[str]:
    """An input as words, as a shell would take them apart, but without expanding anything."""
    try:
        return shlex.split(given(name))
    except ValueError as error:
        fail(f"{name}: {error}")


def options(*names: str) -> list[str]:
    """An option for each of these inputs that was given."""
    return [word for name in names if given(name) for word in (f"--{name}", given(name))]


def fail(text: str) -> NoReturn:
    """End the step with one line."""
    print(f"::error title=mlpdeploy::{escaped(text)}", flush=True)
    sys.exit(2)


def notice(text: str) -> None:
    """One line that stands at the run and fails nothing."""
    print(f"::notice title=mlpdeploy::{escaped(text)}", flush=True)


def escaped(text: str) -> str:
    """Text that stays within a line of the log which the runner reads."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def put(**outputs: str) -> None:
    """Set outputs of the step, each of one line."""
    with Path(os.environ["GITHUB_OUTPUT"]).open("a", encoding="utf-8") as file:
        for name, value in outputs.items():
            file.write(f"{name.replace('_', '-')}={' '.join(value.splitlines())}\n")


def digest(*names: str) -> str:
    """A short name for what these environment variables hold."""
    text = "\0".join(os.environ.get(name, "") for name in names)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def mlpdeploy(*arguments: str, out: Path | None = None) -> tuple[int, str]:
    """Run a command, whose stderr goes to the log and whose stdout there or to `out`: its exit code and its error."""
    print(f"::group::{escaped(shlex.join(['mlpdeploy', *arguments]))}", flush=True)
    error = ""
    with ExitStack() as stack:
        stdout = None if out is None else stack.enter_context(out.open("wb"))
        process = stack.enter_context(
            subprocess.Popen(["mlpdeploy", *arguments], stdout=stdout, stderr=subprocess.PIPE)
        )
        assert process.stderr is not None
        for line in process.stderr:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
            if line.startswith(b"error: "):
                error = line.decode("utf-8", "replace").strip()
    print("::endgroup::", flush=True)
    if error:
        print(f"::error title=mlpdeploy::{escaped(error.removeprefix('error: '))}", flush=True)
    code = process.returncode
    return (code if code >= 0 else 128 - code), error


def git(*arguments: str) -> str | None:
    """What git answers, None where it refuses, or is not there."""
    if shutil.which("git") is None:
        return None
    found = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return None if found.returncode else found.stdout.strip()


def baseline() -> str:
    """The baseline that was given, or the pull request's base; "" for none. A revision that lacks here is fetched."""
    asked = given("baseline") or (f"git:{given('base')}" if given("base") else "none")
    if not asked.startswith("git:"):
        return "" if asked == "none" else asked
    revision = asked.removeprefix("git:")
    if git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}") is None:
        depth = ["--depth=1"] if git("rev-parse", "--is-shallow-repository") == "true" else []
        if git("fetch", "--quiet", "--no-tags", *depth, "--", "origin", revision) is not None:
            return f"git:{git('rev-parse', 'FETCH_HEAD')}"
    return asked


def install() -> None:
    """Install what was asked for, or the mlpdeploy that this action belongs to."""
    packages = words("install") or [os.environ["GITHUB_ACTION_PATH"]]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *packages]
    sys.exit(subprocess.run(command, check=False).returncode)


def plan() -> None:
    """Name what is kept: by all that decides an engine but the content of files, which the artifact's own key knows."""
    for name in ("arguments", "regress-arguments"):
        words(name)
    if shutil.which("mlpdeploy") is None:
        fail("mlpdeploy is not on the path: let the input `install` install it, or put it there")
    found = subprocess.run(["mlpdeploy", "--version"], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        fail("mlpdeploy --version fails: the log says why")
    where, chosen = ("RUNNER_OS", "RUNNER_ARCH"), [f"INPUT_{name.upper()}" for name in SELECTED]
    kept = ["mlpdeploy", *found.stdout.split()[-1:], *(os.environ.get(name, "") for name in where), digest(*chosen)]
    put(kept="-".join(kept), marker=digest("GITHUB_WORKFLOW", "GITHUB_JOB", *where, *chosen))


def run() -> None:
    """Build, verify, and hold against a baseline where there is one; tell how it ended, and end well."""
    results = Path(given("results"))
    results.mkdir(parents=True, exist_ok=True)
    for name in (BUILT, *REGRESS_FILES.values()):
        (results / name).unlink(missing_ok=True)
    code, verdict, error = held(results)
    summary = results / REGRESS_FILES["--markdown"]
    if not summary.exists():
        what = " ".join(" ".join(given(name) for name in SELECTED[:3]).split())
        lines = [f"### {'❌' if code else '✅'} mlpdeploy: {verdict}", "", f"    {what}"]
        summary.write_text("\n".join([*lines, *([f"    {error}"] if error else [])]) + "\n", encoding="utf-8")
    with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8") as file:
        file.write(summary.read_text(encoding="utf-8") + "\n")
    put(passed="false" if code else "true", verdict=verdict, exit_code=str(code))


def held(results: Path) -> tuple[int, str, str]:
    """The exit code of the command that decided, the verdict, and the line of its error."""
    choice = [*options("precision", "backend", "checkpoint", "calibration", "out"), *words("arguments")]
    name, data = ["--", given("name")], options("data")
    code, error = mlpdeploy("build", *choice, *options("batch"), "--json", *name, out=results / BUILT)
    if code:
        return code, "not built", error
    built = json.loads((results / BUILT).read_text(encoding="utf-8"))
    key = built["manifest"].get("key")
    put(folder=built["folder"], keep=f"{given('kept')}-{key[:16]}" if key and not built["cached"] else "")
    # Another machine of this repository's workflows built it, so it does not have this one's seal.
    trust = ["--trust"] if built["cached"] and given("restored") else []
    code, error = mlpdeploy("verify", *data, *trust, "--", built["folder"])
    reference = baseline() if code in (0, 1) else ""
    if not reference:
        if not code and not given("baseline"):
            notice("held against no baseline: there is none but for pull requests, unless the input `baseline` says so")
        return code, "not verified" if code else "verified", error
    files = [word for option, file in REGRESS_FILES.items() for word in (option, str(results / file))]
    sizes = ["--batch", given("sizes")] if given("sizes") else []
    timed = [*sizes, *options("time", "undecided"), *data, *trust, *words("regress-arguments")]
    code, error = mlpdeploy("regress", *choice, "--baseline", reference, *timed, *files, *name)
    if code not in (0, 1):
        return code, "not measured", error
    saved = results / REGRESS_FILES["--save"]
    if not saved.exists():  # there was no room for it, which was said
        return code, ("passed", "regressed")[code], error
    return code, json.loads(saved.read_text(encoding="utf-8"))["verdict"], error


def comment() -> None:
    """Write the summary to the pull request, in place of what an earlier run wrote there; say why where that fails."""
    if shutil.which("gh") is None:
        return notice("no comment on the pull request: gh is not installed")
    try:
        write(f"<!-- mlpdeploy {given('marker')} -->", os.environ["GITHUB_REPOSITORY"], given("pull-request"))
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["it failed"])[-1]
        notice(f"no comment on the pull request, which takes the permission `pull-requests: write`: {reason}")


def write(marker: str, repository: str, number: str) -> None:
    """Write the comment of a marker. Raises CalledProcessError where GitHub refuses."""
    summary = (Path(given("results")) / REGRESS_FILES["--markdown"]).read_text(encoding="utf-8")
    link = f"{os.environ['GITHUB_SERVER_URL']}/{repository}/actions/runs/{os.environ['GITHUB_RUN_ID']}"
    body = f"{marker}\n{summary[:LONGEST]}\n[{given('head')[:10]}]({link})\n"
    owner, _, name = repository.partition("/")
    variables = ["-f", f"owner={owner}", "-f", f"repository={name}", "-F", f"number={number}"]
    found = gh("graphql", "--paginate", "-f", f"query={FIND}", *variables, "--jq", OWN.replace("MARKER", marker))
    if found:
        gh("graphql", said={"query": UPDATE, "variables": {"id": found.split()[0], "body": body}})
    else:
        gh(f"repos/{repository}/issues/{number}/comments", said={"body": body})


def gh(path: str, *arguments: str, said: dict[str, object] | None = None) -> str:
    """What GitHub answers. Raises CalledProcessError."""
    sent = [] if said is None else ["--method", "POST", "--input", "-"]
    text = None if said is None else json.dumps(said)
    command = ["gh", "api", path, *arguments, *sent]
    return subprocess.run(command, input=text, capture_output=True, encoding="utf-8", check=True).stdout.strip()


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        {"install": install, "plan": plan, "run": run, "comment": comment}[sys.argv[1]]()
    except OSError as found:
        fail(str(found))
