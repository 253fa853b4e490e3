"""The kernel compiled for every GPU that it serves, without one: what matters in PTX and cubin."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

from mlpdeploy import kernels  # noqa: E402

ahead = kernels.load("segment_grouped_projection.ahead")
problem = kernels.load("segment_grouped_projection.problem")
configurations = kernels.load("common.configurations")
common = kernels.load("common.ahead")
Problem, Config = problem.Problem, problem.Config

TENSOR_CORES = {
    80: "mma.sync",
    86: "mma.sync",
    89: "mma.sync",
    90: "wgmma.mma_async",
    100: "tcgen05.mma",
    120: "mma.sync",
}
"""Compute capability to the instruction of its tensor cores that Triton uses for large tiles."""

VIP_HEIGHT = Problem(16, 256, 24, 1, 16, 24, "fp16")
VIP_FIRST = Problem(32, 32, 6, 1, 32, 6, "fp16")
RAFT = Problem(28, 28, 2, 64, 1, 112, "fp16")
LARGE = {2: Config(128, 128, 32, 4, 3), 4: Config(64, 64, 32, 4, 3)}
ASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin"


def instructions(ptx: str) -> Counter[str]:
    """Loads and stores of global memory by their width in bytes, tensor-core instructions, uses of local memory."""
    found: Counter[str] = Counter()
    for line in ptx.splitlines():
        line = re.sub(r"^\s*(@!?%\w+)?\s*", "", line)
        if copied := re.match(r"cp\.async\.c[ag]\.shared\.global .*\], (0x\w+|\d+)", line):
            found[f"load {int(copied[1], 0)}"] += 1
        elif moved := re.match(r"(ld|st)\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)", line):
            kind = "load" if moved[1] == "ld" else "store"
            found[f"{kind} {int(moved[2] or 1) * int(moved[3]) // 8}"] += 1
        elif matrix := re.match(r"(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", line):
            found[matrix[1]] += 1
        elif re.match(r"(ld|st)\.local|\.local", line):
            found["local"] += 1
    return found


def widths(found: Counter[str], kind: str) -> set[int]:
    return {int(name.split()[1]) for name in found if name.startswith(kind)}


def loop(ptx: str) -> list[str]:
    """The instructions of the longest loop."""
    lines = [line.strip() for line in ptx.splitlines()]
    labels = {found[1]: place for place, line in enumerate(lines) if (found := re.match(r"(\$\w+):", line))}
    jumps = [(found[1], place) for place, line in enumerate(lines) if (found := re.search(r"bra\S*\s+(\$\w+);", line))]
    loops = [lines[labels[to] : place + 1] for to, place in jumps if labels[to] < place]
    return [re.sub(r"^@!?%\w+\s+", "", line) for line in max(loops, key=len)]


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack and local memory of the only kernel of a cubin, as NVIDIA's own tool reads them."""
    tool, file = ASSEMBLER / "cuobjdump", folder / "kernel.cubin"
    if not tool.exists():
        pytest.skip("this Triton brings no cuobjdump")
    file.write_bytes(cubin)
    told = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}


