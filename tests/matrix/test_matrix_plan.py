"""What a plan means: products, tables, exclusions, patterns; each job once, by a name and in a store of its own."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import typer

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents.matrix import Needs
from mlpdeploy.matrix import plan
from mlpdeploy.matrix.job import Job
from mlpdeploy.matrix.options import STEPS
from mlpdeploy.terminal.cli import app
from tests.conftest import REPOSITORY

VIP = 'network = "vip_s7"\n'


def jobs(tmp_path: Path, text: str, out: Path | None = None) -> tuple[Job, ...]:
    path = tmp_path / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return plan.read(path, out).jobs


def names(tmp_path: Path, text: str) -> list[str]:
    return [job.name for job in jobs(tmp_path, text)]


def test_lists_are_multiplied_in_the_order_of_a_selection(tmp_path: Path) -> None:
    text = 'backend = ["openvino", "onnxruntime"]\nprecision = ["fp32", "fp16"]\nnetwork = ["vip_s7", "mixer_s32"]'
    assert names(tmp_path, text) == [
        f"{network} {precision} {backend} 1:8:32"
        for network in ("vip_s7", "mixer_s32")
        for precision in ("fp32", "fp16")
        for backend in ("openvino", "onnxruntime")
    ]


def test_patterns_are_of_recipes_and_aliases_are_their_names(tmp_path: Path) -> None:
    found = [job.selection.name for job in jobs(tmp_path, 'network = ["mixer_s*", "vip_s", "timm:*", "vip_?7"]')]
    assert found == ["mixer_s32", "mixer_s16", "vip_s7", "timm:*", "vip_m7", "vip_l7"]


def test_tables_begin_with_what_stands_above_them(tmp_path: Path) -> None:
    text = f"""
        {VIP}
        precision = "fp32"
        verify = true
        [[jobs]]
        backend = "openvino"
        [[jobs]]
        precision = "fp16"
        verify = false
    """
    found = jobs(tmp_path, text)
    assert [job.name for job in found] == ["vip_s7 fp32 openvino 1:8:32", "vip_s7 fp16 auto 1:8:32"]
    assert [[step.name for step in job.steps] for job in found] == [["build", "verify"], ["build"]]


def test_the_same_engine_of_two_tables_is_one_job_with_the_commands_of_both(tmp_path: Path) -> None:
    text = f"""
        {VIP}
        [[jobs]]
        bench = true
        batch = 8
        [[jobs]]
        network = "vip_s"
        batch = "8:8:8"
        verify = {{ quick = true }}
    """
    (job,) = jobs(tmp_path, text)
    assert [(step.name, dict(step.options)) for step in job.steps] == [
        ("build", {}), ("verify", {"quick": True}), ("bench", {}),
    ]  # fmt: skip


def test_exclusions_leave_out_what_has_all_of_their_values(tmp_path: Path) -> None:
    text = """
        network = ["mixer_s32", "vip_s7"]
        precision = ["fp32", "fp16"]
        backend = ["openvino", "onnxruntime"]
        exclude = [{ network = "vip_*", precision = "fp16" }, { backend = "onnx*", precision = ["fp16"] }]
    """
    assert names(tmp_path, text) == [
        "mixer_s32 fp32 openvino 1:8:32", "mixer_s32 fp32 onnxruntime 1:8:32", "mixer_s32 fp16 openvino 1:8:32",
        "vip_s7 fp32 openvino 1:8:32", "vip_s7 fp32 onnxruntime 1:8:32",
    ]  # fmt: skip


def test_an_exclusion_of_all_tables_may_serve_in_one_of_them(tmp_path: Path) -> None:
    text = """
        exclude = [{ precision = "fp16" }]
        [[jobs]]
        network = "vip_s7"
        [[jobs]]
        network = "vip_s7"
        precision = "fp32"
    """
    assert names(tmp_path, text) == ["vip_s7 fp32 auto 1:8:32"]


def test_what_is_said_of_calibration_is_for_8_bits_alone(tmp_path: Path) -> None:
    found = jobs(tmp_path, f'{VIP}precision = ["fp16", "int8"]\ncalibration = "random"\ncalibrator = ["max", "mse"]')
    assert [(job.name, job.selection.calibration) for job in found] == [
        ("vip_s7 fp16 auto 1:8:32", None),
        ("vip_s7 int8 auto 1:8:32 calibrator=max", "random"),
        ("vip_s7 int8 auto 1:8:32 calibrator=mse", "random"),
    ]


def test_jobs_that_would_lie_in_one_folder_have_stores_of_their_own(tmp_path: Path) -> None:
    text = f"""
        {VIP}
        backend = "openvino"
        batch = [1, "1:8:32"]
        precision = "fp32"
        [[jobs]]
        [[jobs]]
        precision = "fp16"
        batch = 1
    """
    stores = {job.name: str(job.selection.out) for job in jobs(tmp_path, text, tmp_path)}
    assert stores == {
        "vip_s7 fp32 openvino 1": f"{tmp_path}/batch=1",
        "vip_s7 fp32 openvino 1:8:32": f"{tmp_path}/batch=1-8-32",
        "vip_s7 fp16 openvino 1": f"{tmp_path}",
    }


def test_stores_differ_where_what_tells_them_apart_reads_alike(tmp_path: Path) -> None:
    found = jobs(tmp_path, f'{VIP}backend = "onnxruntime"\ncheckpoint = ["a/b.pth", "a-b.pth"]')
    assert len({str(job.selection.out) for job in found}) == len({job.name for job in found}) == 2


def test_a_backend_that_is_not_decided_may_be_any(tmp_path: Path) -> None:
    found = jobs(tmp_path, f'{VIP}backend = ["auto", "openvino"]')
    assert [str(job.selection.out) for job in found] == ["artifacts/backend=auto", "artifacts/backend=openvino"]


def test_engines_for_named_gpus_lie_apart_by_themselves(tmp_path: Path) -> None:
    found = jobs(tmp_path, f'{VIP}backend = "tensorrt-rtx"\ngpu = ["sm86", "sm89,sm90"]')
    assert [job.selection.gpus for job in found] == [("sm86",), ("sm89", "sm90")]
    assert {str(job.selection.out) for job in found} == {"artifacts"}


def test_options_are_those_of_the_command_line(tmp_path: Path) -> None:
    text = """
        network = "nets:make"
        input = ["a:3,8,8", "ids:4:int64:0..9"]
        output-names = "x,y"
        disable-rule = [[], ["fold_affine", "merge_reshapes"]]
        checkpoint = "weights/{network}-{precision}.pth"
        ema = false
        seed = 7
        regress = { baseline = "old/{network}/{batch}.json", accept = ["latency"] }
    """
    first, second = jobs(tmp_path, text)
    assert first.selection.inputs == ("a:3,8,8", "ids:4:int64:0..9") and first.selection.output_names == ("x", "y")
    assert first.selection.checkpoint == Path("weights/nets-make-fp16.pth") and first.selection.ema is False
    assert (first.selection.disabled_rules, second.selection.disabled_rules) == (
        (), ("fold_affine", "merge_reshapes"),
    )  # fmt: skip
    assert second.steps[1].options["baseline"] == "old/nets-make/1-8-32.json"
    assert second.name == "nets:make fp16 auto 1:8:32 disable-rule=fold_affine,merge_reshapes"
    assert pickle.loads(pickle.dumps(second)) == second  # as it goes to other machines


def test_needs_are_read_and_a_gpu_is_known_to_be_needed(tmp_path: Path) -> None:
    text = """
        network = "vip_s7"
        needs = { cpus = 2, memory = "1.5 GiB" }
        [[jobs]]
        backend = ["openvino", "tensorrt", "tensorrt-rtx"]
        [[jobs]]
        backend = "tensorrt-rtx"
        precision = "fp32"
        bench = true
        needs = { gpu = "L4", cpus = 4 }
    """
    size = 3 << 29
    assert [job.needs for job in jobs(tmp_path, text)] == [
        Needs(2, size), Needs(2, size, "any"), Needs(2, size), Needs(4, size, "L4"),
    ]  # fmt: skip


def test_what_two_tables_ask_may_need_a_gpu_only_together(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, f'{VIP}backend = "tensorrt-rtx"\n[[jobs]]\nverify = true\n[[jobs]]\nbench = true')
    assert job.needs == Needs(gpu="any") and [step.name for step in job.steps] == ["build", "verify", "bench"]


def test_each_option_of_a_command_is_one_of_the_command_line() -> None:
    for step, options in STEPS.items():
        parser = typer.main.get_command(app).commands[step]  # type: ignore[attr-defined]
        known = {flag.removeprefix("--") for parameter in parser.params for flag in parameter.opts}
        assert set(options) <= known, step


BAD = {
    "nothing": ("", "says no network"),
    "no TOML": ("network = ", "is no TOML"),
    "nested": ("x = " + "[" * 5000, "is no TOML"),
    "an unknown option": (f"{VIP}precisions = ['fp32']", "nothing is called precisions; did you mean precision?"),
    "an option of Python": (f"{VIP}image_size = 8", "did you mean image-size?"),
    "an unknown network": ("network = 'vip_z'", "did you mean"),
    "a pattern of nothing": ("network = 'vap_*'", "no recipe fits 'vap_*'"),
    "an unknown precision": (f"{VIP}precision = 'fp17'", "(vip_s7 fp17): precision 'fp17' is not known"),
    "an empty list": (f"{VIP}precision = []", "precision is an empty list"),
    "a value of another type": (f"{VIP}image-size = 'large'", "image-size is text, it must be a whole number"),
    "a number for a text": (f"{VIP}precision = 16", "precision is a number, it must be text"),
    "true for a number": (f"{VIP}image-size = true", "image-size is true or false"),
    "a number that no document holds": (f"{VIP}image-size = {10**30}", "too large"),
    "no number": (f"{VIP}crop = nan", "too large, or none"),
    "an empty text": (f"{VIP}checkpoint = ''", "not empty"),
    "a text of two lines": (f'{VIP}checkpoint = "a\\nb"', "one line"),
    "a step that is none": (f"{VIP}verify = 'yes'", "give true, false or a table"),
    "an unknown option of a step": (f"{VIP}bench = {{ tiem = 3 }}", "bench: nothing is called tiem; did you mean time"),
    "a wrong option of a step": (f"{VIP}bench = {{ time = '3' }}", "bench.time is text, it must be a number"),
    "evaluate on nothing": (f"{VIP}evaluate = true", "evaluate needs data"),
    "regress against nothing": (f"{VIP}regress = {{ time = 3 }}", "regress needs baseline"),
    "regress beyond the engine": (f"{VIP}regress = {{ baseline = 'x', batch = 64 }}", "engine takes batch 1 to 32"),
    "sizes that are none": (f"{VIP}bench = {{ batch = 'all' }}", "give the sizes to time"),
    "not built": (f"{VIP}build = false", "every job begins with it"),
    "an exclusion of nothing": (f"{VIP}exclude = [{{ precision = 'fp32' }}]", "} leaves nothing out"),
    "an exclusion of all": (f"{VIP}exclude = [{{ network = 'vip_*' }}]", "every job of it is excluded"),
    "an exclusion of what there is not": (f"{VIP}exclude = [{{ verify = true }}]", "exclude: nothing is called verify"),
    "an exclusion that is no table": (f"{VIP}exclude = ['vip_s7']", "exclude must be tables"),
    "jobs that are none": (f"{VIP}jobs = 3", "jobs must be tables"),
    "stores that are several": (f"{VIP}out = ['a', 'b']", "out is a list, it must be text"),
    "no jobs": (f"{VIP}jobs = []", "jobs is an empty list"),
    "needs of the impossible": (f"{VIP}needs = {{ memory = 'much' }}", "a size such as 8GiB"),
    "needs of nothing": (f"{VIP}needs = {{ cpus = 0 }}", "must be at least 1"),
    "needs that there are not": (f"{VIP}needs = {{ disk = 3 }}", "needs: nothing is called disk"),
    "needs that are none": (f"{VIP}needs = 3", "needs is a number, it must be an object"),
    "too many": (f"{VIP}seed = {[*range(201)]}\nnum-classes = {[*range(1, 52)]}", "10251 jobs; a plan may have 10000"),
    "the same, differently": (
        f"{VIP}[[jobs]]\nverify = {{ quick = true }}\n[[jobs]]\nverify = true", "asks twice for verify of vip_s7",
    ),
    "the same, with other needs": (
        f"{VIP}[[jobs]]\n[[jobs]]\nneeds = {{ cpus = 2 }}", "asks twice for vip_s7, with different needs",
    ),
    "a mistake in a table": (f"{VIP}[[jobs]]\n[[jobs]]\ncrop = 2.0", "jobs[1] (vip_s7): crop 2.0"),
    "a batch that is none": (f"{VIP}batch = '8:1'", "give MIN:OPT:MAX"),
    "a wrong shape": ("network = 'a:b'\ninput-shape = '3,x'", "such as 3,224,224"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_plan_that_cannot_be_meant_is_one_line(what: str, tmp_path: Path) -> None:
    text, said = BAD[what]
    with pytest.raises(InputError) as refused:
        jobs(tmp_path, text)
    message = str(refused.value)
    assert said in message and message.startswith(str(tmp_path / "plan.toml")) and len(message.splitlines()) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_plan_that_is_no_text_or_not_there_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"is no TOML|give a plan in TOML"):
        plan.read(path)


def test_the_page_shows_a_plan_and_every_option_of_a_command(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "matrix.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    assert len(jobs(tmp_path, text)) == 14
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for step, options in STEPS.items():
        assert all(f"`{one}`" in lines[step] or one.startswith("max-") for one in options), step
