import pytest
import torch

from sqat.convert.architectures import Heads, attention_layers, heads_of
from sqat.convert.heads import Observed, agglomerate, group_heads, observe_activations, observe_weights

OLD, NEW = Heads(12, 4, 10), Heads(4, 2, 10)


def observed(score=None, similarity=None):
    return Observed(
        torch.rand(12) if score is None else torch.tensor(score, dtype=torch.float32),
        torch.eye(12) if similarity is None else similarity,
    )


def test_mean_merges_neighbours_evenly():
    assert group_heads("mean", OLD, NEW, None) == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]
    assert group_heads("mean", OLD, Heads(10, 2, 10), None)[:5] == [(0, 1), (2,), (3,), (4,), (5,)]


def test_select_keeps_the_best_of_every_pool_in_order():
    score = [1, 9, 2, 3, 8, 0, 5, 5, 5, 6, 1, 1]
    assert group_heads("select", OLD, NEW, observed(score)) == [(1,), (4,), (6,), (9,)]


def test_cluster_merges_what_is_alike_within_a_pool():
    kinds = torch.tensor([0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0])
    alike = (kinds[:, None] == kinds[None]).float()
    assert group_heads("cluster", OLD, NEW, observed(similarity=alike)) == [
        *((0, 2, 4), (1, 3, 5)),
        *((6, 7, 10, 11), (8, 9)),
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 11, 13])
def test_clustering_is_scipys(count):
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy", reason="scipy is not installed")
    points = torch.randn(13, 3)
    distance = torch.cdist(points, points).double()
    tree = hierarchy.linkage(distance.numpy()[tuple(torch.triu_indices(13, 13, 1))], method="average")
    labels = hierarchy.cut_tree(tree, n_clusters=count).ravel().tolist()
    expected = {tuple(i for i in range(13) if labels[i] == label) for label in labels}
    assert set(agglomerate(-distance, count)) == expected


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2"])
def test_weight_score_is_the_norm_of_the_product(name, stock_model):
    model = stock_model(name)
    attention, heads = attention_layers(model)[1], heads_of(model.config)
    found = observe_weights(attention, heads)
    for h in range(12):
        output = attention.o_proj.weight[:, 10 * h : 10 * h + 10]
        value = attention.v_proj.weight[10 * (h // 3) : 10 * (h // 3) + 10]
        torch.testing.assert_close(found.score_H[h], (output @ value).norm())
    q = attention.q_proj.weight.unflatten(0, (12, 10)).flatten(1)
    torch.testing.assert_close(
        found.similarity_HH, torch.nn.functional.cosine_similarity(q[:, None], q[None], dim=-1), atol=1e-5, rtol=1e-4
    )


def test_activations_are_those_of_a_naive_pass(stock_model, rows):
    model = stock_model("qwen3")
    layer = attention_layers(model)[2]
    seen = []
    hook = layer.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(rows)
    hook.remove()
    x = seen[0].flatten(0, 1).unflatten(1, (12, 10))  # (N, H, C)
    output = layer.o_proj.weight.unflatten(1, (12, 10))  # (D, H, C)
    found = observe_activations(model, heads_of(model.config), rows)[2]
    expected = torch.einsum("nhc,dhc->nhd", x, output).norm(dim=-1).mean(dim=0)
    torch.testing.assert_close(found.score_H, expected, atol=1e-5, rtol=1e-4)
    flat = x.transpose(0, 1).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    torch.testing.assert_close(found.similarity_HH, cosine, atol=1e-5, rtol=1e-4)
    assert not layer.o_proj._forward_pre_hooks