@pytest.mark.parametrize("sm", TENSOR_CORES)
def test_it_multiplies_on_tensor_cores_with_wide_loads_and_no_local_memory(sm: int, tmp_path: Path) -> None:
    made = ahead.compile_kernel(VIP_HEIGHT, LARGE[2], sm)
    found = instructions(made.ptx)
    assert found[TENSOR_CORES[sm]] and not found["local"]
    assert widths(found, "load") == {16} and widths(found, "store") == {16}
    used = resources(made.cubin, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0 and used["REG"] <= 255
    assert made.threads == 128 and made.shared <= configurations.SHARED[sm]


@pytest.mark.parametrize("sm", TENSOR_CORES)
def test_the_unmeasured_choice_compiles_without_spilling(sm: int, tmp_path: Path) -> None:
    """In the first stage of vip_s7 runs are 6 numbers, 12 bytes, long, and addresses allow 4 bytes at a time."""
    config = VIP_FIRST.default(64, sm)
    made = ahead.compile_kernel(VIP_FIRST, config, sm)
    found = instructions(made.ptx)
    assert widths(found, "load") == {4, 16} and not found["local"]
    used = resources(made.cubin, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0 and made.shared <= configurations.SHARED[sm]


@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_every_precision(precision: str) -> None:
    made = ahead.compile_kernel(Problem(16, 256, 24, 1, 16, 24, precision), LARGE[configurations.BYTES[precision]], 90)
    found = instructions(made.ptx)
    assert widths(found, "load") == {16} and not found["local"]
    # FP32 products are not formed on tensor cores: TF32 is asked for by name.
    assert bool(found["wgmma.mma_async"]) == (precision != "fp32")


@pytest.mark.parametrize("sm", [80, 90])
def test_a_trailing_axis_is_read_and_written_along_itself(sm: int) -> None:
    found = instructions(ahead.compile_kernel(RAFT, LARGE[2], sm).ptx)
    assert found[TENSOR_CORES[sm]] and not found["local"]
    assert 16 in widths(found, "load") and widths(found, "store") == {16}


@pytest.mark.parametrize("given", [Problem(32, 32, 6, 32, 32, 6, "fp16"), Problem(192, 1, 1, 32, 192, 1, "fp16")])
def test_channels_as_s_n_are_read_and_written_16_bytes_at_a_time(given: Problem) -> None:
    """Both branches of vip_s7's first stage, the width branch with nothing between what it contracts (q = 1)."""
    found = instructions(ahead.compile_kernel(given, Config(128, 64, 32, 4, 3), 90).ptx)
    assert widths(found, "load") == {16} and widths(found, "store") == {16} and not found["local"]


@pytest.mark.parametrize("given", [Problem(1, 28, 112, 64, 28, 2, "fp16"), Problem(1, 1, 196, 768, 1, 384, "fp16")])
def test_one_contracted_axis_needs_no_quotients_in_the_loop(given: Problem) -> None:
    """RaftMLP's second projection, and a product over tokens whose last step is not full."""
    steps = loop(ahead.compile_kernel(given, Config(128, 128, 64, 4, 3), 90).ptx)
    assert any("wgmma" in step for step in steps)
    assert not [step for step in steps if re.match(r"mul\.hi|div|rem", step)]


@pytest.mark.parametrize("sm", TENSOR_CORES)
@pytest.mark.parametrize(
    "given",
    [
        Problem(192, 1, 1, 32, 192, 1, "bf16"),
        Problem(1, 1, 196, 768, 1, 196, "fp16", pitch=200),
        Problem(1, 1, 384, 1, 1, 1152, "fp16"),
    ],
    ids=["vip_s7 width", "tokens", "linear"],
)
def test_with_nothing_between_all_is_read_and_written_16_bytes_at_a_time(given: Problem, sm: int) -> None:
    """By the configuration that runs where nothing was measured."""
    made = ahead.compile_kernel(given, given.default(4096 // given.rows + 128, sm), sm)
    found = instructions(made.ptx)
    assert widths(found, "load") == {16} and widths(found, "store") == {16} and not found["local"]
    assert made.shared <= configurations.SHARED[sm]


def test_tiles_of_128_x_128_are_tried_with_either_number_of_warps() -> None:
    tried = {config.warps for config in VIP_HEIGHT.candidates(90) if config.block_m == config.block_n == 128}
    assert tried == {4, 8}


@pytest.mark.slow
def test_the_epilogue_reads_and_writes_as_widely() -> None:
    full = Problem(16, 256, 24, 1, 16, 24, "fp16", bias=True, gelu="erf", accumulate=True, channels=384)
    found = instructions(ahead.compile_kernel(full, LARGE[2], 90).ptx)
    assert found["load 16"] > 24 and widths(found, "store") == {16} and not found["local"]


def test_a_weight_as_onnx_has_it_is_read_as_widely() -> None:
    made = ahead.compile_kernel(Problem(16, 256, 24, 1, 16, 24, "fp16", columns_first=True), LARGE[2], 80)
    assert widths(instructions(made.ptx), "load") == {16}


@pytest.mark.parametrize("full", [False, True])
def test_the_entry_takes_what_a_launcher_passes_and_nothing_else(full: bool, tmp_path: Path) -> None:
    """x, weight, (bias, scale, accumulate,) the batch, y: and the assembler still accepts the text."""
    given = Problem(4, 8, 6, 1, 4, 6, "fp16", bias=full, accumulate=full, channels=24 if full else 0)
    made = ahead.compile_kernel(given, Config(16, 16, 16, 4, 2), 80)
    entry = re.search(r"\.entry (\w+)\(([^)]*)\)", made.ptx)
    assert entry is not None and entry[1] == made.entry
    kinds = re.findall(r"\.param \.(\w+)", entry[2])
    assert kinds == ["u64"] * (5 if full else 2) + ["u32", "u64"]
    source = tmp_path / "kernel.ptx"
    source.write_text(made.ptx)
    subprocess.run([ASSEMBLER / "ptxas", "-arch=sm_80", source, "-o", tmp_path / "kernel.cubin"], check=True)


def test_a_parameter_that_is_read_is_not_dropped() -> None:
    ptx = ".visible .entry f(\n\t.param .u64 f_0,\n\t.param .u64 f_1\n)\n{\n ld.param.b64 %rd1, [f_1];\n}\n"
    with pytest.raises(ValueError, match="f_1"):
        common.without_scratch(ptx, 1)
    with pytest.raises(ValueError, match="no entry with that many"):
        common.without_scratch(ptx, 3)
    assert common.without_scratch(ptx, 2) == ptx
    assert "f_1" not in common.without_scratch(ptx.replace("[f_1]", "[f_0]"), 1)


@pytest.mark.parametrize(
    ("cuda", "version"), [("12.0", 80), ("12.5", 85), ("12.6", 85), ("12.8", 87), ("13.0", 90), ("13.1", 91)]
)
def test_an_older_driver_gets_ptx_that_it_reads(cuda: str, version: int) -> None:
    assert common.ptx_version(cuda) == version
    made = ahead.compile_kernel(Problem(4, 8, 6, 1, 4, 6, "fp16"), Config(16, 16, 16, 4, 2), 80, cuda)
    found = re.search(r"^\.version (\d+)\.(\d+)", made.ptx, re.MULTILINE)
    assert found is not None and 10 * int(found[1]) + int(found[2]) <= version


def test_every_candidate_fits_the_gpu() -> None:
    for sm, limit in configurations.SHARED.items():
        for one in (
            VIP_HEIGHT,
            VIP_FIRST,
            RAFT,
            Problem(1, 5, 3, 1, 1, 7, "fp32"),
            Problem(16, 256, 24, 1, 16, 24, "tf32"),
        ):
            found = one.candidates(sm)
            assert found and len(set(found)) == len(found)
            assert all(one.shared(config) <= limit for config in found)
            for batch in (1, 8, 128):
                assert one.default(batch, sm) in found


def test_the_unmeasured_choice_grows_with_the_batch_and_is_always_the_same() -> None:
    chosen = [VIP_HEIGHT.default(batch, 90) for batch in (1, 8, 32, 128)]
    areas = [config.block_m * config.block_n for config in chosen]
    assert areas == sorted(areas) and areas[0] < areas[-1]
    assert chosen == [VIP_HEIGHT.default(batch, 90) for batch in (1, 8, 32, 128)]


def test_old_gpus_and_senseless_problems_are_refused() -> None:
    with pytest.raises(ValueError, match=r"7\.5: the kernel needs 8\.0"):
        VIP_HEIGHT.default(1, 75)
    for bad in ({"p": 0}, {"precision": "fp64"}, {"channels": 25}, {"channels": 24 * 7}):
        with pytest.raises(ValueError, match=r"positive|does not fit"):
            Problem(**{**{"p": 16, "q": 16, "s": 24, "o": 1, "k": 16, "t": 24, "precision": "fp16"}, **bad})
    assert configurations.capability(103) == 100 and configurations.capability(121) == 120
