"""TransTEE and the student of FF-G2M: the mathematics, the authors' checkpoints, several inputs and outputs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.graph.tracing.trace import TensorSpec
from mlpdeploy.network import random_weights
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.stages import load
from mlpdeploy.zoo import g2m, transtee
from tests.conftest import Cli
from tests.graph import proof as graph
from tests.zoo.official import official
from tests.zoo.proof import prove

DEAD = ("decoder.layers.0.norm1.", "decoder.layers.0.norm2.", "decoder.layers.0.norm3.")


def tiny() -> transtee.TransTEE:
    network = transtee.TransTEE(covariates=12, tokens=5, dim=8, heads=2, hidden=6).double().eval()
    random_weights.randomise(network, 1)
    return network


def rows(count: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((count, 12), (count,), (count,))
    covariates, treatment, dosage = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return covariates, (3 * treatment).floor(), dosage


def attention(owner: transtee.Attention, x: Tensor, memory: Tensor) -> Tensor:
    """As torch computes it, tokens first."""
    reference = nn.MultiheadAttention(8, 2).double().eval()
    reference.load_state_dict(owner.state_dict())
    found, _ = reference(x.transpose(0, 1), memory.transpose(0, 1), memory.transpose(0, 1))
    return found.transpose(0, 1)


def over_tokens(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = norm.weight / (variance + 1e-5).sqrt()
    return (x - mean[:, None]) * scale[:, None] + norm.bias[:, None]


def test_transtee_is_its_equations() -> None:
    network, (x, t, d) = tiny(), rows()
    encoder, decoder = network.encoder.layers[0], network.decoder.layers[0]
    assert isinstance(encoder, transtee.EncoderLayer) and isinstance(decoder, transtee.DecoderLayer)

    features = F.relu(torch.einsum("bi,io->bo", x, network.linear1.weight) + network.linear1.bias)
    embed = network.feature_weight.treat_weight
    z = features[:, :, None] * embed.weight[:, 0] + embed.bias
    z = over_tokens(encoder.norm1, z + attention(encoder.self_attn, z, z))
    z = over_tokens(encoder.norm2, z + encoder.linear2(F.relu(encoder.linear1(z))))

    asked = torch.cat([network.treat_emb(t), network.dosage_emb(d)], 1)
    q = F.relu(asked @ network.linear2.weight + network.linear2.bias)[:, None]
    q = q + attention(decoder.self_attn, q, q)
    q = q + attention(decoder.multihead_attn, q, z)
    q = q + decoder.linear2(F.relu(decoder.linear1(q)))
    expected = q[:, 0] @ network.Q.weight + network.Q.bias
    torch.testing.assert_close(network(x, t, d), expected, rtol=1e-10, atol=1e-10)


def test_every_parameter_of_transtee_matters_but_the_norms_of_the_decoder() -> None:
    network = tiny()
    loss: Tensor = network(*rows()).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    dead = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert len(dead) == 6
    assert all(name.startswith(DEAD) for name in dead)


def test_transtee_rewritten_is_the_same_at_every_batch() -> None:
    result = graph.prove(transtee.TransTEE(covariates=12, tokens=5, dim=8, heads=2, hidden=6), (12,), (), ())
    # Heads have to stand before tokens: query, key, value and result of the encoder, key and value of the decoder.
    assert graph.moves(result) == 6


def test_student_is_its_equations() -> None:
    student = g2m.Student((6, 5, 4, 3)).double().eval()
    x = torch.randn(7, 6, dtype=torch.float64)
    results, logits = student(x)
    expected = [x]
    for index, layer in enumerate(student.layers):
        out = expected[-1] @ layer.weight.mT + layer.bias
        expected.append(out if index == 2 else out.clamp(min=0))
    torch.testing.assert_close(results, expected[1:])
    torch.testing.assert_close(logits, expected[-1])


def test_student_rewritten_is_the_same_at_every_batch() -> None:
    graph.prove(g2m.Student((6, 5, 3)), (6,))


def test_official_checkpoints_load_from_a_file(tmp_path: Path) -> None:
    for name in ("transtee_dosage", "ff_g2m_student"):
        state = official(name).random()
        torch.save(state, tmp_path / "trained.pth")
        loaded = mlpdeploy.reference(name, checkpoint=tmp_path / "trained.pth").state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
    wrapped = {f"encoder.{key}": value for key, value in official("ff_g2m_student").random().items()}
    torch.save(wrapped, tmp_path / "trained.pth")
    mlpdeploy.reference("ff_g2m_student", checkpoint=tmp_path / "trained.pth")


def test_student_of_another_graph(tmp_path: Path) -> None:
    torch.save(g2m.Student((50, 8, 8, 3)).state_dict(), tmp_path / "trained.pth")
    source = load(Selection("ff_g2m_student", checkpoint=tmp_path / "trained.pth"), Stages())
    assert source.specs() == [TensorSpec("features", (50,), torch.float32, 0, 1)]
    assert source.network(torch.ones(2, 50))[1].shape == (2, 3)
    assert source.recipe.num_classes == 3


def test_proof_of_transtee() -> None:
    prove("transtee_dosage")


def test_proof_of_the_student() -> None:
    prove("ff_g2m_student")


def test_several_inputs_through_the_whole_product(cli: Cli) -> None:
    options = ("--backend", "onnxruntime", "--precision", "fp32", "--batch", "1:4:8")
    cli("build", "transtee_dosage", *options)
    found = json.loads(cli("verify", "transtee_dosage", *options, "--json").stdout)
    assert found["passed"]
    assert found["stages"][-1]["status"] == "passed"
