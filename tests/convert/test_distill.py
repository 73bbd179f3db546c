import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sqat.convert import distill
from sqat.convert.architectures import MIXED_TYPES
from sqat.convert.distill import DistillationLoss, StockDecoder, linear_kl
from sqat.data.batches import IGNORE, Batch
from sqat.train.step import router_stats


@pytest.mark.parametrize("bias", [False, True])
def test_kl_in_chunks_is_the_definition(bias, monkeypatch):
    monkeypatch.setattr(distill, "CHUNK_ROWS", 7)
    head, their_head = nn.Linear(11, 41, bias=bias), nn.Linear(13, 41)
    hidden, theirs, wanted = torch.randn(31, 11, requires_grad=True), torch.randn(31, 13), torch.rand(31) < 0.6
    student, teacher = head(hidden)[wanted].log_softmax(-1), their_head(theirs)[wanted].log_softmax(-1)
    naive = (teacher.exp() * (teacher - student)).sum()
    fast = linear_kl(hidden, head, theirs, their_head, wanted)
    torch.testing.assert_close(fast, naive)
    inputs = [hidden, *head.parameters()]
    for got, expected in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(naive, inputs), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.fixture
def batch(rows):
    targets = rows.roll(-1, dims=1)
    targets[:, -1] = IGNORE
    targets[2, 5:] = IGNORE
    return Batch(rows, targets, None, None)


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
def test_loss_is_cross_entropy_plus_weighted_kl(name, stock_model, batch):
    student, teacher = stock_model(name), stock_model("llama")
    task = DistillationLoss(StockDecoder(student, 17), StockDecoder(teacher, 17), 0.3, router_loss="none")
    targets = batch.targets.flatten()
    loss, sums = task(batch, batch.num_targets, 1.0)
    logits, theirs = (model(batch.inputs).logits.flatten(0, 1) for model in (student, teacher))
    cross_entropy = F.cross_entropy(logits, targets, ignore_index=IGNORE)
    real = targets != IGNORE
    kl = F.kl_div(logits[real].log_softmax(-1), theirs[real].log_softmax(-1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(loss, cross_entropy + 0.3 * kl, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sums["loss"] / sums["targets"], cross_entropy, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sums["kl"] / sums["targets"], kl, atol=1e-5, rtol=1e-4)
    assert len(router_stats(sums)) == (3 if name == "mixtral" else 0)


def test_the_teacher_is_not_trained(stock_model, batch):
    student, teacher = stock_model("qwen3"), stock_model("qwen3")
    task = DistillationLoss(StockDecoder(student, 17), StockDecoder(teacher, 17), 1.0)
    assert len(list(task.parameters())) == len(list(student.parameters()))
    task(batch, 5, 1.0)[0].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_without_a_teacher_it_is_cross_entropy(stock_model, batch):
    student = StockDecoder(stock_model("llama"), 17)
    task = DistillationLoss(student, None, 1.0)
    loss, sums = task(batch, batch.num_targets, 1.0)
    torch.testing.assert_close(loss, sums["loss"] / batch.num_targets)
    assert "kl" not in sums


@pytest.mark.parametrize("name", MIXED_TYPES)
def test_packed_documents_do_not_see_each_other(name, stock_model, rows):
    decoder = StockDecoder(stock_model(name), 17)
    positions = torch.cat((torch.arange(5), torch.arange(1), torch.arange(11))).expand(5, -1)
    packed, _ = decoder.hidden_states(rows, positions=positions)
    alone = torch.cat([decoder.hidden_states(part)[0] for part in rows.split((5, 1, 11), dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-4)
    assert torch.equal(decoder.head(packed), decoder.model.get_output_embeddings()(packed))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_router_statistics_are_those_of_the_definition(name, stock_model, rows):
    decoder = StockDecoder(stock_model(name), 17)
    real = torch.rand(rows.shape) < 0.7
    _, stats = decoder.hidden_states(rows, real=real)
    logits = decoder.model(rows, output_router_logits=True).router_logits
    assert len(stats) == 3
    for layer, logits_NE in zip(stats, logits, strict=True):
        load, mass, chosen_mass = [0] * 5, torch.zeros(5), torch.zeros(5)
        for token, counts in zip(logits_NE, real.flatten(), strict=True):
            if counts:
                probs = token.softmax(-1)
                mass += probs
                for e in probs.argsort(descending=True)[:2]:
                    load[e] += 1
                    chosen_mass[e] += probs[e]
        assert layer.load_E.tolist() == load
        assert layer.tokens == real.sum()
        torch.testing.assert_close(layer.probability_E, mass)
        torch.testing.assert_close(layer.selected_E, chosen_mass)
        entropy = torch.distributions.Categorical(logits=logits_NE[real.flatten()]).entropy().sum()
        torch.testing.assert_close(layer.entropy, entropy)


def test_gradient_checkpointing_changes_nothing_but_memory(stock_model, rows):
    decoder = StockDecoder(stock_model("qwen3"), 17).train()
    grads = []
    for wanted in (False, True, False):
        decoder.gradient_checkpointing = wanted
        assert any(layer.gradient_checkpointing for layer in decoder.model.model.layers) == wanted
        decoder.zero_grad()
        decoder.hidden_states(rows)[0].square().sum().backward()
        grads.append(decoder.model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])
